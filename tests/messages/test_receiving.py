from __future__ import annotations

import asyncio
import logging
from contextvars import ContextVar
from typing import Any

import pytest

from aiohvsock import Address, ConnectionClosedOK, ConnectionLost, LocalProtocolError

from ..conftest import Pair
from .peers import (
    SCRATCH,
    Connection,
    Peer,
    Writes,
    catch,
    close,
    data,
    deliver,
    frame,
    hello,
    in_callback,
    joined,
    numbered,
    of_ours,
    pour,
    talking,
    turns,
    until,
)

variable: ContextVar[str] = ContextVar("variable", default="nobody's")


async def received(connection: Connection, count: int) -> None:
    """Wait until so many messages have come."""
    await until(lambda: connection.stats.messages_received == count)


# -- recv, recv_many, async for ----------------------------------------------------------------------------


async def test_one_after_the_other(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(data(b"", b"", b"x", b""))
        assert [await connection.recv() for _ in range(4)] == [b"", b"", b"x", b""]
        waiting = asyncio.create_task(connection.recv())
        await turns(2)
        await peer.send(data(b"later"))
        assert await waiting == b"later"


async def test_recv_many_returns_all_that_has_come(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        waiting = asyncio.create_task(connection.recv_many())
        await turns(2)
        await peer.send(data(b"1", b"2", b"3"))
        assert await waiting == [b"1", b"2", b"3"]

        # In several reads, of which some is taken already.
        for number in range(4, 10):
            await peer.send(data(b"%d" % number, b"and"))
            await received(connection, 3 + 2 * (number - 3))
        assert await connection.recv() == b"4"
        assert await connection.recv_many() == [
            b"and",
            *[m for n in range(5, 10) for m in (b"%d" % n, b"and")],
        ]
        waiting = asyncio.create_task(connection.recv_many())
        await turns(2)
        assert not waiting.done()
        await peer.send(data(b"end"))
        assert await waiting == [b"end"]


async def test_all_ways_of_receiving_between_each_other(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        expected = numbered(500, 700)

        async def speak() -> None:
            for start in range(0, 500, 10):
                await peer.send(data(*expected[start : start + 10]))
            await peer.send(close())

        speaking = asyncio.create_task(speak())
        got: list[bytes] = []
        while len(got) < 400:
            got.append(await connection.recv())
            async for message in connection:
                got.append(message)
                break
            got += await connection.recv_many()
            if len(got) % 3 == 0:
                await turns()
        got += [message async for message in connection]
        assert got == expected
        await speaking


async def test_one_byte_at_a_time(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        for each in data(b"hello", b"", b"x" * 100, b"end") + close(0, "done"):
            await peer.send(bytes([each]))
            await turns(2)
        assert [message async for message in connection] == [b"hello", b"", b"x" * 100, b"end"]
        with pytest.raises(ConnectionClosedOK, match="done"):
            await connection.recv()


async def test_many_tiny_frames_at_once(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        sending = asyncio.create_task(peer.send(data(*numbered(10_000))))
        assert [await connection.recv() for _ in range(10_000)] == numbered(10_000)
        await sending


async def test_a_large_message_is_received_where_it_stays(pair: Pair) -> None:
    size = 2**20
    async with talking(pair) as (connection, peer):
        whole = bytes(range(256)) * (size // 256)
        wire = data(b"small", whole, b"behind", whole[:-1], b"")
        await peer.send(wire[: 8 + 5 + 8 + 20_000])
        assert await connection.recv() == b"small"
        protocol = connection.transport.get_protocol()
        assert isinstance(protocol, asyncio.BufferedProtocol)
        assert len(memoryview(protocol.get_buffer(-1))) == size - 20_000
        sending = asyncio.create_task(peer.send(wire[8 + 5 + 8 + 20_000 :]))
        assert await connection.recv() == whole
        assert await connection.recv() == b"behind"
        assert await connection.recv() == whole[:-1]
        assert await connection.recv() == b""
        await sending


@pytest.mark.parametrize("size", [SCRATCH - 8, SCRATCH, SCRATCH + 1, 2**20])
@pytest.mark.parametrize("cut", [1, 7, 8, 9, 16_384 + 8, 100_000])
async def test_a_large_message_cut_anywhere(pair: Pair, size: int, cut: int) -> None:
    async with talking(pair) as (connection, peer):
        whole = bytes(range(251)) * (size // 251 + 1)
        messages = [b"before", whole[:size], b"", whole[1 : size + 1], b"after"]
        wire = data(*messages)
        await peer.send(wire[: 14 + cut])
        assert await connection.recv() == b"before"
        sending = asyncio.create_task(peer.send(wire[14 + cut :]))
        assert [await connection.recv() for _ in range(4)] == messages[1:]
        await sending


async def test_a_message_one_over_the_limit_is_not_received_and_those_before_it_are(pair: Pair) -> None:
    async with talking(pair, max_size=1000) as (connection, peer):
        await peer.send(data(bytes(1000), b"two", bytes(1001), b"never"))
        assert [await connection.recv(), await connection.recv()] == [bytes(1000), b"two"]
        for _ in range(2):
            with pytest.raises(ConnectionLost, match="over the limit of 1000") as caught:
                await connection.recv()
            assert caught.value.code == 4
        assert (await peer.closed())[0] == 4


# -- one at a time -----------------------------------------------------------------------------------------


async def test_a_second_receiver_is_refused_and_neither_is_harmed(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        first = asyncio.create_task(connection.recv())
        await turns()
        for call in (connection.recv(), connection.recv_many(), anext(connection)):
            with pytest.raises(LocalProtocolError, match="another task is in recv"):
                await call
        await peer.send(data(b"hello", b"there"))
        assert await first == b"hello"
        assert await connection.recv() == b"there"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await connection.recv()
        await peer.send(data(b"still here"))
        assert await connection.recv() == b"still here"


async def test_after_a_cancelled_receiver_another_may_receive(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        first = asyncio.create_task(connection.recv())
        await turns()
        first.cancel()
        await asyncio.wait([first])
        second = asyncio.create_task(connection.recv())
        await peer.send(data(b"hello"))
        assert await second == b"hello"


async def test_receivers_may_take_turns(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        lock = asyncio.Lock()
        got: list[bytes] = []

        async def receive() -> None:
            for _ in range(20):
                async with lock:
                    got.append(await connection.recv())

        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(receive())
            for message in numbered(100):
                await peer.send(data(message))
                await turns()
        assert got == numbered(100)


# -- the task that receives --------------------------------------------------------------------------------


@pytest.fixture(params=["C", "Python"])
def task_kind(request: pytest.FixtureRequest) -> Any:
    """Tasks of asyncio's C implementation, or of that in Python."""
    return asyncio.Task if request.param == "C" else asyncio.tasks._PyTask  # type: ignore[attr-defined]


async def test_the_receiving_task_is_itself(pair: Pair, task_kind: Any) -> None:
    async with talking(pair) as (connection, peer):
        seen: list[Any] = []

        async def receive() -> None:
            variable.set("the receiver's")
            while len(seen) < 3:
                seen.append((await connection.recv(), asyncio.current_task(), variable.get()))
            raise ZeroDivisionError

        task = task_kind(receive(), loop=asyncio.get_running_loop())
        await turns(2)
        reports = catch()
        for message in numbered(3):
            await peer.send(data(message))
            await turns(2)
        with pytest.raises(ZeroDivisionError):
            await task
        assert seen == [(message, task, "the receiver's") for message in numbered(3)]
        assert variable.get() == "nobody's"
        # What it raised was no affair of the reader's.
        assert reports == []
        await peer.send(data(b"still here"))
        assert await connection.recv() == b"still here"


async def test_what_the_receiving_task_may_do_right_away(pair: Pair, task_kind: Any) -> None:
    async with talking(pair) as (connection, peer), talking(pair) as (other, other_peer):
        done: list[str] = []

        async def receive() -> None:
            await connection.recv()
            connection.send_nowait(b"at once")
            await other.send(b"elsewhere")
            assert await connection.recv() == b"two"
            done.append("received again")
            assert await other.recv() == b"back"
            done.append("received elsewhere")
            await asyncio.sleep(0)
            await asyncio.create_task(asyncio.sleep(0))
            done.append("awaited something else")
            assert await connection.recv_many() == [b"three"]
            connection.start_closing(130, "enough")

        task = task_kind(receive(), loop=asyncio.get_running_loop())
        await turns(2)
        await peer.send(data(b"one"))
        assert await peer.messages(1) == [b"at once"]
        assert await other_peer.messages(1) == [b"elsewhere"]
        await peer.send(data(b"two"))
        await other_peer.send(data(b"back"))
        await until(lambda: len(done) == 3)
        await peer.send(data(b"three"))
        await task
        assert await peer.answer_close() == (130, "enough")
        await connection.wait_closed()


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_the_receiving_task_may_end_the_connection_right_away(
    pair: Pair, task_kind: Any, how: str
) -> None:
    async with talking(pair) as (connection, peer):
        reports = catch()

        async def receive() -> None:
            await connection.recv()
            if how == "close":
                await connection.close()
            else:
                connection.transport.abort()
                await connection.wait_closed()

        task = task_kind(receive(), loop=asyncio.get_running_loop())
        await turns(2)
        await peer.send(data(b"one", b"two"))
        if how == "close":
            assert await peer.answer_close() == (0, "")
        else:
            await peer.drained()
        await task
        assert await connection.recv() == b"two"
        with pytest.raises(ConnectionClosedOK if how == "close" else ConnectionLost):
            await connection.recv()
        assert reports == []


async def test_several_connections_in_one_gather_or_group(pair: Pair) -> None:
    async with talking(pair) as one, talking(pair) as two, talking(pair) as three:
        ends: list[tuple[Connection, Peer]] = [one, two, three]
        gathered = asyncio.gather(*(connection.recv() for connection, _ in ends))
        await turns(2)
        for number, (_, peer) in enumerate(ends):
            await peer.send(data(b"%d" % number))
        assert await gathered == [b"0", b"1", b"2"]

        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            tasks = [group.create_task(connection.recv_many()) for connection, _ in ends]
            await turns(2)
            for number, (_, peer) in enumerate(reversed(ends)):
                await peer.send(data(b"%d" % number))
        assert [task.result() for task in tasks] == [[b"2"], [b"1"], [b"0"]]

        # One that fails cancels the others, which lose nothing.
        async def fail() -> None:
            await ends[0][0].recv()
            raise ZeroDivisionError

        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                for connection, _ in ends[1:]:
                    group.create_task(connection.recv())
                await turns(2)
                await ends[0][1].send(data(b"x"))
        for connection, peer in ends:
            await peer.send(data(b"still here"))
            assert await connection.recv() == b"still here"


async def test_a_task_runs_on_in_the_same_turn_as_the_read(pair: Pair) -> None:
    """Else a short message would cost a turn of the loop more."""
    async with talking(pair) as (connection, peer):
        got: list[bytes] = []

        async def receive() -> None:
            async for message in connection:
                got.append(message)  # noqa: PERF401  # the steps are what is looked at

        task = asyncio.create_task(receive())
        await turns(2)

        def read() -> int:
            deliver(connection, data(b"one", b"two"))
            return len(got)

        assert await in_callback(read) == 2
        task.cancel()
        await asyncio.wait([task])
        await peer.send(close())


# -- on_message --------------------------------------------------------------------------------------------


async def test_the_callback_gets_each_message(pair: Pair) -> None:
    got: list[tuple[Connection, bytes]] = []
    async with talking(pair, on_message=lambda *each: got.append(each)) as (connection, peer):
        messages = [b"", b"x", bytes(300_000), *numbered(50)]
        await peer.send(data(*messages))
        await until(lambda: len(got) == len(messages))
        assert got == [(connection, message) for message in messages]
        for call in (connection.recv(), connection.recv_many(), anext(connection)):
            with pytest.raises(LocalProtocolError, match="go to on_message="):
                await call
        await connection.send(b"goes on")
        assert await peer.messages(1) == [b"goes on"]
        await peer.send(close())
        await peer.closed()
        peer.kill()
        await connection.wait_closed()
        with pytest.raises(ConnectionClosedOK):
            await connection.recv()


@pytest.mark.parametrize("together", [1, 3])
async def test_what_the_callback_raises_is_logged_and_closes(
    pair: Pair, together: int, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[bytes] = []

    def fail(connection: Connection, message: bytes) -> None:
        connection.send_nowait(b"before")
        got.append(message)
        raise ZeroDivisionError("a mistake")

    async with talking(pair, on_message=fail) as (connection, peer):
        reports = catch()
        await peer.send(data(*[b"secret"] * together))
        assert await peer.messages(1) == [b"before"]
        assert await peer.answer_close() == (5, "the handler failed")
        await connection.wait_closed()
        assert connection.end is not None
        assert connection.end.code == 5
        assert got == [b"secret"]
        assert reports == []
    (record,) = of_ours(caplog)
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)
    assert str(connection) in record.getMessage()
    assert "secret" not in record.getMessage()


async def test_the_callback_may_close(pair: Pair) -> None:
    got: list[bytes] = []

    def stop(connection: Connection, message: bytes) -> None:
        got.append(message)
        connection.send_nowait(b"last")
        connection.start_closing(200, "enough")

    async with talking(pair, on_message=stop) as (connection, peer):
        await peer.send(data(b"one", b"two", b"three"))
        assert await peer.messages(1) == [b"last"]
        await peer.send(data(b"four"))
        assert await peer.answer_close() == (200, "enough")
        await connection.wait_closed()
        assert got == [b"one"]


async def test_a_callback_on_both_sides(address: Address) -> None:
    heard: list[bytes] = []

    def answer(connection: Connection, message: bytes) -> None:
        number = int(message)
        heard.append(message)
        if number < 100:
            connection.send_nowait(b"%d" % (number + 1))
        else:
            connection.start_closing()

    async with joined(address, on_message=answer, server={"on_message": answer}) as (client, server):
        await client.send(b"0")
        await client.wait_closed()
        await server.wait_closed()
    assert heard == [b"%d" % number for number in range(101)]


async def test_a_callback_hears_what_came_with_the_hello(pair: Pair) -> None:
    got: list[bytes] = []
    async with talking(
        pair, hello() + data(b"early"), on_message=lambda connection, message: got.append(message)
    ):
        assert got == [b"early"]


async def test_who_answers_in_a_callback_reads_nothing_while_its_peer_does_not_read(
    pair: Pair, writes: Writes
) -> None:
    def answer(connection: Connection, message: bytes) -> None:
        connection.send_nowait(message)

    async with talking(pair, on_message=answer) as (connection, peer):
        message = bytes(1000)
        sent = await pour(connection, peer, data(message))
        assert connection.transport.get_write_buffer_size() < 2**20
        whole, part = divmod(sent, 1008)
        receiving = asyncio.create_task(peer.messages(whole + bool(part) + 1))
        await peer.send(data(message)[part:] if part else b"")
        await peer.send(data(b"end"))
        assert await receiving == [message] * (whole + bool(part)) + [b"end"]
        assert connection.transport.is_reading()


async def test_a_callback_that_is_cancelled_ends_its_connection_alone(pair: Pair) -> None:
    """CancelledError is no Exception: it is not logged as the callback's failure, but by the loop."""

    def cancel(connection: Connection, message: bytes) -> None:
        raise asyncio.CancelledError

    async with talking(pair, on_message=cancel) as (connection, peer):
        reports = catch()
        await peer.send(data(b"x"))
        await connection.wait_closed()
        assert isinstance(connection.end, ConnectionLost)
        assert isinstance(connection.end.__cause__, asyncio.CancelledError)
        assert len(reports) == 1


# -- what is no message ------------------------------------------------------------------------------------


async def test_frames_of_a_type_that_is_to_be_ignored(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        sending = asyncio.create_task(
            peer.send(frame(0x80), data(b"one"), frame(0xFF, bytes(2**20)), data(b"two"), frame(0x99, b"x"))
        )
        assert [await connection.recv(), await connection.recv()] == [b"one", b"two"]
        await sending
