"""``aiohvsock doctor``: look at this machine, and print a report to paste into a bug.

It runs a service and its client over each kind of socket that is safe to dial here, and changes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

from ...exceptions import HvError
from ...hyperv._asking import in_thread
from ..output import say
from .connecting import Making, dial, echo, hybrid
from .findings import Check, Finding, Findings
from .installed import loops, versions

__all__ = ["add_parser"]

# Seconds for each check.
_LIMIT = 30.0

_FAMILY = "address family"
_LOOPBACK = "loopback echo"
_BUG = "paste this report into a bug"


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="look at this machine, and print a report to paste into a bug",
        description=__doc__,
        epilog="The exit status is 1 if something failed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--address", help="dial this address too, and send nothing: vsock://host:2761")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    report: list[tuple[str, Finding]] = []
    for check in _checks(arguments.address):
        for finding in _examine(check):
            if not arguments.json:
                if not report or report[-1][0] != check.section:
                    _say(check.section)
                _print(finding)
            report.append((check.section, finding))
    failed = [f"{section}, {finding.name}" for section, finding in report if finding.status == "fail"]
    verdict = _verdict([finding for _, finding in report], failed)
    if arguments.json:
        found = [{"section": section, **dataclasses.asdict(finding)} for section, finding in report]
        say(json.dumps({"verdict": verdict, "failed": failed, "findings": found}, indent=2))
    else:
        _say(f"verdict: {verdict}")
    return 1 if failed else 0


def _checks(address: str | None) -> Iterator[Check]:
    yield Check("versions", "versions", versions)
    if sys.platform == "linux":
        yield from _linux()
    elif sys.platform == "win32":
        yield from _windows()
    if hasattr(socket, "AF_UNIX") and sys.platform != "win32":
        yield from _echoes("hybrid vsock", hybrid)
    if address is not None:
        yield Check(f"address {address}", "connect", partial(dial, address))


def _linux() -> Iterator[Check]:
    from . import linux

    yield Check(_FAMILY, "AF_VSOCK", _reading(linux.family))
    yield Check(_FAMILY, "transports", _reading(linux.transports))
    yield Check(_FAMILY, "local CID", _reading(linux.device))
    if linux.has_loopback():
        yield from _echoes("AF_VSOCK", lambda: contextlib.nullcontext(linux.loopback_address))
    else:
        yield Check(_LOOPBACK, "AF_VSOCK", _reading(linux.no_loopback))


def _windows() -> Iterator[Check]:
    from . import windows

    yield Check(_FAMILY, "AF_HYPERV", _reading(windows.family))
    yield Check("host", "rights", _reading(windows.rights))
    yield Check("host", "services", _reading(windows.services))
    yield from _echoes("AF_HYPERV", lambda: contextlib.nullcontext(windows.loopback_address))


def _echoes(kind: str, making: Making) -> Iterator[Check]:
    for loop, factory in loops().items():
        name = f"{kind}, {loop}"
        yield Check(_LOOPBACK, name, partial(echo, name, making), factory)


def _reading(work: Callable[[], Findings]) -> Callable[[], Awaitable[Findings]]:
    return lambda: in_thread(work, name="doctor")


def _examine(check: Check) -> Findings:
    """Return what a check finds; that it broke is a finding too."""
    try:
        with asyncio.Runner(loop_factory=check.loop_factory) as runner:
            return runner.run(_limited(check))
    except HvError as error:
        # It says what to check itself.
        return [Finding("fail", check.name, str(error))]
    except Exception as error:
        return [Finding("fail", check.name, f"{type(error).__name__}: {error}", _BUG)]


async def _limited(check: Check) -> Findings:
    try:
        async with asyncio.timeout(_LIMIT) as limit:
            return await check.look()
    except TimeoutError:
        if not limit.expired():
            raise
        return [Finding("fail", check.name, f"no end to it within {_LIMIT:g} s", _BUG)]


def _print(finding: Finding) -> None:
    _say(f"  {finding.status:<4}  {finding.name}: {finding.text}")
    if finding.cure:
        _say(f"        {finding.cure}")


def _say(text: str) -> None:
    # One line, whatever a name or an address has in it; and at once, or a check that hangs would hide what was found.
    say("".join(each if each.isprintable() else repr(each)[1:-1] for each in text))


def _verdict(findings: Sequence[Finding], failed: Sequence[str]) -> str:
    counts = {status: sum(each.status == status for each in findings) for status in ("ok", "warn", "skip")}
    rest = f"{counts['ok']} ok, {counts['warn']} to know of, {counts['skip']} skipped"
    return f"{len(failed)} failed ({'; '.join(failed)}), {rest}" if failed else f"nothing failed: {rest}"
