from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest

if sys.platform != "win32":
    pytest.skip("needs AF_HYPERV: make test-windows runs it under Wine", allow_module_level=True)

from aiohvsock import (
    Address,
    HvConnectError,
    HvConnectionRefused,
    HvPermissionError,
    HvTimeout,
    HypervAddress,
    Retry,
    create_hv_connection,
    create_hv_server,
)
from aiohvsock.hyperv import HV_PROTOCOL_RAW, HVSOCKET_CONTAINER_PASSTHRU, HVSOCKET_HIGH_VTL
from aiohvsock.platforms import Options, windows

from ..helpers import Recorder, new_socket, sockaddr
from ..messages.peers import turns
from ..test_server import Collecting
from ..testbeds import provider
from ..testbeds.provider.testing import Made, making

CONNECT_TIMEOUT = (HV_PROTOCOL_RAW, 1)
CONNECTED_SUSPEND = (HV_PROTOCOL_RAW, 4)

# Milliseconds, in the place of ours: so it is Windows that gives up.
SOON = [(*CONNECT_TIMEOUT, 100)]


@pytest.fixture(autouse=True)
def made() -> Iterator[Made]:
    with making() as made:
        yield made


def options_of(sock: Any) -> dict[tuple[int, int], int | bytes]:
    """What Windows was told about a socket, or a transport's."""
    return provider.options_of(sock if isinstance(sock, socket.socket) else sock.get_extra_info("socket"))


async def refused(address: Address, **options: Any) -> HvConnectError:
    with pytest.raises(HvConnectError) as caught:
        await create_hv_connection(Recorder, address, **options)
    error = caught.value
    assert error.operation == "connect"
    assert error.remote == address
    assert str(address) in str(error)
    return error


def number(error: HvConnectError) -> int | None:
    cause = error.__cause__
    assert isinstance(cause, OSError)
    return cause.winerror


async def test_nobody_listens(made: Made, address: Address) -> None:
    for each in (address, HypervAddress(made.vm("windows"), made.registered())):
        error = await refused(each)
        assert isinstance(error, HvConnectionRefused)
        assert number(error) == 10061
        assert error.transient


async def test_nobody_answers(made: Made) -> None:
    for vm_id in (made.vm("linux"), made.vm("off", error=10060)):
        address = HypervAddress(vm_id, made.registered())
        error = await refused(address, connect_timeout=None, socket_options=SOON)
        assert isinstance(error, HvTimeout)
        assert number(error) == 10060
        assert error.transient
        assert isinstance(await refused(address, connect_timeout=0.1), HvTimeout)


async def test_not_running(made: Made) -> None:
    error = await refused(HypervAddress(made.vm("off"), made.registered()))
    assert "the VM is not running" in error.hint
    assert number(error) == 10051
    assert error.transient


async def test_not_registered(made: Made) -> None:
    vm_id = made.vm("windows")
    error = await refused(HypervAddress(vm_id, 2761))
    assert isinstance(error, HvPermissionError)
    assert number(error) == 10013
    for address in (HypervAddress(vm_id, 2761), HypervAddress("children", 2761)):
        with pytest.raises(HvPermissionError, match="must be registered") as caught:
            await create_hv_server(Recorder, address)
        assert number(caught.value) == 10013
        assert caught.value.local == address


@pytest.mark.parametrize("vm_id", ["any", "children", "broadcast", "b0a8f6cf-9a8a-4a4c-8b6e-0cbb1a1f0c5d"])
async def test_not_to_be_dialled(vm_id: str) -> None:
    error = await refused(HypervAddress(vm_id, 2761))
    assert "for listening only" in error.hint
    assert number(error) == 10049
    assert not error.transient


