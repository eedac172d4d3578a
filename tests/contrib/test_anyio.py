"""VM sockets as anyio's streams: each behaviour that anyio's own tests ask of its Unix streams."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing
from anyio import aclose_forcefully, create_task_group, wait_all_tasks_blocked
from anyio.abc import SocketAttribute

import aiohvsock
from aiohvsock import (
    Address,
)
from aiohvsock.contrib.anyio import (
    HvAttribute,
    HvListener,
    HvStream,
    connect_hv,
    create_hv_listener,
)

from ..conftest import Pair
from ..helpers import fill, kind_of, new_socket
from .anyio_runs import (
    DATA,
    asyncio_elsewhere,
    everywhere,
    expect,
    on,
    read_to_end,
    shout,
    streams,
)

# -- what trio asks of a stream ----------------------------------------------------------------------------


class TrioStream(trio.abc.HalfCloseableStream):
    """One of our streams as trio has them."""

    def __init__(self, stream: HvStream) -> None:
        self.stream = stream

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        with translated():
            try:
                return await self.stream.receive(65536 if max_bytes is None else max_bytes)
            except anyio.EndOfStream:
                return b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with translated():
            await self.stream.send(data)  # type: ignore[arg-type]

    async def wait_send_all_might_not_block(self) -> None:
        def writable() -> None:
            trio.lowlevel.checkpoint  # noqa: B018

        with translated(), self.stream._send_guard:
            if not self.stream._closed:
                await self.stream._waiting.writable()
            else:
                await self.stream._when_ready(self.stream._waiting.writable, writable)

    async def send_eof(self) -> None:
        with translated():
            await self.stream.send_eof()

    async def aclose(self) -> None:
        await self.stream.aclose()


class translated:
    """Turn anyio's errors into trio's."""

    ERRORS: ClassVar = {
        anyio.ClosedResourceError: trio.ClosedResourceError,
        anyio.BrokenResourceError: trio.BrokenResourceError,
        anyio.BusyResourceError: trio.BusyResourceError,
    }

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: object
    ) -> None:
        for ours, theirs in self.ERRORS.items():
            if isinstance(error, ours):
                raise theirs from error


@pytest.mark.linux
def test_what_trio_asks_of_a_stream(pair: Pair) -> None:
    async def make() -> tuple[TrioStream, TrioStream]:
        ours, theirs = await streams(pair)
        return TrioStream(ours), TrioStream(theirs)

    async def make_clogged() -> tuple[TrioStream, TrioStream]:
        ours, theirs = await make()
        for stream in (ours, theirs):
            await fill(stream.stream._sock)
        return ours, theirs

    on("trio", partial(trio.testing.check_half_closeable_stream, make, make_clogged))


# -- streams: anyio's TestUNIXStream -----------------------------------------------------------------------


@everywhere
async def test_extra_attributes(address: Address) -> None:
    async with await create_hv_listener(address) as listener, await connect_hv(address) as client:
        async with await listener.accept() as stream:
            for each in (client, stream):
                raw = each.extra(SocketAttribute.raw_socket)
                assert isinstance(raw, socket.socket)
                assert raw.gettimeout() == 0
                assert each.extra(SocketAttribute.family) == raw.family
                # Windows forgets an accepted socket's own name.
                if sys.platform != "win32" or each is client:
                    assert each.extra(SocketAttribute.local_address) == raw.getsockname()
                assert each.extra(SocketAttribute.remote_address) == raw.getpeername()
            assert client.extra(HvAttribute.peer_address) == address
            assert kind_of(client.extra(HvAttribute.local_address)) == kind_of(address)
            assert stream.extra(HvAttribute.local_address) == address
            assert kind_of(stream.extra(HvAttribute.peer_address)) == kind_of(address)
            assert client.extra(SocketAttribute.local_port, None) is None
            names = client.extra(SocketAttribute.local_address), client.extra(SocketAttribute.remote_address)
            # The system does not tell them any more, but we do.
            await client.send_eof()
        await client.aclose()
        assert names == (
            client.extra(SocketAttribute.local_address),
            client.extra(SocketAttribute.remote_address),
        )
        assert client.extra(HvAttribute.peer_address) == address


@everywhere
async def test_a_foreign_socket_has_no_typed_address() -> None:
    ours, theirs = socket.socketpair()
    async with await HvStream.from_socket(ours) as stream, await HvStream.from_socket(theirs) as peer:
        with pytest.raises(anyio.TypedAttributeLookupError):
            stream.extra(HvAttribute.peer_address)
        assert stream.extra(HvAttribute.local_address, None) is None
        await stream.send(b"hello")
        assert await peer.receive() == b"hello"


@everywhere
async def test_send_receive(address: Address) -> None:
    async with await create_hv_listener(address) as listener, create_task_group() as tasks:
        tasks.start_soon(listener.serve, shout)
        async with await connect_hv(address) as stream:
            await stream.send(b"hello")
            assert await stream.receive() == b"HELLO"
            await stream.send(b"goodbye")
            assert await stream.receive(4) == b"GOOD"
            assert await stream.receive() == b"BYE"
        tasks.cancel_scope.cancel()


@everywhere
async def test_aiohvsock_at_the_other_end(address: Address) -> None:
    async def serve(ready: Callable[[], None], stop: asyncio.Event) -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read())
            writer.close()

        async with await aiohvsock.start_hv_server(echo, address):
            ready()
            await stop.wait()

    async with asyncio_elsewhere(serve), await connect_hv(address) as stream:
        await stream.send(DATA)
        await stream.send_eof()
        assert await read_to_end(stream) == DATA


@everywhere
async def test_receive_invalid_max_bytes(pair: Pair) -> None:
    ours, theirs = await streams(pair)
    async with ours, theirs:
        with pytest.raises(ValueError, match="max_bytes must be a positive integer"):
            await ours.receive(0)


@everywhere
async def test_large_buffers_both_ways(pair: Pair) -> None:
    ours, theirs = await streams(pair)

    async def send(stream: HvStream, data: bytes) -> None:
        await stream.send(data)
        await stream.send_eof()

    async with ours, theirs, create_task_group() as tasks:
        tasks.start_soon(send, ours, DATA)
        tasks.start_soon(send, theirs, DATA[::-1])
        assert await read_to_end(theirs) == DATA
        assert await read_to_end(ours) == DATA[::-1]


@everywhere
async def test_send_eof(address: Address) -> None:
    async with (
        await create_hv_listener(address) as listener,
        await connect_hv(address) as client,
        await listener.accept() as stream,
    ):
        await client.send(b"hello, ")
        await client.send(b"world")
        await client.send_eof()
        await client.send_eof()
        assert await read_to_end(stream) == b"hello, world"
        with pytest.raises(anyio.EndOfStream):
            await stream.receive()
        await stream.send(b"and back")
        await stream.send_eof()
        assert await read_to_end(client) == b"and back"
        with pytest.raises(anyio.ClosedResourceError):
            await client.send(b"more")


@everywhere
async def test_concurrent_use(pair: Pair) -> None:
    ours, theirs = await streams(pair)
    async with ours, theirs, create_task_group() as tasks:
        await fill(ours.extra(SocketAttribute.raw_socket))
        tasks.start_soon(ours.receive)
        tasks.start_soon(ours.send, b"x")
        await wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError, match="already reading from"):
            await ours.receive()
        with pytest.raises(anyio.BusyResourceError, match="already writing to"):
            await ours.send(b"y")
        with pytest.raises(anyio.BusyResourceError, match="already writing to"):
            await ours.send_eof()
        tasks.cancel_scope.cancel()


@everywhere
async def test_close_during_receive(pair: Pair) -> None:
    ours, theirs = await streams(pair)
    async with theirs, create_task_group() as tasks:
        tasks.start_soon(expect, anyio.ClosedResourceError, ours.receive)
        await wait_all_tasks_blocked()
        await ours.aclose()


@everywhere
async def test_close_during_send(pair: Pair) -> None:
    ours, theirs = await streams(pair)
    async with theirs, create_task_group() as tasks:
        await fill(ours.extra(SocketAttribute.raw_socket))
        tasks.start_soon(expect, anyio.ClosedResourceError, partial(ours.send, b"x"))
        await wait_all_tasks_blocked()
        await ours.aclose()


@everywhere
async def test_close_just_after_the_peer_sent(pair: Pair) -> None:
    ours, theirs = await streams(pair)
    async with theirs, create_task_group() as tasks:
        tasks.start_soon(expect, (anyio.ClosedResourceError, None), ours.receive)
        await wait_all_tasks_blocked()
        theirs.extra(SocketAttribute.raw_socket).send(b"x")
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        await ours.aclose()


@everywhere
async def test_close_after_cancelled_io(pair: Pair) -> None:
    for operation in ("receive", "send"):
        ours, theirs = await streams(pair)
        await fill(ours.extra(SocketAttribute.raw_socket))
        async with theirs, create_task_group() as tasks:
            tasks.start_soon(partial(getattr(ours, operation), *([b"x"] if operation == "send" else [])))
            await wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        await ours.aclose()
        assert ours.extra(SocketAttribute.raw_socket).fileno() == -1


@everywhere
async def test_cancelled_receive_loses_nothing(pair: Pair) -> None:
    ours, theirs = await streams(pair)
    async with ours, theirs:
        await theirs.send(b"hello")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ours.receive()
        assert scope.cancelled_caught
        assert await ours.receive() == b"hello"


@everywhere
async def test_cancelled_send_sends_nothing(pair: Pair) -> None:
    ours, theirs = await streams(pair)
    async with ours, theirs:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ours.send(b"hello")
        assert scope.cancelled_caught
        await ours.send_eof()
        assert await read_to_end(theirs) == b""


@everywhere
async def test_each_call_gives_the_others_their_turn(pair: Pair) -> None:
    ours, theirs = await streams(pair)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with ours, theirs, create_task_group() as tasks:
        tasks.start_soon(count)
        for _ in range(20):
            await ours.send(b"x")
            await theirs.receive()
        assert turns > 20
        tasks.cancel_scope.cancel()


@everywhere
async def test_concurrent_forceful_closes(pair: Pair) -> None:
    ours, theirs = await streams(pair)
    async with theirs, create_task_group() as tasks:
        tasks.start_soon(aclose_forcefully, ours)
        tasks.start_soon(aclose_forcefully, ours)
    assert ours.extra(SocketAttribute.raw_socket).fileno() == -1


@everywhere
async def test_aclose_in_a_cancelled_scope(pair: Pair) -> None:
    ours, theirs = await streams(pair)
    async with theirs:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ours.aclose()
        assert scope.cancelled_caught
        assert ours.extra(SocketAttribute.raw_socket).fileno() == -1


@everywhere
async def test_use_after_close(pair: Pair) -> None:
    ours, theirs = await streams(pair)
    async with theirs:
        await ours.aclose()
        await ours.aclose()
        for operation in (ours.receive, partial(ours.send, b"x"), partial(ours.send, b""), ours.send_eof):
            with pytest.raises(anyio.ClosedResourceError):
                await operation()


@everywhere
async def test_a_peer_that_has_gone(pair: Pair) -> None:
    ours, theirs = await streams(pair)
    async with ours:
        await theirs.send(b"last words")
        await theirs.aclose()
        with pytest.raises(anyio.BrokenResourceError) as caught:
            while True:
                await ours.send(DATA)
        assert isinstance(caught.value.__cause__, OSError)
        # What it sent is not lost with our own write.
        assert await ours.receive() == b"last words"
        with pytest.raises(anyio.EndOfStream):
            await ours.receive()


@everywhere
@pytest.mark.linux
async def test_a_reset() -> None:
    ours, theirs = socket.socketpair()
    stream = await HvStream.from_socket(ours)
    async with stream:
        await stream.send(b"unread")
        theirs.close()
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await stream.receive()
        assert isinstance(caught.value.__cause__, ConnectionResetError)


@everywhere
async def test_from_socket_wrong(kind: str) -> None:
    with new_socket(kind) as sock, pytest.raises(ValueError, match="the socket must be connected"):
        await HvStream.from_socket(sock)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for kind_of_resource in (HvStream, HvListener):
            with pytest.raises(ValueError, match="a stream socket was expected"):
                await kind_of_resource.from_socket(sock)
        assert sock.fileno() >= 0
