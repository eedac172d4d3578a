"""A codec alone: no hello, no ping, no code and no reason; the end of the stream closes it."""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from aiohvsock import (
    Address,
    ConnectionClosed,
    ConnectionClosedOK,
    ConnectionLost,
    FrameTooLarge,
    IncompleteFrame,
    LocalProtocolError,
    connect,
)
from aiohvsock.framing import TTRPC, Buffer, Codec, Decoder, LengthPrefixed

from ..conftest import Pair
from .peers import (
    SCRATCH,
    Connection,
    Handler,
    Peer,
    Writes,
    blocked_by,
    catch,
    dialling,
    echo,
    in_callback,
    numbered,
    of_ours,
    pour,
    serving,
    turns,
    until,
)

CODEC = LengthPrefixed()


def frames(*payloads: Buffer, codec: Codec[Any] = CODEC) -> bytes:
    return b"".join(bytes(piece) for payload in payloads for piece in codec.encode(payload))


async def messages(peer: Peer, count: int | None = None, codec: Codec[Any] = CODEC) -> list[bytes]:
    """Return the messages up to the end, or as many."""
    decoder = codec.decoder()
    got: list[bytes] = []
    while count is None or len(got) < count:
        wire = await peer.recv()
        if not wire:
            assert count is None, f"ended after {len(got)} messages"
            decoder.eof()
            break
        got += decoder.feed(wire)
    return got


@contextlib.asynccontextmanager
async def talking(
    pair: Pair, codec: Codec[Any] = CODEC, **options: Any
) -> AsyncIterator[tuple[Connection, Peer]]:
    ours, theirs = pair()
    connection = await connect(sock=ours, codec=codec, **options)
    try:
        yield connection, Peer(theirs)
    finally:
        theirs.close()
        await connection.close()


# -- framing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "codec",
    [
        LengthPrefixed(width=1),
        LengthPrefixed(width=2, byteorder="little"),
        LengthPrefixed(width=8, byteorder="little", pad=1),
        LengthPrefixed(byteorder="little", includes_header=True, offset=4, pad=8),
    ],
    ids=repr,
)
async def test_nothing_but_the_codecs_bytes(pair: Pair, codec: Codec[bytes]) -> None:
    async with talking(pair, codec) as (connection, peer):
        await connection.send(b"hello")
        await connection.send(b"")
        await peer.send(frames(b"hi", b"", b"there", codec=codec))
        assert [await connection.recv() for _ in range(3)] == [b"hi", b"", b"there"]
        wire = await peer.take(len(frames(b"hello", b"", codec=codec)))
        assert wire == frames(b"hello", b"", codec=codec)
        stats = connection.stats
        assert (stats.messages_sent, stats.messages_received, stats.pings_sent) == (2, 3, 0)
        assert (stats.bytes_sent, stats.bytes_received) == (
            len(wire),
            len(frames(b"hi", b"", b"there", codec=codec)),
        )


async def test_messages_of_every_size(address: Address) -> None:
    async with serving(echo, address, codec=CODEC), connect(address, codec=CODEC) as connection:
        for size in (0, 1, 10_000, 33_000, SCRATCH, SCRATCH + 1, 2**20):
            payload = os.urandom(size)
            await connection.send(payload)
            await connection.send(b"behind")
            assert await connection.recv() == payload
            assert await connection.recv() == b"behind"


async def test_a_codec_that_carries_more_than_bytes(address: Address) -> None:
    got: asyncio.Queue[Any] = asyncio.Queue()

    async def handler(connection: Any) -> None:
        async for message in connection:
            got.put_nowait(message)

    frame = TTRPC.frame(stream_id=1, type=1, flags=0, payload=b"hello")
    async with serving(handler, address, codec=TTRPC), connect(address, codec=TTRPC) as connection:
        await connection.send(frame)
        assert await got.get() == frame
        with pytest.raises((TypeError, AttributeError)):
            await connection.send(b"no frame")


class Lines:
    """A codec of a user's own, whose decoder cannot receive in place."""

    def encode(self, payload: Buffer) -> Sequence[Buffer]:
        return payload, b"\n"

    def decoder(self) -> Decoder[bytes]:
        return LineDecoder()


