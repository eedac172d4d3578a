"""``python -m tests.fuzz``: fuzzes, or shows what an input does that was found."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .findings import minimised, replay
from .inputs import TARGETS, load

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "fuzz"

# Bytes of an input; seconds for one; MiB for all of it.
LONGEST, SLOWEST, LARGEST = 2048, 10, 1024


def fuzz(name: str, seconds: int, corpus: Path) -> bool:
    """Fuzz one target; returns whether nothing was found."""
    findings, seeds, log = CACHE / "findings" / name, CACHE / "seeds" / name, CACHE / f"{name}.log"
    shutil.rmtree(seeds, ignore_errors=True)
    for directory in (corpus, findings, seeds):
        directory.mkdir(parents=True, exist_ok=True)
    for seed in load(name).seeds():
        (seeds / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    with log.open("wb") as out:
        command = [
            *(sys.executable, "-m", f"{__package__}.engine", name),
            *(f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-timeout={SLOWEST}"),
            *(f"-rss_limit_mb={LARGEST}", f"-artifact_prefix={findings}/", "-print_final_stats=1"),
            # What was found before comes along, until it is mended.
            *map(str, (corpus, seeds, findings)),
        ]
        code = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, check=False).returncode
    said = log.read_text("utf-8", "replace")
    runs = re.search(r"stat::number_of_executed_units: *(\d+)", said)
    print(f"{name}: {runs[1] if runs else 'no'} inputs in {seconds} s at most, log in {log}")
    if not code:
        return True
    kept = re.search(r"Test unit written to (.+)", said)
    if kept is None:
        print(f"{name}: it ended with {code}:\n{said[-2000:]}")
        return False
    found = Path(kept[1])
    if found.name.startswith("crash-"):
        small = minimised(load(name), found.read_bytes())
        found = found.with_name(hashlib.sha1(small).hexdigest()[:12])
        found.write_bytes(small)
        replay(load(name), small, print)
    print(f"{name}: a finding. Show it again with: python -m tests.fuzz {name} {found}")
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", choices=TARGETS, help="all, if none is named")
    parser.add_argument("file", nargs="*", type=Path, help="inputs to show, instead of fuzzing")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (%(default)s)")
    parser.add_argument(
        "--corpus", type=Path, help="where inputs that reach more are kept (.cache/fuzz/corpus)"
    )
    options = parser.parse_args(arguments)
    if options.file:
        target = load(options.target)
        failures = [replay(target, file.read_bytes(), print) for file in options.file]
        return int(any(failures))
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is missing (try: pip install --group fuzz, on Linux on x86-64)")
    corpus: Path = options.corpus or CACHE / "corpus"
    names = [options.target] if options.target else TARGETS
    passed = [fuzz(name, options.seconds, corpus / name) for name in names]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
