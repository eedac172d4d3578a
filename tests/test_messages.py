from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Unpack

import pytest
import trustme

from aiohvsock import (
    Address,
    ConnectionClosed,
    ConnectionClosedOK,
    ConnectionLost,
    FrameTooLarge,
    HvConnectionRefused,
    HvServer,
    HybridAddress,
    IncompleteFrame,
    LocalProtocolError,
    MessageConnection,
    Retry,
    connect,
    messages,
    serve,
)
from aiohvsock.endpoints import ListenOptions
from aiohvsock.framing import Buffer, Codec, Decoder, LengthPrefixed

from .conftest import LOOPS, Pair

HUGE = LengthPrefixed(max_size=2**31)

# What the kernel and one read can hold besides the queue, generously.
SLACK = 4 * 2**20


def frames(*payloads: Buffer, codec: Codec = HUGE) -> bytes:
    return b"".join(b"".join(codec.encode(payload)) for payload in payloads)


def numbered(count: int, size: int = 0) -> list[bytes]:
    return [b"%06d" % number + bytes(size) for number in range(count)]


async def steps(count: int = 1) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


class Peer:
    """The other end of a connection, without the package: a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.sock, data)

    def send_some(self, data: bytes) -> int:
        """Send what the kernel takes, and return how much that was."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    async def recv(self) -> bytes:
        """Return the next bytes; none at the end, and a reset is one."""
        try:
            return await self.loop.sock_recv(self.sock, 2**20)
        except ConnectionResetError:
            return b""

    async def messages(self, count: int | None = None, codec: Codec = HUGE) -> list[bytes]:
        """Return the messages up to the end, or as many."""
        decoder = codec.decoder()
        got: list[bytes] = []
        while count is None or len(got) < count:
            data = await self.recv()
            if not data:
                assert count is None, f"ended after {len(got)} messages"
                decoder.eof()
                break
            got += decoder.feed(data)
        return got

    def end(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)


@contextlib.asynccontextmanager
async def talking(pair: Pair, **options: Any) -> AsyncIterator[tuple[MessageConnection, Peer]]:
    ours, theirs = pair()
    connection = await connect(sock=ours, **options)
    try:
        yield connection, Peer(theirs)
    finally:
        theirs.close()
        await connection.close()


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[MessageConnection], Awaitable[None]],
    address: Address | None = None,
    *,
    codec: Codec | None = None,
    **options: Unpack[ListenOptions],
) -> AsyncIterator[HvServer]:
    """Serve, and do not wait for clients at the end."""
    server = await serve(handler, address, codec=codec, **options)
    try:
        yield server
    finally:
        server.close()
        server.abort_clients()
        await server.wait_closed()


async def echo(connection: MessageConnection) -> None:
    async for message in connection:
        await connection.send(message)


class Handler:
    """Keeps the connections it serves until the test is done with each."""

    def __init__(self) -> None:
        self.connections: asyncio.Queue[MessageConnection] = asyncio.Queue()
        self.released = asyncio.Event()

    async def __call__(self, connection: MessageConnection) -> None:
        self.connections.put_nowait(connection)
        await self.released.wait()

    async def connection(self) -> MessageConnection:
        return await self.connections.get()


async def blocked_by(connection: MessageConnection, payload: Buffer) -> tuple[int, asyncio.Task[None]]:
    """Send until the peer, who must not read, makes it wait. Return how often, and the send that waits."""
    for count in range(1, 10_000):
        task = asyncio.create_task(connection.send(payload))
        await steps()
        if not task.done():
            return count, task
        await task
    raise AssertionError("send() never waits")


