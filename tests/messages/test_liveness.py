"""What must go on living: connections while they are not read, their heartbeats, and what finds a dead peer."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

from aiohvsock import Address, ConnectionLost, connect

from ..conftest import Pair
from .peers import (
    PING,
    PONG,
    Connection,
    Handler,
    Peer,
    blocked_by,
    catch,
    close,
    data,
    deliver,
    dialling,
    echo,
    frame,
    hello,
    in_callback,
    pong,
    serving,
    talking,
    turns,
    until,
)

# Seconds in which anything here happens, however busy the machine is.
LATE = 5.0

# One read that holds so many messages is more than a queue takes: each counts for more than its size.
MANY = 8000
FLOOD = data(*[b"x"] * MANY)


async def flooded(connection: Connection, more: bytes = b"") -> None:
    """Deliver, in one read, more than the queue takes."""
    await in_callback(lambda: deliver(connection, FLOOD + more))


# -- timers that are due at once ---------------------------------------------------------------------------


async def test_a_sign_of_life_that_is_due_as_the_queue_fills(pair: Pair) -> None:
    """uvloop's ``call_at()`` of a time that has come returns a handle without ``when()``."""
    async with talking(pair, hello(patience=60)) as (connection, peer):
        reports = catch()
        await asyncio.sleep(0.1)  # longer than a third of the peer's patience, and than the shortest pause
        await flooded(connection, frame(PING, b"12345678"))
        assert not connection.transport.is_reading()
        got: list[bytes] = []
        while len(got) < MANY:
            got += await connection.recv_many()
        assert got == [b"x"] * MANY
        async with asyncio.timeout(LATE):
            while await peer.frame() != (PONG, b"12345678"):  # those unasked are empty
                pass
        assert not connection.closed
        assert reports == []


async def test_a_heartbeat_that_is_due_as_reading_goes_on(pair: Pair) -> None:
    async with talking(pair, heartbeat=0.05, heartbeat_timeout=LATE) as (connection, peer):
        reports = catch()
        for _ in range(3):
            await flooded(connection)
            assert not connection.transport.is_reading()
            await asyncio.sleep(0.08)  # past the next ping
            while len(await connection.recv_many()) != MANY:
                pass
            await in_callback(lambda: deliver(connection, frame(PING, b"12345678") + data(b"go on")))
            assert await connection.recv() == b"go on"
        payload = await asyncio.wait_for(peer.frames_of(PING), LATE)
        await peer.send(pong(payload))
        assert not connection.closed
        assert reports == []


# -- two loops ---------------------------------------------------------------------------------------------


async def test_heartbeats_of_two_loops_in_two_threads(pair: Pair) -> None:
    """What the loops share must not be something that only one thread at a time can be in."""
    make_loop = type(asyncio.get_running_loop())
    pairs = [[pair() for _ in range(8)] for _ in range(2)]
    interval = sys.getswitchinterval()

    def run(number: int) -> list[Any]:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            return runner.run(beating(pairs[number]))

    sys.setswitchinterval(1e-3)
    try:
        reports = await asyncio.gather(asyncio.to_thread(run, 0), asyncio.to_thread(run, 1))
    finally:
        sys.setswitchinterval(interval)
    await asyncio.get_running_loop().shutdown_default_executor()
    assert [report for each in reports for report in each] == []


async def beating(pairs: list[Any]) -> list[Any]:
    """Let connections beat until each has often, or something is reported, and return the reports."""
    reports = catch()
    times: dict[str, Any] = {"heartbeat": 0.001, "heartbeat_timeout": LATE, "close_timeout": LATE}
    ends = await asyncio.gather(*(connect(sock=sock, **times) for both in pairs for sock in both))
    async with asyncio.timeout(LATE):
        while not reports and min(end.stats.pings_sent for end in ends) < 50:  # noqa: ASYNC110  # time it is
            await asyncio.sleep(0.01)
    assert [end for end in ends if end.closed] == []
    await asyncio.gather(*(end.close() for end in ends))
    return reports


# -- a peer that said hello, and then stopped --------------------------------------------------------------

BEATS: dict[str, Any] = {"heartbeat": 0.1, "heartbeat_timeout": 0.1, "close_timeout": 0.1}


@pytest.mark.parametrize("callback", [False, True])
async def test_a_dead_peer_is_found_though_writes_are_blocked(pair: Pair, callback: bool) -> None:
    """With ``on_message=`` nothing is read while nothing can be written."""
    on_message = (lambda connection, message: None) if callback else None
    async with talking(pair, on_message=on_message, **BEATS) as (connection, _):
        _, sending = await blocked_by(connection, bytes(60_000))
        with pytest.raises(ConnectionLost):
            await asyncio.wait_for(sending, LATE)
        async with asyncio.timeout(LATE):
            await connection.wait_closed()
        assert isinstance(connection.end, ConnectionLost)


