from __future__ import annotations

import asyncio
import errno
import inspect
import itertools
import logging
import socket
import ssl
import sys
from typing import Any

import pytest

import aiohvsock
from aiohvsock import (
    CID_ANY,
    Address,
    HvAddressError,
    HvConnectError,
    HvConnectionRefused,
    HvTimeout,
    HybridAddress,
    HypervAddress,
    Retry,
    VsockAddress,
    create_hv_connection,
    create_hv_server,
    dialling,
)
from aiohvsock.transports import readiness

from .conftest import Pair
from .helpers import BufferedRecorder, Recorder, fill, new_socket, own, read_to_end


def elsewhere(address: Address) -> Address:
    """Return an address at which nobody listens."""
    if isinstance(address, HybridAddress):
        return HybridAddress(address.path, 9)
    if isinstance(address, HypervAddress):
        return HypervAddress(address.vm_id, 9)
    return VsockAddress(address.cid, 9)


# -- the grammar of asyncio --------------------------------------------------------------------------------


def test_signatures_follow_create_unix() -> None:
    """Same keywords, same defaults; an address stands in the path's place."""
    for ours, theirs in (
        (create_hv_connection, asyncio.AbstractEventLoop.create_unix_connection),
        (create_hv_server, asyncio.AbstractEventLoop.create_unix_server),
    ):
        mine = inspect.signature(ours).parameters
        for name, parameter in inspect.signature(theirs).parameters.items():
            if name in ("self", "path", "cleanup_socket"):
                continue
            assert mine[name].kind == parameter.kind, name
            if name != "backlog":
                assert mine[name].default == parameter.default, name
    assert list(inspect.signature(create_hv_connection).parameters)[:3] == [
        "protocol_factory",
        "address",
        "sock",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no address and sock were specified"),
        (
            {"address": "vsock://2:5", "sock": "SOCK"},
            "address and sock can not be specified at the same time",
        ),
        ({"sock": "DGRAM"}, "A Stream Socket was expected"),
        (
            {"address": "vsock://2:5", "ssl_handshake_timeout": 1.0},
            "ssl_handshake_timeout is only meaningful with ssl",
        ),
        (
            {"address": "vsock://2:5", "ssl_shutdown_timeout": 1.0},
            "ssl_shutdown_timeout is only meaningful with ssl",
        ),
        ({"address": "vsock://2:5", "buffer_size": 0}, "buffer_size must be positive"),
        ({"address": "vsock://2:5", "buffer_size": 2**40}, "buffer_size must be positive and below"),
        ({"address": "2:5"}, "no scheme"),
    ],
)
async def test_mistakes_are_value_errors(options: dict[str, Any], message: str) -> None:
    with (
        socket.socket() as stream,
        socket.socket(type=socket.SOCK_DGRAM) as datagram,
    ):
        options = dict(options)
        if "sock" in options:
            options["sock"] = stream if options["sock"] == "SOCK" else datagram
        for function in (create_hv_connection, create_hv_server):
            with pytest.raises(ValueError, match=message):
                await function(Recorder, **options)
        assert stream.fileno() >= 0  # a mistake in the call does not cost the caller the socket


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ssl": True}, "you have to pass server_hostname when using ssl"),
        ({"server_hostname": "x"}, "server_hostname is only meaningful with ssl"),
        ({"connect_timeout": 0}, "connect_timeout must be positive"),
        ({"connect_timeout": -1.0}, "connect_timeout must be positive"),
        ({"connect_timeout": float("nan")}, "connect_timeout must be positive"),
    ],
)
async def test_mistakes_in_connecting(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await create_hv_connection(Recorder, "vsock://2:5", **options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_connections": 0}, ValueError, "at least 1"),
        ({"ssl": True}, TypeError, "SSLContext"),
        ({"allow": "vsock://2:5"}, TypeError, "predicate or a collection"),
        ({"allow": 2}, TypeError, "predicate or a collection"),
        ({"allow": ["guest"]}, HvAddressError, "'guest' is not a VM id"),
        ({"allow": [2**32]}, HvAddressError, "CID 4294967296"),
        ({"bogus": 1}, TypeError, "bogus"),
    ],
)
async def test_mistakes_in_listening(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        await create_hv_server(Recorder, "vsock://2:5", **options)


async def test_no_counterpart_here() -> None:
    if sys.platform == "win32":
        with pytest.raises(HvAddressError, match="no counterpart on Windows"):
            await create_hv_connection(Recorder, "vsock://7:5")
        with pytest.raises(HvAddressError, match="chooses no free service id"):
            await create_hv_server(Recorder, "vsock://any:any")
    else:
        with pytest.raises(HvAddressError, match="no counterpart on Linux"):
            await create_hv_connection(Recorder, "hvsock://broadcast:5")
        with pytest.raises(HvAddressError, match="not made from a port"):
            await create_hv_server(Recorder, "hvsock://parent/999e53d4-3d5c-4c3e-8779-bed06ec056e1")


@pytest.mark.linux
async def test_no_test_dials_a_stranger(kind: str) -> None:
    if kind == "vsock":
        pytest.skip("in a testbed CID 2 is ours: see AIOHVSOCK_KIND=hybrid")
    with (
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock,
        pytest.raises(AssertionError, match="outside"),
    ):
        sys.audit("socket.connect", sock, (2, 5))


# -- connecting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [Recorder, BufferedRecorder])
async def test_connect_and_talk(address: Address, protocol: type[Recorder]) -> None:
    servers: list[Recorder] = []

    def factory() -> Recorder:
        servers.append(protocol())
        return servers[-1]

    server = await create_hv_server(factory, str(address))
    assert server.address == address
    transport, client = await create_hv_connection(protocol, str(address))
    assert client.transport is transport
    assert transport.get_extra_info("hv_peer") == address
    transport.write(b"hello")
    transport.write_eof()
    assert await client.lost is None
    assert servers[0].data == b"hello"
    peer = servers[0].transport
    assert peer is not None
    assert peer.get_extra_info("hv_local") == address
    assert type(peer.get_extra_info("hv_peer")) is type(address)
    server.close()
    await server.wait_closed()


async def test_nobody_listens(address: Address) -> None:
    with pytest.raises(HvConnectionRefused, match="nobody listens") as caught:
        await create_hv_connection(Recorder, elsewhere(address))
    error = caught.value
    assert isinstance(error, ConnectionRefusedError)
    assert isinstance(error, HvConnectError)
    assert error.transient
    assert error.remote == elsewhere(address)
    assert str(elsewhere(address)) in str(error)
    if isinstance(address, VsockAddress):
        assert error.errno == errno.ECONNRESET
        assert isinstance(error.local, VsockAddress)
        assert error.local.cid == CID_ANY
    else:
        assert error.errno == errno.ECONNREFUSED
    assert isinstance(error.__cause__, OSError)


@pytest.mark.vsock
async def test_no_such_cid() -> None:
    with pytest.raises(HvConnectError, match="no running VM has that CID") as caught:
        await create_hv_connection(Recorder, "vsock://77:5")
    assert caught.value.errno == errno.ENODEV
    assert caught.value.transient


@pytest.mark.vsock
async def test_hyperv_addresses_mean_the_vsock_ones(kind: str) -> None:
    server = await create_hv_server(Recorder, "hvsock://any:2761")
    assert server.address == VsockAddress(CID_ANY, 2761)
    transport, protocol = await create_hv_connection(Recorder, "hvsock://loopback:2761")
    assert transport.get_extra_info("hv_peer") == VsockAddress(1, 2761)
    transport.close()
    await protocol.lost
    server.close()
    await server.wait_closed()


async def test_a_monitor_that_does_not_answer(directory: str) -> None:
    """A guest that is not up yet gives no answer at all."""
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.bind(f"{directory}/vm.sock")
        monitor.listen()
        with pytest.raises(HvTimeout, match=r"no answer within 0\.05 s") as caught:
            await create_hv_connection(
                Recorder, HybridAddress(f"{directory}/vm.sock", 5), connect_timeout=0.05
            )
        assert caught.value.errno == errno.ETIMEDOUT
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.transient


async def test_the_callers_own_timeout_stays_a_timeout(directory: str) -> None:
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.bind(f"{directory}/vm.sock")
        monitor.listen()
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.05):
                await create_hv_connection(
                    Recorder, HybridAddress(f"{directory}/vm.sock", 5), connect_timeout=None
                )
        assert not isinstance(caught.value, HvTimeout)