async def test_not_to_be_listened_on(address: Address) -> None:
    async with await create_hv_server(Recorder, address):
        with pytest.raises(HvConnectError, match="another program listens") as caught:
            await create_hv_server(Recorder, address)
        assert number(caught.value) == 10048
    with pytest.raises(HvConnectError, match="no VM with that id now") as caught:
        await create_hv_server(Recorder, "hvsock://b0a8f6cf-9a8a-4a4c-8b6e-0cbb1a1f0c5d:2761")
    assert number(caught.value) == 10049


async def test_a_guest_calls_the_host(made: Made) -> None:
    vm_id, other = made.vm("windows"), made.vm("windows")
    here = HypervAddress("children", made.registered())
    factory = Collecting()
    async with await create_hv_server(factory, here, allow=[vm_id]):
        for caller, count in ((other, 0), (vm_id, 1)):
            with provider.inside(caller):
                transport, protocol = await create_hv_connection(
                    Recorder, HypervAddress("parent", here.service_id)
                )
            transport.write(b"hello")
            if caller is vm_id:
                await factory.count(1)
                assert await factory.made[0].received(5) == b"hello"
                transport.close()
            await protocol.lost
            assert len(factory.made) == count
        served = factory.made[0].transport
        assert served is not None
        assert served.get_extra_info("hv_local") == here
        assert served.get_extra_info("hv_peer").vm_id == HypervAddress(vm_id, 1).vm_id


async def test_a_wildcard_is_not_for_wsl(made: Made) -> None:
    """The bind succeeds all the same: the exact id of its machine must be bound."""
    vm_id, service = made.vm("wsl"), made.registered()
    parent = HypervAddress("parent", service)
    for vm, heard in (("children", False), ("any", False), (vm_id, True)):
        factory = Collecting()
        async with await create_hv_server(factory, HypervAddress(vm, service)):
            with provider.inside(vm_id):
                if not heard:
                    await refused(parent, connect_timeout=None, socket_options=SOON)
                    continue
                transport, protocol = await create_hv_connection(Recorder, parent)
            await factory.count(1)
            transport.close()
            await protocol.lost


async def test_the_host_waits_for_a_guest(made: Made) -> None:
    vm_id, service = made.vm("off"), made.registered()
    calling = create_hv_connection(Recorder, HypervAddress(vm_id, service), retry=Retry(0.01, 0.01))
    attempt = asyncio.ensure_future(calling)
    await turns(5)
    assert not attempt.done()
    provider.declare_vm(provider.directory(), vm_id, "windows")
    with provider.inside(vm_id):
        server = await create_hv_server(Recorder, HypervAddress("parent", service))
    transport, protocol = await attempt
    assert transport.get_extra_info("hv_peer") == HypervAddress(vm_id, service)
    provider.reset(vm_id)
    assert isinstance(await protocol.lost, ConnectionResetError)
    server.close()
    await server.wait_closed()


async def test_a_peer_that_closes_without_a_word(address: Address) -> None:
    """Without shutdown(), its end reads as ERROR_BROKEN_PIPE: an end all the same."""
    factory = Collecting()
    async with await create_hv_server(factory, address):
        transport, protocol = await create_hv_connection(Recorder, address)
        await factory.count(1)
        served = factory.made[0].transport
        assert served is not None
        provider.break_pipe(transport.get_extra_info("socket"))
        served.write(b"last")
        served.abort()
        assert await protocol.lost is None
        assert protocol.data == b"last"
        assert protocol.calls[-2:] == ["eof_received", "connection_lost"]


# -- options -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suspend", [False, True])
async def test_connected_suspend(address: Address, suspend: bool) -> None:
    """It is not inherited: each of the three sockets has to have it."""
    factory = Collecting()
    async with await create_hv_server(factory, address, connected_suspend=suspend) as server:
        transport, protocol = await create_hv_connection(Recorder, address, connected_suspend=suspend)
        await factory.count(1)
        for each in (transport, *server.sockets, factory.made[0].transport):
            assert options_of(each).get(CONNECTED_SUSPEND) == (1 if suspend else None)
        transport.close()
        await protocol.lost


