"""Asking all who may know of machines, and putting together what they say.

================  =========================  ========================================================
source            right                      knows
================  =========================  ========================================================
``wsl``           none                       the machine of this user's WSL 2, while it runs
``hcs``           Hyper-V Administrators     every machine that runs, Hyper-V's by their ids only
``powershell``    Hyper-V Administrators     Hyper-V's machines by name, those that are off too
``processes``     none                       the guests of a Linux host that run
================  =========================  ========================================================
"""

from __future__ import annotations

import asyncio
import errno
import shutil
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import NamedTuple

from .._log import logger
from ..exceptions import HvUnsupportedError
from ._asking import NoAnswer
from ._guests import ask_processes
from ._hyperv import ask_hcs, ask_powershell
from ._machine import Answer, Machine, Source, guid
from ._wsl import ask_wsl

__all__ = ["SOURCES", "Options", "Survey", "on_hyperv", "survey"]

SOURCES: dict[Source, Callable[[], Awaitable[Answer]]] = {
    "wsl": ask_wsl,
    "hcs": ask_hcs,
    "powershell": ask_powershell,
    "processes": ask_processes,
}
"""In the order of the rights it takes to ask."""

_BY_RIGHT: tuple[Source, ...] = ("wsl", "hcs", "powershell")

# Whose word counts for a machine that several know: who gives it the name people know, and the fuller state.
_BY_WORD: tuple[Source, ...] = ("powershell", "wsl", "hcs")


def on_hyperv() -> bool:
    """Tell whether Hyper-V's machines can be asked for: on Windows, and in a WSL distribution that has wslinfo."""
    return sys.platform == "win32" or shutil.which("wslinfo") is not None


class Options(NamedTuple):
    """How to ask: the keywords of :func:`~aiohvsock.hyperv.list_machines`."""

    max_age: float
    timeout: float | None
    sources: tuple[Source, ...]

    @classmethod
    def checked(cls, max_age: float, timeout: float | None, sources: Iterable[Source] | None) -> Options:
        if not max_age >= 0:
            raise ValueError(f"max_age must be a number of seconds, or 0, not {max_age!r}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, or None, not {timeout!r}")
        if sources is None:
            return cls(max_age, timeout, _BY_RIGHT if on_hyperv() else ("processes",))
        wanted = list(sources)
        if not wanted or any(source not in SOURCES for source in wanted):
            raise ValueError(f"sources must be some of {', '.join(SOURCES)}, or None, not {sources!r}")
        return cls(max_age, timeout, tuple(source for source in SOURCES if source in wanted))


class Survey:
    """What all who were asked know together."""

    def __init__(self, outcomes: Mapping[Source, Answer | NoAnswer]) -> None:
        answers = {source: each for source, each in outcomes.items() if isinstance(each, Answer)}
        self.answered = bool(answers)
        self.stopped = [name for answer in answers.values() for name in answer.stopped]
        self.failures = {source: each for source, each in outcomes.items() if isinstance(each, NoAnswer)}
        known: dict[uuid.UUID | None, list[Machine]] = {}
        for source in _BY_WORD:
            for machine in answers[source].machines if source in answers else ():
                known.setdefault(machine.vm_id, []).append(machine)
        # Of processes, each has a machine of its own, whatever ids they were given.
        processes = answers["processes"].machines if "processes" in answers else []
        self.machines = sorted([*map(_merged, known.values()), *processes], key=_order)

    def excuses(self) -> str:
        return "; ".join(f"{source}: {error}" for source, error in self.failures.items())


def _order(machine: Machine) -> tuple[str, str, str, int]:
    return machine.name.casefold(), str(machine.vm_id or ""), machine.socket or "", machine.cid or 0


async def survey(options: Options) -> Survey:
    """Ask them, all at once.

    Raises:
        HvUnsupportedError: there is nobody to ask on this system.
    """
    if "processes" not in options.sources and not on_hyperv():
        raise HvUnsupportedError(
            errno.EAFNOSUPPORT,
            f"{', '.join(options.sources)} can be asked on the Windows host of Hyper-V, or in a WSL distribution that has "
            'wslinfo; a Linux host dials its guests by their CID (vsock://3:2761), and finds them with sources=["processes"]',
        )
    outcomes: dict[Source, Answer | NoAnswer] = {}

    async def ask(*sources: Source) -> None:
        for source in sources:
            if source == "powershell" and getattr(outcomes.get("hcs"), "denied", False):
                # It would take two seconds to say no as well.
                outcomes[source] = NoAnswer("it takes the same right", denied=True)
            elif source in options.sources:
                outcomes[source] = await _ask(source, options)

    async with asyncio.TaskGroup() as group:
        group.create_task(ask("wsl"))
        group.create_task(ask("hcs", "powershell"))
        group.create_task(ask("processes"))
    found = Survey({source: outcomes[source] for source in options.sources})
    for source, error in found.failures.items():
        logger.debug("machines: %s: %s", source, error)
    return found


def _merged(accounts: Sequence[Machine]) -> Machine:
    """Return one machine of what several say about it, the best first."""
    names: dict[str, str] = {}
    for machine in accounts:
        for name in (machine.name, *machine.aliases):
            if guid(name) != machine.vm_id:
                names.setdefault(name.casefold(), name)
    first, *others = names.values() or [accounts[0].name]
    return replace(
        accounts[0],
        name=first,
        state=next((machine.state for machine in accounts if machine.state), None),
        owner=next((machine.owner for machine in accounts if machine.owner), None),
        aliases=tuple(others),
    )


class _Question:
    """One source being asked, once for all who want to know at that moment."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._started = monotonic()
        self._loop = asyncio.get_running_loop()
        self._waiting = 0
        self._task = self._loop.create_task(self._ask(), name=f"aiohvsock: {source}")

    async def _ask(self) -> Answer | NoAnswer:
        try:
            return await SOURCES[self.source]()
        except NoAnswer as error:
            return error
        except Exception as error:
            # One source is not to spoil the others.
            logger.warning("asking %s for machines failed", self.source, exc_info=True)
            return NoAnswer(repr(error))

    def serves(self, max_age: float) -> bool:
        """Tell whether what is asked now may be answered by this."""
        if monotonic() - self._started >= max_age:
            return False
        if self._task.done():
            return not self._task.cancelled()
        return self._waiting > 0 and self._loop is asyncio.get_running_loop()

    async def answer(self) -> Answer | NoAnswer:
        self._waiting += 1
        try:
            return await asyncio.shield(self._task)
        finally:
            self._waiting -= 1
            if not self._waiting and not self._task.done():
                self._task.cancel()
                await asyncio.wait([self._task])


# Of this process, whatever the loop: what is done can be read by any.
_latest: dict[Source, _Question] = {}


async def _ask(source: Source, options: Options) -> Answer | NoAnswer:
    question = _latest.get(source)
    if question is None or not question.serves(options.max_age):
        question = _latest[source] = _Question(source)
    try:
        async with asyncio.timeout(options.timeout):
            return await question.answer()
    except TimeoutError:
        return NoAnswer(f"no answer within {options.timeout:g} s")
