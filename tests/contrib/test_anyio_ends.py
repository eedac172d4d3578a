"""MessageStream that is cancelled, or ends badly."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from anyio import create_task_group, wait_all_tasks_blocked
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSStream

from aiohvsock import (
    CloseCode,
    ConnectionLost,
    IncompleteFrame,
    ProtocolError,
)
from aiohvsock.contrib.anyio import (
    HvStream,
    MessageStream,
)
from aiohvsock.protocol import Hello

from ..conftest import Pair
from .anyio_runs import (
    DATA,
    HELLO,
    both,
    clog,
    contexts,
    everywhere,
    one,
    streams,
    until,
)

# -- cancelling --------------------------------------------------------------------------------------------


@everywhere
async def test_cancelled_receive_loses_nothing(pair: Pair) -> None:
    async with both(pair) as (ours, theirs):
        await theirs.send(b"hello")
        await until(lambda: bool(ours._ready))
        with anyio.CancelScope() as scope:
            scope.cancel()
            await ours.receive()
        assert scope.cancelled_caught
        assert await ours.receive() == b"hello"
        async with create_task_group() as tasks:
            tasks.start_soon(ours.receive)
            await wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        await theirs.send(b"again")
        assert await ours.receive() == b"again"


@everywhere
async def test_cancelled_send_sends_all_or_nothing(pair: Pair) -> None:
    """However full everything is when it is cancelled: each message comes whole, and the cancelled one not at all."""
    async with both(pair) as (ours, theirs):
        count = await clog(ours)  # its last one was cancelled
        got: list[bytes] = []

        async def receive() -> None:
            got.extend([message async for message in theirs])

        async with create_task_group() as tasks:
            tasks.start_soon(receive)
            await ours.send(b"after")
            await ours.close()
        assert [int(message[:6]) for message in got[:-1]] == list(range(count))
        assert {len(message) for message in got[:-1]} == {60_006}
        assert got[-1] == b"after"


@everywhere
async def test_cancelled_block(pair: Pair) -> None:
    """It is over at once, with the descriptor, though the peer does not read; the peer sees no proper end."""
    ours, theirs = await streams(pair)
    await theirs.send(HELLO)
    async with theirs:
        with anyio.CancelScope() as scope:
            async with MessageStream(ours) as end:
                await clog(end)
                scope.cancel()
                await anyio.sleep_forever()
        assert ours.extra(SocketAttribute.raw_socket).fileno() == -1
        assert isinstance(end.end, ConnectionLost)


@everywhere
async def test_cancelled_close(pair: Pair) -> None:
    async with one(pair) as (end, _):
        async with create_task_group() as tasks:
            tasks.start_soon(end.close)
            await wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert isinstance(end.end, ConnectionLost)
        await end.close()


@everywhere
async def test_cancelled_while_opening(pair: Pair) -> None:
    ours, theirs = await streams(pair)

    async def enter() -> None:
        async with MessageStream(ours):
            raise AssertionError("there was no hello")

    async with theirs:
        async with create_task_group() as tasks:
            tasks.start_soon(enter)
            await wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        assert ours.extra(SocketAttribute.raw_socket).fileno() == -1
        assert await theirs.receive() == Hello(2**20, 20.0).encode()


# -- bad ends ----------------------------------------------------------------------------------------------


@everywhere
async def test_the_peer_goes_without_a_goodbye(pair: Pair) -> None:
    async with one(pair) as (end, theirs):
        await theirs.send_eof()
        with pytest.raises(anyio.BrokenResourceError, match="gone without closing") as caught:
            await end.receive()
        assert isinstance(caught.value.__cause__, ConnectionLost)
        assert isinstance(caught.value.__cause__.__cause__, ProtocolError)
        with pytest.raises(anyio.BrokenResourceError):
            await end.send(b"x")
        assert caught.value.__cause__ is end.end


@everywhere
async def test_the_peer_goes_inside_a_message(pair: Pair) -> None:
    async with one(pair) as (end, theirs):
        await theirs.send(bytes((0, 0, 0, 0, 0, 0, 0, 5)) + b"he")
        await theirs.send_eof()
        with pytest.raises(anyio.BrokenResourceError) as caught:
            await end.receive()
        assert caught.value.__cause__ is not None
        assert isinstance(caught.value.__cause__.__cause__, IncompleteFrame)


@everywhere
async def test_the_peer_goes_while_we_send(pair: Pair) -> None:
    async def send() -> None:
        with pytest.raises(anyio.BrokenResourceError):
            while True:
                await end.send(DATA)

    async with one(pair) as (end, theirs), create_task_group() as tasks:
        tasks.start_soon(send)
        await wait_all_tasks_blocked()
        await theirs.aclose()


@everywhere
async def test_what_the_peer_sent_before_it_went_is_received(pair: Pair) -> None:
    async with one(pair) as (end, theirs):
        await clog(end)
        await theirs.send(bytes((0, 0, 0, 0, 0, 0, 0, 5)) + b"hello")
        await theirs.aclose()
        assert await end.receive() == b"hello"
        with pytest.raises(anyio.BrokenResourceError):
            await end.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await end.send(b"x")


class Mute(HvStream):
    """A stream whose sending fails, while its receiving goes on: so an EPIPE is."""

    mute = False

    async def send(self, item: bytes) -> None:
        if self.mute:
            raise anyio.BrokenResourceError
        await super().send(item)


@everywhere
async def test_what_comes_after_our_own_write_has_failed_is_received(pair: Pair) -> None:
    ours, theirs = pair()
    async with await HvStream.from_socket(theirs) as peer:
        stream = await Mute.from_socket(ours)
        await peer.send(HELLO)
        async with MessageStream(stream) as end:
            stream.mute = True
            await end.send(b"never leaves")
            await until(lambda: end._write_error is not None)
            with pytest.raises(anyio.BrokenResourceError):
                await end.send(b"x")
            await peer.send(bytes((0, 0, 0, 0, 0, 0, 0, 5)) + b"hello")
            assert await end.receive() == b"hello"
            await peer.send_eof()
            with pytest.raises(anyio.BrokenResourceError):
                await end.receive()
            with anyio.fail_after(5):
                await end.close()


@everywhere
async def test_the_peer_ends_and_never_reads(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiohvsock.contrib._anyio_messages._FLUSH_TIMEOUT", 0.05)
    async with one(pair) as (end, theirs):
        await clog(end)
        await theirs.send_eof()
        with anyio.fail_after(5):
            await end.close()
        assert isinstance(end.end, ConnectionLost)


@everywhere
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n"])
async def test_no_hello(pair: Pair, answer: bytes) -> None:
    ours, theirs = await streams(pair)
    async with theirs:
        await theirs.send(answer)
        with pytest.raises(anyio.BrokenResourceError) as caught:
            async with MessageStream(ours, open_timeout=5.0 if answer else 0.05):
                raise AssertionError("there was no hello")
        lost = caught.value.__cause__
        assert isinstance(lost, ConnectionLost)
        assert lost.code == (CloseCode.PROTOCOL_ERROR if answer else CloseCode.NO_HELLO)
        assert ours.extra(SocketAttribute.raw_socket).fileno() == -1


@everywhere
async def test_the_peer_confirms_no_close(pair: Pair) -> None:
    async with one(pair, close_timeout=0.05) as (end, _):
        await end.close()
        assert isinstance(end.end, ConnectionLost)


@everywhere
@pytest.mark.parametrize("blocked", [False, True])
async def test_a_silent_peer_is_found(pair: Pair, blocked: bool) -> None:
    """Also while it does not read, and we neither: then there is nobody to hear whether it lives."""
    async with one(pair, heartbeat=0.05, heartbeat_timeout=0.05) as (end, theirs):
        if blocked:
            for _ in range(5):
                await theirs.send(bytes((0, 0, 0, 0, 0, 1, 0, 0)) + bytes(2**16))
            with pytest.raises(anyio.BrokenResourceError):
                while True:
                    await end.send(DATA)
        else:
            with pytest.raises(anyio.BrokenResourceError, match="no sign of life"):
                await end.receive()
        assert end.end is not None
        assert end.end.code == CloseCode.NO_ANSWER
        with anyio.fail_after(5):  # what cannot be sent is not waited for
            await end.close()


@everywhere
async def test_a_busy_program_is_not_lost(pair: Pair) -> None:
    """It neither receives nor sends, and gives signs of life all the same."""
    ours, theirs = await streams(pair)

    async def be_busy() -> None:
        async with MessageStream(theirs) as end:
            await stop.wait()
            await end.send(b"still here")
            got.extend([message async for message in end])

    got: list[bytes] = []
    stop = anyio.Event()
    async with create_task_group() as tasks:
        tasks.start_soon(be_busy)
        async with MessageStream(ours, heartbeat=0.1, heartbeat_timeout=0.6) as end:
            count = await clog(end)
            await anyio.sleep(0.8)
            stop.set()
            assert await end.receive() == b"still here"
    assert len(got) == count


@everywhere
async def test_a_tls_peer_that_does_not_say_goodbye(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiohvsock.contrib._anyio_messages._FLUSH_TIMEOUT", 0.05)
    server_context, client_context = contexts()
    ours, theirs = await streams(pair)

    async def accept() -> None:
        peer = await TLSStream.wrap(theirs, server_side=True, ssl_context=server_context)
        await peer.send(HELLO)

    async with create_task_group() as tasks, theirs:
        tasks.start_soon(accept)
        stream = await TLSStream.wrap(ours, hostname="vm", ssl_context=client_context)
        async with MessageStream(stream, close_timeout=0.05) as end:
            with anyio.fail_after(5):
                await end.close()
        assert ours.extra(SocketAttribute.raw_socket).fileno() == -1