class LineDecoder:
    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: Buffer) -> list[bytes]:
        *lines, self.rest = (self.rest + data).split(b"\n")
        if b"poison" in lines:
            raise RuntimeError("a codec with a mistake")
        return lines

    def eof(self) -> None:
        if self.rest:
            raise IncompleteFrame(len(self.rest))


async def test_a_codec_of_ones_own(address: Address) -> None:
    async with serving(echo, address, codec=Lines()), connect(address, codec=Lines()) as connection:
        await connection.send(b"hello")
        connection.transport.write(b"one\ntwo\nthr")
        connection.transport.write(b"ee\n")
        await connection.send(b"x" * 100_000)
        assert [await connection.recv() for _ in range(5)] == [
            b"hello",
            b"one",
            b"two",
            b"three",
            b"x" * 100_000,
        ]


@pytest.mark.parametrize("size", [3, 20_000])
async def test_a_codec_whose_first_piece_is_what_the_user_gave(pair: Pair, size: int) -> None:
    async with talking(pair, Lines()) as (connection, peer):
        wide: Any = array.array("I", [0x61616161] * size)
        await connection.send(memoryview(wide))
        assert await peer.take(4 * size + 1) == b"a" * (4 * size) + b"\n"
        assert connection.stats.bytes_sent == 4 * size + 1


async def test_a_codec_with_a_mistake_costs_that_one_connection(address: Address) -> None:
    reports = catch()
    async with serving(echo, address, codec=Lines()), connect(address, codec=Lines()) as good:
        async with connect(address, codec=Lines()) as bad:
            await bad.send(b"poison")
            with pytest.raises(ConnectionClosed):
                await bad.recv()
        await good.send(b"still here")
        assert await good.recv() == b"still here"
    assert [str(report["exception"]) for report in reports] == ["a codec with a mistake"]


