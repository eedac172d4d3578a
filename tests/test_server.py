from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import socket
from typing import Any, cast

import pytest

from aiohvsock import (
    CID_ANY,
    Address,
    HvAddressError,
    HvServer,
    HybridAddress,
    HypervAddress,
    VsockAddress,
    create_hv_connection,
    create_hv_server,
)
from aiohvsock.server import allow_predicate
from aiohvsock.transports import readiness

from .helpers import Recorder, new_socket, sockaddr


class Collecting:
    """A protocol factory that keeps what it made."""

    def __init__(self) -> None:
        self.made: list[Recorder] = []
        self._more = asyncio.Event()

    def __call__(self) -> Recorder:
        self.made.append(Recorder())
        self._more.set()
        return self.made[-1]

    async def count(self, count: int) -> None:
        while len(self.made) < count:
            self._more.clear()
            await self._more.wait()


class FailingListener:
    """Stands for a server's listening socket, and fails to accept as often as it was given errors."""

    def __init__(self, server: HvServer, *errors: int) -> None:
        self.sock = server.sockets[0]
        self.errors = list(errors)
        (acceptor,) = server._acceptors.values()
        acceptor._sock = cast("socket.socket", self)

    def fileno(self) -> int:
        return self.sock.fileno()

    def accept(self) -> Any:
        if self.errors:
            raise OSError(code := self.errors.pop(0), os.strerror(code))
        return self.sock.accept()


def catch() -> list[dict[str, Any]]:
    """Collect what goes to the loop's exception handler."""
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reports.append(context))
    return reports


async def test_has_the_whole_api_of_3_13(address: Address) -> None:
    for name in [
        "close",
        "close_clients",
        "abort_clients",
        "get_loop",
        "is_serving",
        "sockets",
        "serve_forever",
        "start_serving",
        "wait_closed",
        "__aenter__",
        "__aexit__",
        "address",
    ]:
        assert hasattr(HvServer, name)
    assert issubclass(HvServer, asyncio.AbstractServer)
    server = await create_hv_server(Recorder, address)
    assert server.get_loop() is asyncio.get_running_loop()
    assert server.is_serving()
    assert [sock.fileno() >= 0 for sock in server.sockets] == [True]
    assert repr(server) == f"<HvServer {address} serving, 0 connections>"
    server.close()
    server.close()
    assert not server.is_serving()
    assert server.sockets == ()
    await server.wait_closed()
    assert "closed" in repr(server)
    with pytest.raises(RuntimeError, match="is closed"):
        await server.start_serving()
    with pytest.raises(RuntimeError, match="is closed"):
        await server.serve_forever()


async def test_start_serving_later(address: Address) -> None:
    factory = Collecting()
    server = await create_hv_server(factory, address, start_serving=False)
    assert not server.is_serving()
    assert len(server.sockets) == 1
    with pytest.raises(ConnectionRefusedError):
        await create_hv_connection(Recorder, address)
    await server.start_serving()
    await server.start_serving()
    transport, protocol = await create_hv_connection(Recorder, address)
    await factory.count(1)
    transport.close()
    await protocol.lost
    server.close()
    await server.wait_closed()


async def test_the_listener_is_free_at_once(address: Address) -> None:
    """There is no TIME_WAIT, also with connections still open."""
    for _ in range(3):
        server = await create_hv_server(Recorder, address)
        transport, protocol = await create_hv_connection(Recorder, address)
        server.close()
        server.close_clients()
        transport.abort()
        await protocol.lost
        await server.wait_closed()


async def test_wait_closed_waits_for_the_connections(address: Address) -> None:
    factory = Collecting()
    server = await create_hv_server(factory, address)
    transport, protocol = await create_hv_connection(Recorder, address)
    await factory.count(1)
    waiting = asyncio.ensure_future(server.wait_closed())
    await asyncio.sleep(0)
    server.close()
    await asyncio.sleep(0)
    assert not waiting.done()
    transport.close()
    await waiting
    assert factory.made[0].lost.done()
    await protocol.lost


async def test_async_with_closes(address: Address) -> None:
    async with await create_hv_server(Recorder, address) as server:
        assert server.is_serving()
    assert not server.is_serving()


async def test_serve_forever(address: Address) -> None:
    server = await create_hv_server(Recorder, address, start_serving=False)
    serving = asyncio.ensure_future(server.serve_forever())
    await asyncio.sleep(0)
    assert server.is_serving()
    with pytest.raises(RuntimeError, match="already being awaited"):
        await server.serve_forever()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert not server.is_serving()
    assert server.sockets == ()


