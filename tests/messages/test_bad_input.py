"""Peers that break the rules: each costs its own connection, is told why, and costs nobody else anything."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import tracemalloc
from collections.abc import AsyncIterator

import pytest

from aiohvsock import Address, ConnectionLost, FrameTooLarge, ProtocolError, connect

from ..conftest import Pair
from .peers import (
    CLOSE,
    DATA,
    MAGIC,
    PING,
    PONG,
    Connection,
    Handler,
    Peer,
    close,
    contexts,
    data,
    dialling,
    frame,
    hello,
    numbered,
    of_ours,
    serving,
    talking,
    turns,
    until,
)


def tls_client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = contexts()[1].wrap_bio(incoming, outgoing, server_hostname="guest.example")
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


# What is no hello: the code it is answered with, and what is said.
NO_HELLO = {
    "HTTP": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 2, "no hello"),
    "one wrong byte": (b"x", 2, "no hello"),
    "wrong in the end": (MAGIC[:-1] + b"\r", 2, "no hello"),
    "TLS": (tls_client_hello(), 2, "no hello"),
    "random": (b"\x89" + os.urandom(5000).replace(b"h", b"x"), 2, "no hello"),
    "a frame first": (data(b"hello"), 2, "no hello"),
    "from the future": (hello(version=7, oldest=2), 3, "versions 2 to 7"),
    "from the future, of another form": (hello(version=200, oldest=9)[:12], 3, "versions 9 to 200"),
    "version 0": (hello(version=0, oldest=0), 2, "makes no sense"),
    "versions the wrong way round": (hello(version=1, oldest=2), 2, "makes no sense"),
    "too short": (hello(length=11), 2, "length of 11"),
    "endless": (hello(length=1013), 2, "length of 1013"),
    "more endless": (hello(length=0xFFFF) + bytes(100_000), 2, "length of 65535"),
    "no room for its nonce": (hello(capabilities=1), 2, "too short for its nonce"),
}

# What is no frame, likewise.
NO_FRAME = {
    "over the limit": (frame(DATA, b"", length=1001), 4, "over the limit of 1000"),
    "far over it": (frame(DATA, b"", length=2**32 - 1), 4, "over the limit of 1000"),
    "unknown type": (frame(0x04), 2, "unknown type 0x04"),
    "a layer's": (frame(0x10), 2, "unknown type 0x10"),
    "an application's": (frame(0x7F, b"hello"), 2, "unknown type 0x7f"),
    "reserved bytes": (frame(DATA, b"hello", reserved=b"\0\0\1"), 2, "reserved bytes"),
    "reserved bytes of what is ignored": (frame(0x80, reserved=b"\1\0\0"), 2, "reserved bytes"),
    "long ping": (frame(PING, bytes(65)), 2, "65 bytes"),
    "long pong": (frame(PONG, b"", length=2**31), 2, "2147483648 bytes"),
    "long close": (frame(CLOSE, bytes(1025)), 2, "1025 bytes"),
    "empty close": (frame(CLOSE), 2, "no code"),
    "long ignored": (frame(0x90, b"", length=1025), 2, "over the limit of 1024"),
    "random": (b"\xff" * 50, 2, "reserved bytes"),
    "HTTP": (b"GET / HTTP/1.1\r\n\r\n", 2, "reserved bytes"),
}


@contextlib.asynccontextmanager
async def guarded(address: Address, **options: object) -> AsyncIterator[Handler]:
    """A server, and a client that is served well before, meanwhile and after."""
    handler = Handler()
    async with serving(handler, address, **options):
        async with connect(address) as client:
            served = await handler.connection()
            await client.send(b"before")
            assert await served.recv() == b"before"
            yield handler
            await served.send(b"after")
            assert await client.recv() == b"after"
        async with connect(address) as client:
            served = await handler.connection()
            await client.send(b"another")
            assert await served.recv() == b"another"
        handler.released.set()


# -- instead of a hello ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NO_HELLO)
async def test_a_server_gets_no_hello(address: Address, name: str, caplog: pytest.LogCaptureFixture) -> None:
    wire, code, text = NO_HELLO[name]
    async with guarded(address) as handler:
        with dialling(address) as peer:
            await peer.send(wire)
            await peer.hello()
            told = await peer.closed()
            assert told[0] == code
            assert text in told[1]
            peer.end()
            await peer.ended()
        assert handler.connections.empty()
    (record,) = of_ours(caplog)
    assert record.levelno == logging.WARNING
    assert text in record.getMessage()
    assert str(address) in record.getMessage()
    assert "GET" not in record.getMessage()


@pytest.mark.parametrize("name", NO_HELLO)
async def test_a_client_gets_no_hello(pair: Pair, name: str) -> None:
    wire, code, text = NO_HELLO[name]
    ours, theirs = pair()
    peer = Peer(theirs)
    sending = asyncio.create_task(peer.send(wire))

    async def answer() -> tuple[int, str]:
        await peer.hello()
        told = await peer.closed()
        peer.end()
        return told

    answering = asyncio.create_task(answer())
    with pytest.raises(ConnectionLost, match=text) as caught:
        await connect(sock=ours)
    assert caught.value.code == code
    assert isinstance(caught.value.__cause__, ProtocolError)
    told = await answering
    assert told[0] == code
    assert text in told[1]
    await sending


async def test_a_hello_of_later_versions_that_still_speak_ours(address: Address) -> None:
    handler = Handler()
    async with serving(handler, address):
        for said in (
            hello(version=9, oldest=1),
            hello(capabilities=2**32 - 2, rest=bytes(1000)),
            hello(capabilities=1, rest=bytes(16)),
            hello(capabilities=2**32 - 1, rest=bytes(16) + b"more"),
        ):
            with dialling(address) as peer:
                await peer.send(said, data(b"hello"))
                connection = await handler.connection()
                assert await connection.recv() == b"hello"
                await connection.send(b"hello")
                await peer.hello()
                assert await peer.messages(1) == [b"hello"]
        handler.released.set()


# -- instead of a frame ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NO_FRAME)
async def test_a_server_gets_no_frame(address: Address, name: str, caplog: pytest.LogCaptureFixture) -> None:
    wire, code, text = NO_FRAME[name]
    async with guarded(address, max_size=1000) as handler:
        with dialling(address) as peer:
            await peer.send(hello(), data(b"one", bytes(1000)), wire, data(b"never"))
            await peer.hello()
            connection = await handler.connection()
            assert [await connection.recv(), await connection.recv()] == [b"one", bytes(1000)]
            for call in (connection.recv(), connection.send(b""), connection.ping()):
                with pytest.raises(ConnectionLost, match=text) as caught:
                    await call
                assert caught.value.code == code
            assert isinstance(caught.value.__cause__, FrameTooLarge if code == 4 else ProtocolError)
            told = await peer.closed()
            assert told[0] == code
            assert text in told[1]
            peer.end()
            await connection.wait_closed()
    (record,) = of_ours(caplog)
    assert record.levelno == logging.WARNING
    assert text in record.getMessage()
    assert str(connection.local_address) in record.getMessage()


@pytest.mark.parametrize("name", NO_FRAME)
async def test_a_client_gets_no_frame(pair: Pair, name: str) -> None:
    wire, code, text = NO_FRAME[name]
    async with talking(pair, max_size=1000) as (connection, peer):
        await peer.send(data(b"one"), wire)
        assert await connection.recv() == b"one"
        with pytest.raises(ConnectionLost, match=text) as caught:
            await connection.recv()
        assert caught.value.code == code
        assert (await peer.closed())[0] == code


@pytest.mark.parametrize("size", [0, 10])
async def test_a_limit_of_hardly_anything(pair: Pair, size: int) -> None:
    async with talking(pair, max_size=size) as (connection, peer):
        await peer.send(data(bytes(size)), frame(0xFF, bytes(1024)), data(bytes(size)))
        assert [await connection.recv(), await connection.recv()] == [bytes(size)] * 2
        await peer.send(data(bytes(size + 1)))
        with pytest.raises(ConnectionLost, match="over the limit"):
            await connection.recv()


async def test_who_broke_a_rule_may_read_why_and_is_not_waited_for(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(frame(0x7F))
        with pytest.raises(ConnectionLost):
            await connection.recv()
        # It sends on, and does not end: after a moment it is cut off all the same.
        await peer.send(data(bytes(100_000)))
        await connection.wait_closed()
        assert (await peer.closed())[0] == 2
        await peer.drained()


async def test_who_broke_a_rule_and_then_resets_is_one_line_in_the_log(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="aiohvsock")
    handler = Handler()
    async with serving(handler, address):
        with dialling(address) as peer:
            await peer.send(hello())
            connection = await handler.connection()
            await peer.send(frame(0x7F))
            await until(lambda: connection.closed)
            # With the CLOSE unread, the end is a reset where there are any.
        await connection.wait_closed()
        handler.released.set()
        await turns(3)
    (record,) = of_ours(caplog, logging.INFO)
    assert "unknown type" in record.getMessage()


# -- too little, too slow, too much ------------------------------------------------------------------------


async def test_one_byte_at_a_time_works(address: Address) -> None:
    handler = Handler()
    async with serving(handler, address):
        with dialling(address) as peer:
            for each in hello() + data(b"one", b"") + frame(0x99, b"x") + data(b"two") + close(200, "done"):
                await peer.send(bytes((each,)))
                await turns(2)
            connection = await handler.connection()
            assert [message async for message in connection] == [b"one", b"", b"two"]
            assert connection.end is not None
            assert (connection.end.code, connection.end.reason) == (200, "done")
        handler.released.set()


async def test_ten_thousand_tiny_frames_in_one_go_work(address: Address) -> None:
    handler = Handler()
    async with serving(handler, address):
        with dialling(address) as peer:
            sending = asyncio.create_task(peer.send(hello(), data(*numbered(10_000)), close()))
            connection = await handler.connection()
            assert [message async for message in connection] == numbered(10_000)
            await sending
        handler.released.set()


async def test_a_header_alone_takes_no_memory(pair: Pair) -> None:
    """It promises a message that never comes."""
    async with talking(pair, max_size=2**32 - 1) as (connection, peer):
        tracemalloc.start()
        try:
            await peer.send(frame(DATA, bytes(1000), length=2**31))
            await until(lambda: connection.stats.bytes_received == 24 + 1008)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 2**20
        assert not connection.closed


async def test_a_peer_that_never_reads(address: Address) -> None:
    """The server sends it a lot: what it takes is bounded, and the others are served."""

    async def handler(connection: Connection) -> None:
        if await connection.recv() == b"flood me":
            await connection.send_many(bytes(10_000) for _ in range(10_000))
        else:
            await connection.send(b"served")

    async with serving(handler, address) as server:
        with dialling(address) as peer:
            await peer.send(hello(), data(b"flood me"))
            await until(lambda: any(each.transport.get_write_buffer_size() for each in server.connections))
            (connection,) = server.connections
            for _ in range(20):
                async with connect(address) as client:
                    await client.send(b"serve me")
                    assert await client.recv() == b"served"
            assert connection.stats.bytes_sent < 4 * 2**20
            assert connection.transport.get_write_buffer_size() < 2**18
            assert not connection.closed


async def test_many_that_say_nothing(address: Address) -> None:
    async with guarded(address, open_timeout=0.2) as handler:
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(dialling(address)) for _ in range(20)]
            for peer in peers:
                await peer.hello()
                assert (await peer.closed())[0] == 8
        assert handler.connections.empty()


async def test_a_ping_flood_from_a_peer_that_does_not_read(address: Address) -> None:
    async with guarded(address) as handler:
        with dialling(address) as peer:
            await peer.send(hello())
            connection = await handler.connection()
            flood = frame(PING, bytes(64)) * 1000
            sent = 0
            while sent < 4 * 2**20:
                sent += peer.send_some(flood[sent % len(flood) :])
                await turns()
            await until(lambda: connection.stats.bytes_received == 24 + sent)
            assert connection.transport.get_write_buffer_size() < 2**17
            assert not connection.closed
