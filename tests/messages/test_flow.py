"""What makes a side wait: bytes, both ways, and how much memory a peer can take."""

from __future__ import annotations

import asyncio
import time
import tracemalloc

import pytest

from aiohvsock import Address
from aiohvsock.transports.selector import SelectorTransport

from ..conftest import Pair
from .peers import (
    PING,
    PONG,
    SCRATCH,
    SLACK,
    Connection,
    blocked_by,
    close,
    data,
    frame,
    joined,
    numbered,
    pour,
    talking,
    turns,
    until,
)

QUEUE = 256 * 1024


class Switches:
    """Counts how often reading was paused and resumed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paused = self.resumed = 0
        pause, resume = SelectorTransport.pause_reading, SelectorTransport.resume_reading

        def pausing(transport: SelectorTransport) -> None:
            self.paused += 1
            pause(transport)

        def resuming(transport: SelectorTransport) -> None:
            self.resumed += 1
            resume(transport)

        monkeypatch.setattr(SelectorTransport, "pause_reading", pausing)
        monkeypatch.setattr(SelectorTransport, "resume_reading", resuming)


# -- who does not receive ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 30_000, 100_000, 2**20])
async def test_a_reader_that_does_not_read_stops_its_peer(pair: Pair, size: int) -> None:
    async with talking(pair) as (connection, peer):
        message = bytes(size)
        wire = data(message) * max(1, 2**16 // (size + 8))
        sent = await pour(connection, peer, wire)
        taken = connection.stats.bytes_received
        assert taken <= QUEUE + SCRATCH + size + 100
        # Small messages weigh more than their bytes.
        assert connection.stats.messages_received <= (QUEUE + SCRATCH) / (8 + size) + 1

        # It goes on as soon as there is room, and nothing is missing.
        whole, part = divmod(sent, size + 8)
        sending = asyncio.create_task(peer.send(data(message)[part:] if part else b"", data(b"end")))
        for _ in range(whole + bool(part)):
            assert await connection.recv() == message
        assert await connection.recv() == b"end"
        await sending
        await until(connection.transport.is_reading)


async def test_a_hundred_thousand_empty_messages_take_little_memory(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        wire = data(*[b""] * 100_000)
        sending = asyncio.create_task(peer.send(wire))
        tracemalloc.start()
        try:
            await until(lambda: not connection.transport.is_reading())
            await turns(10)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert connection.stats.messages_received < 50_000
        assert peak < 8 * 2**20
        got: list[bytes] = []
        while len(got) < 100_000:
            got += await connection.recv_many()
        assert got == [b""] * 100_000
        await sending


async def test_recv_many_empties_all_there_is(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        sent = await pour(connection, peer, data(bytes(992)))
        await turns(5)
        there = connection.stats.messages_received
        got = await connection.recv_many()
        assert got == [bytes(992)] * there
        assert connection.transport.is_reading()
        whole, part = divmod(sent, 1000)
        await peer.send(data(bytes(992))[part:] if part else b"")
        while len(got) < whole + bool(part):
            got += await connection.recv_many()
        assert got == [bytes(992)] * (whole + bool(part))


@pytest.mark.parametrize("batch", [1000, 30_000])
async def test_it_stops_and_goes_on_seldom(pair: Pair, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    async with talking(pair) as (connection, peer):
        switches = Switches(monkeypatch)
        messages = numbered(3 * QUEUE // batch, batch)

        async def speak() -> None:
            for message in messages:
                await peer.send(data(message))
                await turns()

        speaking = asyncio.create_task(speak())
        await until(lambda: not connection.transport.is_reading())
        assert switches.paused == 1
        there = connection.stats.messages_received * (8 + 6 + batch)
        assert there > QUEUE - 40 * len(messages) - batch
        # It goes on when most of it is gone, before it is empty.
        taken = 0
        while not connection.transport.is_reading():
            message = await connection.recv()
            assert message == messages[taken // (8 + 6 + batch)]
            taken += 8 + 6 + batch
            assert taken < there, "it went on only when all was gone"
        left = there - taken
        assert left <= QUEUE // 4
        assert (switches.paused, switches.resumed) == (1, 1)

        first = taken // (8 + 6 + batch)
        for message in messages[first:]:
            assert await connection.recv() == message
        await speaking
        assert switches.paused <= 1 + 3 * QUEUE // (QUEUE // 2)


async def test_who_keeps_up_is_never_stopped(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    async with talking(pair) as (connection, peer):
        switches = Switches(monkeypatch)

        async def receive() -> None:
            for message in numbered(2000, 1000):
                assert await connection.recv() == message

        receiving = asyncio.create_task(receive())
        for message in numbered(2000, 1000):
            await peer.send(data(message))
            await turns()
        await receiving
        assert (switches.paused, switches.resumed) == (0, 0)


async def test_the_peers_close_comes_after_all_it_sent_however_slow_the_reader(pair: Pair) -> None:
    messages = numbered(60, 20_000)
    async with talking(pair) as (connection, peer):
        sending = asyncio.create_task(peer.send(data(*messages), close()))
        await until(lambda: not connection.transport.is_reading())
        await turns(5)
        assert not connection.closed
        assert [message async for message in connection] == messages
        await sending


async def test_the_peers_end_comes_after_all_it_sent_however_slow_the_reader(pair: Pair) -> None:
    messages = numbered(60, 20_000)
    async with talking(pair) as (connection, peer):

        async def speak() -> None:
            await peer.send(data(*messages))
            peer.end()

        speaking = asyncio.create_task(speak())
        await until(lambda: not connection.transport.is_reading())
        got = []
        with pytest.raises(Exception, match="without closing"):
            while True:
                got += await connection.recv_many()
        assert got == messages
        await speaking


# -- who does not read what is sent ------------------------------------------------------------------------


async def test_both_sides_wait_for_a_slow_program_and_all_arrives(address: Address) -> None:
    """The sender's memory, the receiver's, and what the system holds between them are all that is under way."""
    async with joined(address) as (client, server):
        taken = asyncio.Event()

        async def speak() -> None:
            for message in numbered(4000, 1000):
                await client.send(message)

        speaking = asyncio.create_task(speak())
        while client.transport.get_write_buffer_size() == 0 or server.transport.is_reading():
            await turns()
        await turns(100)
        assert not speaking.done()
        assert client.stats.messages_sent < 3500
        taken.set()
        got: list[bytes] = []
        while len(got) < 4000:
            got += await server.recv_many()
            await turns()
        assert got == numbered(4000, 1000)
        await speaking


async def test_two_that_flood_each_other_and_then_read(address: Address) -> None:
    async with joined(address) as ends:

        async def speak(connection: Connection) -> None:
            for message in numbered(1000, 3000):
                await connection.send(message)

        speaking = [asyncio.create_task(speak(end)) for end in ends]
        await until(lambda: not any(end.transport.is_reading() for end in ends))
        for end in ends:
            assert [await end.recv() for _ in range(1000)] == numbered(1000, 3000)
        await asyncio.gather(*speaking)


async def test_a_ping_flood_from_a_peer_that_does_not_read(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        flood = b"".join(frame(PING, b"%08d" % number + bytes(56)) for number in range(1000))
        sent = 0
        # Its answers fill the way back; the rest of them are not kept.
        while sent < 4 * 2**20:
            sent += peer.send_some(flood[sent % len(flood) :])
            await turns()
        await until(lambda: connection.stats.bytes_received == 24 + sent)
        assert connection.transport.get_write_buffer_size() <= 64 * 1024 + 2 * 72
        # And the last of them is answered.
        await peer.send(flood[sent % len(flood) :], frame(PING, b"the last"))
        while (found := await peer.frame()) != (PONG, b"the last"):
            assert found[0] == PONG
        await connection.send(b"goes on")
        assert await peer.messages(1) == [b"goes on"]


async def test_what_waits_for_a_peer_that_reads_again_goes_out_in_order(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        count, blocked = await blocked_by(connection, bytes(60_000))
        connection.send_nowait(b"1")
        connection.send_nowait(b"2")
        await turns(2)
        connection.send_nowait(bytes(40_000))
        connection.send_nowait(b"3")
        got = await peer.messages(count - 1 + 4)
        assert got[count - 1 :] == [b"1", b"2", bytes(40_000), b"3"]
        await blocked
        assert await peer.messages(1) == [bytes(60_000)]


@pytest.mark.parametrize("size", [100, 10_000])
async def test_a_peer_that_sends_on_and_never_reads_takes_little_memory(pair: Pair, size: int) -> None:
    """We listen whether it lives, and nobody takes what it sends: that has a limit, too."""
    async with talking(pair, heartbeat=0.02, heartbeat_timeout=5.0) as (connection, peer):
        count, blocked = await blocked_by(connection, bytes(60_000))
        message = bytes(size)
        wire = data(message) * 20
        sent = 0
        idle = time.perf_counter()
        while time.perf_counter() - idle < 0.3:  # time is what listening goes by
            if more := peer.send_some(wire[sent % len(wire) :]):
                idle = time.perf_counter()
            sent += more
            assert sent < SLACK, "the peer is never stopped"
            await turns(3)
        taken = connection.stats.bytes_received
        assert QUEUE < taken <= 2**20 + 2 * QUEUE + SCRATCH + size
        assert not connection.transport.is_reading()
        assert not connection.closed

        # When it reads, all goes on.
        whole, part = divmod(sent, size + 8)
        assert await peer.messages(count) == [bytes(60_000)] * count
        await blocked
        sending = asyncio.create_task(peer.send(data(message)[part:] if part else b""))
        got: list[bytes] = []
        while len(got) < whole + bool(part):
            got += await connection.recv_many()
        assert got == [message] * len(got)
        await sending
        await connection.send(b"end")
        assert await peer.messages(1) == [b"end"]


async def test_writing_goes_on_while_a_large_message_comes(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        count, blocked = await blocked_by(connection, bytes(60_000))
        wire = data(bytes(2**20))
        await peer.send(wire[:100_000])
        await until(lambda: connection.stats.bytes_received == 24 + 100_000)
        assert await peer.messages(count) == [bytes(60_000)] * count
        await blocked
        await connection.send(b"end")
        assert await peer.messages(1) == [b"end"]
        sending = asyncio.create_task(peer.send(wire[100_000:]))
        assert await connection.recv() == bytes(2**20)
        await sending
