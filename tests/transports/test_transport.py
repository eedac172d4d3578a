from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import socket
import sys
import warnings
from typing import Any

import pytest

from aiohvsock.platforms import Names
from aiohvsock.transports import transport_class, writing
from aiohvsock.transports.selector import SelectorTransport

from ..conftest import Pair
from ..helpers import BufferedRecorder, Recorder, fill, read_to_end, start

# What writing to a peer that has gone raises.
GONE = (ConnectionResetError, ConnectionAbortedError) if sys.platform == "win32" else BrokenPipeError


@pytest.fixture(params=[Recorder, BufferedRecorder])
def recorder(request: pytest.FixtureRequest) -> type[Recorder]:
    kind: type[Recorder] = request.param
    return kind


@pytest.fixture
def reports() -> list[dict[str, Any]]:
    """What went to the loop's exception handler, once a test has called :func:`catch`."""
    return []


def catch(reports: list[dict[str, Any]]) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reports.append(context))


# -- reading -----------------------------------------------------------------------------------------------


async def test_carries_data_both_ways(pair: Pair, recorder: type[Recorder]) -> None:
    a, b = pair()
    left, right = recorder(), recorder()
    one, two = start(a, left), start(b, right)
    one.write(b"ping")
    assert await right.received(4) == b"ping"
    two.write(b"pong")
    assert await left.received(4) == b"pong"
    one.close()
    assert await left.lost is None
    assert await right.lost is None
    assert right.calls[-2:] == ["eof_received", "connection_lost"]


async def test_a_large_transfer_arrives_whole(pair: Pair, recorder: type[Recorder]) -> None:
    a, b = pair()
    left, right = recorder(), recorder()
    one = start(a, left)
    start(b, right)
    data = os.urandom(3 * 2**20)
    one.write(data)
    one.close()
    assert await right.lost is None
    assert bytes(right.data) == data
    assert await left.lost is None


async def test_pause_and_resume_reading(pair: Pair, recorder: type[Recorder]) -> None:
    a, b = pair()
    left, right = recorder(), recorder()
    one, two = start(a, left), start(b, right)
    two.pause_reading()
    two.pause_reading()
    assert not two.is_reading()
    one.write(b"first")
    # Through the other direction, which is read: what was sent before it has arrived by then.
    two.write(b"x")
    await left.received(1)
    assert right.data == b""
    two.resume_reading()
    two.resume_reading()
    assert two.is_reading()
    assert await right.received(5) == b"first"
    one.abort()
    await right.lost
    two.resume_reading()
    assert not two.is_reading()