def of_ours(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[logging.LogRecord]:
    return [each for each in caplog.records if each.name == "aiohvsock" and each.levelno >= level]


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """close() does not wait long for a peer that does not close."""
    monkeypatch.setattr(messages, "_CLOSE_TIMEOUT", 0.05)


# -- messages both ways ------------------------------------------------------------------------------------


async def test_echo(address: Address) -> None:
    payloads = [b"", b"a", b"bc" * 1000, os.urandom(2**16), os.urandom(2**20), b"", b"end"]
    async with serving(echo, address), connect(address) as connection:
        for payload in payloads:
            await connection.send(payload)
            assert await connection.recv() == payload


async def test_both_sides_may_speak_at_once(address: Address) -> None:
    count, size = 400, 5000

    async def handler(connection: MessageConnection) -> None:
        for message in numbered(count, size):
            await connection.send(message)
        got = [await connection.recv() for _ in range(count)]
        await connection.send(b"right" if got == numbered(count, size) else b"wrong")

    async def speak(connection: MessageConnection) -> None:
        for message in numbered(count, size):
            await connection.send(message)

    async with serving(handler, address), connect(address) as connection, asyncio.TaskGroup() as group:
        group.create_task(speak(connection))
        assert [message async for message in connection] == [*numbered(count, size), b"right"]


async def test_several_tasks_may_send(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):

        async def speak(name: int) -> None:
            for number in range(20):
                await connection.send(b"%d:%d:" % (name, number) + bytes(20_000))

        async with asyncio.TaskGroup() as group:
            for name in range(10):
                group.create_task(speak(name))
            got = [message.split(b":")[:2] for message in await peer.messages(200)]

    for name in range(10):
        assert [int(number) for who, number in got if int(who) == name] == list(range(20))


async def test_iteration_ends_when_the_peer_closes(address: Address) -> None:
    async def handler(connection: MessageConnection) -> None:
        for message in numbered(10):
            await connection.send(message)

    async with serving(handler, address), connect(address) as connection:
        assert [message async for message in connection] == numbered(10)
        assert [message async for message in connection] == []
        assert connection.closed


async def test_a_handlers_iteration_ends_when_the_client_closes(address: Address) -> None:
    got: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()

    async def handler(connection: MessageConnection) -> None:
        got.set_result([message async for message in connection])

    async with serving(handler, address):
        async with connect(address) as connection:
            for message in numbered(10, 1000):
                await connection.send(message)
        assert await got == numbered(10, 1000)


async def test_the_addresses_of_both_ends(address: Address) -> None:
    handler = Handler()
    async with serving(handler, address) as server, connect(address) as connection:
        served = await handler.connection()
        assert connection.peer_address == server.address == served.local_address == address
        assert connection.local_address is not None
        assert served.peer_address is not None
        if isinstance(address, HybridAddress):
            assert isinstance(served.peer_address, HybridAddress)
            assert served.peer_address.path == address.path
        assert str(address) in repr(connection)
        assert "open" in repr(connection)
        assert not connection.closed
        assert connection.transport.get_extra_info("hv_peer") == address
        handler.released.set()
    assert connection.closed
    assert "closed" in repr(connection)


async def test_a_connection_can_be_awaited(address: Address) -> None:
    async with serving(echo, address):
        connection = await connect(address)
        await connection.send(b"hello")
        assert await connection.recv() == b"hello"
        async with connection as same:
            assert same is connection
        assert connection.closed
        await connection.wait_closed()


async def test_an_error_in_the_block_closes_the_connection(address: Address) -> None:
    async with serving(echo, address):
        with pytest.raises(ZeroDivisionError):
            async with connect(address) as connection:
                _ = 1 / 0
        assert connection.closed


async def test_nobody_listens(address: Address) -> None:
    with pytest.raises(HvConnectionRefused):
        await connect(address)
    with pytest.raises(HvConnectionRefused):
        async with connect(address):
            pytest.fail("connected")


async def test_connecting_can_wait_for_the_server(address: Address) -> None:
    waiting = asyncio.create_task(_connected(address, Retry(delay=0.01)))
    await steps(10)
    async with serving(echo, address):
        connection = await waiting
        await connection.send(b"hello")
        assert await connection.recv() == b"hello"
        await connection.close()


async def _connected(address: Address, retry: Retry) -> MessageConnection:
    return await connect(address, retry=retry)


async def test_connecting_cancelled_at_every_step_leaves_nothing(address: Address) -> None:
    async with serving(echo, address):
        for count in range(30):
            task = asyncio.create_task(_connected(address, Retry()))
            await steps(count)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await task).close()
        async with connect(address) as connection:
            await connection.send(b"still there")
            assert await connection.recv() == b"still there"


# -- pieces ------------------------------------------------------------------------------------------------


