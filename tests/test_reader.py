"""The reader, held against asyncio's own: the same calls and the same data must give the same, error for error."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from aiohvsock.reader import HvStreamReader

from .messages.peers import in_callback, turns

Feed = Callable[[HvStreamReader, bytes], Awaitable[None]]


class FlowControl(asyncio.Transport):
    """Records what a reader asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def pause_reading(self) -> None:
        self.calls.append("pause")

    def resume_reading(self) -> None:
        self.calls.append("resume")


def new(limit: int = 2**16) -> tuple[HvStreamReader, FlowControl]:
    reader = HvStreamReader(limit=limit, loop=asyncio.get_running_loop())
    transport = FlowControl()
    reader.set_transport(transport)
    return reader, transport


async def as_a_protocol(reader: HvStreamReader, data: bytes) -> None:
    await in_callback(lambda: reader.receive(data))


async def as_anybody(reader: HvStreamReader, data: bytes) -> None:
    reader.feed_data(data)


@pytest.fixture(params=[as_a_protocol, as_anybody])
def feed(request: pytest.FixtureRequest) -> Feed:
    """The two ways in which data comes."""
    way: Feed = request.param
    return way


# -- a random conversation ---------------------------------------------------------------------------------

SEPARATORS = [b"\n", b"ab", b"aab", b""]


def conversation(dice: random.Random) -> list[tuple[str, Any]]:
    """Return what to do with a reader, in turn."""
    steps: list[tuple[str, Any]] = []
    for _ in range(dice.randrange(1, 30)):
        if dice.random() < 0.5:
            size = dice.choice([0, 1, 2, 3, 5, 8, 20, 60])
            steps.append(("feed", bytes(dice.choices(b"ab\n", weights=[4, 4, 1], k=size))))
        else:
            method = dice.choice(["read", "read", "readexactly", "readexactly", "readuntil", "readline"])
            argument: Any = {
                "read": dice.choice([0, 1, 2, 5, 100]),
                "readexactly": dice.choice([-1, 0, 1, 2, 5, 8, 30]),
                "readuntil": dice.choice(SEPARATORS),
                "readline": None,
            }[method]
            steps.append((method, argument))
            if dice.random() < 0.1:
                steps.append(("cancel", None))
    steps.append(("eof", None))
    steps += [("readline", None), ("read", 3), ("read", -1), ("readexactly", 2), ("read", 1)]
    return steps


def outcome(task: asyncio.Task[bytes]) -> object:
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    if isinstance(error, asyncio.IncompleteReadError):
        return type(error), error.partial, error.expected
    if isinstance(error, asyncio.LimitOverrunError):
        return type(error), error.consumed, str(error)
    return task.result() if error is None else (type(error), str(error))


async def hold(reader: asyncio.StreamReader, steps: list[tuple[str, Any]], feed: Feed | None) -> list[object]:
    """Do it, and return what came of each step. One read waits at a time; a second is tried, and refused."""
    outcomes: list[object] = []
    reading: asyncio.Task[bytes] | None = None
    for step, argument in steps:
        if step == "feed":
            if feed is not None and argument:
                assert isinstance(reader, HvStreamReader)
                await feed(reader, argument)
            else:
                reader.feed_data(argument)
        elif step == "eof":
            reader.feed_eof()
        elif step == "cancel":
            if reading is not None:
                reading.cancel()
        else:
            call: Coroutine[Any, Any, bytes] = getattr(reader, step)(
                *(() if argument is None else (argument,))
            )
            task = asyncio.create_task(call)
            await turns()
            if reading is None or task.done():
                outcomes.append(("at once", outcome(task)) if task.done() else "waits")
                if not task.done():
                    reading = task
            else:
                raise AssertionError("two tasks wait")
        await turns()
        if reading is not None and reading.done():
            outcomes.append(("later", outcome(reading)))
            reading = None
        outcomes.append((step, reader.at_eof()))
    assert reading is None
    return outcomes


