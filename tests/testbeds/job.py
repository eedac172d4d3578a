"""A command to be run in a testbed: handed over as a shell script, its output and exit status read back from a console.

The machine's own exit status says nothing about the command, so the script ends with a verdict: a random token and the
command's status, on the same line as its output.
"""

from __future__ import annotations

import argparse
import os
import secrets
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO

__all__ = [
    "DEFAULT_TIMEOUT",
    "FAILED",
    "MISSING",
    "TIMED_OUT",
    "Job",
    "MissingTool",
    "Verdict",
    "main",
    "supervise",
]

HERE = Path(__file__).parent

# Exit statuses of the testbed itself, where the command has none to give.
FAILED = 1
MISSING = 2
TIMED_OUT = 124  # timeout(1)'s

DEFAULT_TIMEOUT = 900.0

PASSED_ON = ("CI", "HOME", "LANG", "NO_COLOR", "FORCE_COLOR", "PATH", "TERM", "TZ", "VIRTUAL_ENV")
PASSED_ON_PREFIXES = ("AIOHVSOCK_", "COVERAGE_", "HYPOTHESIS_", "LC_", "PYTEST_", "PYTHON")


class MissingTool(Exception):
    """Something is not installed; the message is the command that installs it."""

    def __init__(self, what: str, *packages: str) -> None:
        super().__init__(f"{what} is missing; try: apt-get install {' '.join(packages)}")


def environment_passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    passed = {
        name: value
        for name, value in environment.items()
        if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
    }
    if not sys.stdout.isatty():
        passed["TERM"] = "dumb"  # the console inside is a terminal whatever we write to

    return passed


@dataclass(frozen=True, slots=True)
class Job:
    """A command, where it runs and with what; `testbed` is what it finds in AIOHVSOCK_TESTBED."""

    command: Sequence[str]
    testbed: str
    busybox: str
    output: str
    directory: Path = field(default_factory=Path.cwd)
    environment: Mapping[str, str] = field(default_factory=lambda: environment_passed_on(os.environ))
    writable: Sequence[Path] = ()
    token: str = field(default_factory=lambda: f"verdict-{secrets.token_hex(16)}")

    def script(self, share_writable: Callable[[Path], str]) -> str:
        """The script for process 1 once the host's tree is its root; `share_writable` gives the command that mounts a directory."""
        environment = {**self.environment, "AIOHVSOCK_TESTBED": self.testbed}
        assignments = " ".join(shlex.quote(f"{name}={value}") for name, value in environment.items())
        command = shlex.join(self.command)
        mounts = [share_writable(path.resolve()) for path in self.writable]

        return "\n".join(
            [
                variables(
                    busybox=self.busybox,
                    output=self.output,
                    token=self.token,
                    hostname=self.testbed,
                    private_tmp="yes" if self.leaves_tmp_alone() else "",
                ),
                f"share_writable() {{ :; {' '.join(f'{mount};' for mount in mounts)} }}",
                # `exec` so that a signal that ends the command is seen in its status.
                f'job() {{ ( cd {shlex.quote(str(self.directory))} && exec "$busybox" env -i {assignments} {command} ); }}',
                (HERE / "inside.sh").read_text(),
            ]
        )

    def leaves_tmp_alone(self) -> bool:
        """Whether an empty /tmp would hide nothing that the command needs."""
        needed = [self.directory, Path(sys.prefix), Path(__file__), *self.writable]

        return not any(path.resolve().is_relative_to("/tmp") for path in needed)


def variables(**values: str) -> str:
    return "\n".join(f"{name}={shlex.quote(value)}" for name, value in values.items())


