from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest

if sys.platform != "win32":
    pytest.skip("needs Windows' Proactor loop: make test-windows runs it under Wine", allow_module_level=True)

from aiohvsock import create_hv_connection, create_hv_server
from aiohvsock.transports.proactor import ProactorTransport

from ..conftest import LOOPS, Pair, random_port
from ..descriptors import open_sockets
from ..helpers import BufferedRecorder, Recorder, fill, read_to_end, start
from ..messages.peers import catch, turns, until
from ..testbeds import provider
from .test_transport import recorder

__all__ = ["recorder"]

pytestmark = pytest.mark.asyncio(loop_factories=["proactor"])

# How a connection can end at the other side, and the error that the protocol is told.
ENDS = {"end": None, "broken pipe": None, "reset": ConnectionResetError}


def emulated() -> Any:
    """Return the provider, which does to a connection what else takes a virtual machine."""
    if not provider.installed():
        pytest.skip("needs the emulated AF_HYPERV: make test-windows has it")
    return provider


def started(sock: socket.socket, protocol: asyncio.BaseProtocol) -> ProactorTransport:
    transport = start(sock, protocol)
    assert isinstance(transport, ProactorTransport)
    return transport


def socket_of(transport: asyncio.BaseTransport) -> socket.socket:
    sock = transport.get_extra_info("socket")
    assert isinstance(sock, socket.socket)
    return sock


def under_way() -> int:
    """How many operations of this loop the system has not finished; its own self-pipe is one."""
    loop: Any = asyncio.get_running_loop()
    return len(loop._proactor._cache)


def end(way: str, transport: asyncio.BaseTransport, peer: socket.socket) -> None:
    match way:
        case "end":
            peer.shutdown(socket.SHUT_WR)
        case "broken pipe":  # the peer closes without a word before
            emulated().break_pipe(socket_of(transport))
            peer.close()
        case "reset":  # its machine stops
            emulated().reset()


def check(error: BaseException | None, way: str) -> None:
    assert isinstance(error, ENDS[way] or type(None))


# -- reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ENDS)
async def test_what_is_read_while_paused_is_kept(pair: Pair, recorder: type[Recorder], way: str) -> None:
    """A read cannot be taken back once it is under way."""
    a, b = pair()
    protocol = recorder()
    transport = started(a, protocol)
    transport.pause_reading()
    b.send(b"first")
    await until(lambda: transport._read is None)
    b.send(b"second")
    await turns(5)
    assert protocol.calls == ["connection_made"]
    transport.resume_reading()
    assert await protocol.received(11) == b"firstsecond"

    calls = list(protocol.calls)
    transport.pause_reading()
    end(way, transport, b)
    await until(lambda: transport._read is None)
    await turns(5)
    assert protocol.calls == calls
    kept = transport._failure  # the system may say it only once
    transport.resume_reading()
    check(error := await protocol.lost, way)
    assert error in (None, kept)
    assert ("eof_received" in protocol.calls) is (ENDS[way] is None)
    assert protocol.data == b"firstsecond"


@pytest.mark.parametrize("way", ENDS)
async def test_ended_by_the_other_side(pair: Pair, recorder: type[Recorder], way: str) -> None:
    reports = catch()
    a, b = pair()
    protocol = recorder()
    transport = started(a, protocol)
    b.send(b"last")
    await protocol.received(4)
    end(way, transport, b)
    check(await protocol.lost, way)
    assert ("eof_received" in protocol.calls) is (ENDS[way] is None)
    assert protocol.data == b"last"
    await turns(5)
    assert not reports


async def test_reads_nothing_while_it_is_paused(pair: Pair) -> None:
    """But for the one read that was under way: what the peer may send is bounded."""
    a, b = pair()
    protocol = Recorder()
    transport = started(a, protocol)
    transport.pause_reading()
    sent = 0
    while more := await fill(b):
        sent += more
        await turns(20)
    assert protocol.data == b""
    assert transport._read is None
    assert transport._end == 65536
    b.shutdown(socket.SHUT_WR)
    transport.resume_reading()
    assert await protocol.lost is None
    assert protocol.data == bytes(sent)


