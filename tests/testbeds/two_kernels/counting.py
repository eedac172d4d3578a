"""A client that counts up, come what may, and the service that answers it: each number is sent once.

So whatever happens to the machine or the service, a number was answered, and then it was served once; or the
client was told that it may not have been delivered, and then it was served once at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import aiohvsock
from aiohvsock import ConnectionClosed, MessageConnection, Retry, VsockAddress

__all__ = ["PATIENCE", "Client", "Journal", "Service"]

# Seconds for what a guest that runs does at once, on a machine that is as busy as can be.
PATIENCE = 60.0

# Numbers under way together, so that there is always something to be lost.
BURST = 3

# Of these, and more, to see that all is well.
ENOUGH = 4 * BURST

_numbers = itertools.count()  # never the same twice in one process: one log can serve all clients


class _Watched:
    """Something that tells when it has changed."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    async def until(self, condition: Callable[[], object], timeout: float = PATIENCE) -> None:
        """Wait until a condition holds that only this object can change; for one task at a time."""
        async with asyncio.timeout(timeout):
            while not condition():
                self._check()
                self._changed.clear()
                await self._changed.wait()

    def _check(self) -> None:
        """Raise an error if nothing will ever change again."""

    def _note(self) -> None:
        self._changed.set()


class Service(_Watched):
    """Answers each number with itself and a name.

    Args:
        name: tells this boot, and this start of the service, from all others.
        log: called with the name and the number before the answer.
    """

    def __init__(self, name: str, log: Callable[[str, int], None] = lambda name, number: None) -> None:
        super().__init__()
        self.name = name
        self.served: list[tuple[int, str]] = []
        self.ends: list[ConnectionClosed | None] = []
        self._log = log

    async def until_served(self) -> None:
        """Wait until some numbers more have come."""
        before = len(self.served)
        await self.until(lambda: len(self.served) >= before + ENOUGH)

    async def answer(self, connection: MessageConnection[bytes]) -> None:
        """Handle a connection."""
        try:
            async for message in connection:
                number = int(message)
                self.served.append((number, self.name))
                self._note()
                self._log(self.name, number)
                await connection.send(f"{number} {self.name}".encode())
        finally:
            self.ends.append(connection.end)
            self._note()


@dataclass
class Journal:
    """What became of each number."""

    asked: list[int] = field(default_factory=list)
    answered: list[tuple[int, str]] = field(default_factory=list)
    """With the name of who has answered."""
    reported: list[tuple[int, int | None]] = field(default_factory=list)
    """Those that may not have been delivered, as an error has told, with its code."""
    ends: list[tuple[str, int | None]] = field(default_factory=list)
    """How each connection ended: the class of the error, and its code."""

    @classmethod
    def parse(cls, fields: dict[str, list[Any]]) -> Journal:
        """The inverse of :func:`dataclasses.asdict`, after JSON has made lists of tuples."""
        return cls(
            fields.pop("asked"), **{name: [tuple(pair) for pair in pairs] for name, pairs in fields.items()}
        )

    @property
    def names(self) -> list[str]:
        """Who has answered, in order, and without repetitions."""
        return [name for name, _ in itertools.groupby(name for _, name in self.answered)]

    def check(self, served: Iterable[tuple[int, str]]) -> None:
        """Compare it with what was served, by whom."""
        served = list(served)
        times = Counter(number for number, _ in served)
        answered = [number for number, _ in self.answered]
        reported = [number for number, _ in self.reported]

        assert sorted(answered + reported) == self.asked  # each of them is one or the other, and once
        assert answered == sorted(answered)
        assert set(self.answered) <= set(served)  # by who has said so
        assert {times[number] for number in answered} <= {1}
        assert {times[number] for number in reported} <= {0, 1}


class Client(_Watched):
    """Counts up, through one connection after the other.

    Args:
        address: where the service listens.
        options: as :class:`aiohvsock.connect` has them.
    """

    def __init__(self, address: VsockAddress, **options: Any) -> None:
        super().__init__()
        self.journal = Journal()
        self._address = address
        self._options = {
            "retry": Retry(max_delay=0.5),
            "connect_timeout": 2.0,
            "open_timeout": 5.0,
            **options,
        }
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: self._note())

    async def stop(self) -> Journal:
        """Let it get the answers that are under way; then it closes its connection."""
        assert self._task is not None
        self._stopping = True
        async with asyncio.timeout(PATIENCE):
            await self._task

        return self.journal

    async def cancel(self) -> None:
        """End it at once, if it still runs."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])

    async def until_answered(self, name: str | None = None) -> None:
        """Wait for some answers more, if so wished from a service with that name."""
        answered = self.journal.answered
        before = len(answered)
        await self.until(lambda: sum(name in (None, whom) for _, whom in answered[before:]) >= ENOUGH)

    def _check(self) -> None:
        assert self._task is not None
        if self._task.done():
            self._task.result()
            raise AssertionError("the client has stopped")

    async def _run(self) -> None:
        async for connection in aiohvsock.connect(self._address, **self._options):
            try:
                while not self._stopping:
                    await self._count(connection)
                break
            except ConnectionClosed as end:
                self.journal.ends.append((type(end).__name__, end.code))
                self._note()

    async def _count(self, connection: MessageConnection[bytes]) -> None:
        burst = [next(_numbers) for _ in range(BURST)]
        under_way = set(burst)
        self.journal.asked += burst
        try:
            with contextlib.suppress(ConnectionClosed):
                for number in burst:
                    await connection.send(b"%d" % number)
            # Also where sending failed: answers may have come, and at last why.
            while under_way:
                answer, name = (await connection.recv()).decode().split()
                self.journal.answered.append((int(answer), name))
                under_way.discard(int(answer))
                self._note()
        except ConnectionClosed as end:
            self.journal.reported += [(number, end.code) for number in sorted(under_way)]
            raise
