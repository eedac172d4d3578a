"""Connecting and listening on anyio: each behaviour that anyio's own tests ask of its Unix listeners, and TLS."""

from __future__ import annotations

import errno
import logging
import os
import socket
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import create_task_group, fail_after, wait_all_tasks_blocked
from anyio.abc import SocketAttribute, TaskStatus
from anyio.streams.stapled import MultiListener
from anyio.streams.tls import TLSAttribute, TLSConnectable, TLSListener, TLSStream

from aiohvsock import (
    PORT_ANY,
    Address,
    HvAddressError,
    HvConnectError,
    HvConnectionRefused,
    HvTimeout,
    HybridAddress,
    Retry,
)
from aiohvsock.contrib.anyio import (
    HvAttribute,
    HvConnectable,
    HvListener,
    HvStream,
    connect_hv,
    create_hv_listener,
)
from aiohvsock.platforms import Names

from ..descriptors import open_sockets
from ..helpers import kind_of, new_socket, no_counterpart, sockaddr
from .anyio_runs import (
    DATA,
    contexts,
    everywhere,
    expect,
    read_to_end,
    shout,
    until,
)

# -- connecting --------------------------------------------------------------------------------------------


@everywhere
async def test_cannot_connect(address: Address) -> None:
    with pytest.raises(HvConnectionRefused) as caught:
        await connect_hv(address)
    assert caught.value.remote == address
    assert caught.value.hint
    with pytest.raises(anyio.ConnectionFailed, match="connect to") as failed:
        await HvConnectable(address).connect()
    assert isinstance(failed.value.__cause__, HvConnectionRefused)
    assert failed.value.errno == failed.value.__cause__.errno


@everywhere
async def test_connect_arguments(address: Address) -> None:
    with pytest.raises(ValueError, match="connect_timeout must be positive"):
        await connect_hv(address, connect_timeout=0)
    with pytest.raises(ValueError, match="buffer_size must be positive"):
        await create_hv_listener(address, buffer_size=0)
    with pytest.raises(HvAddressError):
        await HvConnectable("tcp://1.2.3.4:5").connect()
    with pytest.raises(HvAddressError):
        await connect_hv(no_counterpart(1))
    with pytest.raises(HvAddressError):
        await create_hv_listener(no_counterpart(1))


@everywhere
async def test_connect_by_text_and_wait_for_the_service(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "aiohvsock")

    async def listen() -> None:
        await until(lambda: "trying again" in caplog.text)
        async with await create_hv_listener(str(address)) as listener, await listener.accept() as stream:
            await stream.send(b"hello")

    async with create_task_group() as tasks:
        tasks.start_soon(listen)
        retry = Retry(delay=0.01, max_delay=0.01)
        async with await HvConnectable(str(address), retry=retry).connect() as stream:
            assert await read_to_end(stream) == b"hello"


@everywhere
async def test_the_address_is_asked_before_each_attempt(address: Address) -> None:
    asked = 0

    async def machine() -> Address:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise HvAddressError("it is off")
        return address

    with fail_after(10):
        with pytest.raises(HvConnectError, match="it is off"):
            await connect_hv(machine)
        async with await create_hv_listener(address) as listener, create_task_group() as tasks:
            tasks.start_soon(listener.serve, shout)
            asked = 0
            async with await connect_hv(machine, retry=Retry(delay=0.01)) as stream:
                await stream.send(b"hello")
                await stream.send_eof()
                assert await read_to_end(stream) == b"HELLO"
            tasks.cancel_scope.cancel()
    assert asked == 2


@everywhere
async def test_connecting_is_cancelled(directory: str) -> None:
    """A monitor that never answers: cancelled, nothing of it is left."""
    path = f"{directory}/vm.sock"
    before = open_sockets()
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.bind(path)
        monitor.listen()
        within = open_sockets()
        async with create_task_group() as tasks:
            tasks.start_soon(connect_hv, HybridAddress(path, 1))
            await wait_all_tasks_blocked()
            assert len(open_sockets() - within) == 1
            tasks.cancel_scope.cancel()
        assert open_sockets() == within
        with anyio.CancelScope() as scope:
            scope.cancel()
            await connect_hv(HybridAddress(path, 1))
        assert open_sockets() == within
    assert open_sockets() == before


@everywhere
async def test_connecting_takes_too_long(directory: str) -> None:
    path = f"{directory}/vm.sock"
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.bind(path)
        monitor.listen()
        before = open_sockets()
        with pytest.raises(HvTimeout, match=r"no answer within 0\.05 s") as caught:
            await connect_hv(HybridAddress(path, 1), connect_timeout=0.05)
        assert caught.value.errno == errno.ETIMEDOUT
        assert open_sockets() == before


