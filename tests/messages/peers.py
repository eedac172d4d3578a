"""Peers made by hand, who speak the native protocol byte by byte or break it on purpose, and what goes with them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from functools import cache
from typing import Any, TypeVar

import pytest
import trustme

from aiohvsock import (
    Address,
    MessageConnection,
    MessageServer,
    connect,
    serve,
)
from aiohvsock.transports.selector import SelectorTransport
from aiohvsock.transports.writing import WritingHalf

from ..conftest import Pair
from ..helpers import kind_of, new_socket, sockaddr

T = TypeVar("T")

Connection = MessageConnection[bytes]
Server = MessageServer[bytes]

MAGIC = b"\x89hvmsg\r\n"
DATA, PING, PONG, CLOSE = range(4)

# What the kernel and one read can hold besides the queues, generously.
SLACK = 4 * 2**20

# Over it a message is received in place.
SCRATCH = 256 * 1024


def hello(
    max_message: int = 2**20,
    patience: int = 0,
    *,
    version: int = 1,
    oldest: int = 1,
    capabilities: int = 0,
    rest: bytes = b"",
    length: int | None = None,
) -> bytes:
    """Return a hello; ``length`` can lie, ``patience`` is in milliseconds."""
    fields = b"".join(each.to_bytes(4, "big") for each in (capabilities, max_message, patience)) + rest
    size = len(fields) if length is None else length
    return MAGIC + bytes((version, oldest)) + size.to_bytes(2, "big") + fields


def frame(kind: int, payload: bytes = b"", *, length: int | None = None, reserved: bytes = bytes(3)) -> bytes:
    """Return a frame; ``length`` can lie."""
    size = len(payload) if length is None else length
    return bytes((kind,)) + reserved + size.to_bytes(4, "big") + payload


def data(*payloads: bytes) -> bytes:
    return b"".join(frame(DATA, payload) for payload in payloads)


def pong(payload: bytes = b"") -> bytes:
    return frame(PONG, payload)


def close(code: int = 0, reason: str = "") -> bytes:
    return frame(CLOSE, bytes((code,)) + reason.encode())


def numbered(count: int, size: int = 0, first: int = 0) -> list[bytes]:
    return [b"%06d" % number + bytes(size) for number in range(first, first + count)]


async def turns(count: int = 1) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Go round the loop until something holds; the test's own timeout is the limit."""
    while not condition():  # noqa: ASYNC110  # what it waits for tells nobody
        await asyncio.sleep(0)


class Peer:
    """The other end of a connection, without the package: a socket, and the format written out."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.loop = asyncio.get_running_loop()
        self.pending = bytearray()
        self.close: tuple[int, str] | None = None
        """Code and reason of the CLOSE that :meth:`messages` met."""

    async def send(self, *pieces: bytes) -> None:
        await self.loop.sock_sendall(self.sock, b"".join(pieces))

    def send_some(self, wire: bytes) -> int:
        """Send what the kernel takes, and return how much that was."""
        try:
            return self.sock.send(wire)
        except BlockingIOError:
            return 0

    async def recv(self) -> bytes:
        """Return the next bytes; none at the end, and a reset is one."""
        try:
            return await self.loop.sock_recv(self.sock, 2**20)
        except ConnectionError:
            return b""

    def recv_now(self) -> bytes:
        """Return what is there already."""
        try:
            return self.sock.recv(2**20)
        except BlockingIOError:
            return b""

    async def take(self, size: int) -> bytes:
        """Return so many bytes.

        Raises:
            EOFError: the stream ended before.
        """
        while len(self.pending) < size:
            more = await self.recv()
            if not more:
                raise EOFError(f"{len(self.pending)} of {size} bytes")
            self.pending += more
        taken = bytes(self.pending[:size])
        del self.pending[:size]
        return taken

    async def hello(self) -> bytes:
        """Read the other side's hello."""
        head = await self.take(12)
        assert head[:10] == MAGIC + b"\1\1"
        return head + await self.take(int.from_bytes(head[10:], "big"))

    async def frame(self) -> tuple[int, bytes]:
        """Read a frame: its type and its payload."""
        header = await self.take(8)
        assert header[1:4] == bytes(3)
        return header[0], await self.take(int.from_bytes(header[4:], "big"))

    async def frames_of(self, kind: int) -> bytes:
        """Skip to the next frame of a type, and return its payload."""
        while True:
            found, payload = await self.frame()
            if found == kind:
                return payload

    async def messages(self, count: int | None = None) -> list[bytes]:
        """Return so many messages, or all up to the peer's CLOSE, which goes into :attr:`close`."""
        got: list[bytes] = []
        while count is None or len(got) < count:
            kind, payload = await self.frame()
            if kind == DATA:
                got.append(payload)
            elif kind == CLOSE:
                self.close = payload[0], payload[1:].decode()
                assert count is None, f"closed after {len(got)} messages"
                break
        return got

    async def closed(self) -> tuple[int, str]:
        """Skip to the peer's CLOSE, and return its code and reason."""
        await self.messages()
        assert self.close is not None
        return self.close

    async def answer_close(self) -> tuple[int, str]:
        """Answer the peer's CLOSE as one should, and return its code and reason."""
        code, reason = await self.closed()
        await self.send(close(code))
        await self.ended()
        return code, reason

    async def ended(self) -> None:
        """Read to the end of the stream, of which nothing may be left."""
        left = bytes(self.pending) + await self.recv()
        assert left == b""

    async def drained(self) -> bytes:
        """Read to the end of the stream, and return what was left."""
        while more := await self.recv():
            self.pending += more
        return bytes(self.pending)

    def end(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        """What happens to the sockets of a process that is killed."""
        self.sock.close()


@contextlib.asynccontextmanager
async def talking(
    pair: Pair, greeting: bytes | None = None, **options: Any
) -> AsyncIterator[tuple[Connection, Peer]]:
    """Give a connection, and the peer it is open to."""
    ours, theirs = pair()
    peer = Peer(theirs)
    await peer.send(hello() if greeting is None else greeting)
    connection = await connect(sock=ours, **options)
    await peer.hello()
    try:
        yield connection, peer
    finally:
        theirs.close()
        await connection.close()


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[Any], Awaitable[None]] | None,
    address: Address | Iterable[Address] | None = None,
    **options: Any,
) -> AsyncIterator[Server]:
    """Serve, and do not wait for peers at the end."""
    server: Server = await serve(handler, address, **options)
    try:
        yield server
    finally:
        server.close()
        server.abort_clients()
        await server.wait_closed()