async def test_a_full_backlog_is_no_success(directory: str) -> None:
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.bind(f"{directory}/vm.sock")
        monitor.listen(0)
        address = HybridAddress(f"{directory}/vm.sock", 5)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(f"{directory}/vm.sock")
            with pytest.raises(HvConnectionRefused, match="backlog") as caught:
                await create_hv_connection(Recorder, address)
            assert caught.value.errno == errno.EAGAIN


async def test_cancelled_at_every_moment(address: Address) -> None:
    """The autouse fixture sees that no descriptor is left, on whichever turn of the loop it is cancelled."""
    server = await create_hv_server(Recorder, address)
    for turns in itertools.count():
        attempt = asyncio.ensure_future(create_hv_connection(Recorder, address))
        for _ in range(turns):
            await asyncio.sleep(0)
        if attempt.done():
            break
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
    assert turns > 1
    transport, protocol = attempt.result()
    transport.close()
    await protocol.lost
    server.close()
    await server.wait_closed()


async def test_cancelled_in_the_turn_it_succeeds(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    server = await create_hv_server(Recorder, address)
    real = readiness.connect
    task: asyncio.Task[Any]

    async def connect_and_cancel(*args: Any) -> None:
        await real(*args)
        task.cancel()
        await asyncio.sleep(0)

    monkeypatch.setattr(dialling, "connect", connect_and_cancel)
    task = asyncio.ensure_future(create_hv_connection(Recorder, address))
    with pytest.raises(asyncio.CancelledError):
        await task
    server.close()
    await server.wait_closed()


async def test_a_raising_factory_or_connection_made(address: Address) -> None:
    server = await create_hv_server(Recorder, address)

    class Raising(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            raise ZeroDivisionError

    def factory() -> Recorder:
        raise ZeroDivisionError

    for each in (factory, Raising):
        with pytest.raises(ZeroDivisionError):
            await create_hv_connection(each, address)
    server.close()
    await server.wait_closed()


async def test_200_connections_at_once(address: Address) -> None:
    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)

    async with await create_hv_server(Echo, address, backlog=256):

        async def talk(number: int) -> None:
            transport, protocol = await create_hv_connection(Recorder, address, retry=Retry(delay=0.01))
            message = b"%08d" % number * 1000
            transport.write(message)
            assert await protocol.received(len(message)) == message
            transport.close()
            await protocol.lost

        await asyncio.gather(*map(talk, range(200)))


# -- sock= -------------------------------------------------------------------------------------------------


async def test_a_connected_socket_of_the_callers(pair: Pair, kind: str) -> None:
    a, b = pair()
    sock = own(a)
    sock.setblocking(True)
    transport, protocol = await create_hv_connection(Recorder, sock=sock)
    assert transport.get_extra_info("socket") is sock
    assert sock.getblocking() is False
    named = {"vsock": VsockAddress, "hyperv": HypervAddress}.get(kind, type(None))
    assert isinstance(transport.get_extra_info("hv_peer"), named)
    transport.write(b"x")
    transport.close()
    assert await read_to_end(b) == b"x"
    await protocol.lost
    await asyncio.sleep(0)
    assert sock.fileno() == -1


async def test_an_unconnected_socket_is_refused() -> None:
    """asyncio takes it, and then nothing ever happens."""
    sock = socket.socket()
    with pytest.raises(HvConnectError, match="sock must be connected") as caught:
        await create_hv_connection(Recorder, sock=sock)
    assert caught.value.errno == errno.ENOTCONN
    assert caught.value.operation == "connect"
    assert sock.fileno() == -1


async def test_an_unbound_listening_socket_is_refused(kind: str) -> None:
    sock = new_socket(kind)
    with pytest.raises(HvConnectError, match="must be bound") as caught:
        await create_hv_server(Recorder, sock=sock)
    assert caught.value.operation == "listen"
    assert sock.fileno() == -1


async def test_a_bound_socket_of_the_callers(directory: str) -> None:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"{directory}/s")
    served: asyncio.Future[Recorder] = asyncio.get_running_loop().create_future()

    def factory() -> Recorder:
        served.set_result(Recorder())
        return served.result()

    server = await create_hv_server(factory, sock=sock)
    assert server.address is None
    assert server.sockets == (sock,)
    client = socket.socket(socket.AF_UNIX)
    client.connect(f"{directory}/s")
    _, protocol = await create_hv_connection(Recorder, sock=client)
    await served
    server.close()
    server.abort_clients()
    assert await protocol.lost is None
    await server.wait_closed()