@pytest.mark.parametrize(
    ("options", "milliseconds"),
    [
        ({}, 30_000),
        ({"connect_timeout": 0.5}, 500),
        ({"connect_timeout": 600}, 300_000),
        ({"connect_timeout": None}, 300_000),
    ],
)
async def test_the_time_to_connect(address: Address, options: dict[str, Any], milliseconds: int) -> None:
    async with await create_hv_server(Recorder, address):
        transport, protocol = await create_hv_connection(Recorder, address, **options)
        assert options_of(transport)[CONNECT_TIMEOUT] == milliseconds
        transport.close()
        await protocol.lost


async def test_further_options(address: Address) -> None:
    further: list[tuple[int, int, int | bytes]] = [
        (HV_PROTOCOL_RAW, HVSOCKET_HIGH_VTL, 1),
        (HV_PROTOCOL_RAW, HVSOCKET_CONTAINER_PASSTHRU, b"\1\0\0\0"),
        (*CONNECT_TIMEOUT, 1234),  # they have the last word
    ]
    async with await create_hv_server(Recorder, address, socket_options=further) as server:
        transport, protocol = await create_hv_connection(Recorder, address, socket_options=iter(further))
        for each in (*server.sockets, transport):
            found = options_of(each)
            assert found[HV_PROTOCOL_RAW, HVSOCKET_HIGH_VTL] == 1
            assert found[HV_PROTOCOL_RAW, HVSOCKET_CONTAINER_PASSTHRU] == 1
            assert found[CONNECT_TIMEOUT] == 1234
        transport.close()
        await protocol.lost


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ((HV_PROTOCOL_RAW, 3, 1), 10042),
        ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), 10042),
        ((HV_PROTOCOL_RAW, 1, 300_001), 10022),
        ((HV_PROTOCOL_RAW, HVSOCKET_HIGH_VTL, b"\1"), 10022),
    ],
)
async def test_an_option_that_windows_refuses(
    address: Address, option: tuple[int, int, int | bytes], code: int
) -> None:
    named = rf"\(socket option {option[1]} of level {option[0]}\)"
    for call in (create_hv_connection, create_hv_server):
        with pytest.raises(HvConnectError, match=named) as caught:
            await call(Recorder, address, socket_options=[option])
        assert number(caught.value) == code
        assert not caught.value.transient


@pytest.mark.parametrize("option", [(HV_PROTOCOL_RAW, 8, "1"), (HV_PROTOCOL_RAW, 8, 2**40)])
async def test_an_option_that_python_refuses(address: Address, option: Any) -> None:
    for call in (create_hv_connection, create_hv_server):
        with pytest.raises((TypeError, OverflowError)):
            await call(Recorder, address, socket_options=[option])


async def test_buffers(address: Address) -> None:
    async with await create_hv_server(Recorder, address, buffer_size=2**17) as server:
        transport, protocol = await create_hv_connection(Recorder, address, buffer_size=2**17)
        for each in (*server.sockets, transport):
            for name in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                assert options_of(each)[socket.SOL_SOCKET, name] == 2**17
        transport.close()
        await protocol.lost


# -- sockets of the caller's -------------------------------------------------------------------------------


async def test_a_bound_socket_has_names(address: Address) -> None:
    sock = new_socket("hyperv")
    sock.bind(sockaddr(address))
    factory = Collecting()
    async with await create_hv_server(factory, sock=sock, allow=["loopback"]) as server:
        assert server.address == address
        transport, protocol = await create_hv_connection(Recorder, address)
        await factory.count(1)
        assert factory.made[0].transport is not None
        assert factory.made[0].transport.get_extra_info("hv_local") == address
        transport.close()
        await protocol.lost


def test_a_socket_without_a_name() -> None:
    with windows.open_socket(Options()) as sock:
        assert windows.local(sock) is None
        assert sock.getblocking() is False
        assert sock.proto == HV_PROTOCOL_RAW