async def test_one_byte_at_a_time(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        for each in frames(b"hello", b"", b"x" * 100, b"end"):
            await peer.send(bytes([each]))
            await turns(2)
        peer.end()
        assert [message async for message in connection] == [b"hello", b"", b"x" * 100, b"end"]


async def test_many_tiny_frames_at_once(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        sending = asyncio.create_task(peer.send(frames(*numbered(10_000))))
        assert [await connection.recv() for _ in range(10_000)] == numbered(10_000)
        await sending


# -- sending and receiving: what is the same ---------------------------------------------------------------


async def test_the_first_message_goes_straight_out_and_others_leave_together(
    pair: Pair, writes: Writes
) -> None:
    async with talking(pair) as (connection, peer):
        await turns(2)
        connection.send_nowait(b"first")
        assert writes.of(connection) == [9]
        for message in numbered(10):
            await connection.send(message)
        await turns()
        assert writes.of(connection) == [100]
        connection.send_nowait(bytes(40_000))
        assert writes.of(connection) == [40_004]
        await connection.send_many([b"x", bytes(40_000), b"y"])
        assert await messages(peer, 15) == [
            b"first",
            *numbered(10),
            bytes(40_000),
            b"x",
            bytes(40_000),
            b"y",
        ]


@pytest.mark.parametrize("size", [3, 20_000])
async def test_buffers_are_taken_as_they_are_then(pair: Pair, size: int) -> None:
    async with talking(pair) as (connection, peer):
        wide: Any = array.array("I", range(size))
        whole = wide.tobytes()
        for message in (memoryview(wide), bytearray(whole), whole):
            receiving = asyncio.create_task(messages(peer, 1))
            connection.send_nowait(message)
            if message is not whole:
                message[0] = 0xFF
            assert await receiving == [whole]
            wide[0] = 0


async def test_a_message_too_large_is_not_sent_and_the_connection_goes_on(pair: Pair) -> None:
    async with talking(pair, LengthPrefixed(max_size=1000)) as (connection, peer):
        for _ in range(2):
            with pytest.raises(FrameTooLarge):
                await connection.send(bytes(1001))
            with pytest.raises(FrameTooLarge):
                await connection.send_many([b"before", bytes(1001)])
        with pytest.raises(TypeError):
            await connection.send("text")  # type: ignore[arg-type]
        await connection.send(bytes(1000))
        assert await messages(peer, 3) == [b"before", b"before", bytes(1000)]


async def test_flow_control(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        message = bytes(996)
        sent = await pour(connection, peer, frames(message))
        whole, part = divmod(sent, 1000)
        sending = asyncio.create_task(peer.send(frames(message)[part:] if part else b""))
        got: list[bytes] = []
        while len(got) < whole + bool(part):
            got += await connection.recv_many()
        assert got == [message] * len(got)
        await sending
        count, blocked = await blocked_by(connection, bytes(60_000))
        assert await messages(peer, count) == [bytes(60_000)] * count
        await blocked


async def test_a_callback(pair: Pair) -> None:
    def answer(connection: Connection, message: bytes) -> None:
        if message == b"stop":
            connection.start_closing()
        else:
            connection.send_nowait(message.upper())

    async with talking(pair, on_message=answer) as (connection, peer):
        await peer.send(frames(b"a", b"b", b"stop", b"c"))
        assert await messages(peer) == [b"A", b"B"]
        peer.end()
        await connection.wait_closed()


async def test_cancelled_recv_loses_nothing(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        for number in range(50):
            task = asyncio.create_task(connection.recv())
            await turns(number % 3)
            sending = asyncio.create_task(peer.send(frames(b"%d" % number)))
            await turns(number % 5)
            task.cancel()
            try:
                got = await task
            except asyncio.CancelledError:
                got = await connection.recv()
            assert got == b"%d" % number
            await sending


async def test_there_is_no_ping(pair: Pair) -> None:
    async with talking(pair) as (connection, _):
        with pytest.raises(LocalProtocolError, match="a bare codec has no ping"):
            await connection.ping()
        assert connection.latency is None


async def test_a_silent_peer_is_not_lost(pair: Pair) -> None:
    async with talking(pair, open_timeout=0.01) as (connection, peer):
        await asyncio.sleep(0.2)
        await peer.send(frames(b"still here"))
        assert await connection.recv() == b"still here"


# -- the end -----------------------------------------------------------------------------------------------


async def test_the_peers_end_closes_it(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(frames(b"one", b"two"))
        peer.end()
        assert [message async for message in connection] == [b"one", b"two"]
        with pytest.raises(ConnectionClosedOK, match="closed by the peer") as caught:
            await connection.recv()
        assert (caught.value.code, caught.value.reason) == (0, "")
        # It may wait for an answer.
        await connection.send(b"x")
        await connection.close()
        assert await messages(peer) == [b"x"]


async def test_what_is_queued_goes_out_after_the_peers_end(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        count, blocked = await blocked_by(connection, bytes(60_000))
        connection.send_nowait(b"last")
        await turns(2)
        peer.end()
        with pytest.raises(ConnectionClosedOK):
            await connection.recv()
        connection.start_closing()
        with pytest.raises(ConnectionClosedOK):
            await blocked
        assert await messages(peer) == [bytes(60_000)] * (count - 1) + [b"last"]


@pytest.mark.parametrize(
    ("wire", "received", "expected"),
    [(b"\0", 1, None), (b"\0\0\0\5ab", 6, 9), (bytes([0, 1, 0, 0]), 4, 65540)],
)
async def test_an_end_inside_a_frame_is_a_loss(
    pair: Pair, wire: bytes, received: int, expected: int | None
) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(frames(b"whole"), wire)
        peer.end()
        assert await connection.recv() == b"whole"
        with pytest.raises(ConnectionLost) as caught:
            await connection.recv()
        assert isinstance(caught.value.__cause__, IncompleteFrame)
        assert (caught.value.__cause__.received, caught.value.__cause__.expected) == (received, expected)


async def test_an_end_inside_a_large_message_is_a_loss(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(frames(bytes(2**20))[:100_000])
        await until(lambda: connection.stats.bytes_received == 100_000)
        peer.end()
        with pytest.raises(ConnectionLost) as caught:
            await connection.recv()
        assert isinstance(caught.value.__cause__, IncompleteFrame)


async def test_close_ends_our_side_after_what_is_queued(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(frames(b"before"))
        await until(lambda: connection.stats.messages_received)
        count, blocked = await blocked_by(connection, bytes(60_000))
        closing = asyncio.create_task(connection.close(200, "told nobody"))
        assert await messages(peer) == [bytes(60_000)] * (count - 1)
        with pytest.raises(ConnectionClosedOK):
            await blocked
        assert not closing.done()
        await peer.send(frames(b"too late"))
        peer.end()
        await closing
        assert [message async for message in connection] == [b"before"]


async def test_close_sends_what_was_gathered(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        for number in range(5):
            connection.send_nowait(b"%d" % number)
        connection.start_closing()
        assert await messages(peer) == [b"%d" % number for number in range(5)]
        peer.end()
        await connection.wait_closed()


async def test_close_while_a_large_message_is_under_way(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        wire = frames(bytes(2**20))
        await peer.send(wire[:100_000])
        await until(lambda: connection.stats.bytes_received == 100_000)
        closing = asyncio.create_task(connection.close())
        await turns(2)
        await peer.send(wire[100_000:], frames(b"too late"))
        peer.end()
        await closing
        assert [message async for message in connection] == []


async def test_close_does_not_wait_for_ever(pair: Pair) -> None:
    async with talking(pair, close_timeout=0.05) as (connection, peer):
        await connection.close()
        await peer.ended()
        with pytest.raises(ConnectionLost, match="not confirmed"):
            await connection.recv()


async def test_both_sides_may_close_at_once(address: Address) -> None:
    handler = Handler()
    async with serving(handler, address, codec=CODEC):
        client = await connect(address, codec=CODEC)
        server = await handler.connection()
        await asyncio.gather(client.close(), server.close())
        for connection in (client, server):
            with pytest.raises(ConnectionClosedOK):
                await connection.recv()
        handler.released.set()


async def test_a_peer_that_is_gone(pair: Pair) -> None:
    """Without a close of its own, a codec cannot tell a peer that was killed from one that was done."""
    async with talking(pair) as (connection, peer):
        await peer.send(frames(b"one"))
        peer.kill()
        assert await connection.recv() == b"one"
        with pytest.raises(ConnectionClosed):
            await connection.recv()


async def test_a_reset_is_a_loss_where_the_system_tells(pair: Pair, kind: str) -> None:
    async with talking(pair) as (connection, peer):
        await connection.send(b"never read")
        await peer.send(frames(b"one", b"two"))
        assert await connection.recv() == b"one"
        peer.kill()
        assert await connection.recv() == b"two"
        # AF_VSOCK has no reset: it comes as an end, here between two frames. AF_HYPERV may or may not tell.
        expected = {"vsock": ConnectionClosedOK, "hybrid": ConnectionLost, "hyperv": ConnectionClosed}[kind]
        with pytest.raises(expected) as caught:
            await connection.recv()
        if kind == "hybrid":
            assert isinstance(caught.value.__cause__, ConnectionResetError)


@pytest.mark.parametrize(
    "garbage",
    [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01\x02\x00", b"\xff" * 50],
    ids=["HTTP", "TLS", "random"],
)
async def test_garbage_costs_that_one_connection(
    address: Address, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="aiohvsock")
    handler = Handler()
    async with serving(handler, address, codec=CODEC):
        with dialling(address) as peer:
            await peer.send(frames(b"one"), garbage)
            bad = await handler.connection()
            assert await bad.recv() == b"one"
            with pytest.raises(ConnectionLost, match="over the limit") as caught:
                await bad.recv()
            assert isinstance(caught.value.__cause__, FrameTooLarge)
            await peer.ended()
        async with connect(address, codec=CODEC) as connection:
            await (await handler.connection()).send(b"welcome")
            assert await connection.recv() == b"welcome"
            handler.released.set()
    assert len(of_ours(caplog, logging.INFO)) == 1


async def test_a_servers_handler_starts_at_once(address: Address) -> None:
    """There is no hello to wait for."""

    async def handler(connection: Connection) -> None:
        await connection.send(b"welcome")

    async with serving(handler, address, codec=CODEC):
        with dialling(address) as peer:
            assert await messages(peer) == [b"welcome"]


async def test_start_closing_in_a_callback(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await in_callback(lambda: connection.start_closing(200))
        await peer.ended()
        peer.end()
        await connection.wait_closed()
