from __future__ import annotations

import array
import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

from aiohvsock import ConnectionClosedOK, ConnectionLost, FrameTooLarge, LocalProtocolError

from ..conftest import Pair
from .peers import (
    PING,
    Connection,
    Peer,
    Writes,
    blocked_by,
    close,
    data,
    hello,
    numbered,
    pong,
    talking,
    turns,
    until,
)

HEADER = 8
GATHER = 64 * 1024
SEND_LIMIT = 2**20


async def settled(connection: Connection, writes: Writes) -> None:
    """Let the connection become as it is between two messages, with nothing written."""
    await turns(2)
    writes.of(connection)


# -- one write, now or soon --------------------------------------------------------------------------------


async def test_the_first_message_goes_straight_out_and_others_leave_together(
    pair: Pair, writes: Writes
) -> None:
    async with talking(pair) as (connection, peer):
        await settled(connection, writes)
        connection.send_nowait(b"first")
        assert writes.of(connection) == [HEADER + 5]
        for message in numbered(10):
            await connection.send(message)
        assert writes.of(connection) == []
        await turns()
        assert writes.of(connection) == [10 * (HEADER + 6)]
        assert await peer.messages(11) == [b"first", *numbered(10)]


async def test_after_a_read_the_next_message_goes_straight_out(pair: Pair, writes: Writes) -> None:
    async with talking(pair) as (connection, peer):
        for number in range(5):
            await peer.send(data(b"%d" % number))
            assert await connection.recv() == b"%d" % number
            writes.of(connection)
            await connection.send(b"answer")
            assert writes.of(connection) == [HEADER + 6]
            await connection.send(b"more")
            assert writes.of(connection) == []
            assert await peer.messages(2) == [b"answer", b"more"]


async def test_a_read_does_not_overtake_what_is_gathered(pair: Pair, writes: Writes) -> None:
    """Else what is sent after the read would go out before what was sent before it."""
    async with talking(pair) as (connection, peer):
        await settled(connection, writes)
        answered = asyncio.Event()

        async def answer() -> None:
            await connection.recv()
            connection.send_nowait(b"answer")
            answered.set()

        task = asyncio.create_task(answer())
        await turns(2)
        await peer.send(data(b"question"))
        connection.send_nowait(b"1")
        connection.send_nowait(b"2")
        await answered.wait()
        await task
        assert await peer.messages(3) == [b"1", b"2", b"answer"]


async def test_answers_to_what_came_together_leave_in_one_write(pair: Pair, writes: Writes) -> None:
    def answer(connection: Connection, message: bytes) -> None:
        connection.send_nowait(message.upper())
        connection.send_nowait(b"")

    async with talking(pair, on_message=answer) as (connection, peer):
        await settled(connection, writes)
        await peer.send(data(*[b"question"] * 20))
        assert await peer.messages(40) == [b"QUESTION", b""] * 20
        assert writes.of(connection) == [20 * (2 * HEADER + 8)]
        # And the next goes straight out again.
        connection.send_nowait(b"x")
        assert writes.of(connection) == [HEADER + 1]


@pytest.mark.parametrize("many", [False, True])
async def test_a_tasks_answers_to_what_came_together_leave_in_two(
    pair: Pair, writes: Writes, many: bool
) -> None:
    async with talking(pair) as (connection, peer):

        async def answer() -> None:
            if many:
                await connection.send_many(await connection.recv_many())
                return
            for _ in range(20):
                await connection.send(await connection.recv())

        task = asyncio.create_task(answer())
        await settled(connection, writes)
        await peer.send(data(*numbered(20)))
        await task
        assert await peer.messages(20) == numbered(20)
        assert len(writes.of(connection)) == (1 if many else 2)


async def test_many_small_messages_do_not_wait_for_the_turns_end(pair: Pair, writes: Writes) -> None:
    async with talking(pair) as (connection, peer):
        await settled(connection, writes)
        for message in numbered(200, 1000):
            connection.send_nowait(message)
        sizes = writes.of(connection)
        assert len(sizes) == 1 + 199 * 1014 // GATHER
        assert all(GATHER <= size < GATHER + 1014 for size in sizes[1:])
        receiving = asyncio.create_task(peer.messages(200))
        assert await receiving == numbered(200, 1000)