async def test_a_dead_peer_is_found_by_a_server_that_only_calls_back(address: Address) -> None:
    def answer(connection: Connection, message: bytes) -> None:
        connection.send_nowait(message * 1000)

    async with serving(None, address, on_message=answer, **BEATS) as server:
        with dialling(address) as peer:
            await peer.send(hello())
            await until(lambda: server.connections)
            await written(peer, server.connections, data(*[b"x" * 30] * 100))
            async with asyncio.timeout(LATE):
                await until(lambda: not server.connections)


async def test_a_dead_peer_is_found_while_an_echo_waits_to_be_sent(address: Address) -> None:
    """The handler waits in ``send()``, so its queue is full and nothing is read: nobody could ask."""
    ends: list[object] = []

    async def handler(connection: Connection) -> None:
        try:
            await echo(connection)
        finally:
            ends.append(connection.end)

    async with serving(handler, address, **BEATS) as server:
        with dialling(address) as peer:
            await peer.send(hello())
            await until(lambda: server.connections)
            await written(peer, server.connections, data(bytes(10_000)))
            async with asyncio.timeout(LATE):
                await until(lambda: ends)
    assert [type(end) for end in ends] == [ConnectionLost]


async def written(peer: Peer, connections: Any, wire: bytes) -> None:
    """Write, and never read, until the server takes no more or has given up."""
    (connection,) = connections
    sent = 0
    async with asyncio.timeout(LATE):
        while connection.transport.is_reading() and not connection.closed:
            try:
                sent += peer.send_some(wire[sent % len(wire) :])
            except ConnectionError:
                return
            await turns()


# -- reading goes on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["recv", "anext", "recv_many"])
async def test_once_the_queue_is_empty_a_ping_is_answered(pair: Pair, how: str) -> None:
    """The last message was taken, and nobody asks for the next."""
    async with talking(pair) as (connection, peer):
        sending = asyncio.create_task(peer.send(data(bytes(500_000))))
        await until(lambda: connection.stats.messages_received)
        await sending
        match how:
            case "recv":
                assert await connection.recv() == bytes(500_000)
            case "anext":
                assert await anext(connection) == bytes(500_000)
            case _:
                assert await connection.recv_many() == [bytes(500_000)]
        pinging = asyncio.create_task(connection.ping())
        await peer.send(pong(await asyncio.wait_for(peer.frames_of(PING), LATE)))
        assert await asyncio.wait_for(pinging, LATE) >= 0
        peer.kill()
        async with asyncio.timeout(LATE):
            await connection.wait_closed()
        assert isinstance(connection.end, ConnectionLost)


@pytest.mark.parametrize("last", [close(), close(200, "enough"), b"\x55" * 8], ids=["ok", "code", "garbage"])
@pytest.mark.parametrize("close_timeout", [60.0, None])
async def test_an_end_in_the_same_read_as_more_than_the_queue_takes(
    pair: Pair, close_timeout: float | None, last: bytes
) -> None:
    """It is found without waiting for the messages to be taken, and they still can be."""
    async with talking(pair, close_timeout=close_timeout) as (connection, peer):
        await in_callback(lambda: deliver(connection, FLOOD + last))
        assert await connection.recv() == b"x"
        peer.kill()
        async with asyncio.timeout(LATE):
            await connection.wait_closed()
            await connection.close()
        got = 1
        try:
            async for message in connection:
                got += len(message)
        except ConnectionLost:
            assert last[0] == 0x55
        assert got == MANY


# -- ping() ------------------------------------------------------------------------------------------------


async def test_pings_wait_for_room_and_leave_nothing_when_cancelled(pair: Pair) -> None:
    async with talking(pair, heartbeat=None) as (connection, peer):
        count, sending = await blocked_by(connection, bytes(60_000))
        for _ in range(200):
            ping = asyncio.create_task(connection.ping())
            await turns(2)
            assert not ping.done()
            ping.cancel()
            await asyncio.wait([ping])
        pinging = asyncio.create_task(connection.ping())
        await turns(2)
        pings: list[bytes] = []
        async with asyncio.timeout(LATE):
            while count or not pings:
                kind, payload = await peer.frame()
                if kind == PING:
                    pings.append(payload)
                    await peer.send(pong(payload))
                else:
                    count -= 1
            await pinging
            await sending
        assert len(pings) == 1
        assert connection.stats.pings_sent == 1


async def test_latency_is_finer_than_the_clock_of_the_loop(address: Address) -> None:
    """uvloop's is in whole milliseconds, which is longer than most answers take."""
    handler = Handler()
    async with serving(handler, address), connect(address) as connection:
        for _ in range(10):
            took = await connection.ping()
            latency = connection.latency
            assert 0 < took < LATE
            assert latency is not None
            assert 0 < latency < LATE
        handler.released.set()