@everywhere
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", HvConnectionRefused),
        (b"OK 10", HvConnectionRefused),
        (b"ERR no\n", HvConnectError),
        (b"x" * 100, HvConnectError),
    ],
)
async def test_monitors_that_refuse(directory: str, answer: bytes, error: type[Exception]) -> None:
    path = f"{directory}/vm.sock"
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.bind(path)
        monitor.listen()
        monitor.setblocking(False)
        before = open_sockets()

        async def refuse() -> None:
            await anyio.wait_readable(monitor)
            sock, _ = monitor.accept()
            with sock:
                sock.setblocking(False)
                await anyio.wait_readable(sock)
                assert sock.recv(100) == b"CONNECT 7\n"
                sock.send(answer)

        async with create_task_group() as tasks:
            tasks.start_soon(refuse)
            with pytest.raises(error):
                await connect_hv(HybridAddress(path, 7))
        assert open_sockets() == before


@everywhere
async def test_a_guest_that_speaks_first(directory: str) -> None:
    path = f"{directory}/vm.sock"
    with socket.socket(socket.AF_UNIX) as monitor:
        monitor.bind(path)
        monitor.listen()
        monitor.setblocking(False)

        async def answer(*, task_status: TaskStatus[None]) -> None:
            task_status.started()
            await anyio.wait_readable(monitor)
            sock, _ = monitor.accept()
            with sock:
                sock.setblocking(False)
                await anyio.wait_readable(sock)
                assert sock.recv(100) == b"CONNECT 7\n"
                sock.send(b"OK 9\nwelcome")

        async with create_task_group() as tasks:
            await tasks.start(answer)
            async with await connect_hv(HybridAddress(path, 7)) as stream:
                assert await read_to_end(stream) == b"welcome"


# -- listeners: anyio's TestUNIXListener -------------------------------------------------------------------


@everywhere
async def test_listener_attributes(address: Address) -> None:
    async with await create_hv_listener(address) as listener:
        raw = listener.extra(SocketAttribute.raw_socket)
        assert listener.extra(SocketAttribute.family) == raw.family
        assert listener.extra(SocketAttribute.local_address) == raw.getsockname() == sockaddr(address)
        assert listener.extra(HvAttribute.local_address) == address
        assert listener.extra(SocketAttribute.remote_address, None) is None
        assert listener.extra(HvAttribute.peer_address, None) is None


@everywhere
async def test_listener_from_socket(kind: str, address: Address) -> None:
    with new_socket(kind) as sock:
        sock.bind(sockaddr(address))
        sock.listen()
        async with (
            await HvListener.from_socket(sock) as listener,
            await connect_hv(address) as client,
            await listener.accept() as stream,
        ):
            await stream.send(b"hello")
            assert await client.receive() == b"hello"
    if isinstance(address, HybridAddress):
        os.unlink(sockaddr(address))


@everywhere
async def test_bind_twice(address: Address) -> None:
    for _ in range(2):
        async with await create_hv_listener(address):
            with pytest.raises(HvConnectError, match="listen on"):
                await create_hv_listener(address)
    if isinstance(address, HybridAddress):
        assert not os.path.lexists(sockaddr(address))  # noqa: ASYNC240


@everywhere
async def test_close_during_accept(address: Address) -> None:
    listener = await create_hv_listener(address)
    async with create_task_group() as tasks:
        tasks.start_soon(expect, anyio.ClosedResourceError, listener.accept)
        await wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError, match="already accepting connections from"):
            await listener.accept()
        await listener.aclose()
    with pytest.raises(anyio.ClosedResourceError):
        await listener.accept()
    assert listener.extra(SocketAttribute.raw_socket).fileno() == -1


@everywhere
async def test_listener_aclose_in_a_cancelled_scope(address: Address) -> None:
    listener = await create_hv_listener(address)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await listener.aclose()
    assert scope.cancelled_caught
    assert listener.extra(SocketAttribute.raw_socket).fileno() == -1


@everywhere
async def test_cancelled_accept_leaves_the_connection(address: Address) -> None:
    async with await create_hv_listener(address) as listener, await connect_hv(address) as client:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await listener.accept()
        assert scope.cancelled_caught
        await client.send(b"hello")
        async with await listener.accept() as stream:
            assert await stream.receive() == b"hello"


@everywhere
async def test_serving_ends(address: Address) -> None:
    """The handlers end with the task group that is made for them, and leave nothing."""
    handlers = 0

    async def handler(stream: HvStream) -> None:
        nonlocal handlers
        async with stream:
            handlers += 1
            await stream.receive()

    async with await create_hv_listener(address) as listener:
        async with create_task_group() as tasks:
            tasks.start_soon(listener.serve, handler)
            clients = [await connect_hv(address) for _ in range(3)]
            await until(lambda: handlers == 3)
            tasks.cancel_scope.cancel()
        for client in clients:
            with fail_after(5), pytest.raises(anyio.EndOfStream):
                await client.receive()
            await client.aclose()