# -- retry -------------------------------------------------------------------------------------------------


def test_retry_delays() -> None:
    assert list(itertools.islice(Retry(1.0, 5.0, 2.0, 0.0).delays(), 5)) == [1.0, 2.0, 4.0, 5.0, 5.0]
    for delay in itertools.islice(Retry(1.0, 1.0, 1.0, 0.5).delays(), 100):
        assert 0.5 <= delay <= 1.5


@pytest.mark.parametrize(
    "wrong",
    [{"delay": 0}, {"delay": -1}, {"delay": 3.0}, {"factor": 0.5}, {"jitter": 2}, {"delay": float("nan")}],
)
def test_retry_checks_its_figures(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="needs 0 < delay"):
        Retry(**wrong)


async def test_retry_waits_for_the_server(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    server: list[aiohvsock.HvServer] = []

    class Appear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record.getMessage())
            if len(seen) == 3:
                starting.append(asyncio.ensure_future(create_hv_server(Recorder, address)))

    seen: list[str] = []
    starting: list[asyncio.Future[aiohvsock.HvServer]] = []
    logger = logging.getLogger("aiohvsock")
    handler = Appear()
    caplog.set_level(logging.DEBUG, logger="aiohvsock")
    logger.addHandler(handler)
    try:
        transport, protocol = await create_hv_connection(
            Recorder, address, retry=Retry(delay=0.001, max_delay=0.01)
        )
    finally:
        logger.removeHandler(handler)
    server.append(await starting[0])
    assert len(seen) >= 3
    assert "trying again in" in seen[0]
    assert str(address) in seen[0]
    transport.close()
    await protocol.lost
    server[0].close()
    await server[0].wait_closed()


