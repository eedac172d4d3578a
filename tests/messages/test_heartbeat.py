"""Here time is the subject: the figures are small, and what is to happen has seconds more than it needs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time

import pytest

from aiohvsock import Address, ConnectionLost, HvTimeout, connect, create_hv_server

from ..conftest import Pair
from ..helpers import Recorder
from .peers import (
    PING,
    PONG,
    Connection,
    Handler,
    Peer,
    catch,
    close,
    data,
    dialling,
    hello,
    joined,
    numbered,
    of_ours,
    pong,
    serving,
    talking,
    turns,
    until,
)

# A machine that is busy may be late by this, in seconds.
LATE = 3.0


# -- a peer that is silent ---------------------------------------------------------------------------------


async def test_a_silent_peer_is_lost_on_time(pair: Pair) -> None:
    async with talking(pair, heartbeat=0.1, heartbeat_timeout=0.2) as (connection, peer):
        start = time.perf_counter()
        with pytest.raises(ConnectionLost, match="no sign of life") as caught:
            await connection.recv()
        assert 0.28 < time.perf_counter() - start < 0.3 + LATE
        assert caught.value.code == 9
        assert caught.value.__cause__ is not None
        assert connection.stats.pings_sent >= 1
        assert (await peer.closed())[0] == 9
        await peer.ended()
        await connection.wait_closed()


async def test_a_silent_peer_of_a_server(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="aiohvsock")
    handler = Handler()
    async with serving(handler, address, heartbeat=0.05, heartbeat_timeout=0.1):
        with dialling(address) as peer:
            await peer.send(hello())
            await peer.hello()
            connection = await handler.connection()
            with pytest.raises(ConnectionLost) as caught:
                await connection.recv()
            assert caught.value.code == 9
            assert (await peer.closed())[0] == 9
            await peer.ended()
        handler.released.set()
    (record,) = of_ours(caplog, logging.INFO)
    assert "no sign of life" in record.getMessage()


async def test_a_silent_peer_that_does_not_read_either(pair: Pair) -> None:
    """It cannot be told why, and is not waited for."""
    async with talking(pair, heartbeat=0.05, heartbeat_timeout=0.1) as (connection, _):
        sending = asyncio.create_task(connection.send_many(bytes(10_000) for _ in range(10_000)))
        with pytest.raises(ConnectionLost) as caught:
            await connection.recv()
        assert caught.value.code == 9
        with pytest.raises(ConnectionLost):
            await sending
        await connection.wait_closed()


async def test_any_byte_is_a_sign_of_life(pair: Pair) -> None:
    async with talking(pair, heartbeat=0.05, heartbeat_timeout=0.3) as (connection, peer):
        wire = data(b"x" * 30)
        start = time.perf_counter()
        for each in wire:
            await peer.send(bytes((each,)))
            await asyncio.sleep(0.03)
        assert time.perf_counter() - start > 0.05 + 0.3
        assert await connection.recv() == b"x" * 30
        assert not connection.closed


async def test_a_peer_that_answers_lives(address: Address) -> None:
    async with joined(address, heartbeat=0.02, heartbeat_timeout=0.5) as (client, server):
        await until_pings(client, 5)
        assert server.stats.pings_sent == 0  # its own is every 20 s
        assert client.latency is not None
        assert client.latency < LATE
        await client.send(b"still here")
        assert await server.recv() == b"still here"


async def until_pings(connection: Connection, count: int) -> None:
    while connection.stats.pings_sent < count:  # noqa: ASYNC110  # time is the subject
        await asyncio.sleep(0.005)


async def test_both_may_have_one(address: Address) -> None:
    times = {"heartbeat": 0.02, "heartbeat_timeout": 0.5}
    async with joined(address, server=times, **times) as (client, server):
        await until_pings(client, 5)
        await until_pings(server, 5)
        assert not client.closed
        assert not server.closed


async def test_a_heart_that_beats_as_fast_as_it_can(pair: Pair) -> None:
    """Timers that are due as they are set are no timers to uvloop, but callbacks of its next turn."""
    async with talking(pair, heartbeat=1e-6, heartbeat_timeout=5.0) as (connection, peer):
        reports = catch()
        for number in range(300):
            await peer.send(pong(await peer.frames_of(PING)), data(b"%d" % number))
            assert await connection.recv() == b"%d" % number
        assert connection.stats.pings_sent >= 300
        assert reports == []


# -- none, or one that never judges ------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 0.05])
async def test_without_a_heartbeat_nothing_is_asked_and_nobody_lost(
    pair: Pair, timeout: float | None
) -> None:
    async with talking(pair, heartbeat=None, heartbeat_timeout=timeout) as (connection, peer):
        await asyncio.sleep(0.2)
        assert connection.stats.pings_sent == 0
        assert peer.recv_now() == b""
        await peer.send(data(b"still here"))
        assert await connection.recv() == b"still here"


async def test_without_a_timeout_it_asks_once_and_loses_nobody(pair: Pair) -> None:
    async with talking(pair, heartbeat=0.02, heartbeat_timeout=None) as (connection, peer):
        await until_pings(connection, 1)
        await asyncio.sleep(0.2)
        assert not connection.closed
        payload = await peer.frames_of(PING)
        assert peer.recv_now() == b""  # an answer is still to come
        await peer.send(pong(payload))
        await until_pings(connection, 2)
        assert connection.latency is not None
        assert connection.latency > 0.1


@pytest.mark.parametrize(
    ("heartbeat", "timeout", "patience"),
    [(20.0, 20.0, 20_000), (1.0, 0.5, 500), (None, 5.0, 0), (5.0, None, 0)],
)
async def test_the_peer_is_told_how_patient_one_is(
    pair: Pair, heartbeat: float | None, timeout: float | None, patience: int
) -> None:
    ours, theirs = pair()
    peer = Peer(theirs)
    await peer.send(hello())
    connection = await connect(sock=ours, heartbeat=heartbeat, heartbeat_timeout=timeout, max_size=12_345)
    assert await peer.hello() == hello(12_345, patience)
    peer.kill()
    await connection.close()


# -- programs that are slow --------------------------------------------------------------------------------


@pytest.mark.parametrize("beating", ["who sends", "who is slow", "both"])
async def test_a_program_that_is_slow_to_read_is_not_lost(address: Address, beating: str) -> None:
    """It does not read for many heartbeats, flooded by its peer; neither side gives the other up."""
    quick = {"heartbeat": 0.1, "heartbeat_timeout": 0.6}  # a busy machine must not miss it
    server = quick if beating in ("who is slow", "both") else {"heartbeat": None}
    client = quick if beating in ("who sends", "both") else {"heartbeat": None}
    async with joined(address, server=server, **client) as (sender, slow):
        sending = asyncio.create_task(sender.send_many(numbered(3000, 1000)))
        while slow.transport.is_reading() or not sender.transport.get_write_buffer_size():
            await turns()
        await asyncio.sleep(2.0)
        assert not sender.closed
        assert not slow.closed
        got: list[bytes] = []
        while len(got) < 3000:
            got += await slow.recv_many()
            if len(got) % 7 == 0:
                await asyncio.sleep(0.01)
        assert got == numbered(3000, 1000)
        await sending
        # And it goes on.
        await slow.send(b"still here")
        assert await sender.recv() == b"still here"


async def test_who_does_not_read_gives_signs_of_life_unasked(pair: Pair) -> None:
    async with talking(pair, hello(patience=150), heartbeat=None) as (connection, peer):
        sending = asyncio.create_task(peer.send(data(*numbered(3000, 1000))))
        await until(lambda: not connection.transport.is_reading())
        start = time.perf_counter()
        for _ in range(5):
            assert await peer.frame() == (PONG, b"")
        assert 0.15 < time.perf_counter() - start < 0.25 + LATE
        assert connection.stats.pings_sent == 0
        # No more of them once it reads again.
        got: list[bytes] = []
        while len(got) < 3000:
            got += await connection.recv_many()
        await sending
        peer.recv_now()
        await asyncio.sleep(0.2)
        assert peer.recv_now() == b""


async def test_a_peer_that_never_gives_anybody_up_needs_no_signs(pair: Pair) -> None:
    async with talking(pair, hello(patience=0), heartbeat=None) as (connection, peer):
        sending = asyncio.create_task(peer.send(data(*numbered(3000, 1000))))
        await until(lambda: not connection.transport.is_reading())
        await asyncio.sleep(0.15)
        assert peer.recv_now() == b""
        sending.cancel()
        await asyncio.wait([sending])


async def test_who_answers_in_a_callback_and_waits_for_its_peer_still_listens(pair: Pair) -> None:
    def answer(connection: Connection, message: bytes) -> None:
        connection.send_nowait(message * 100)

    async with talking(pair, on_message=answer, heartbeat=0.03, heartbeat_timeout=0.06) as (
        connection,
        peer,
    ):
        count = 0
        while connection.transport.is_reading():
            await peer.send(data(bytes(300)))
            count += 1
            await turns(3)
        # What comes while it only listens waits: its answers would be more than may be queued.
        with contextlib.suppress(OSError):
            await peer.send(data(bytes(300)) * 1000)
        # A peer that neither reads nor gives a sign of life is gone.
        await until(lambda: connection.closed)
        assert connection.end is not None
        assert connection.end.code == 9


async def test_after_a_pause_it_asks_before_it_judges(pair: Pair) -> None:
    async with talking(pair, heartbeat=0.05, heartbeat_timeout=0.2) as (connection, peer):
        sending = asyncio.create_task(peer.send(data(*numbered(1500, 1000))))
        await until(lambda: not connection.transport.is_reading())
        await asyncio.sleep(0.5)
        got: list[bytes] = []
        while len(got) < 1500:
            got += await connection.recv_many()
        await sending
        # The peer has not been heard for longer than it has time; but it was not listened to.
        assert not connection.closed
        asked = await peer.frames_of(PING)
        await peer.send(pong(asked), data(b"still here"))
        assert await connection.recv() == b"still here"


# -- what has a limit of its own ---------------------------------------------------------------------------


async def test_a_peer_that_says_no_hello_to_a_server(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="aiohvsock")
    handler = Handler()
    async with serving(handler, address, open_timeout=0.1) as server:
        start = time.perf_counter()
        with dialling(address) as peer:
            await peer.hello()
            code, reason = await peer.closed()
            assert 0.09 < time.perf_counter() - start < 0.1 + LATE
            assert code == 8
            assert reason
            await peer.ended()
        # One that says half of it likewise, however slowly.
        with dialling(address) as peer:
            await peer.send(hello()[:12])
            await peer.hello()
            assert (await peer.closed())[0] == 8
        await until(lambda: not server.connections)
        assert handler.connections.empty()
        # The server goes on.
        async with connect(address) as connection:
            await (await handler.connection()).send(b"welcome")
            assert await connection.recv() == b"welcome"
        handler.released.set()
    assert [record.getMessage().count("hello in time") for record in of_ours(caplog, logging.INFO)] == [1, 1]


@pytest.mark.parametrize("said", [b"", hello()[:23]])
async def test_a_server_that_says_no_hello(address: Address, pair: Pair, said: bytes) -> None:
    ours, theirs = pair()
    theirs.send(said)
    start = time.perf_counter()
    with pytest.raises(HvTimeout, match=r"no hello within 0\.1 s") as caught:
        await connect(sock=ours, open_timeout=0.1)
    assert 0.09 < time.perf_counter() - start < 0.1 + LATE
    assert caught.value.transient
    assert caught.value.operation == "connect"
    assert isinstance(caught.value.__cause__, ConnectionLost)


async def test_the_error_names_both_addresses(address: Address) -> None:
    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Recorder())
        return made[-1]

    async with await create_hv_server(factory, address):
        with pytest.raises(HvTimeout, match="no hello within") as caught:
            await connect(address, open_timeout=0.1)
        assert caught.value.remote == address
        assert caught.value.local is not None
        assert f"connect to {address} from {caught.value.local} failed" in str(caught.value)
        await made[0].lost


async def test_without_a_limit_the_hello_is_waited_for(pair: Pair) -> None:
    ours, theirs = pair()
    peer = Peer(theirs)

    async def dial() -> Connection:
        return await connect(sock=ours, open_timeout=None)

    task = asyncio.create_task(dial())
    await asyncio.sleep(0.1)
    assert not task.done()
    await peer.send(hello())
    connection = await task
    peer.kill()
    await connection.close()


async def test_a_peer_that_heard_no_hello_of_ours_in_time(pair: Pair) -> None:
    """It is not we who waited: what the error says must be right, whatever our own limit is."""
    for limit in (None, 5.0):
        ours, theirs = pair()
        peer = Peer(theirs)
        await peer.send(hello(), close(8, "the peer did not say hello in time"))
        peer.end()
        connection = await connect(sock=ours, open_timeout=limit)
        with pytest.raises(ConnectionLost) as caught:
            await connection.recv()
        assert "within 5 s" not in str(caught.value)
        await connection.close()


async def test_the_heartbeat_ends_with_the_connection(pair: Pair) -> None:
    async with talking(pair, heartbeat=0.02, heartbeat_timeout=0.02, close_timeout=None) as (
        connection,
        peer,
    ):
        closing = asyncio.create_task(connection.close())
        await peer.closed()
        await asyncio.sleep(0.15)
        assert not closing.done()  # there is no limit, and nobody is asked any more
        await peer.send(close())
        await closing


# -- two loops ---------------------------------------------------------------------------------------------


class NoLock(contextlib.nullcontext[None]):
    """Or the other thread would wait for that; logging takes it in a way of its own in each version of Python."""

    def acquire(self) -> None:
        pass

    def release(self) -> None:
        pass


async def test_timers_of_two_loops_at_once(pair: Pair) -> None:
    """One thread stands in its timer's callback while that of another comes."""
    inside, go_on = threading.Event(), threading.Event()

    class Standing(logging.Handler):
        def createLock(self) -> None:
            self.lock = NoLock()  # type: ignore[assignment]

        def emit(self, record: logging.LogRecord) -> None:
            if threading.current_thread() is other:
                inside.set()
                go_on.wait(15)

    def run() -> None:
        async def main() -> None:
            ours, _ = pair()
            with pytest.raises(HvTimeout):
                await connect(sock=ours, open_timeout=0.01)

        asyncio.run(main())

    logger = logging.getLogger("aiohvsock")
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(standing := Standing())
    other = threading.Thread(target=run)
    reports = catch()
    try:
        other.start()
        assert await asyncio.to_thread(inside.wait, 15)
        ours, _ = pair()
        with pytest.raises(HvTimeout):
            async with asyncio.timeout(5):
                await connect(sock=ours, open_timeout=0.01)
    finally:
        go_on.set()
        await asyncio.to_thread(other.join)
        logger.removeHandler(standing)
        logger.setLevel(level)
    assert reports == []