class Verdict:
    """Takes a console's bytes, gives back the command's output and keeps its status."""

    def __init__(self, token: str) -> None:
        self.status: int | None = None
        self._token = token.encode()
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        if self.status is not None:
            return b""

        data = self._held + data
        start = data.find(self._token)
        if start < 0:
            start = len(data) - self._possible_start(data)
        elif (end := data.find(b"\n", start)) >= 0:
            self.status = int(data[start + len(self._token) : end])

        output, self._held = data[:start], data[start:]
        return output

    def rest(self) -> bytes:
        """What was held back as the possible start of a verdict that never came."""
        return b"" if self.status is not None else self._held

    def _possible_start(self, data: bytes) -> int:
        """The length of the longest end of `data` with which a verdict may begin."""
        longest = min(len(data), len(self._token) - 1)

        return next(size for size in range(longest, -1, -1) if data.endswith(self._token[:size]))


def supervise(
    machine: subprocess.Popen[bytes],
    console: IO[bytes],
    token: str,
    *,
    log: Path,
    timeout: float = DEFAULT_TIMEOUT,
    output: BinaryIO | None = None,
    needed: int | None = None,
) -> int:
    """Pass the command's output on until its verdict, end the machine with its whole process group, and return the status.

    `console` is the reading end of the command's output, `log` the file with what the machine itself said. The machine must
    lead its own process group. `needed` is the pidfd of another process, without which no verdict is to be believed.
    """
    output = sys.stdout.buffer if output is None else output
    verdict = Verdict(token)
    deadline = time.monotonic() + timeout
    exited = os.pidfd_open(machine.pid)

    try:
        with selectors.DefaultSelector() as selector:
            selector.register(console, selectors.EVENT_READ)
            selector.register(exited, selectors.EVENT_READ)
            if needed is not None:
                selector.register(needed, selectors.EVENT_READ)

            while verdict.status is None:
                ready = {key.fd for key, _ in selector.select(deadline - time.monotonic())}
                if needed in ready:
                    break
                if console.fileno() in ready:
                    # The console outlives the machine's main process where a helper of it still has the other end.
                    if data := console.read(2**16):
                        output.write(verdict.feed(data))
                        output.flush()
                        continue
                    break
                if exited in ready or time.monotonic() >= deadline:
                    break
    finally:
        os.close(exited)
        end(machine)

    if verdict.status is not None:
        return verdict.status

    output.write(verdict.rest())
    output.flush()
    if time.monotonic() >= deadline:
        print(f"\ntestbed: no verdict within {timeout:g} s, killed", file=sys.stderr)
        return TIMED_OUT

    tail = log.read_text(errors="replace").splitlines()[-40:]
    print(
        "\ntestbed: the machine ended without a verdict; its console ended with:",
        *tail,
        sep="\n  ",
        file=sys.stderr,
    )
    return FAILED


def end(machine: subprocess.Popen[bytes]) -> None:
    """Kill the machine's process group; `machine` may have been waited for, its group may have members left."""
    try:
        os.killpg(machine.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass

    machine.wait()


def main(prog: str, run: Callable[..., int], *, memory: str, arguments: Sequence[str] | None = None) -> int:
    """The command line that the testbeds share."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"{(run.__doc__ or '').splitlines()[0]} Exit status: the command's; {FAILED} when the machine ended without "
        f"a verdict, {MISSING} when something is not installed, {TIMED_OUT} after the timeout.",
    )
    parser.add_argument(
        "--timeout", type=float, default=DEFAULT_TIMEOUT, metavar="SECONDS", help="default: %(default)g"
    )
    parser.add_argument("--memory", default=memory, metavar="SIZE", help="default: %(default)s")
    parser.add_argument(
        "--writable",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="share this directory read-write; everything else that is written is gone with the machine",
    )
    parser.add_argument("command", nargs="+", metavar="-- COMMAND")
    options = parser.parse_args(arguments)

    # So that whoever ends us ends the machine, too: the default would skip the clean-up.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run(options.command, timeout=options.timeout, memory=options.memory, writable=options.writable)
    except MissingTool as exc:
        print(f"{prog}: {exc}", file=sys.stderr)
        return MISSING
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