async def test_close_ends_serve_forever(address: Address) -> None:
    server = await create_hv_server(Recorder, address)
    serving = asyncio.ensure_future(server.serve_forever())
    await asyncio.sleep(0)
    server.close()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_close_clients_flushes_and_abort_clients_does_not(address: Address) -> None:
    factory = Collecting()
    server = await create_hv_server(factory, address)
    data = os.urandom(2**21)
    for method, whole in (("close_clients", True), ("abort_clients", False)):
        transport, protocol = await create_hv_connection(Recorder, address)
        transport.pause_reading()
        await factory.count(1)
        served = factory.made.pop().transport
        assert served is not None
        served.write(data)
        getattr(server, method)()
        transport.resume_reading()
        await protocol.lost
        assert (protocol.data == data) is whole
    server.close()
    await server.wait_closed()


async def test_a_raising_factory_costs_one_connection(address: Address) -> None:
    reports = catch()
    good = Collecting()
    factories = iter([ZeroDivisionError, ZeroDivisionError])

    def factory() -> Recorder:
        for error in factories:
            raise error
        return good()

    server = await create_hv_server(factory, address)
    for _ in range(2):
        _, protocol = await create_hv_connection(Recorder, address)
        await protocol.lost
    transport, protocol = await create_hv_connection(Recorder, address)
    await good.count(1)
    assert [type(report["exception"]) for report in reports] == [ZeroDivisionError] * 2
    transport.close()
    await protocol.lost
    server.close()
    await server.wait_closed()


async def test_a_raising_connection_made_costs_one_connection(address: Address) -> None:
    reports = catch()

    class Raising(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            raise ZeroDivisionError

    server = await create_hv_server(Raising, address)
    for _ in range(2):
        _, protocol = await create_hv_connection(Recorder, address)
        await protocol.lost
    assert len(reports) == 2
    assert server.is_serving()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EINVAL])