class Handing(BufferedRecorder):
    """Hands over to another protocol after the first three bytes."""

    def __init__(self, successor: Recorder, *, paused: bool) -> None:
        super().__init__(size=3)
        self.successor = successor
        self.paused = paused

    def buffer_updated(self, nbytes: int) -> None:
        super().buffer_updated(nbytes)
        assert isinstance(self.transport, ProactorTransport)
        if self.paused:  # as start_tls() does it
            self.transport.pause_reading()
        self.transport.set_protocol(self.successor)
        if self.paused:
            self.transport.resume_reading()


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("successor", ["protocol", "buffered", "small buffer", "handing"])
async def test_another_protocol_in_the_middle_of_what_one_read_brought(
    pair: Pair, successor: str, paused: bool
) -> None:
    a, b = pair()
    last = Recorder()
    successors: dict[str, Callable[[], Recorder]] = {
        "protocol": Recorder,
        "buffered": BufferedRecorder,
        "small buffer": lambda: BufferedRecorder(size=2),
        "handing": lambda: Handing(last, paused=paused),
    }
    second = successors[successor]()
    first = Handing(second, paused=paused)
    b.send(b"0123456789")
    transport = started(a, first)
    if isinstance(second, Handing):
        second.transport = transport
    b.shutdown(socket.SHUT_WR)
    end = last if successor == "handing" else second
    assert await end.lost is None
    assert first.data == b"012"
    assert second.data + last.data == b"3456789"
    assert not last.data or second.data == b"345"
    if successor == "small buffer":
        assert second.calls.count("buffer_updated") == 4


async def test_a_small_buffer_after_a_protocol_without(pair: Pair) -> None:
    a, b = pair()
    first, second = Recorder(), BufferedRecorder(size=3)
    transport = started(a, first)
    b.send(b"x")
    await first.received(1)
    transport.set_protocol(second)
    b.send(b"0123456789")
    assert await second.received(10) == b"0123456789"
    assert second.calls == ["buffer_updated"] * 4
    transport.close()
    assert await second.lost is None


async def test_a_buffered_protocol_that_pauses_in_the_middle(pair: Pair) -> None:
    class Pausing(BufferedRecorder):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            assert self.transport is not None
            self.transport.pause_reading()

    a, b = pair()
    protocol = Pausing(size=3)
    transport = started(a, protocol)
    b.send(b"0123456789")
    b.shutdown(socket.SHUT_WR)
    for count in (3, 6, 9, 10):
        await protocol.received(count)
        await turns(5)
        assert protocol.data == b"0123456789"[:count]
        transport.resume_reading()
    assert await protocol.lost is None


async def test_pausing_and_resuming_in_the_middle(pair: Pair, recorder: type[Recorder]) -> None:
    data = os.urandom(50_000)

    class Toggling(recorder):  # type: ignore[valid-type,misc]
        def _note(self, call: str) -> None:
            super()._note(call)
            if call in ("data_received", "buffer_updated"):
                for _ in range(3):
                    self.transport.pause_reading()
                    self.transport.resume_reading()

    a, b = pair()
    protocol = Toggling(**({"size": 700} if recorder is BufferedRecorder else {}))
    started(a, protocol)
    await asyncio.get_running_loop().sock_sendall(b, data)
    b.shutdown(socket.SHUT_WR)
    assert await protocol.lost is None
    assert protocol.data == data


async def test_a_buffer_that_changes_its_size(pair: Pair) -> None:
    """asyncio's own transports hold no view on it during buffer_updated()."""

    class Resizing(BufferedRecorder):
        def get_buffer(self, sizehint: int) -> bytearray:
            self.buffer.extend(bytes(100))
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            self.buffer.clear()

    a, b = pair()
    protocol = Resizing(size=0)
    started(a, protocol)
    b.send(b"0123456789" * 25)
    b.shutdown(socket.SHUT_WR)
    assert await protocol.lost is None
    assert protocol.data == b"0123456789" * 25


