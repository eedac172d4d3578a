"""The program in `c/`, compiled when first needed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["build"]

SOURCES = Path(__file__).with_name("c")
CACHE = SOURCES.parent.parent / ".cache" / "bench"
FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra")


def build(scratch: Path) -> Path:
    """Return the compiled baseline: from the cache, or new; in `scratch` when the repository can't be written.

    Raises:
        RuntimeError: there is no C compiler, or it failed.
    """
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("the baseline needs a C compiler: install gcc, or name one in CC")

    sources = sorted(SOURCES.glob("*.c"))
    identity = "\0".join((compiler, *FLAGS)).encode()
    for file in (*sources, *sorted(SOURCES.glob("*.h"))):
        identity += file.name.encode() + file.read_bytes()
    name = f"baseline-{hashlib.sha256(identity).hexdigest()[:16]}"
    if (CACHE / name).exists():
        return CACHE / name

    directory = CACHE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError:
        directory = scratch

    # Renamed into place, so that two runs at once never see half a program.
    unfinished = directory / f"{name}.{os.getpid()}"
    command = [*compiler.split(), *FLAGS, "-o", str(unfinished), *map(str, sources)]
    result = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
    return unfinished.rename(directory / name)