async def test_a_large_message_takes_what_was_gathered_along(pair: Pair, writes: Writes) -> None:
    async with talking(pair) as (connection, peer):
        await settled(connection, writes)
        messages = [b"first", b"small", bytes(40_000), b"behind"]
        for message in messages:
            connection.send_nowait(message)
        assert writes.of(connection) == [HEADER + 5, HEADER + 5, HEADER + 40_000]
        assert await peer.messages(4) == messages


async def test_send_many_makes_large_writes(pair: Pair, writes: Writes) -> None:
    async with talking(pair) as (connection, peer):
        await settled(connection, writes)
        receiving = asyncio.create_task(peer.messages(2000))
        await connection.send_many(iter(numbered(2000, 1000)))
        sizes = writes.of(connection)
        assert len(sizes) <= 1 + 2000 * 1014 // GATHER
        assert await receiving == numbered(2000, 1000)


# -- the order ---------------------------------------------------------------------------------------------


async def test_all_ways_of_sending_keep_their_order(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        expected: list[bytes] = []
        numbers = iter(range(10**6))

        def message(size: int) -> bytes:
            expected.append(b"%06d" % next(numbers) + bytes(size))
            return expected[-1]

        receiving = asyncio.create_task(peer.messages(50 * 9))
        for number in range(50):
            connection.send_nowait(message(1))
            await connection.send(message(1))
            await connection.send_many(
                message(size) for size in (1, 40_000 if number % 7 == 0 else 2, 3, 20_000)
            )
            if number % 3 == 0:
                await turns()
            connection.send_nowait(message(35_000 if number % 5 == 0 else 5))
            await connection.send(message(1))
            connection.send_nowait(message(70_000 if number % 11 == 0 else 0))
        assert await receiving == expected


async def test_several_tasks_and_callbacks_keep_each_their_own_order(pair: Pair) -> None:
    count = 60
    sizes = [0, 10, 1000, 33_000, 5, 70_000]

    def answer(connection: Connection, message: bytes) -> None:
        connection.send_nowait(b"0:" + message)

    async with talking(pair, on_message=answer) as (connection, peer):

        def message(who: int, number: int) -> bytes:
            return b"%d:%d:" % (who, number) + bytes(sizes[(who + number) % len(sizes)])

        async def sends(who: int) -> None:
            for number in range(count):
                await connection.send(message(who, number))

        async def sends_many(who: int) -> None:
            await connection.send_many(message(who, number) for number in range(count))

        async def sends_nowait(who: int) -> None:
            for number in range(count):
                connection.send_nowait(message(who, number))
                await connection.ping()

        async def plays_peer() -> list[bytes]:
            got: list[bytes] = []
            for number in range(count):
                await peer.send(data(b"%d:" % number))
            for _ in range((7 + 2) * count):
                kind, payload = await peer.frame()
                if kind == PING:
                    await peer.send(pong(payload))
                else:
                    got.append(payload)
            return got

        async with asyncio.TaskGroup() as group:
            playing = group.create_task(plays_peer())
            for who in (1, 2):
                group.create_task(sends(who))
            for who in (3, 4):
                group.create_task(sends_many(who))
            for who in (5, 6):
                group.create_task(sends_nowait(who))

    got: dict[int, list[int]] = {}
    for each in playing.result():
        name, number, *_ = each.split(b":")
        got.setdefault(int(name), []).append(int(number))
    assert got == {name: list(range(count)) for name in range(7)}


async def test_several_senders_to_a_slow_peer_take_turns(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        sent = [0, 0, 0]

        async def speak(who: int) -> None:
            while True:
                await connection.send(bytes(100_000))
                sent[who] += 1

        tasks = [asyncio.create_task(speak(who)) for who in range(3)]
        await peer.messages(60)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert min(sent) >= 10, sent


# -- what can be sent --------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [bytes, bytearray, memoryview])
async def test_any_buffer_can_be_sent_and_is_taken_as_it_is_then(pair: Pair, buffer: type[Any]) -> None:
    sizes = [0, 1, 5000, 40_000, 200_000]
    async with talking(pair) as (connection, peer):
        # Behind a peer that does not read, so that what is queued is tried too.
        count, blocked = await blocked_by(connection, bytes(60_000))
        blocked.cancel()
        expected = [bytes(60_000)] * (count - 1)
        for size in sizes:
            content = bytearray(b"a" * size)
            connection.send_nowait(buffer(content))
            content[:] = b"b" * size
            expected.append(b"a" * size)
        assert await peer.messages(len(expected)) == expected
        for size in sizes:
            content = bytearray(b"a" * size)
            receiving = asyncio.create_task(peer.messages(2))
            await connection.send(buffer(content))
            content[:] = b"b" * size
            await connection.send_many([buffer(content)])
            content[:] = b"c" * size
            assert await receiving == [b"a" * size, b"b" * size]


@pytest.mark.parametrize("way", ["send", "send_nowait", "send_many"])
@pytest.mark.parametrize("size", [0, 3, 20_000])
async def test_a_buffer_of_wider_items_is_sent_as_its_bytes(pair: Pair, way: str, size: int) -> None:
    async with talking(pair) as (connection, peer):
        wide: Any = array.array("I", range(size))
        whole = wide.tobytes()
        assert len(whole) == 4 * size
        receiving = asyncio.create_task(peer.messages(2))
        for message in (wide, memoryview(wide)):
            match way:
                case "send":
                    await connection.send(message)
                case "send_nowait":
                    connection.send_nowait(message)
                case _:
                    await connection.send_many([message])
        for index in range(size):
            wide[index] = 0
        assert await receiving == [whole] * 2
        assert connection.stats.bytes_sent == 2 * (HEADER + len(whole))


@pytest.mark.parametrize("blocked", [False, True])
async def test_what_is_no_message_is_refused_and_the_connection_goes_on(pair: Pair, blocked: bool) -> None:
    async with talking(pair) as (connection, peer):
        count = 0
        if blocked:
            count, waiting = await blocked_by(connection, bytes(60_000))
            waiting.cancel()
            count -= 1
        for wrong in ("text", 5, None, [b"list"], object()):
            with pytest.raises(TypeError):
                connection.send_nowait(wrong)  # type: ignore[arg-type]
        receiving = asyncio.create_task(peer.messages(count + 3))
        for wrong in ("text", 5, None):
            with pytest.raises(TypeError):
                await connection.send(wrong)  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                await connection.send_many([b"before", wrong, b"after"])  # type: ignore[list-item]
        assert (await receiving)[count:] == [b"before"] * 3
        with pytest.raises(TypeError):
            await connection.send_many("text")  # type: ignore[arg-type]
        await connection.send(b"right")
        assert await peer.messages(1) == [b"right"]


async def test_a_view_that_is_not_in_one_piece(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        for size in (6, 100_000):
            view = memoryview(os.urandom(size))[::2]
            receiving = asyncio.create_task(peer.messages(1))
            await connection.send(view)
            assert await receiving == [view.tobytes()]


# -- the peer's limit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 10, 100_000, 2**20])
async def test_a_message_as_long_as_may_be_and_one_longer(pair: Pair, limit: int) -> None:
    async with talking(pair, hello(max_message=limit)) as (connection, peer):
        long = os.urandom(limit + 1)
        for _ in range(2):
            for too_long in (long, memoryview(long), bytearray(long)):
                with pytest.raises(FrameTooLarge) as caught:
                    await connection.send(too_long)
                assert (caught.value.size, caught.value.max_size) == (limit + 1, limit)
            with pytest.raises(FrameTooLarge):
                connection.send_nowait(long)
            receiving = asyncio.create_task(peer.messages(3))
            with pytest.raises(FrameTooLarge):
                await connection.send_many([b"", long[:limit], long, b"not any more"])
            await connection.send(long[1:])
            assert await receiving == [b"", long[:limit], long[1:]]
        assert not connection.closed


# -- send_many ---------------------------------------------------------------------------------------------


async def test_send_many_of_nothing(pair: Pair, writes: Writes) -> None:
    async with talking(pair) as (connection, _peer):
        await settled(connection, writes)
        await connection.send_many([])
        await connection.send_many(iter(()))
        assert writes.of(connection) == []


async def test_what_the_iterator_raises_comes_after_what_it_gave(pair: Pair) -> None:
    def failing() -> Iterator[bytes]:
        yield b"one"
        yield bytes(50_000)
        yield b"two"
        raise ZeroDivisionError

    async with talking(pair) as (connection, peer):
        receiving = asyncio.create_task(peer.messages(3))
        with pytest.raises(ZeroDivisionError):
            await connection.send_many(failing())
        assert await receiving == [b"one", bytes(50_000), b"two"]


async def test_send_many_cancelled_leaves_the_iterator_behind_what_was_sent(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        messages = iter(numbered(3000, 1000))
        sending = asyncio.create_task(connection.send_many(messages))
        while not connection.transport.get_write_buffer_size():
            await turns()
        await turns(3)
        assert not sending.done()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        left = list(messages)
        assert left
        sent = 3000 - len(left)
        assert await peer.messages(sent) == numbered(sent, 1000)
        await connection.send(b"end")
        assert await peer.messages(1) == [b"end"]


async def test_what_send_many_sent_before_comes_first(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        connection.send_nowait(b"1")
        connection.send_nowait(b"2")
        await connection.send_many([b"3"])
        connection.send_nowait(b"4")
        await connection.send_many([bytes(40_000), b"5"])
        assert await peer.messages(6) == [b"1", b"2", b"3", b"4", bytes(40_000), b"5"]


async def test_send_many_leaves_the_loop_its_turns(pair: Pair) -> None:
    """Also when the peer takes everything at once, and nothing ever makes it wait."""
    async with talking(pair) as (connection, peer):
        ticking = True
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while ticking:
                ticks += 1
                await asyncio.sleep(0)

        def take_all() -> Iterator[bytes]:
            for message in numbered(2000, 1000):
                peer.pending += peer.recv_now()
                yield message

        clock = asyncio.create_task(tick())
        await turns()
        before = ticks
        await connection.send_many(take_all())
        assert ticks - before >= 5
        ticking = False
        await clock
        assert await peer.messages(2000) == numbered(2000, 1000)


# -- a peer that is slow -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 10_000, 60_000])
async def test_send_waits_for_a_peer_that_does_not_read_and_queues_little(pair: Pair, size: int) -> None:
    async with talking(pair) as (connection, peer):
        burst = max(1, 10_000 // size)
        count = 0
        while not connection.transport.get_write_buffer_size():
            await connection.send_many([bytes(size)] * burst)
            count += burst
        waiting = asyncio.create_task(connection.send_many(bytes(size) for _ in range(10_000)))
        await turns(10)
        assert not waiting.done()
        assert connection.transport.get_write_buffer_size() <= 64 * 1024 + GATHER + size
        waiting.cancel()
        await asyncio.wait([waiting])
        total = connection.stats.messages_sent
        assert await peer.messages(total) == [bytes(size)] * total


async def test_several_that_wait_go_on(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        count, blocked = await blocked_by(connection, bytes(60_000))
        waiting = [asyncio.create_task(connection.send(b"%d" % number)) for number in range(5)]
        waiting.append(asyncio.create_task(connection.send_many([b"5", b"6"])))
        await turns(3)
        assert not any(task.done() for task in waiting)
        waiting[1].cancel()
        got = await peer.messages(count + 6)
        await asyncio.gather(blocked, waiting[0], *waiting[2:])
        small = [message for message in got if len(message) < 60_000]
        assert sorted(small) == [b"0", b"2", b"3", b"4", b"5", b"6"]


async def test_send_nowait_has_a_limit(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        sent = 0
        while True:
            try:
                connection.send_nowait(b"%06d" % sent + bytes(10_000))
            except LocalProtocolError as error:
                assert "await send() instead" in str(error)
                break
            sent += 1
        waiting = connection.transport.get_write_buffer_size()
        assert SEND_LIMIT - GATHER - 10_100 <= waiting <= SEND_LIMIT + GATHER + 10_100
        for wrong in (b"", bytes(100), bytes(500_000)):
            with pytest.raises(LocalProtocolError):
                connection.send_nowait(wrong)
        # Something that came does not let the next one through.
        await peer.send(data(b"question"))
        assert await connection.recv() == b"question"
        with pytest.raises(LocalProtocolError):
            connection.send_nowait(b"answer")
        assert connection.stats.messages_sent == sent
        assert await peer.messages(sent) == numbered(sent, 10_000)
        # Then there is room again.
        await until(lambda: not connection.transport.get_write_buffer_size())
        connection.send_nowait(b"again")
        assert await peer.messages(1) == [b"again"]


async def test_one_large_message_is_under_any_limit(pair: Pair) -> None:
    async with talking(pair, hello(max_message=2**32 - 1)) as (connection, peer):
        connection.send_nowait(bytes(3 * SEND_LIMIT))
        with pytest.raises(LocalProtocolError):
            connection.send_nowait(b"behind it")
        assert await peer.messages(1) == [bytes(3 * SEND_LIMIT)]


# -- after the end -----------------------------------------------------------------------------------------


async def _send(connection: Connection) -> None:
    await connection.send(b"x")


async def _send_large(connection: Connection) -> None:
    await connection.send(bytes(100_000))


async def _send_nowait(connection: Connection) -> None:
    connection.send_nowait(b"x")


async def _send_many(connection: Connection) -> None:
    await connection.send_many([b"x", bytes(100_000)])


WAYS = [_send, _send_large, _send_nowait, _send_many]


async def _end(connection: Connection, peer: Peer, end: str) -> type[Exception]:
    match end:
        case "closed here":
            connection.start_closing()
            return ConnectionClosedOK
        case "closed by the peer":
            await peer.send(close())
            await until(lambda: connection.closed)
            return ConnectionClosedOK
        case "cut off":
            connection.transport.abort()
            await connection.wait_closed()
            return ConnectionLost
    peer.kill()
    await until(lambda: connection.closed)
    return ConnectionLost


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("end", ["closed here", "closed by the peer", "cut off", "lost"])
async def test_nothing_can_be_sent_after_the_end(pair: Pair, way: Any, blocked: bool, end: str) -> None:
    async with talking(pair) as (connection, peer):
        waiting = None
        if blocked:
            _, waiting = await blocked_by(connection, bytes(60_000))
        sent = connection.stats.messages_sent
        expected = await _end(connection, peer, end)
        if waiting is not None:
            with pytest.raises(expected):
                await waiting
        for _ in range(3):
            with pytest.raises(expected):
                async with asyncio.timeout(5):
                    await way(connection)
        assert connection.stats.messages_sent == sent


async def test_sending_to_a_peer_that_is_gone_fails_before_its_end_is_read(pair: Pair, kind: str) -> None:
    async with talking(pair) as (connection, peer):
        connection.transport.pause_reading()
        peer.kill()
        with pytest.raises(ConnectionLost) as caught:
            for _ in range(1000):
                await connection.send(b"hello")
                await turns()
        assert isinstance(caught.value.__cause__, OSError)
        for call in (connection.send(b""), connection.send_many([b""]), connection.ping()):
            with pytest.raises(ConnectionLost):
                await call
        with pytest.raises(ConnectionLost):
            connection.send_nowait(b"")
        connection.transport.resume_reading()


async def test_an_end_that_is_met_again_and_again_keeps_no_record_of_it(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await _end(connection, peer, "closed by the peer")
        depths = []
        for _ in range(50):
            for call in (connection.recv(), connection.send(b""), connection.ping()):
                with pytest.raises(ConnectionClosedOK) as caught:
                    await call
            depths.append(len(caught.traceback))
        assert depths[-1] <= depths[1]