# -- a write that failed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("toggles", [0, 1, 10])
async def test_what_came_before_a_failed_write_is_delivered(
    pair: Pair, recorder: type[Recorder], toggles: int
) -> None:
    """However often it is paused and resumed meanwhile, as a reader with a small limit does."""
    a, b = pair()
    protocol = recorder()
    transport = started(a, protocol)
    await turns()
    response = os.urandom(100_000)
    sent = b.send(response)
    b.close()
    while not transport.is_closing():
        transport.write(bytes(1000))
    for _ in range(toggles):
        transport.pause_reading()
        transport.resume_reading()
    assert isinstance(await protocol.lost, ConnectionError)
    assert protocol.data == response[:sent]


async def test_reset_while_it_writes(pair: Pair) -> None:
    a, b = pair()
    protocol = Recorder()
    transport = started(a, protocol)
    transport.pause_reading()
    await fill(socket_of(transport))
    transport.write(bytes(300_000))
    assert transport._write is not None
    assert protocol.calls[-1] == "pause_writing"
    emulated().reset()
    await protocol.called("resume_writing")
    assert isinstance(transport.get_extra_info("hv_write_error"), ConnectionResetError)
    assert transport.get_write_buffer_size() == 0
    transport.resume_reading()
    assert await protocol.lost is transport.get_extra_info("hv_write_error")
    b.close()


async def test_reset_before_it_writes(pair: Pair) -> None:
    a, _b = pair()
    protocol = Recorder()
    transport = started(a, protocol)
    emulated().reset()
    transport.write(b"x")
    assert isinstance(transport.get_extra_info("hv_write_error"), ConnectionResetError)
    assert isinstance(await protocol.lost, ConnectionResetError)