async def test_retry_stops_at_what_will_not_pass(directory: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wrong:
        wrong.bind(f"{directory}/vm.sock")
        with pytest.raises(HvConnectError, match="not a stream socket"):
            await create_hv_connection(Recorder, HybridAddress(f"{directory}/vm.sock", 5), retry=Retry())


async def test_retry_is_bounded_by_the_caller(address: Address) -> None:
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.1):
            await create_hv_connection(Recorder, elsewhere(address), retry=Retry(delay=0.01))
    assert not isinstance(caught.value, HvTimeout)


# -- options -----------------------------------------------------------------------------------------------


async def test_buffer_size_widens_the_window(address: Address, kind: str) -> None:
    servers: list[Recorder] = []

    class Stopped(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            assert self.transport is not None
            self.transport.pause_reading()
            servers.append(self)

    server = await create_hv_server(Stopped, address, buffer_size=2**21)
    transport, protocol = await create_hv_connection(Recorder, address, buffer_size=2**21)
    taken = await fill(transport.get_extra_info("socket"))
    assert taken >= (2**21 if kind == "vsock" else 2**19)
    transport.abort()
    server.close()
    server.abort_clients()
    await server.wait_closed()
    await protocol.lost


async def test_tls_needs_no_hostname_check(address: Address) -> None:
    """The refusals of ssl= come before any socket is made."""
    with pytest.raises(ValueError, match="server_hostname"):
        await create_hv_connection(Recorder, address, ssl=ssl.create_default_context())
