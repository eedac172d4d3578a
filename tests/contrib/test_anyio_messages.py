"""MessageStream: whole messages over anyio's byte streams, with itself and with aiohvsock.connect and serve."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import anyio
import anyio.lowlevel
import pytest
from anyio import create_task_group, wait_all_tasks_blocked
from anyio.streams.tls import TLSConnectable, TLSListener, TLSStream

import aiohvsock
from aiohvsock import (
    Address,
    CloseCode,
    ConnectionClosedOK,
    FrameTooLarge,
    IncompleteFrame,
    MessageConnection,
)
from aiohvsock.contrib.anyio import (
    HvAttribute,
    HvConnectable,
    HvStream,
    MessageStream,
    connect_hv,
    create_hv_listener,
)
from aiohvsock.framing import Delimited, LengthPrefixed

from ..conftest import Pair
from .anyio_runs import (
    DATA,
    asyncio_elsewhere,
    both,
    clog,
    contexts,
    everywhere,
    streams,
    until,
)

# -- with each other ---------------------------------------------------------------------------------------


@everywhere
async def test_messages(pair: Pair) -> None:
    async with both(pair) as (ours, theirs):
        for message in (b"hello", b"", DATA, b"x" * 40_000):
            await ours.send(message)
            assert await theirs.receive() == message
            await theirs.send(message)
            assert await ours.receive() == message


@everywhere
async def test_a_message_may_change_as_soon_as_it_was_sent(pair: Pair) -> None:
    async with both(pair) as (ours, theirs):
        message = bytearray(DATA)
        await ours.send(message)
        message[:] = bytes(len(DATA))
        assert await theirs.receive() == DATA


@everywhere
async def test_many_senders_and_a_slow_receiver(pair: Pair) -> None:
    """Who does not receive makes the peer wait, and no message is lost."""
    sent = 0

    async def send(number: int) -> None:
        nonlocal sent
        for count in range(100):
            await ours.send(b"%d %3d " % (number, count) + bytes(20_000))
            sent += 1

    async with both(pair) as (ours, theirs), create_task_group() as tasks:
        for number in range(5):
            tasks.start_soon(send, number)
        await wait_all_tasks_blocked()
        assert 0 < sent < 250
        assert theirs._queued < 2**20
        got = [(await theirs.receive()).split()[:2] for _ in range(500)]
        for number in range(5):
            assert [int(count) for who, count in got if int(who) == number] == list(range(100))


@everywhere
async def test_a_proper_close(pair: Pair) -> None:
    async with both(pair) as (ours, theirs):
        await ours.send(b"last words")
        await ours.close(200, "enough")
        assert [message async for message in theirs] == [b"last words"]
        with pytest.raises(anyio.EndOfStream) as caught:
            await theirs.receive()
        assert caught.value.__cause__ is theirs.end
        assert isinstance(theirs.end, ConnectionClosedOK)
        assert (theirs.end.code, theirs.end.reason) == (200, "enough")
        with pytest.raises(anyio.BrokenResourceError, match="closed by the peer") as broken:
            await theirs.send(b"x")
        assert broken.value.__cause__ is theirs.end
        assert isinstance(ours.end, ConnectionClosedOK)
        for operation in (ours.receive, partial(ours.send, b"x")):
            with pytest.raises(anyio.ClosedResourceError):
                await operation()
        await ours.aclose()
        await ours.close()


@everywhere
async def test_what_was_not_received_is_dropped_by_a_close(pair: Pair) -> None:
    async with both(pair) as (ours, theirs):
        await theirs.send(b"hello")
        await until(lambda: bool(ours._ready))
        await ours.close()
        with pytest.raises(anyio.ClosedResourceError):
            await ours.receive()


@everywhere
async def test_closing_while_the_peer_waits_for_us_to_receive(pair: Pair) -> None:
    async with both(pair) as (ours, theirs):
        await clog(theirs)
        await ours.close()
        assert isinstance(ours.end, ConnectionClosedOK)
        assert isinstance(theirs.end, ConnectionClosedOK)


@everywhere
async def test_closing_sends_what_is_queued(pair: Pair) -> None:
    async with both(pair) as (ours, theirs), create_task_group() as tasks:
        count = await clog(ours)
        tasks.start_soon(ours.aclose)
        messages = [message async for message in theirs]
        assert [int(message[:6]) for message in messages] == list(range(count))
        assert isinstance(theirs.end, ConnectionClosedOK)


@everywhere
async def test_close_during_receive(pair: Pair) -> None:
    async def receive() -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await ours.receive()

    async with both(pair) as (ours, _), create_task_group() as tasks:
        tasks.start_soon(receive)
        await wait_all_tasks_blocked()
        await ours.close()


@everywhere
async def test_two_receivers(pair: Pair) -> None:
    async with both(pair) as (ours, _), create_task_group() as tasks:
        tasks.start_soon(ours.receive)
        await wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError, match="already receiving from"):
            await ours.receive()
        tasks.cancel_scope.cancel()


@everywhere
async def test_what_cannot_be_sent(pair: Pair) -> None:
    async with both(pair) as (ours, theirs):
        with pytest.raises(FrameTooLarge):
            await ours.send(bytes(2**20 + 1))
        with pytest.raises(TypeError):
            await ours.send("text")  # type: ignore[arg-type]
        with pytest.raises(NotImplementedError, match="use close"):
            await ours.send_eof()
        for code in (2, 256):
            with pytest.raises(ValueError, match="a program closes with"):
                await ours.close(code)
        with pytest.raises(TypeError):
            await ours.close(reason=b"bytes")  # type: ignore[arg-type]
        await ours.send(b"goes on")
        assert await theirs.receive() == b"goes on"


@everywhere
async def test_the_block_fails(pair: Pair) -> None:
    """Its error is not wrapped, and the peer does not take it for a proper end."""
    ours, theirs = await streams(pair)

    async def fail() -> None:
        with pytest.raises(KeyError, match="oops"):
            async with MessageStream(ours):
                raise KeyError("oops")

    async with create_task_group() as tasks:
        tasks.start_soon(fail)
        async with MessageStream(theirs) as end:
            with pytest.raises(anyio.BrokenResourceError):
                await end.receive()
            assert end.end is not None
            assert end.end.code == CloseCode.INTERNAL_ERROR


@everywhere
async def test_attributes(address: Address) -> None:
    async def serve(stream: HvStream) -> None:
        async with MessageStream(stream, heartbeat=0.01) as end:
            await until(lambda: end.latency is not None)
            await end.send(b"hello")
            await end.receive()

    async with await create_hv_listener(address) as listener, create_task_group() as tasks:
        tasks.start_soon(listener.serve, serve)
        with pytest.raises(anyio.EndOfStream):
            async with MessageStream(await connect_hv(address)) as end:
                assert end.extra(HvAttribute.peer_address) == address
                assert end.end is None
                assert await end.receive() == b"hello"
                await end.send(b"goodbye")
                await end.receive()
        tasks.cancel_scope.cancel()


@everywhere
async def test_use_outside_of_the_block(pair: Pair) -> None:
    ours, theirs = await streams(pair)
    async with theirs:
        end = MessageStream(ours)
        for operation in (end.receive, partial(end.send, b"x")):
            with pytest.raises(RuntimeError, match="inside of its async with"):
                await operation()
        await end.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await end.receive()
        with pytest.raises(anyio.EndOfStream):
            await theirs.receive()
    async with both(pair) as (ours_in, _):
        with pytest.raises(RuntimeError, match="entered once"):
            await ours_in.__aenter__()


def test_figures_that_make_no_sense() -> None:
    async def make() -> None:
        with pytest.raises(ValueError, match="heartbeat must be a positive number"):
            MessageStream(None, heartbeat=0.0)  # type: ignore[call-overload]

    anyio.run(make)


# -- with aiohvsock at the other end -----------------------------------------------------------------------


@everywhere
async def test_a_client_of_aiohvsock_serve(address: Address) -> None:
    ends: list[object] = []

    async def serve(ready: Callable[[], None], stop: asyncio.Event) -> None:
        async def handler(connection: MessageConnection[bytes]) -> None:
            async for message in connection:
                await connection.send(message[::-1])
                if message == b"go":
                    await connection.close(130, "as you wish")
            ends.append(connection.end)

        async with await aiohvsock.serve(handler, address):
            ready()
            await stop.wait()

    async with asyncio_elsewhere(serve):
        async with MessageStream(await connect_hv(address)) as end:
            for message in (b"hello", b"", DATA):
                await end.send(message)
                assert await end.receive() == message[::-1]
        assert isinstance(end.end, ConnectionClosedOK)
        async with MessageStream(await connect_hv(address)) as end:
            await end.send(b"go")
            assert [message async for message in end] == [b"og"]
            assert isinstance(end.end, ConnectionClosedOK)
            assert (end.end.code, end.end.reason) == (130, "as you wish")
    assert all(isinstance(each, ConnectionClosedOK) for each in ends)
    assert len(ends) == 2


@everywhere
async def test_a_server_for_aiohvsock_connect(address: Address) -> None:
    got: list[bytes] = []

    async def handler(stream: HvStream) -> None:
        async with MessageStream(stream) as end:
            async for message in end:
                await end.send(message[::-1])
            await end.close()

    async def dial(ready: Callable[[], None], stop: asyncio.Event) -> None:
        ready()
        async with aiohvsock.connect(address) as connection:
            for message in (b"hello", DATA):
                await connection.send(message)
                got.append(await connection.recv())
            assert await connection.ping() > 0
        assert isinstance(connection.end, ConnectionClosedOK)

    async with await create_hv_listener(address) as listener, create_task_group() as tasks:
        tasks.start_soon(listener.serve, handler)
        async with asyncio_elsewhere(dial):
            await until(lambda: len(got) == 2)
        tasks.cancel_scope.cancel()
    assert got == [b"olleh", DATA[::-1]]


# -- other framings ----------------------------------------------------------------------------------------


@everywhere
async def test_a_codec_and_half_an_end(pair: Pair) -> None:
    ours, theirs = await streams(pair)
    done: list[bytes] = []

    async def answer() -> None:
        async with MessageStream(theirs, codec=Delimited()) as end:
            lines = [line async for line in end]
            # The peer has ended its direction, and waits for this.
            for line in lines:
                await end.send(line.upper())
        done.extend(lines)

    async with create_task_group() as tasks:
        tasks.start_soon(answer)
        async with MessageStream(ours, codec=Delimited()) as end:
            await end.send(b"one")
            await end.send(b"two")
            await end.send_eof()
            await end.send_eof()
            with pytest.raises(anyio.ClosedResourceError):
                await end.send(b"three")
            assert [line async for line in end] == [b"ONE", b"TWO"]
    assert done == [b"one", b"two"]


@everywhere
async def test_large_frames_of_a_codec(pair: Pair) -> None:
    ours, theirs = await streams(pair)

    async def answer() -> None:
        async with MessageStream(theirs, codec=LengthPrefixed(max_size=2**21)) as end:
            async for message in end:
                await end.send(message[::-1])

    async with create_task_group() as tasks:
        tasks.start_soon(answer)
        async with MessageStream(ours, codec=LengthPrefixed(max_size=2**21)) as end:
            for message in (DATA, b"small", DATA * 2):
                await end.send(message)
                assert await end.receive() == message[::-1]


@everywhere
async def test_a_codec_and_an_end_inside_a_frame(pair: Pair) -> None:
    ours, theirs = await streams(pair)
    async with theirs, MessageStream(ours, codec=LengthPrefixed()) as end:
        await theirs.send(b"\0\0\0\5he")
        await theirs.aclose()
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await end.receive()
        assert caught.value.__cause__ is not None
        assert isinstance(caught.value.__cause__.__cause__, IncompleteFrame)


# -- over TLS ----------------------------------------------------------------------------------------------


@everywhere
@pytest.mark.parametrize("codec", [None, LengthPrefixed()])
async def test_tls(address: Address, codec: LengthPrefixed | None) -> None:
    server_context, client_context = contexts()

    async def handler(stream: TLSStream) -> None:
        async with messages_over(stream) as end:
            async for message in end:
                await end.send(message[::-1])

    def messages_over(stream: TLSStream) -> MessageStream[bytes]:
        return MessageStream(stream) if codec is None else MessageStream(stream, codec=codec)

    connectable = TLSConnectable(HvConnectable(address), hostname="vm", ssl_context=client_context)
    async with (
        TLSListener(await create_hv_listener(address), server_context) as listener,
        create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, handler)
        async with messages_over(await connectable.connect()) as end:
            for message in (b"hello", DATA, b""):
                await end.send(message)
                assert await end.receive() == message[::-1]
            assert end.extra(HvAttribute.peer_address) == address
        assert isinstance(end.end, ConnectionClosedOK)
        tasks.cancel_scope.cancel()