@everywhere
async def test_accept_out_of_descriptors(
    address: Address, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("aiohvsock.contrib.anyio.ACCEPT_DELAY", 0.01)
    async with await create_hv_listener(address) as listener, create_task_group() as tasks:
        accept = listener._accept
        failures = [OSError(errno.EMFILE, "too many"), OSError(errno.EMFILE, "too many")]

        def failing() -> HvStream:
            if failures:
                raise failures.pop()
            return accept()

        monkeypatch.setattr(listener, "_accept", failing)
        with pytest.raises(OSError, match="too many"):
            await listener.accept()
        tasks.start_soon(listener.serve, shout)
        async with await connect_hv(address) as stream:
            await stream.send(b"hello")
            assert await stream.receive() == b"HELLO"
        tasks.cancel_scope.cancel()
    assert "accept failed; the listener goes on in 0.01 s" in caplog.text


class Aborting:
    """A listening socket whose first peer has gone before it is accepted."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.aborted = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def accept(self) -> Any:
        if self.aborted:
            return self._sock.accept()
        self.aborted = True
        raise OSError(errno.ECONNABORTED, "gone")


@everywhere
async def test_peers_that_are_gone_when_they_are_accepted(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await create_hv_listener(address) as listener:
        aborting = Aborting(listener._sock)
        names, nameless = listener._listener.names, [OSError(errno.ENOTCONN, "gone")]

        def failing_names(sock: socket.socket) -> Names:
            if nameless:
                raise nameless.pop()
            return names(sock)

        monkeypatch.setattr(listener, "_sock", aborting)
        monkeypatch.setattr(listener._listener, "names", failing_names)
        async with await connect_hv(address) as nobody, await connect_hv(address) as client:
            async with await listener.accept() as stream:
                await stream.send(b"hello")
                assert await client.receive() == b"hello"
            assert aborting.aborted
            assert not nameless
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await nobody.receive()


@everywhere
async def test_serving_on_a_socket_that_somebody_else_closed(address: Address) -> None:
    async with await create_hv_listener(address) as listener, create_task_group() as tasks:
        listener.extra(SocketAttribute.raw_socket).close()
        with fail_after(5), pytest.raises(OSError):
            await listener.serve(shout, tasks)


@everywhere
async def test_multi_listener(address: Address) -> None:
    other: Address | None = None
    if isinstance(address, HybridAddress):
        other = HybridAddress(address.path, 2762)
    listeners = [await create_hv_listener(each) for each in (address, other) if each is not None]
    async with MultiListener(listeners) as listener, create_task_group() as tasks:
        tasks.start_soon(listener.serve, shout)
        for each in (address, other):
            if each is not None:
                async with await connect_hv(each) as stream:
                    await stream.send(b"hello")
                    assert await stream.receive() == b"HELLO"
        tasks.cancel_scope.cancel()


@everywhere
@pytest.mark.linux
async def test_hybrid_vsock_has_no_port_to_choose() -> None:
    with pytest.raises(HvAddressError, match="has no port"):
        await create_hv_listener(HybridAddress("/tmp/vm.sock", PORT_ANY))


# -- TLS is anyio's own ------------------------------------------------------------------------------------


@everywhere
async def test_tls(address: Address) -> None:
    server_context, client_context = contexts()

    async def answer(stream: TLSStream) -> None:
        async with stream:
            assert kind_of(stream.extra(HvAttribute.peer_address)) == kind_of(address)
            assert stream.extra(HvAttribute.local_address) == address
            data = b""
            while len(data) < len(DATA):
                data += await stream.receive()
            await stream.send(data[::-1])

    connectable = TLSConnectable(HvConnectable(address), hostname="vm", ssl_context=client_context)
    async with (
        TLSListener(await create_hv_listener(address), server_context) as listener,
        create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, answer)
        async with await connectable.connect() as stream:
            assert stream.extra(TLSAttribute.peer_certificate) is not None
            assert stream.extra(HvAttribute.peer_address) == address
            await stream.send(DATA)
            data = b""
            while len(data) < len(DATA):
                data += await stream.receive()
            assert data == DATA[::-1]
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        tasks.cancel_scope.cancel()


@everywhere
async def test_tls_with_the_wrong_name(address: Address) -> None:
    server_context, client_context = contexts()
    connectable = TLSConnectable(HvConnectable(address), hostname="other", ssl_context=client_context)
    async with (
        TLSListener(await create_hv_listener(address), server_context) as listener,
        create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, shout)
        with pytest.raises(OSError, match="certificate verify failed"):
            await connectable.connect()
        tasks.cancel_scope.cancel()