@pytest.mark.parametrize("limit", [4, 20, 2**16])
async def test_it_does_what_asyncios_does(limit: int, feed: Feed) -> None:
    for seed in range(40):
        steps = conversation(random.Random(seed))
        theirs = asyncio.StreamReader(limit=limit)
        theirs.set_transport(FlowControl())
        ours, _ = new(limit)
        assert await hold(ours, steps, feed) == await hold(theirs, steps, None), f"seed {seed}: {steps}"


# -- what is its own ---------------------------------------------------------------------------------------


async def test_a_waiting_task_runs_on_inside_the_callback() -> None:
    reader, _ = new()
    task = asyncio.create_task(reader.readexactly(4))
    await turns()

    def callback() -> None:
        reader.receive(b"1234")
        assert task.done()

    await in_callback(callback)
    assert await task == b"1234"


async def test_what_came_in_one_piece_is_not_copied(feed: Feed) -> None:
    reader, _ = new()
    piece = bytes(range(256))
    await feed(reader, piece)
    assert await reader.read(256) is piece


async def test_cancelled_after_data_came_and_before_it_ran() -> None:
    reader, _ = new()
    task = asyncio.create_task(reader.read(10))
    await turns()
    reader.feed_data(b"data")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await reader.read(10) == b"data"


async def test_an_error_while_a_task_waits() -> None:
    reader, _ = new()
    for read in (reader.read(5), reader.readexactly(5), reader.readuntil(b"x"), reader.readline()):
        reader._exception = None
        task = asyncio.create_task(read)
        await turns()
        reader.set_exception(ConnectionResetError("gone"))
        with pytest.raises(ConnectionResetError, match="gone"):
            await task


# -- flow control ------------------------------------------------------------------------------------------


async def test_more_than_twice_the_limit_stops_the_peer(feed: Feed) -> None:
    reader, transport = new(limit=10)
    await feed(reader, bytes(20))
    assert transport.calls == []
    await feed(reader, bytes(1))
    assert transport.calls == ["pause"]
    await feed(reader, bytes(5))  # what was under way
    assert transport.calls == ["pause"]
    await reader.readexactly(15)
    assert transport.calls == ["pause"]
    await reader.readexactly(1)
    assert transport.calls == ["pause", "resume"]


async def test_one_large_piece_stops_the_peer_until_it_is_read(feed: Feed) -> None:
    reader, transport = new(limit=10)
    await feed(reader, bytes(30))
    assert transport.calls == ["pause"]
    await reader.readexactly(19)
    assert transport.calls == ["pause"]
    await reader.readexactly(1)
    assert transport.calls == ["pause", "resume"]


async def test_a_task_that_waits_for_more_than_the_limit_gets_it(feed: Feed) -> None:
    reader, transport = new(limit=10)
    task = asyncio.create_task(reader.readexactly(100))
    for _ in range(10):
        await turns()
        assert not task.done()
        await feed(reader, bytes(10))
    assert await task == bytes(100)
    if feed is as_a_protocol:
        assert transport.calls == []
    else:
        assert transport.calls.count("pause") == transport.calls.count("resume")


async def test_a_task_that_waits_for_more_than_there_is_room_for_lets_the_peer_go_on(feed: Feed) -> None:
    reader, transport = new(limit=10)
    await feed(reader, bytes(30))
    task = asyncio.create_task(reader.readexactly(40))
    await turns()
    assert transport.calls == ["pause", "resume"]
    await feed(reader, bytes(10))
    assert await task == bytes(40)


async def test_a_task_that_takes_all_that_comes_never_stops_the_peer() -> None:
    reader, transport = new(limit=10)

    async def take() -> int:
        size = 0
        while data := await reader.read(1000):
            size += len(data)
        return size

    task = asyncio.create_task(take())
    await turns()
    for _ in range(10):
        await as_a_protocol(reader, bytes(1000))
    reader.feed_eof()
    assert await task == 10_000
    assert transport.calls == []
