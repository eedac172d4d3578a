from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, Self, TypeVar

import pytest

import aiohvsock
from aiohvsock import Retry, VsockAddress

from ...conftest import LOOPS
from ..guest import Guest
from . import agent

T = TypeVar("T")

SERVED = re.compile(agent.SERVED.format(r"^(\S+)", r"(\d+)"), re.MULTILINE)


class Agent:
    """The guest's agent on the loop that the test is on, and the way to give it orders."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._base = agent.PORTS[
            "uvloop" if "uvloop" in type(asyncio.get_running_loop()).__module__ else "asyncio"
        ]

    def address(self, offset: int) -> VsockAddress:
        return VsockAddress(self.guest.cid, self._base + offset)

    async def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        async with aiohvsock.connect(self.address(agent.CONTROL), retry=Retry(max_delay=0.2)) as connection:
            await connection.send(json.dumps({"do": do, **arguments}).encode())
            answer: dict[str, Any] = json.loads(await connection.recv())

        return answer

    async def tell(self, do: str, **arguments: Any) -> Any:
        """Give an order that cannot fail, and return its result."""
        answer = await self.ask(do, **arguments)
        assert "result" in answer, answer

        return answer["result"]


class BothLoops:
    """Every loop, each in a thread of its own, for what they go through together: a boot takes seconds."""

    def __init__(self, loops: Sequence[asyncio.AbstractEventLoop]) -> None:
        self._loops = loops

    def run(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Sequence[Any]) -> list[T]:
        """Run a coroutine function on every loop at once; each of `arguments` has one for each loop."""
        futures = [
            asyncio.run_coroutine_threadsafe(function(*row), loop)
            for loop, *row in zip(self._loops, *arguments, strict=True)
        ]
        return [future.result() for future in futures]


@pytest.fixture(scope="session")
def machine() -> Iterator[Guest]:
    """The guest, which may be off: booting it takes seconds, so all tests share it."""
    with Guest([sys.executable, "-m", agent.__name__]) as guest:
        yield guest


@pytest.fixture
def guest(machine: Guest) -> Guest:
    """The guest, booted, with its agents ready."""
    if not machine.running:
        machine.start()
    for name in agent.PORTS:
        machine.wait_for_output(agent.READY.format(name))

    return machine


@pytest.fixture
async def guest_agent(guest: Guest) -> AsyncIterator[Agent]:
    yield Agent(guest)


@pytest.fixture
def both_loops() -> Iterator[BothLoops]:
    with ExitStack() as stack:
        yield BothLoops([stack.enter_context(LoopThread(factory)).loop for factory in LOOPS.values()])


class LoopThread:
    """An event loop that runs in a thread of its own."""

    loop: asyncio.AbstractEventLoop

    def __init__(self, factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._factory = factory
        self._started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        self.loop, self._stop = self._started.result()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        async def main() -> None:
            stop = asyncio.Event()
            self._started.set_result((asyncio.get_running_loop(), stop))
            await stop.wait()

        with asyncio.Runner(debug=True, loop_factory=self._factory) as runner:
            runner.run(main())


def served(guest: Guest) -> list[tuple[int, str]]:
    """The numbers that the guest has served in all its boots, and by which service: what its console says."""
    return [(int(number), name) for name, number in SERVED.findall(guest.history)]