async def test_a_large_queue_is_lent_piece_by_piece(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system keeps what it is lent in memory that cannot be swapped."""
    loop = asyncio.get_running_loop()
    sendall, sizes = loop.sock_sendall, []

    async def spy(sock: socket.socket, data: bytes) -> None:
        sizes.append(len(data))
        await sendall(sock, data)

    monkeypatch.setattr(loop, "sock_sendall", spy)
    a, b = pair()
    protocol = Recorder()
    transport = started(a, protocol)
    filled = await fill(socket_of(transport))
    data = os.urandom(10**6)
    transport.writelines([data[:10], data[10:600_000], data[600_000:]])
    transport.close()
    assert (await read_to_end(b))[filled:] == data
    assert max(sizes) == 256 * 1024
    assert await protocol.lost is None


# -- the end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("way", ["close", "abort"])
async def test_ended_with_a_read_and_a_write_under_way(pair: Pair, way: str, paused: bool) -> None:
    reports = catch()
    a, b = pair()
    protocol = Recorder()
    transport = started(a, protocol)
    if paused:
        transport.pause_reading()
    filled = await fill(socket_of(transport))
    data = os.urandom(600_000)  # three writes
    transport.write(data)
    assert None not in (transport._read, transport._write)
    getattr(transport, way)()
    received = asyncio.ensure_future(read_to_end(b))
    assert await protocol.lost is None
    if way == "close":
        assert (await received)[filled:] == data
    else:
        assert len(await received) < filled + len(data)
    await until(lambda: under_way() == 1)
    assert not reports


@pytest.mark.parametrize("way", ["close", "abort"])
async def test_ended_as_data_comes(pair: Pair, way: str) -> None:
    """At whichever point: before it is heard of, as it is, and after."""
    reports = catch()
    for count in range(6):
        a, b = pair()
        protocol = Recorder()
        transport = started(a, protocol)
        await turns()
        b.send(b"x")
        await turns(count)
        getattr(transport, way)()
        assert await protocol.lost is None
        await turns(5)
        assert protocol.calls[-1] == "connection_lost"
    assert not reports


@pytest.mark.parametrize("way", ["close", "abort"])
async def test_ended_as_a_write_is_done(pair: Pair, way: str) -> None:
    reports = catch()
    loop = asyncio.get_running_loop()
    a, b = pair()

    class Ending(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            # By then the second write is done, and the transport has not heard of it.
            loop.call_soon(getattr(self.transport, way))

    protocol = Ending()
    transport = started(a, protocol)
    filled = await fill(socket_of(transport))
    data = os.urandom(256 * 1024 + 1000)  # one write, and a small one
    transport.write(data)
    queued = transport.get_write_buffer_size()
    transport.set_write_buffer_limits(high=queued - 1, low=queued - 1)
    received = await asyncio.gather(read_to_end(b), protocol.lost)
    assert received[1] is None
    assert transport.get_write_buffer_size() == 0
    if way == "close":
        assert received[0][filled:] == data
    await turns(5)
    assert not reports


async def test_the_peer_ends_its_side_while_we_write(pair: Pair) -> None:
    """Under Wine the write under way is then a short one."""
    a, b = pair()
    protocol = Recorder(keep_open=True)
    transport = started(a, protocol)
    filled = await fill(socket_of(transport))
    data = os.urandom(600_000)
    transport.write(data)
    received = bytearray()
    while len(received) < filled + 50_000:  # into the middle of a write
        received += await asyncio.get_running_loop().sock_recv(b, 10_000)
    b.shutdown(socket.SHUT_WR)
    await protocol.called("eof_received")
    transport.close()
    received += await read_to_end(b)
    assert received[filled:] == data
    assert await protocol.lost is None


async def test_the_peer_goes_while_nothing_is_read(pair: Pair) -> None:
    a, b = pair()
    protocol = Recorder()
    transport = started(a, protocol)
    transport.pause_reading()
    await fill(socket_of(transport))
    transport.write(bytes(300_000))
    b.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0")  # a reset, not an end
    b.close()
    await protocol.called("resume_writing")
    transport.close()
    assert isinstance(await protocol.lost, ConnectionError)


async def test_200_that_are_aborted_leave_nothing(pair: Pair) -> None:
    before = open_sockets()
    for number in range(200):
        a, b = pair()
        protocol = Recorder()
        transport = started(a, protocol)
        if number % 2:
            await fill(socket_of(transport))
            transport.write(bytes(300_000))
        await turns(number % 3)
        transport.abort()
        assert await protocol.lost is None
        b.close()
    await until(lambda: under_way() == 1)
    assert open_sockets() <= before


async def test_it_runs_no_tasks(pair: Pair) -> None:
    """Those of asyncio.all_tasks() are the user's, who may cancel and await them all."""
    a, b = pair()
    left, right = Recorder(), Recorder()
    one, two = started(a, left), started(b, right)
    two.pause_reading()
    await fill(socket_of(one))
    one.write(bytes(300_000))
    assert None not in (one._read, one._write)
    async with await create_hv_server(Recorder, f"hvsock://loopback:{random_port()}"):
        await turns(5)
        assert asyncio.all_tasks() == {asyncio.current_task()}
    for transport, protocol in ((one, left), (two, right)):
        transport.abort()
        await protocol.lost


async def test_a_loop_that_ends_with_connections_open() -> None:
    address = f"hvsock://loopback:{random_port()}"

    async def main() -> list[object]:
        server = await create_hv_server(asyncio.Protocol, address)
        transport, _ = await create_hv_connection(asyncio.Protocol, address)
        await turns(5)
        return [server, transport]

    def run() -> list[object]:
        with asyncio.Runner(loop_factory=LOOPS["proactor"]) as runner:
            return runner.run(main())

    left = await asyncio.to_thread(run)

    def forget() -> None:
        left.clear()
        gc.collect()

    with pytest.warns(ResourceWarning) as caught:
        forget()
    texts = " ".join(str(each.message) for each in caught)
    assert texts.count("unclosed transport") == 2
    assert texts.count("unclosed server") == 1