async def test_one_byte_at_a_time(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        for each in frames(b"hello", b"", b"x" * 100, b"end"):
            await peer.send(bytes([each]))
            await steps(2)
        peer.end()
        assert [message async for message in connection] == [b"hello", b"", b"x" * 100, b"end"]


async def test_many_tiny_frames_at_once(pair: Pair) -> None:
    payloads = numbered(10_000)
    async with talking(pair) as (connection, peer):
        await peer.send(frames(*payloads))
        assert [await connection.recv() for _ in payloads] == payloads


async def test_empty_messages_are_messages(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(frames(b"", b"", b"x", b""))
        assert [await connection.recv() for _ in range(4)] == [b"", b"", b"x", b""]
        for payload in (b"", b"", b"x", b""):
            await connection.send(payload)
        assert await peer.messages(4) == [b"", b"", b"x", b""]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_any_buffer_can_be_sent_and_is_taken_as_it_is_then(pair: Pair, kind: type[Any]) -> None:
    sizes = [0, 1, 5000, 40_000, 200_000]
    async with talking(pair) as (connection, peer):
        # Behind a peer that does not read, so that what is queued is tried too.
        count, blocked = await blocked_by(connection, bytes(60_000))
        sends = [blocked]
        for size in sizes:
            content = bytearray(b"a" * size)
            sends.append(asyncio.create_task(connection.send(kind(content))))
            await steps()
            content[:] = b"b" * size
        got = await peer.messages(count + len(sizes))
        assert got[count:] == [b"a" * size for size in sizes]
        await asyncio.gather(*sends)


async def test_a_buffer_of_wider_items_is_sent_as_its_bytes(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        for size in (3, 20_000):
            wide = memoryview(array.array("I", range(size)))
            await asyncio.gather(connection.send(wide), receive := asyncio.create_task(peer.messages(1)))
            assert receive.result() == [wide.tobytes()]


@pytest.mark.parametrize("queued", [False, True])
@pytest.mark.parametrize("size", [6, 10_000, 200_000])
async def test_what_cannot_be_sent_leaves_the_stream_whole(pair: Pair, queued: bool, size: int) -> None:
    async with talking(pair) as (connection, peer):
        count, sends = 0, []
        if queued:
            count, blocked = await blocked_by(connection, bytes(60_000))
            sends.append(blocked)
        expected = [bytes(60_000)] * count
        for wrong in ("text", 5, None, memoryview(bytes(size))[::2]):
            send = asyncio.create_task(connection.send(wrong))  # type: ignore[arg-type]
            await steps()
            # One that is not contiguous may be sent or refused, but not by halves.
            if send.done() and send.exception() is not None:
                assert isinstance(send.exception(), (TypeError, BufferError))
            else:
                assert isinstance(wrong, memoryview)
                sends.append(send)
                expected.append(bytes(wrong))
        sends.append(asyncio.create_task(connection.send(b"right")))
        await steps()
        connection.transport.write_eof()
        assert await peer.messages() == [*expected, b"right"]
        await asyncio.gather(*sends)


# -- the limit ---------------------------------------------------------------------------------------------


async def test_a_message_too_large_is_not_sent_and_the_connection_goes_on(address: Address) -> None:
    async with serving(echo, address), connect(address, max_size=1000) as connection:
        for _ in range(2):
            with pytest.raises(FrameTooLarge) as caught:
                await connection.send(bytes(1001))
            assert (caught.value.size, caught.value.max_size) == (1001, 1000)
            await connection.send(bytes(1000))
            assert await connection.recv() == bytes(1000)
        assert not connection.closed


async def test_a_peers_message_too_large_costs_that_one_connection(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    ends: asyncio.Queue[ConnectionClosed] = asyncio.Queue()

    async def handler(connection: MessageConnection) -> None:
        try:
            await connection.send(await connection.recv())
            await connection.recv()
        except ConnectionClosed as end:
            ends.put_nowait(end)
            raise

    async with serving(handler, address, codec=LengthPrefixed(max_size=1000)):
        async with connect(address) as good, connect(address) as bad:
            await bad.send(bytes(1000))
            assert await bad.recv() == bytes(1000)
            await bad.send(bytes(1001))
            # Without a protocol there is no telling it why.
            with pytest.raises(ConnectionClosed):
                await bad.recv()
            end = await ends.get()
            assert isinstance(end, ConnectionLost)
            assert isinstance(end.__cause__, FrameTooLarge)
            assert end.__cause__.size == 1001
            await good.send(b"still here")
            assert await good.recv() == b"still here"
        async with connect(address) as another:
            await another.send(b"welcome")
            assert await another.recv() == b"welcome"

    assert [record.levelname for record in of_ours(caplog)] == ["WARNING"]
    assert "1001 bytes is over the limit of 1000" in of_ours(caplog)[0].getMessage()


async def test_messages_before_one_too_large_are_received(pair: Pair) -> None:
    async with talking(pair, max_size=10) as (connection, peer):
        await peer.send(frames(b"one", b"two", bytes(11), b"lost"))
        assert [await connection.recv(), await connection.recv()] == [b"one", b"two"]
        for _ in range(2):
            with pytest.raises(ConnectionLost, match="over the limit of 10") as caught:
                await connection.recv()
            assert isinstance(caught.value.__cause__, FrameTooLarge)
        with pytest.raises(ConnectionLost):
            await connection.send(b"hello")
        assert await peer.recv() == b""


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"\x16\x03\x01\x02\x00",
        b"\xff" * 50,
    ],
)
async def test_garbage_costs_that_one_connection(
    address: Address, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(echo, address), connect(address) as good:
        async with connect(address) as bad:
            bad.transport.write(garbage)
            with pytest.raises(ConnectionClosed):
                await bad.recv()
        await good.send(b"still here")
        assert await good.recv() == b"still here"

    assert len(of_ours(caplog)) == 1


async def test_both_a_limit_and_a_codec_are_too_much(address: Address) -> None:
    with pytest.raises(ValueError, match="give it to the codec"):
        connect(address, codec=LengthPrefixed(), max_size=10)
    with pytest.raises(ValueError, match="give it to the codec"):
        await serve(echo, address, codec=LengthPrefixed(), max_size=10)


@pytest.mark.parametrize("size", [-1, 2**32])
async def test_a_limit_that_makes_no_sense(address: Address, size: int) -> None:
    with pytest.raises(ValueError, match="max_size"):
        connect(address, max_size=size)
    with pytest.raises(ValueError, match="max_size"):
        await serve(echo, address, max_size=size)


async def test_an_address_and_a_socket_are_too_much(address: Address, pair: Pair) -> None:
    ours, _ = pair()
    with pytest.raises(ValueError, match="at the same time"):
        await connect(address, sock=ours)
    with pytest.raises(ValueError, match="no address and sock"):
        await connect()
    with pytest.raises(ValueError, match="no address and sock"):
        await serve(echo)


# -- codecs ------------------------------------------------------------------------------------------------


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
async def test_a_codec_frames_the_bytes_bare(pair: Pair, codec: Codec) -> None:
    async with talking(pair, codec=codec) as (connection, peer):
        await connection.send(b"hello")
        await connection.send(b"")
        assert await peer.messages(2, codec) == [b"hello", b""]
        await peer.send(frames(b"hi", b"", b"there", codec=codec))
        assert [await connection.recv() for _ in range(3)] == [b"hi", b"", b"there"]


class Lines:
    """A codec of a user's own."""

    def encode(self, payload: Buffer) -> Sequence[Buffer]:
        return payload, b"\n"

    def decoder(self) -> Decoder:
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
        assert [await connection.recv() for _ in range(4)] == [b"hello", b"one", b"two", b"three"]


async def test_a_codec_with_a_mistake_costs_that_one_connection(address: Address) -> None:
    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
    async with serving(echo, address, codec=Lines()), connect(address, codec=Lines()) as good:
        async with connect(address, codec=Lines()) as bad:
            await bad.send(b"poison")
            with pytest.raises(ConnectionClosed):
                await bad.recv()
        await good.send(b"still here")
        assert await good.recv() == b"still here"

    assert [str(problem["exception"]) for problem in problems] == ["a codec with a mistake"]


# -- an end without a proper end ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "whole", "received", "expected"),
    [
        (b"\0", [], 1, None),
        (b"\0\0\0\x05ab", [], 6, 9),
        (frames(b"one", b"two") + b"\0\0\0\x05", [b"one", b"two"], 4, 9),
    ],
)
async def test_an_end_inside_a_frame_is_a_loss(
    pair: Pair, wire: bytes, whole: list[bytes], received: int, expected: int | None
) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(wire)
        peer.end()
        got: list[bytes] = []
        with pytest.raises(ConnectionLost) as caught:
            async for message in connection:
                got.append(message)  # noqa: PERF401  # the last step raises
        assert got == whole
        assert isinstance(caught.value.__cause__, IncompleteFrame)
        assert (caught.value.__cause__.received, caught.value.__cause__.expected) == (received, expected)
        assert str(caught.value.__cause__) in str(caught.value)
        with pytest.raises(ConnectionLost):
            await connection.recv()
        with pytest.raises(ConnectionLost):
            await connection.send(b"hello")
        assert connection.closed
        await connection.wait_closed()


async def test_a_process_killed_inside_a_frame(address: Address) -> None:
    script = (
        "import sys, time, asyncio, aiohvsock\n"
        "async def main():\n"
        "    connection = await aiohvsock.connect(sys.argv[1])\n"
        "    await connection.send(b'whole')\n"
        "    connection.transport.write(bytes([0, 0, 1, 0]) + bytes(100))\n"
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
            assert await asyncio.to_thread(process.stdout.readline) == b"ready\n"
            process.send_signal(signal.SIGKILL)
            with pytest.raises(ConnectionLost) as caught:
                await connection.recv()
        assert isinstance(caught.value.__cause__, IncompleteFrame)
        assert (caught.value.__cause__.received, caught.value.__cause__.expected) == (104, 260)
        handler.released.set()


async def test_a_connection_aborted_inside_a_frame(address: Address) -> None:
    handler = Handler()
    async with serving(handler, address):
        client = await connect(address)
        connection = await handler.connection()
        client.transport.write(frames(b"whole") + b"\0\0")
        assert await connection.recv() == b"whole"
        client.transport.abort()
        await client.wait_closed()
        with pytest.raises(ConnectionLost):
            await connection.recv()
        handler.released.set()


async def test_a_reset_is_a_loss_where_the_system_tells(pair: Pair, kind: str) -> None:
    async with talking(pair) as (connection, peer):
        await connection.send(b"never read")
        await peer.send(frames(b"one", b"two"))
        assert await connection.recv() == b"one"
        peer.sock.close()
        assert await connection.recv() == b"two"
        # AF_VSOCK has no reset: it comes as an end, here between two frames.
        expected = ConnectionClosedOK if kind == "vsock" else ConnectionLost
        with pytest.raises(ConnectionClosed) as caught:
            await connection.recv()
        assert type(caught.value) is expected
        if expected is ConnectionLost:
            assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_sending_to_a_peer_that_is_gone_fails(pair: Pair, kind: str) -> None:
    async with talking(pair) as (connection, peer):
        peer.sock.close()
        if kind == "hybrid":
            # A Unix socket knows at once.
            with pytest.raises(ConnectionLost) as caught:
                await connection.send(b"hello")
            assert isinstance(caught.value.__cause__, BrokenPipeError)
        with pytest.raises(ConnectionClosed):
            while True:
                await connection.send(b"hello")
                await steps()


async def test_a_send_that_waits_fails_when_the_peer_goes(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        _, blocked = await blocked_by(connection, bytes(60_000))
        peer.sock.close()
        with pytest.raises(ConnectionClosed):
            await blocked
        await connection.wait_closed()


async def test_what_came_before_a_failed_send_can_be_received(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(frames(b"one", b"two"))
        peer.sock.close()
        # Nothing has been read yet: the loop had no turn. The send meets a closed peer.
        with contextlib.suppress(ConnectionClosed):
            await connection.send(b"hello")
        with contextlib.suppress(ConnectionClosed):
            await connection.send(b"hello")
        assert [await connection.recv(), await connection.recv()] == [b"one", b"two"]
        with pytest.raises(ConnectionClosed):
            await connection.recv()


async def test_an_end_that_is_asked_for_again_and_again_keeps_no_record_of_it(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        peer.end()
        depths = []
        for _ in range(50):
            for call in (connection.recv(), connection.send(b"")):
                with pytest.raises(ConnectionClosedOK) as caught:
                    await call
            depths.append(len(caught.traceback))
        assert depths[-1] <= depths[1]


# -- cancelling --------------------------------------------------------------------------------------------


async def test_recv_cancelled_at_any_point_loses_nothing(address: Address) -> None:
    handler = Handler()
    expected = numbered(300)
    async with serving(handler, address), connect(address) as connection:
        sender = await handler.connection()
        got: list[bytes] = []
        cancelled = 0
        for number, message in enumerate(expected):
            task = asyncio.create_task(connection.recv())
            await steps(number % 3)
            await sender.send(message)
            await steps(number // 3 % 7)
            task.cancel()
            try:
                got.append(await task)
            except asyncio.CancelledError:
                cancelled += 1
        while len(got) < len(expected):
            got.append(await connection.recv())
        assert got == expected
        assert cancelled
        handler.released.set()


async def test_recv_cancelled_in_the_moment_a_message_comes_loses_nothing(pair: Pair) -> None:
    async with talking(pair) as (connection, _):
        for cancel_first in (False, True):
            task = asyncio.create_task(connection.recv())
            await steps()
            happen: list[Callable[[], object]] = [
                lambda: connection.data_received(frames(b"hello")),
                task.cancel,
            ]
            for each in reversed(happen) if cancel_first else happen:
                each()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await connection.recv() == b"hello"


async def test_recv_with_no_time_at_all_loses_nothing(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await connection.recv()
        await peer.send(frames(b"hello"))
        assert await connection.recv() == b"hello"


async def test_send_cancelled_at_any_point_loses_and_doubles_nothing(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        count, blocked = await blocked_by(connection, bytes(60_000))
        blocked.cancel()
        expected = [bytes(60_000)] * count
        for number, message in enumerate(numbered(50, 1000)):
            task = asyncio.create_task(connection.send(message))
            await steps(1 + number % 5)
            assert task.cancel() or task.done()
            expected.append(message)
        received = asyncio.create_task(peer.messages(len(expected) + 1))
        await connection.send(b"end")
        assert await received == [*expected, b"end"]


async def test_a_send_cancelled_before_it_began_sends_nothing(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        task = asyncio.create_task(connection.send(b"hello"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await connection.send(b"end")
        assert await peer.messages(1) == [b"end"]


# -- two at once -------------------------------------------------------------------------------------------


async def test_a_second_receiver_is_refused_and_the_first_goes_on(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        first = asyncio.create_task(connection.recv())
        await steps()
        with pytest.raises(LocalProtocolError, match="another task"):
            await connection.recv()
        with pytest.raises(LocalProtocolError, match="another task"):
            async for _ in connection:
                pytest.fail("received")
        await peer.send(frames(b"hello", b"there"))
        assert await first == b"hello"
        assert await connection.recv() == b"there"


async def test_after_a_cancelled_receiver_another_may_receive(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        first = asyncio.create_task(connection.recv())
        await steps()
        first.cancel()
        await asyncio.wait([first])
        second = asyncio.create_task(connection.recv())
        await peer.send(frames(b"hello"))
        assert await second == b"hello"


# -- flow control ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1000, 100_000, 2**20])
async def test_a_reader_that_does_not_read_stops_the_peer(pair: Pair, size: int) -> None:
    async with talking(pair) as (connection, peer):
        payload = bytes(size)
        wire = frames(payload) * max(1, 2**16 // (size + 4))
        sent = 0
        rest = b""
        while connection.transport.is_reading():
            rest = rest or wire
            count = peer.send_some(rest)
            sent += count
            rest = rest[count:]
            assert sent < SLACK, "the peer is never stopped"
            await steps()
        queue = connection._messages
        assert sum(map(len, queue)) <= messages._QUEUE_LIMIT + 2**18 + size
        # Small messages weigh more than their bytes, but not without a limit.
        assert sys.getsizeof(queue) + sum(map(sys.getsizeof, queue)) < 16 * 2**20

        # It goes on as soon as there is room, and nothing is missing.
        whole, part = divmod(sent, size + 4)
        async with asyncio.TaskGroup() as group:
            group.create_task(peer.send(frames(payload)[part:] if part else b""))
            for _ in range(whole + bool(part)):
                assert await connection.recv() == payload
        await peer.send(frames(b"end"))
        assert await connection.recv() == b"end"
        assert connection.transport.is_reading()


async def test_a_message_larger_than_the_queue_is_received(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        payload = os.urandom(2**20)
        for _ in range(3):
            async with asyncio.TaskGroup() as group:
                group.create_task(peer.send(frames(payload)))
                assert await connection.recv() == payload


async def test_send_waits_for_a_peer_that_does_not_read_and_queues_little(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        count, blocked = await blocked_by(connection, bytes(10_000))
        assert connection.transport.get_write_buffer_size() < 100_000 + 10_000
        received = asyncio.create_task(peer.messages(count))
        await blocked
        assert await received == [bytes(10_000)] * count


async def test_a_slow_handler_gets_everything_in_order(address: Address) -> None:
    done = asyncio.Event()
    got: list[bytes] = []
    go = asyncio.Event()

    async def handler(connection: MessageConnection) -> None:
        await go.wait()
        async for message in connection:
            got.append(message[:6])
            await steps()
        done.set()

    async with serving(handler, address):
        async with connect(address) as connection:
            for number, message in enumerate(numbered(1000, 3000)):
                send = asyncio.create_task(connection.send(message))
                await steps()
                if number == 999 or not send.done():
                    go.set()
                await send
        await done.wait()
        assert got == numbered(1000)


async def test_the_peers_end_comes_after_all_it_sent_however_slow_the_reader(pair: Pair) -> None:
    payloads = numbered(40, 20_000)
    async with talking(pair) as (connection, peer):

        async def speak() -> None:
            for payload in payloads:
                await peer.send(frames(payload))
            peer.end()

        async with asyncio.TaskGroup() as group:
            group.create_task(speak())
            while connection.transport.is_reading():
                await steps()
            assert [message async for message in connection] == payloads


# -- handlers ----------------------------------------------------------------------------------------------


async def test_what_a_handler_raises_is_logged_once_and_the_server_goes_on(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(connection: MessageConnection) -> None:
        async for message in connection:
            if message == b"fail":
                raise ZeroDivisionError("a handler with a mistake")
            await connection.send(message)

    async with serving(handler, address), connect(address) as good:
        async with connect(address) as bad:
            await bad.send(b"fail")
            with pytest.raises(ConnectionClosedOK):
                await bad.recv()
        await good.send(b"still here")
        assert await good.recv() == b"still here"

    (record,) = of_ours(caplog)
    assert record.levelname == "ERROR"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)


async def test_a_handler_that_ends_with_its_connection_is_no_news(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    ended = asyncio.Event()

    async def handler(connection: MessageConnection) -> None:
        try:
            while True:
                await connection.recv()
        finally:
            ended.set()

    async with serving(handler, address):
        async with connect(address) as connection:
            await connection.send(b"hello")
        await ended.wait()

    assert of_ours(caplog) == []


async def test_a_connection_is_closed_when_its_handler_returns(address: Address) -> None:
    served: list[MessageConnection] = []

    async def handler(connection: MessageConnection) -> None:
        served.append(connection)
        await connection.send(b"bye")

    async with serving(handler, address):
        async with connect(address) as connection:
            assert await connection.recv() == b"bye"
            with pytest.raises(ConnectionClosedOK):
                await connection.recv()
        await served[0].wait_closed()
        assert served[0].closed


async def test_a_handler_may_leave_a_client_that_goes_on_sending(address: Address) -> None:
    async def handler(connection: MessageConnection) -> None:
        await connection.recv()

    async with serving(handler, address), connect(address) as connection:
        with pytest.raises(ConnectionClosedOK):
            while True:
                await connection.send(bytes(50_000))
                await steps()


async def test_a_handler_may_close_its_connection(address: Address) -> None:
    async def handler(connection: MessageConnection) -> None:
        await connection.send(b"bye")
        await connection.close()
        assert connection.closed

    async with serving(handler, address), connect(address) as connection:
        assert [message async for message in connection] == [b"bye"]


async def test_a_server_that_closes_its_clients(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    ends: asyncio.Queue[Exception] = asyncio.Queue()

    async def handler(connection: MessageConnection) -> None:
        await connection.send(b"welcome")
        try:
            await connection.recv()
        except ConnectionClosed as end:
            ends.put_nowait(end)
            raise

    async with await serve(handler, address) as server, connect(address) as connection:
        assert await connection.recv() == b"welcome"
        server.close()
        server.close_clients()
        with pytest.raises(ConnectionClosedOK):
            await connection.recv()
        assert isinstance(await ends.get(), ConnectionClosedOK)
        await server.wait_closed()
    assert of_ours(caplog) == []


async def test_a_send_while_the_server_closes_its_clients_is_not_lost_in_silence(directory: str) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{directory}/socket")
    handler = Handler()
    async with serving(handler, sock=listener) as server:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(f"{directory}/socket")
            connection = await handler.connection()
            # What is queued holds the close up: the connection is neither open nor gone.
            while not connection.transport.get_write_buffer_size():
                await connection.send(bytes(1000))
            server.close_clients()
            with pytest.raises(ConnectionClosed):
                await connection.send(b"late")
        handler.released.set()


async def test_a_peer_that_is_not_allowed_never_meets_the_handler(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Handler()
    async with serving(handler, address, allow=[7]):
        for _ in range(3):
            async with connect(address) as connection:
                with pytest.raises(ConnectionClosed):
                    await connection.recv()
        assert handler.connections.empty()

    assert len(of_ours(caplog)) == 1
    assert "not allowed" in of_ours(caplog)[0].getMessage()


@pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("peer_closes", [True, False])
@pytest.mark.usefixtures("no_patience")
def test_a_program_may_end_while_handlers_run(
    address: Address,
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
    peer_closes: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What asyncio.run() does at the end: it cancels the tasks that are left."""
    ended: list[str] = []

    async def handler(connection: MessageConnection) -> None:
        try:
            await connection.recv()
        finally:
            ended.append(str(connection))

    async def main() -> tuple[HvServer, MessageConnection]:
        server = await serve(handler, address)
        connection = await connect(address)
        while not server._transports:
            await steps()
        if not peer_closes:
            connection.transport.pause_reading()
        server.close()
        return server, connection

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        _server, connection = runner.run(main())
        runner.close()
        assert len(ended) == 1
    # Without a loop nobody can close it.
    sock = connection.transport.get_extra_info("socket")
    sock.close()
    connection.transport._sock = None  # type: ignore[attr-defined]
    assert of_ours(caplog) == []


# -- closing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("closer", ["client", "server"])
async def test_either_side_may_close(address: Address, closer: str) -> None:
    handler = Handler()
    async with serving(handler, address):
        client = await connect(address)
        server = await handler.connection()
        one, other = (client, server) if closer == "client" else (server, client)
        await one.send(b"last words")
        await one.close()
        assert one.closed
        assert await other.recv() == b"last words"
        for connection in (one, other):
            await connection.wait_closed()
            for call in (connection.recv(), connection.send(b"")):
                with pytest.raises(ConnectionClosedOK):
                    await call
            assert [message async for message in connection] == []
            await connection.close()
            assert connection.closed
        handler.released.set()


@pytest.mark.parametrize("payload", [b"", b"x", bytes(300_000)])
async def test_both_sides_may_close_at_once(address: Address, payload: bytes) -> None:
    handler = Handler()
    async with serving(handler, address):
        client = await connect(address)
        server = await handler.connection()
        for connection in (client, server):
            connection.transport.writelines(HUGE.encode(payload))
        await asyncio.gather(client.close(), server.close())
        for connection in (client, server):
            with contextlib.suppress(ConnectionClosedOK):
                assert await connection.recv() == payload
            with pytest.raises(ConnectionClosedOK):
                await connection.recv()
        handler.released.set()


@pytest.mark.parametrize("count", [3, 500])
@pytest.mark.parametrize("closer", ["client", "server"])
async def test_closing_with_data_unread_on_both_sides_is_no_loss(
    address: Address, closer: str, count: int
) -> None:
    # 3 fit into the queue; 500 stop both senders.
    handler = Handler()
    async with serving(handler, address):
        client = await connect(address)
        server = await handler.connection()
        one, other = (client, server) if closer == "client" else (server, client)
        for connection in (client, server):
            for message in numbered(count, 10_000):
                connection.transport.writelines(HUGE.encode(message))
        while client.transport.is_reading() and server.transport.is_reading() and count == 500:
            await steps()

        closing = asyncio.create_task(one.close())
        await steps(5)
        assert [message async for message in other] == numbered(count, 10_000)
        with pytest.raises(ConnectionClosedOK):
            await other.recv()
        await closing
        with pytest.raises(ConnectionClosedOK):
            while True:
                await one.recv()
        handler.released.set()


async def test_messages_that_were_here_before_close_can_be_received_after(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(frames(*numbered(3)))
        assert await connection.recv() == numbered(3)[0]
        closing = asyncio.create_task(connection.close())
        await steps()
        assert await peer.recv() == b""
        await peer.send(frames(b"too late"))
        peer.end()
        await closing
        assert [message async for message in connection] == numbered(3)[1:]


async def test_a_receiver_that_waits_learns_of_the_close(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        receiving = asyncio.create_task(connection.recv())
        await steps()
        closing = asyncio.create_task(connection.close())
        assert await peer.recv() == b""
        peer.end()
        with pytest.raises(ConnectionClosedOK):
            await receiving
        await closing


async def test_a_peer_that_resets_while_we_close_is_no_loss(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await connection.send(b"never read")
        closing = asyncio.create_task(connection.close())
        await steps()
        peer.sock.close()
        await closing
        with pytest.raises(ConnectionClosedOK):
            await connection.recv()


async def test_close_sends_what_is_queued(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        count, blocked = await blocked_by(connection, bytes(60_000))
        closing = asyncio.create_task(connection.close())
        assert await peer.messages() == [bytes(60_000)] * count
        peer.end()
        await closing
        # It was sent, but the connection is closed: either is the truth.
        with contextlib.suppress(ConnectionClosedOK):
            await blocked


async def test_send_is_over_as_soon_as_close_is_called(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        closing = asyncio.create_task(connection.close())
        await steps()
        assert connection.closed
        with pytest.raises(ConnectionClosedOK, match="closed by this side"):
            await connection.send(b"hello")
        peer.end()
        await closing
        assert await peer.messages() == []


@pytest.mark.usefixtures("no_patience")
async def test_close_does_not_wait_for_ever(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with talking(pair) as (connection, peer):
        await connection.close()
        await connection.wait_closed()
        assert connection.closed
        with pytest.raises(ConnectionClosedOK):
            await connection.recv()
        assert await peer.recv() == b""
        assert any("did not close" in record.getMessage() for record in of_ours(caplog, logging.INFO))


@pytest.mark.usefixtures("no_patience")
async def test_close_does_not_wait_for_ever_for_a_peer_that_does_not_read(pair: Pair) -> None:
    async with talking(pair) as (connection, _):
        _, blocked = await blocked_by(connection, bytes(60_000))
        await connection.close()
        await connection.wait_closed()
        with pytest.raises(ConnectionClosedOK):
            await blocked


@pytest.mark.usefixtures("no_patience")
async def test_close_does_not_wait_for_ever_for_a_peer_that_goes_on_sending(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):

        async def speak() -> None:
            with contextlib.suppress(OSError):
                while True:
                    await peer.send(frames(bytes(50_000)))

        speaker = asyncio.create_task(speak())
        await connection.recv()
        await connection.close()
        await speaker
        await connection.wait_closed()
        assert connection.closed


@pytest.mark.parametrize("count", [0, 1, 2, 5])
async def test_close_cancelled_cuts_the_connection_off(pair: Pair, count: int) -> None:
    async with talking(pair) as (connection, peer):
        closing = asyncio.create_task(connection.close())
        await steps(1 + count)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await connection.wait_closed()
        with pytest.raises(ConnectionClosedOK):
            await connection.recv()
        assert await peer.recv() == b""


async def test_close_may_be_called_by_several(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        closing = [asyncio.create_task(connection.close()) for _ in range(3)]
        assert await peer.recv() == b""
        peer.end()
        await asyncio.gather(*closing)
        await connection.close()
        assert connection.closed


async def test_closing_after_the_peer_has_closed(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(frames(b"bye"))
        peer.end()
        assert await peer.recv() == b""
        await connection.close()
        assert await connection.recv() == b"bye"
        with pytest.raises(ConnectionClosedOK, match="closed by the peer"):
            await connection.recv()


async def test_closing_after_a_loss(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(b"\0")
        peer.end()
        await connection.wait_closed()
        await connection.close()
        with pytest.raises(ConnectionLost):
            await connection.recv()


async def test_waiting_for_the_end_changes_nothing(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        waiting = asyncio.create_task(connection.wait_closed())
        await steps()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not connection.closed
        await connection.send(b"hello")
        assert await peer.messages(1) == [b"hello"]
        waiting = asyncio.create_task(connection.wait_closed())
        await steps()
        assert not waiting.done()
        peer.end()
        await waiting


# -- over other sockets ------------------------------------------------------------------------------------


async def test_a_socket_of_a_foreign_family() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    with theirs:
        theirs.setblocking(False)
        peer = Peer(theirs)
        async with connect(sock=ours) as connection:
            assert connection.peer_address is None
            assert connection.local_address is None
            assert "None" in repr(connection)
            await connection.send(b"hello")
            assert await peer.messages(1) == [b"hello"]
            theirs.close()


async def test_a_listening_socket_of_ones_own(directory: str) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{directory}/socket")
    async with serving(echo, sock=listener):
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.connect(f"{directory}/socket")
        async with connect(sock=ours) as connection:
            await connection.send(b"hello")
            assert await connection.recv() == b"hello"


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts for the server and the client."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("agent.example").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@pytest.mark.parametrize("closer", ["client", "server"])
async def test_messages_over_tls(
    address: Address, tls: tuple[ssl.SSLContext, ssl.SSLContext], closer: str
) -> None:
    handler = Handler()
    async with serving(handler, address, ssl=tls[0]):
        client = await connect(address, ssl=tls[1], server_hostname="agent.example")
        server = await handler.connection()
        for one, other in ((client, server), (server, client)):
            payload = os.urandom(100_000)
            await one.send(payload)
            assert await other.recv() == payload
        assert client.peer_address == address
        one, other = (client, server) if closer == "client" else (server, client)
        await one.send(b"last words")
        await one.close()
        assert [message async for message in other] == [b"last words"]
        await other.close()
        handler.released.set()


async def test_close_over_tls_sends_what_is_queued(
    address: Address, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    handler = Handler()
    async with serving(handler, address, ssl=tls[0]):
        client = await connect(address, ssl=tls[1], server_hostname="agent.example")
        server = await handler.connection()
        for message in numbered(500, 10_000):
            client.transport.writelines(HUGE.encode(message))
        closing = asyncio.create_task(client.close())
        assert [message async for message in server] == numbered(500, 10_000)
        await closing
        handler.released.set()