async def echo(connection: Connection) -> None:
    async for message in connection:
        await connection.send(message)


class Handler:
    """Keeps the connections it serves until the test is done with each."""

    def __init__(self) -> None:
        self.connections: asyncio.Queue[Connection] = asyncio.Queue()
        self.released = asyncio.Event()

    async def __call__(self, connection: Connection) -> None:
        self.connections.put_nowait(connection)
        await self.released.wait()

    async def connection(self) -> Connection:
        return await self.connections.get()


@contextlib.asynccontextmanager
async def joined(
    address: Address, *, server: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Connection, Connection]]:
    """Give both ends of one connection, the client's first; ``options`` are the client's."""
    handler = Handler()
    async with serving(handler, address, **(server or {})):
        client = await connect(address, **options)
        try:
            yield client, await handler.connection()
        finally:
            handler.released.set()
            await client.close()


@contextlib.contextmanager
def dialling(address: Address) -> Iterator[Peer]:
    """Give a peer that is connected to a server and has said nothing yet."""
    with new_socket(kind_of(address)) as sock:
        sock.connect(sockaddr(address))  # where hybrid is concerned, as the monitor does
        sock.setblocking(False)
        yield Peer(sock)


def deliver(connection: Connection, wire: bytes) -> None:
    """Do what the transport does when bytes have come; call it in a callback of the loop."""
    while wire:
        protocol = connection.transport.get_protocol()
        if isinstance(protocol, asyncio.BufferedProtocol):
            room = protocol.get_buffer(-1)
            size = min(len(memoryview(room)), len(wire))
            memoryview(room)[:size] = wire[:size]
            protocol.buffer_updated(size)
        else:
            assert isinstance(protocol, asyncio.Protocol)
            size = min(SCRATCH, len(wire))
            protocol.data_received(wire[:size])
        wire = wire[size:]


async def in_callback(function: Callable[[], T]) -> T:
    """Call a function from the loop, where no task is running, and return what it returned."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def call() -> None:
        assert asyncio.current_task() is None
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)

    loop.call_soon(call)
    return await done


async def blocked_by(connection: Connection, payload: bytes) -> tuple[int, asyncio.Task[None]]:
    """Send until the peer, who must not read, makes it wait. Return how often, and the send that waits."""
    for count in range(1, 10_000):
        task = asyncio.create_task(connection.send(payload))
        await turns()
        if not task.done():
            return count, task
        await task
    raise AssertionError("send() never waits")


async def pour(connection: Connection, peer: Peer, wire: bytes) -> int:
    """Send again and again until the connection, which nobody reads, takes no more; return how much that was.

    Whole repetitions: the rest of the last must be sent when there is room. That is what is left of it.
    """
    sent = 0
    while connection.transport.is_reading():
        sent += peer.send_some(wire[sent % len(wire) :])
        assert sent < SLACK, "the peer is never stopped"
        await turns()
    while size := peer.send_some(wire[sent % len(wire) :]):
        sent += size
        assert sent < SLACK, "the peer is never stopped"
    return sent


class Writes:
    """Records what transports write: the size of each ``write()`` or ``writelines()``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by: list[tuple[object, int]] = []
        write, writelines = WritingHalf.write, WritingHalf.writelines

        def spying_write(transport: WritingHalf, piece: bytes) -> None:
            self.by.append((transport, len(piece)))
            write(transport, piece)

        def spying_writelines(transport: WritingHalf, pieces: Iterable[bytes]) -> None:
            pieces = list(pieces)
            self.by.append((transport, sum(memoryview(piece).nbytes for piece in pieces)))
            writelines(transport, pieces)

        monkeypatch.setattr(SelectorTransport, "_is_bare", False)  # or C would write past them
        monkeypatch.setattr(WritingHalf, "write", spying_write)
        monkeypatch.setattr(WritingHalf, "writelines", spying_writelines)

    def of(self, connection: Connection) -> list[int]:
        """Return the sizes since the last call, and forget them."""
        sizes = [size for transport, size in self.by if transport is connection.transport]
        self.by = [each for each in self.by if each[0] is not connection.transport]
        return sizes


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> Writes:
    return Writes(monkeypatch)


def of_ours(caplog: pytest.LogCaptureFixture, level: int = logging.WARNING) -> list[logging.LogRecord]:
    """Return what the package has logged."""
    return [each for each in caplog.records if each.name == "aiohvsock" and each.levelno >= level]


def catch() -> list[dict[str, Any]]:
    """Collect what goes to the loop's exception handler."""
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reports.append(context))
    return reports


NAME = "guest.example"


@cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's and a client's TLS context, of an authority of their own."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(NAME).configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client
