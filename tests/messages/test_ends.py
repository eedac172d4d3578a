"""Ends without a proper end: they are never quiet, and take nothing of what had come."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import time
import weakref

import pytest

from aiohvsock import (
    Address,
    CloseCode,
    ConnectionClosed,
    ConnectionLost,
    IncompleteFrame,
    ProtocolError,
    connect,
)

from ..conftest import Pair
from .peers import (
    CLOSE,
    PING,
    Connection,
    Handler,
    blocked_by,
    close,
    data,
    dialling,
    frame,
    hello,
    joined,
    numbered,
    of_ours,
    pour,
    serving,
    talking,
    turns,
    until,
)


@pytest.mark.parametrize(
    ("wire", "whole", "received", "expected"),
    [
        (b"\0", [], 1, None),
        (bytes(7), [], 7, None),
        (data(b"hello")[:-1], [], 12, 13),
        (data(b"one", b"two") + data(b"three")[:8], [b"one", b"two"], 8, 13),
        (data(bytes(100_000))[:50_000], [], 50_000, 100_008),
        (data(bytes(2**20))[:-1], [], 2**20 + 7, 2**20 + 8),
        (data(b"one") + frame(PING, b"ping")[:-1], [b"one"], 11, 12),
        (close(0, "bye")[:-1], [], 11, 12),
    ],
    ids=[
        "first byte",
        "header",
        "payload",
        "behind others",
        "of a large one",
        "received in place",
        "a ping",
        "a close",
    ],
)
async def test_an_end_inside_a_frame(
    pair: Pair, wire: bytes, whole: list[bytes], received: int, expected: int | None
) -> None:
    async with talking(pair) as (connection, peer):
        sending = asyncio.create_task(peer.send(wire))
        await until(lambda: connection.stats.bytes_received == len(hello()) + len(wire))
        await sending
        peer.end()
        got: list[bytes] = []
        with pytest.raises(ConnectionLost) as caught:
            async for message in connection:
                got.append(message)  # noqa: PERF401  # the last step raises
        assert got == whole
        assert isinstance(caught.value.__cause__, IncompleteFrame)
        assert (caught.value.__cause__.received, caught.value.__cause__.expected) == (received, expected)
        assert str(caught.value.__cause__) in str(caught.value)
        assert caught.value.code is None
        assert connection.closed
        await connection.wait_closed()
        # There is nobody left to be told.
        await peer.ended()


async def test_an_end_between_frames(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(data(b"one", b"two"))
        peer.end()
        assert [await connection.recv(), await connection.recv()] == [b"one", b"two"]
        for call in (connection.recv(), anext(connection), connection.recv_many(), connection.send(b"x")):
            with pytest.raises(ConnectionLost, match="without closing") as caught:
                await call
            assert isinstance(caught.value.__cause__, ProtocolError)
            assert connection.end is caught.value


async def test_a_peer_whose_socket_is_closed(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await connection.send(b"read by nobody")
        await peer.send(data(b"one", b"two"))
        assert await connection.recv() == b"one"
        peer.kill()
        assert await connection.recv() == b"two"
        with pytest.raises(ConnectionLost) as caught:
            await connection.recv()
        # AF_VSOCK has no reset: it comes as an end.
        assert isinstance(caught.value.__cause__, (ConnectionResetError, BrokenPipeError, ProtocolError))
        await connection.wait_closed()


@pytest.mark.parametrize("waiting", ["recv", "send", "ping", "close"])
async def test_whoever_waits_learns_of_it(pair: Pair, waiting: str) -> None:
    async with talking(pair) as (connection, peer):
        if waiting == "send":
            _, task = await blocked_by(connection, bytes(60_000))
        elif waiting == "close":
            task = asyncio.create_task(connection.close())
        else:
            task = asyncio.create_task(connection.recv() if waiting == "recv" else connection.ping())  # type: ignore[arg-type]
        await turns(2)
        peer.kill()
        if waiting == "close":
            await task
        else:
            with pytest.raises(ConnectionLost):
                await task


async def test_a_process_that_is_killed(address: Address) -> None:
    script = (
        "import sys, asyncio, aiohvsock\n"
        "async def main():\n"
        "    connection = await aiohvsock.connect(sys.argv[1])\n"
        "    await connection.send(b'whole')\n"
        "    connection.transport.write(bytes([0, 0, 0, 0, 0, 0, 1, 0]) + bytes(100))\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    handler = Handler()
    async with serving(handler, address):
        with subprocess.Popen(  # noqa: ASYNC220  # it is not waited for here
            [sys.executable, "-c", script, str(address)], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            connection = await handler.connection()
            assert await connection.recv() == b"whole"
            assert await asyncio.to_thread(process.stdout.readline) == b"ready" + os.linesep.encode()
            process.kill()
            with pytest.raises(ConnectionLost) as caught:
                await connection.recv()
        assert isinstance(caught.value.__cause__, IncompleteFrame)
        assert (caught.value.__cause__.received, caught.value.__cause__.expected) == (108, 264)
        handler.released.set()


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_side_that_cuts_the_connection_off(address: Address, side: str) -> None:
    async with joined(address) as (client, server):
        one, other = (client, server) if side == "client" else (server, client)
        await one.send(b"before")
        assert await other.recv() == b"before"
        one.transport.abort()
        for connection in (one, other):
            with pytest.raises(ConnectionLost):
                await connection.recv()
            await connection.wait_closed()
        assert "cut off by this side" in str(one.end)


async def test_what_came_before_a_failed_send_can_be_received(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(data(b"one", b"two"))
        peer.kill()
        # Nothing has been read yet: the loop had no turn. The send meets a closed peer.
        for _ in range(2):
            with pytest.raises(ConnectionLost):
                await connection.send(b"hello")
                await connection.send(b"hello")
                await turns(3)
                await connection.send(b"hello")
        assert [await connection.recv(), await connection.recv()] == [b"one", b"two"]
        with pytest.raises(ConnectionLost):
            await connection.recv()


async def test_what_came_before_a_failed_send_is_received_however_slow_the_reader(
    pair: Pair, kind: str
) -> None:
    async with talking(pair) as (connection, peer):
        message = bytes(992)
        sent = await pour(connection, peer, data(message))
        peer.kill()
        with pytest.raises(ConnectionLost):
            for _ in range(10):
                await connection.send(b"hello")
                await turns()
        got: list[bytes] = []
        with pytest.raises(ConnectionLost):
            while True:
                got += await connection.recv_many()
                await turns()
        if kind == "hyperv":
            # The TCP below the testbed's drops what it has not sent yet when it hears that nobody answers.
            sent = 1000 * len(got)
            assert got
        assert got == [message] * (sent // 1000)


async def test_an_end_before_the_hello(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    handler = Handler()
    caplog.set_level(logging.INFO, logger="aiohvsock")
    async with serving(handler, address) as server:
        for said in (b"", hello()[:1], hello()[:11], hello()[:-1]):
            with dialling(address) as peer:
                await peer.send(said)
                await peer.hello()
                peer.end()
                await peer.ended()
        await until(lambda: not server.connections)
        assert handler.connections.empty()
    lines = [record.getMessage() for record in of_ours(caplog, logging.INFO)]
    assert len(lines) == 4
    assert all("before its hello was whole" in line for line in lines)


async def test_a_server_that_ends_before_its_hello(pair: Pair) -> None:
    for said in (b"", hello()[:20]):
        ours, theirs = pair()
        theirs.send(said)
        theirs.close()
        with pytest.raises(ConnectionLost) as caught:
            await connect(sock=ours)
        assert caught.value.__cause__ is not None
        assert caught.value.code is None


async def test_nothing_comes_after_the_end(pair: Pair) -> None:
    """Bytes behind the peer's CLOSE, and messages behind our own, are nobody's."""
    async with talking(pair) as (connection, peer):
        await peer.send(data(b"one"), close(), data(b"two"), b"\x7f garbage", bytes(2**18))
        assert [message async for message in connection] == [b"one"]
        assert await peer.messages() == []
        assert peer.close == (0, "")


async def test_a_loss_is_logged_once_with_both_addresses(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="aiohvsock")
    handler = Handler()
    async with serving(handler, address):
        with dialling(address) as peer:
            await peer.send(hello(), data(b"secret"), b"\0")
            connection = await handler.connection()
            await until(lambda: connection.stats.messages_received)
            peer.end()
            await connection.wait_closed()
        for _ in range(3):
            with pytest.raises(ConnectionClosed):
                await connection.send(b"")
        handler.released.set()
        await turns(3)
    (record,) = of_ours(caplog, logging.INFO)
    assert record.levelno == logging.INFO
    assert str(connection.local_address) in record.getMessage()
    assert str(connection.peer_address) in record.getMessage()
    assert "secret" not in record.getMessage()


async def test_nothing_is_left_to_send_when_the_peer_has_broken_a_rule(pair: Pair) -> None:
    """What is queued goes out before it is told why, and no more."""
    async with talking(pair) as (connection, peer):
        connection.send_nowait(b"first")
        connection.send_nowait(b"second")
        await peer.send(frame(0x7F))
        assert await peer.messages() == [b"first", b"second"]
        assert peer.close is not None
        assert peer.close[0] == 2
        with pytest.raises(ConnectionLost):
            await connection.send(b"third")
        peer.end()
        await connection.wait_closed()
        assert await peer.drained() == b""


async def test_numbered_messages_up_to_a_loss_are_whole_and_in_order(address: Address) -> None:
    handler = Handler()
    async with serving(handler, address):
        with dialling(address) as peer:
            await peer.send(hello(), data(*numbered(2000, 100)), frame(CLOSE, b""))
            connection: Connection = await handler.connection()
            got: list[bytes] = []
            with pytest.raises(ConnectionLost, match="a close has no code"):
                async for message in connection:
                    got.append(message)  # noqa: PERF401  # the last step raises
            assert got == numbered(2000, 100)
        handler.released.set()


async def test_close_after_a_send_that_said_it_is_lost(pair: Pair) -> None:
    """What the peer may have said before is not read any more; the end is what send() has raised."""
    async with talking(pair) as (connection, peer):
        peer.send_some(close(CloseCode.NO_ANSWER))
        peer.kill()
        with pytest.raises(ConnectionLost) as caught:
            while True:
                connection.send_nowait(b"to nobody")
                time.sleep(0.001)  # noqa: ASYNC251  # the loop must have no turn, and the system may have to be told
        await connection.close()
        assert isinstance(connection.end, ConnectionLost)
        assert connection.end.__cause__ is caught.value.__cause__


@pytest.mark.parametrize("end", ["close", "kill", "break a rule"])
async def test_one_that_is_gone_is_forgotten(pair: Pair, end: str) -> None:
    """No timer keeps it, however long its heartbeat would have been."""
    async with talking(pair) as (connection, peer):
        await connection.send(b"hello")
        match end:
            case "close":
                closing = asyncio.create_task(connection.close())
                await peer.answer_close()
                await closing
            case "kill":
                peer.kill()
            case _:
                await peer.send(frame(0x7F))
                await peer.closed()
                peer.kill()
        await connection.wait_closed()
        watched = weakref.ref(connection)
        await turns(3)
    connection = closing = None  # type: ignore[assignment]
    await turns(3)
    gc.collect()
    assert watched() is None