async def test_a_failing_accept_never_stops_the_listener(
    address: Address, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(readiness, "ACCEPT_DELAY", 0.01)
    reports = catch()
    factory = Collecting()
    server = await create_hv_server(factory, address)
    FailingListener(server, code, code, code)
    transport, protocol = await create_hv_connection(Recorder, address)
    await factory.count(1)
    assert len(reports) == 3
    assert "accept failed; the listener: it goes on" in reports[0]["message"]
    transport.close()
    await protocol.lost
    server.close()
    await server.wait_closed()


async def test_a_peer_gone_before_accept_costs_nothing(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = catch()
    factory = Collecting()
    server = await create_hv_server(factory, address)
    FailingListener(server, errno.ECONNABORTED, errno.ECONNRESET)
    transport, protocol = await create_hv_connection(Recorder, address)
    await factory.count(1)
    assert reports == []
    transport.close()
    await protocol.lost
    server.close()
    await server.wait_closed()


async def test_closing_while_accept_rests(address: Address) -> None:
    rested = asyncio.Event()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: rested.set())
    server = await create_hv_server(Recorder, address)
    FailingListener(server, errno.EMFILE)
    attempt = asyncio.ensure_future(create_hv_connection(Recorder, address))
    await rested.wait()
    server.close()
    await server.wait_closed()
    with contextlib.suppress(ConnectionRefusedError):
        transport, protocol = await attempt
        transport.abort()
        await protocol.lost
    assert not server.is_serving()


# -- max_connections and allow -----------------------------------------------------------------------------


async def test_max_connections(address: Address) -> None:
    factory = Collecting()
    server = await create_hv_server(factory, address, max_connections=2)
    clients = [await create_hv_connection(Recorder, address) for _ in range(2)]
    await factory.count(2)
    # A third may connect (the kernel accepts it for us) but is not served until one of the others goes.
    transport, protocol = await create_hv_connection(Recorder, address)
    transport.write(b"waiting")
    served = factory.made[0].transport
    assert served is not None
    served.write(b"x")
    await clients[0][1].received(1)
    assert len(factory.made) == 2
    clients[1][0].close()
    await factory.count(3)
    assert await factory.made[2].received(7) == b"waiting"
    clients.append((transport, protocol))
    for transport, _ in clients:
        transport.close()
    server.close()
    await server.wait_closed()
    for _, protocol in clients:
        await protocol.lost


async def test_allow_by_partition(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    us: Any = [address.path] if isinstance(address, HybridAddress) else [1]
    factory = Collecting()
    cases: list[tuple[Any, bool]] = [({3, 4, "/elsewhere"}, False), (us, True), ([], False)]
    for allow, allowed in cases:
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="aiohvsock"):
            async with await create_hv_server(factory, address, allow=allow):
                made = len(factory.made)
                for _ in range(3):
                    transport, protocol = await create_hv_connection(Recorder, address)
                    if allowed:
                        await factory.count(made + 1)
                        transport.close()
                    await protocol.lost
                assert (len(factory.made) > made) is allowed
        lines = [record.getMessage() for record in caplog.records if record.name == "aiohvsock"]
        assert len(lines) == (0 if allowed else 1)  # a peer that keeps trying does not fill the disk
        if not allowed:
            assert "not allowed" in lines[0]
            assert str(address) in lines[0]


async def test_allow_by_predicate(address: Address) -> None:
    reports = catch()
    seen: list[Address] = []

    def allow(peer: Address) -> bool:
        seen.append(peer)
        if len(seen) == 1:
            raise ZeroDivisionError
        return len(seen) > 2

    factory = Collecting()
    server = await create_hv_server(factory, address, allow=allow)
    for _ in range(2):
        _, protocol = await create_hv_connection(Recorder, address)
        await protocol.lost
    assert factory.made == []
    assert len(reports) == 1  # one that raises allows nobody
    transport, protocol = await create_hv_connection(Recorder, address)
    await factory.count(1)
    assert all(type(peer) is type(address) for peer in seen)
    transport.close()
    await protocol.lost
    server.close()
    await server.wait_closed()


def test_allow_knows_a_partition_by_each_of_its_names() -> None:
    allow = allow_predicate({2, "loopback", "90db8b89-0d35-4f79-8ce9-49ea0ac8b7ce", "/run/vm.sock"})
    assert allow is not None
    assert allow(VsockAddress(2, 99))
    assert allow(VsockAddress(1, 99))
    assert allow(HypervAddress("loopback", 99))
    assert allow(HypervAddress("90DB8B89-0d35-4f79-8ce9-49ea0ac8b7ce", 99))
    assert allow(HybridAddress("/run/vm.sock", 99))
    assert not allow(VsockAddress(3, 99))
    assert not allow(HypervAddress("broadcast", 99))
    assert not allow(HybridAddress("/run/other.sock", 99))
    assert allow_predicate(None) is None


@pytest.mark.parametrize("member", ["any", "children", "broadcast", CID_ANY])
def test_allow_takes_no_name_that_is_nobodys(member: str | int) -> None:
    with pytest.raises(HvAddressError, match="nobody's name"):
        allow_predicate([member])


async def test_allow_is_no_coroutine_function(address: Address) -> None:
    """Its coroutine would be true, and let everybody in."""

    async def deny(peer: Address) -> bool:
        return False

    with pytest.raises(TypeError, match="coroutine function"):
        await create_hv_server(Recorder, address, allow=deny)  # type: ignore[arg-type]


async def test_allow_needs_peers_with_names(directory: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{directory}/s")
        with pytest.raises(ValueError, match="allow= needs peers"):
            await create_hv_server(Recorder, sock=sock, allow=lambda peer: True)


async def test_a_bound_socket_of_the_callers_has_names(kind: str, address: Address) -> None:
    """As systemd hands it over."""
    if kind == "hybrid":
        pytest.skip("only AF_VSOCK and AF_HYPERV know who calls")
    sock = new_socket(kind)
    sock.bind(sockaddr(address))
    factory = Collecting()
    server = await create_hv_server(factory, sock=sock, allow={1})
    assert server.address == address
    transport, protocol = await create_hv_connection(Recorder, address)
    await factory.count(1)
    transport.close()
    await protocol.lost
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("limit", [0, -1, 1.5, "2"])
async def test_max_connections_is_a_positive_int(address: Address, limit: Any) -> None:
    with pytest.raises(ValueError, match="max_connections must be an int"):
        await create_hv_server(Recorder, address, max_connections=limit)


# -- reentrancy and Ctrl-C ---------------------------------------------------------------------------------


async def test_closed_inside_the_factory(address: Address) -> None:
    server: list[HvServer] = []

    def factory() -> Recorder:
        server[0].close()
        return Recorder()

    server.append(await create_hv_server(factory, address))
    _, protocol = await create_hv_connection(Recorder, address)
    await server[0].wait_closed()
    await protocol.lost
    assert "0 connections" in repr(server[0])


async def test_a_factory_that_is_cancelled_costs_one_connection(address: Address) -> None:
    """CancelledError is no Exception; the accepted socket must be closed all the same."""
    reports = catch()

    def factory() -> Recorder:
        raise asyncio.CancelledError

    server = await create_hv_server(factory, address)
    _, protocol = await create_hv_connection(Recorder, address)
    await protocol.lost
    assert len(reports) == 1
    server.close()
    await server.wait_closed()


async def test_serve_forever_ends_with_an_idle_client(address: Address) -> None:
    """On Ctrl-C: wait_closed() by itself would wait for the client."""
    factory = Collecting()
    server = await create_hv_server(factory, address)
    _, protocol = await create_hv_connection(Recorder, address)
    await factory.count(1)
    serving = asyncio.ensure_future(server.serve_forever())
    await asyncio.sleep(0)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    await protocol.lost
    assert factory.made[0].lost.done()


# -- forgotten ---------------------------------------------------------------------------------------------


async def test_a_forgotten_server_warns(directory: str) -> None:
    server: HvServer | None = await create_hv_server(
        Recorder, HybridAddress(f"{directory}/vm.sock", 5), start_serving=False
    )
    with pytest.warns(ResourceWarning, match="unclosed server"):
        server = None
    gc.collect()
    assert server is None
    assert os.listdir(directory) == []