async def test_reading_paused_in_connection_made(pair: Pair) -> None:
    class Pausing(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            assert self.transport is not None
            self.transport.pause_reading()

    a, b = pair()
    b.send(b"early")
    protocol = Pausing()
    transport = start(a, protocol)
    await asyncio.sleep(0)
    assert protocol.calls == ["connection_made"]
    transport.resume_reading()
    assert await protocol.received(5) == b"early"
    transport.abort()
    await protocol.lost


async def test_set_protocol_between_reads(pair: Pair) -> None:
    a, b = pair()
    first, second, third = Recorder(), BufferedRecorder(), Recorder()
    transport = start(a, first)
    b.send(b"one")
    await first.received(3)
    for protocol in (second, third):
        transport.set_protocol(protocol)
        assert transport.get_protocol() is protocol
        b.send(b"two")
        assert await protocol.received(3) == b"two"
    assert first.data == b"one"
    transport.close()
    assert await third.lost is None
    assert not first.lost.done()


@pytest.mark.parametrize("method", ["data_received", "eof_received"])
async def test_a_raising_protocol_loses_its_connection(
    pair: Pair, reports: list[dict[str, Any]], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    catch(reports)
    a, b = pair()
    protocol = Recorder()
    error = ZeroDivisionError()

    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(protocol, method, fail)
    start(a, protocol)
    b.send(b"x")
    b.close()
    assert await protocol.lost is error
    assert [report["exception"] for report in reports] == [error]
    assert method in reports[0]["message"]


@pytest.mark.parametrize("method", ["get_buffer", "buffer_updated"])
async def test_a_raising_buffered_protocol_loses_its_connection(
    pair: Pair, reports: list[dict[str, Any]], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    catch(reports)
    a, b = pair()
    protocol = BufferedRecorder()

    def fail(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(protocol, method, fail)
    start(a, protocol)
    b.send(b"x")
    assert isinstance(await protocol.lost, ZeroDivisionError)
    assert len(reports) == 1


async def test_an_empty_buffer_is_an_error(pair: Pair, reports: list[dict[str, Any]]) -> None:
    catch(reports)
    a, b = pair()
    protocol = BufferedRecorder(size=0)
    start(a, protocol)
    b.send(b"x")
    assert "empty buffer" in str(await protocol.lost)
    assert len(reports) == 1


# -- writing -----------------------------------------------------------------------------------------------


async def test_writes_keep_their_order_through_a_full_socket(pair: Pair) -> None:
    a, b = pair()
    left, right = Recorder(), Recorder()
    one = start(a, left)
    expected = bytearray()
    # Sizes on both sides of what is copied into one piece, as each kind of buffer, in each way of writing.
    for index in range(400):
        piece = bytes([index % 251]) * (index * 37 % 9000)
        match index % 4:
            case 0:
                one.write(piece)
            case 1:
                one.write(bytearray(piece))
            case 2:
                one.writelines([memoryview(piece), b"-", bytearray(piece)])
                piece += b"-" + piece
            case 3:
                one.writelines(iter([piece] * 3))
                piece *= 3
        expected += piece
    assert one.get_write_buffer_size() > 0
    assert "pause_writing" in left.calls
    one.close()
    start(b, right)
    assert await right.lost is None
    assert right.data == expected
    assert await left.lost is None


async def test_writelines_gathers_large_pieces(pair: Pair) -> None:
    a, b = pair()
    left, right = Recorder(), Recorder()
    one = start(a, left)
    start(b, right)
    pieces: list[bytes | memoryview] = [os.urandom(50_000), b"", memoryview(os.urandom(70_000)), b"x"]
    pieces += [os.urandom(1000)] * 600  # more than one sendmsg() takes
    one.writelines(pieces)
    one.close()
    assert await right.lost is None
    assert right.data == b"".join(pieces)


async def test_what_is_queued_is_a_copy(pair: Pair) -> None:
    a, b = pair()
    left, right = Recorder(), Recorder()
    one = start(a, left)
    sent = await fill(one.get_extra_info("socket"))
    small, large = bytearray(b"a" * 10), bytearray(b"b" * 100_000)
    view = memoryview(bytearray(b"c" * 5000))
    for piece in (small, large, view):
        one.write(piece)
        piece[:] = bytes(len(piece))
    one.write(memoryview(b"dd").cast("H"))  # its len() is 1
    one.close()
    start(b, right)
    assert await right.lost is None
    assert bytes(right.data[sent:]) == b"a" * 10 + b"b" * 100_000 + b"c" * 5000 + b"dd"


async def test_a_memoryview_of_wide_items_is_sent_whole(pair: Pair) -> None:
    a, b = pair()
    protocol = Recorder()
    transport = start(a, protocol)
    transport.write(memoryview(b"12345678").cast("I"))
    transport.write(b"")
    transport.writelines([])
    transport.close()
    assert await read_to_end(b) == b"12345678"
    await protocol.lost


@pytest.mark.parametrize("wrong", ["text", None, 5])
async def test_writing_what_is_no_buffer(pair: Pair, wrong: Any) -> None:
    a, _b = pair()
    protocol = Recorder()
    transport = start(a, protocol)
    with pytest.raises(TypeError):
        transport.write(wrong)
    await fill(transport.get_extra_info("socket"))
    transport.write(b"queued")
    with pytest.raises(TypeError):
        transport.write(wrong)
    assert not transport.is_closing()
    transport.abort()
    await protocol.lost


async def test_flow_control(pair: Pair) -> None:
    a, b = pair()
    left, right = Recorder(), Recorder()
    one = start(a, left)
    assert one.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
    one.set_write_buffer_limits(high=1000, low=100)
    assert one.get_write_buffer_limits() == (100, 1000)
    await fill(one.get_extra_info("socket"))
    one.write(bytes(1000))
    assert "pause_writing" not in left.calls
    one.write(b"x")
    assert left.calls[-1] == "pause_writing"
    assert one.get_write_buffer_size() == 1001
    one.write(bytes(5000))
    assert left.calls.count("pause_writing") == 1
    start(b, right)
    await left.called("resume_writing")
    assert one.get_write_buffer_size() <= 100
    one.abort()
    await right.lost


async def test_water_marks_like_asyncios() -> None:
    async def limits(**marks: int) -> tuple[int, int]:
        a, b = socket.socketpair()
        protocol = Recorder()
        transport = start(a, protocol)
        try:
            transport.set_write_buffer_limits(**marks)
            return transport.get_write_buffer_limits()
        finally:
            b.close()
            transport.abort()
            await protocol.lost

    assert await limits(high=4000) == (1000, 4000)
    assert await limits(low=1000) == (1000, 4000)
    assert await limits() == (16384, 65536)
    assert await limits(high=0) == (0, 0)
    with pytest.raises(ValueError, match="must be >="):
        await limits(high=1, low=2)


async def test_a_raising_pause_writing_is_reported(pair: Pair, reports: list[dict[str, Any]]) -> None:
    class Raising(Recorder):
        def pause_writing(self) -> None:
            raise ZeroDivisionError

    catch(reports)
    a, _b = pair()
    protocol = Raising()
    transport = start(a, protocol)
    await fill(transport.get_extra_info("socket"))
    transport.write(bytes(100_000))
    assert isinstance(reports[0]["exception"], ZeroDivisionError)
    assert not transport.is_closing()
    transport.abort()
    await protocol.lost


# -- half-close and the end --------------------------------------------------------------------------------


async def test_half_close_each_way(pair: Pair, recorder: type[Recorder]) -> None:
    a, b = pair()
    left, right = recorder(keep_open=True), recorder(keep_open=True)
    one, two = start(a, left), start(b, right)
    assert one.can_write_eof()
    one.write(b"question")
    one.write_eof()
    one.write_eof()
    await right.called("eof_received")
    assert right.data == b"question"
    two.write(os.urandom(2**20))
    two.write_eof()
    await left.called("eof_received")
    assert len(left.data) == 2**20
    assert not one.is_closing()
    with pytest.raises(RuntimeError, match="write_eof"):
        one.write(b"more")
    one.close()
    two.close()
    assert await left.lost is None
    assert await right.lost is None


async def test_write_eof_waits_for_the_queue(pair: Pair) -> None:
    a, b = pair()
    left, right = Recorder(keep_open=True), Recorder(keep_open=True)
    one = start(a, left)
    data = os.urandom(2**20)
    one.write(data)
    one.write_eof()
    assert one.get_write_buffer_size() > 0
    two = start(b, right)
    await right.called("eof_received")
    assert right.data == data
    one.close()
    two.close()
    assert await left.lost is None
    assert await right.lost is None


async def test_names_survive_a_half_close(pair: Pair) -> None:
    a, b = pair()
    protocol = Recorder(keep_open=True)
    sockname, peername = a.getsockname(), a.getpeername()
    transport = start(a, protocol)
    transport.write_eof()
    assert await read_to_end(b) == b""
    assert transport.get_extra_info("sockname") == sockname
    assert transport.get_extra_info("peername") == peername
    assert transport.get_extra_info("socket").fileno() >= 0
    assert transport.get_extra_info("nothing", "default") == "default"
    transport.close()
    await protocol.lost
    assert transport.get_extra_info("peername") == peername


async def test_the_last_response_of_a_closed_peer_is_delivered(pair: Pair, recorder: type[Recorder]) -> None:
    """The kernel holds what the peer sent before it closed, when our own write fails already."""
    a, b = pair()
    protocol = recorder()
    transport = start(a, protocol)
    transport.pause_reading()
    response = os.urandom(100_000)
    b.send(response)
    b.close()
    while not transport.is_closing():
        transport.write(b"request")
        await asyncio.sleep(0)
    assert isinstance(transport.get_extra_info("hv_write_error"), GONE)
    transport.write(b"dropped")
    assert protocol.data == b""
    transport.resume_reading()
    error = await protocol.lost
    assert bytes(protocol.data) == response
    assert isinstance(error, GONE)
    assert error is transport.get_extra_info("hv_write_error")


async def test_the_last_response_is_delivered_without_a_pause(pair: Pair, recorder: type[Recorder]) -> None:
    a, b = pair()
    protocol = recorder()
    transport = start(a, protocol)
    # All before the loop runs once: the write fails before the read is even tried.
    b.send(b"response")
    b.close()
    while not transport.is_closing():
        transport.write(bytes(1000))
    assert isinstance(await protocol.lost, GONE)
    assert protocol.data == b"response"
    assert protocol.calls.count("connection_lost") == 1


async def test_a_failed_flush_delivers_what_came_before(pair: Pair) -> None:
    a, b = pair()
    protocol = Recorder()
    transport = start(a, protocol)
    transport.pause_reading()
    await fill(transport.get_extra_info("socket"))
    transport.write(bytes(200_000))
    assert protocol.calls[-1] == "pause_writing"
    b.send(b"response")
    b.close()
    # AF_VSOCK does not say that it is writable, nor that writing is in vain, before this has been read.
    transport.resume_reading()
    await protocol.called("resume_writing")  # whoever waits to write must learn that there is no use
    assert isinstance(await protocol.lost, ConnectionError)
    assert protocol.data == b"response"


async def test_a_peer_that_shut_only_its_receiving_side(pair: Pair, kind: str) -> None:
    """What it sent before is delivered; it is not waited for, since nothing says that more will come."""
    if kind == "hyperv":
        pytest.skip("Winsock does not tell a sender of that: make test runs it on Linux")
    a, b = pair()
    protocol = Recorder()
    transport = start(a, protocol)
    b.send(b"so far")
    b.shutdown(socket.SHUT_RD)
    while not transport.is_closing():
        transport.write(b"x")
        await asyncio.sleep(0)
    assert isinstance(await protocol.lost, GONE)
    assert protocol.data == b"so far"


async def test_close_after_a_failed_write_ends_at_once(pair: Pair) -> None:
    a, b = pair()
    protocol = Recorder()
    transport = start(a, protocol)
    transport.pause_reading()
    b.close()
    while not transport.is_closing():
        transport.write(b"x")
        await asyncio.sleep(0)
    assert not protocol.lost.done()
    transport.close()
    assert isinstance(await protocol.lost, GONE)


async def test_write_error_after_the_peers_end(pair: Pair) -> None:
    a, b = pair()
    protocol = Recorder(keep_open=True)
    transport = start(a, protocol)
    b.close()
    await protocol.called("eof_received")
    while not protocol.lost.done():
        transport.write(b"x")
        await asyncio.sleep(0)
    assert isinstance(protocol.lost.result(), GONE)


async def test_writing_to_a_closed_transport_is_ignored_with_a_word(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = pair()
    protocol = Recorder()
    transport = start(a, protocol)
    transport.close()
    with caplog.at_level(logging.WARNING, logger="aiohvsock"):
        for _ in range(10):
            transport.write(b"x")
            transport.writelines([b"x"])
    transport.write_eof()
    await protocol.lost
    assert len([record for record in caplog.records if "closed connection" in record.message]) == 1
    assert await read_to_end(b) == b""


async def test_close_flushes(pair: Pair) -> None:
    a, b = pair()
    protocol = Recorder()
    transport = start(a, protocol)
    data = os.urandom(2**20)
    transport.write(data)
    transport.close()
    transport.close()
    assert transport.is_closing()
    assert not protocol.lost.done()
    assert await read_to_end(b) == data
    assert await protocol.lost is None


async def test_abort_drops_the_queue(pair: Pair) -> None:
    a, b = pair()
    protocol = Recorder()
    transport = start(a, protocol)
    transport.write(bytes(2**20))
    assert transport.get_write_buffer_size() > 0
    transport.abort()
    transport.abort()
    assert transport.get_write_buffer_size() == 0
    assert await protocol.lost is None
    assert len(await read_to_end(b)) < 2**20


async def test_closing_inside_a_callback(pair: Pair) -> None:
    class Closing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            assert self.transport is not None
            self.transport.write(b"bye")
            self.transport.close()

    a, b = pair()
    protocol = Closing()
    start(a, protocol)
    b.send(b"x")
    assert await protocol.lost is None
    assert await read_to_end(b) == b"bye"


async def test_a_raising_connection_lost_still_closes_the_socket(
    pair: Pair, reports: list[dict[str, Any]]
) -> None:
    class Raising(Recorder):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            raise ZeroDivisionError

    catch(reports)
    a, b = pair()
    gone: asyncio.Future[SelectorTransport] = asyncio.get_running_loop().create_future()
    transport = start(a, Raising(), on_lost=gone.set_result)
    transport.close()
    assert await gone is transport
    assert await read_to_end(b) == b""
    await asyncio.sleep(0)
    assert isinstance(reports[0]["exception"], ZeroDivisionError)


@pytest.mark.skipif(sys.platform == "win32", reason="AF_VSOCK's own way: make test runs it on Linux")
async def test_a_transport_reset_is_a_connection_reset(pair: Pair) -> None:
    """A migrated or restored VM's sockets say ENOTCONN, which hides what happened."""

    class Reset(socket.socket):
        def recv_into(self, *args: Any) -> int:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    a, b = pair()
    protocol = Recorder()
    own = Reset(a.family, a.type, a.proto, fileno=a.detach())
    own.setblocking(False)
    SelectorTransport(asyncio.get_running_loop(), own, protocol, Names(None, None)).start()
    b.send(b"x")
    error = await protocol.lost
    assert isinstance(error, ConnectionResetError)
    assert error.errno == errno.ECONNRESET
    assert "migrated" in str(error)


async def test_a_transport_reset_seen_by_a_write(pair: Pair) -> None:
    class Reset(socket.socket):
        def send(self, *args: Any) -> int:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    a, _b = pair()
    protocol = Recorder()
    own = Reset(a.family, a.type, a.proto, fileno=a.detach())
    own.setblocking(False)
    loop = asyncio.get_running_loop()
    transport = transport_class(loop)(loop, own, protocol, Names(None, None))
    transport.start()
    transport.write(b"x")
    assert isinstance(await protocol.lost, ConnectionResetError)


async def test_a_forgotten_transport_warns_and_closes() -> None:
    a, b = socket.socketpair()
    with b:
        b.setblocking(False)
        own = a.detach()
        transports = [
            SelectorTransport(
                asyncio.get_running_loop(), socket.socket(fileno=own), Recorder(), Names(None, None)
            )
        ]
        with pytest.warns(ResourceWarning, match="unclosed transport <SelectorTransport"):
            transports.clear()
        assert await read_to_end(b) == b""


async def test_a_closed_transport_is_freed_without_the_garbage_collector(pair: Pair) -> None:
    import weakref

    a, _b = pair()
    protocol = Recorder()
    transport = start(a, protocol)
    transport.close()
    await protocol.lost
    await asyncio.sleep(0)
    gone = weakref.ref(transport)
    gc.disable()
    try:
        del transport
        protocol.transport = None
        assert gone() is None
    finally:
        gc.enable()


async def test_repr_tells_the_state(pair: Pair) -> None:
    a, _b = pair()
    protocol = Recorder()
    transport = start(a, protocol)
    assert "closing" not in repr(transport)
    transport.close()
    assert "closing" in repr(transport)
    await protocol.lost
    await asyncio.sleep(0)
    assert "closed" in repr(transport)


async def test_idle_transports_share_one_buffer(pair: Pair) -> None:
    from aiohvsock.transports.selector import scratch_of

    loop = asyncio.get_running_loop()
    assert scratch_of(loop) is scratch_of(loop)
    other = asyncio.new_event_loop()
    try:
        assert scratch_of(other) is not scratch_of(loop)
    finally:
        other.close()


async def test_no_warning_for_a_closed_one(pair: Pair) -> None:
    a, _b = pair()
    protocol = Recorder()
    transport = start(a, protocol)
    transport.abort()
    await protocol.lost
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del transport
        gc.collect()
    assert protocol.calls == ["connection_made", "connection_lost"]


async def test_wide_items_are_sent_whole_when_the_socket_is_full(pair: Pair) -> None:
    """len() of a memoryview counts items; on AF_VSOCK as many bytes as there are items fit into the socket."""
    a, b = pair()
    protocol, reader = Recorder(), Recorder()
    transport = start(a, protocol)
    items = 262_144 if b.family != getattr(socket, "AF_UNIX", None) else await fill_size()
    data = memoryview(os.urandom(items * 4)).cast("I")
    assert len(data) == items
    transport.write(data)
    transport.close()
    start(b, reader)
    await reader.lost
    assert reader.data == data.tobytes()
    await protocol.lost


async def fill_size() -> int:
    """Return how much a fresh Unix socket takes in one send."""
    a, b = socket.socketpair()
    with a, b:
        a.setblocking(False)
        return a.send(bytes(2**22))


@pytest.mark.parametrize("method", ["data_received", "eof_received"])
async def test_a_protocol_that_raises_cancelled_error_loses_its_connection(
    pair: Pair, reports: list[dict[str, Any]], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no Exception: what had been received would be gone, and the connection would go on."""
    catch(reports)
    a, b = pair()
    protocol = Recorder()

    def fail(*args: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(protocol, method, fail)
    start(a, protocol)
    b.send(b"x")
    b.close()
    assert isinstance(await protocol.lost, asyncio.CancelledError)
    assert len(reports) == 1


@pytest.mark.parametrize("closing", [False, True])
async def test_a_peer_that_goes_while_nothing_is_read_is_noticed(
    pair: Pair, closing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AF_VSOCK does not say that it is writable before what the peer sent has been read."""
    monkeypatch.setattr(writing, "_STUCK_RETRY", 0.05)
    a, b = pair()
    protocol = Recorder()
    transport = start(a, protocol)
    transport.pause_reading()
    await fill(transport.get_extra_info("socket"))
    transport.write(bytes(200_000))
    b.send(b"unread")
    if closing:
        transport.close()
    b.close()
    if not closing:
        await protocol.called("resume_writing")
        transport.close()
    assert isinstance(await protocol.lost, ConnectionError)


async def test_a_new_protocol_is_told_of_an_end_the_old_one_has_seen(pair: Pair) -> None:
    """start_tls() on a stream whose peer has ended must fail at once, not after the handshake's timeout."""
    a, b = pair()
    first, second = Recorder(keep_open=True), Recorder()
    transport = start(a, first)
    b.shutdown(socket.SHUT_WR)
    await first.called("eof_received")
    transport.pause_reading()
    transport.set_protocol(second)
    transport.resume_reading()
    assert await second.lost is None
    assert second.calls == ["eof_received", "connection_lost"]
