from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

if sys.platform != "win32":
    pytest.skip("needs Windows' Proactor loop: make test-windows runs it under Wine", allow_module_level=True)

from aiohvsock import (
    Address,
    HvConnectionRefused,
    HvServer,
    HypervAddress,
    create_hv_connection,
    create_hv_server,
    open_hv_connection,
    start_hv_server,
)
from aiohvsock.transports import readiness, watching
from aiohvsock.transports.watching import SelectThread, watcher_of

from ..conftest import random_port
from ..descriptors import open_sockets
from ..helpers import Recorder, new_socket, sockaddr
from ..messages.peers import NAME, catch, contexts, turns, until
from ..test_server import Collecting
from ..testbeds.provider.testing import Made, making
from .test_proactor import emulated
from .test_watching import Passes

pytestmark = pytest.mark.asyncio(loop_factories=["proactor"])


@pytest.fixture
def made() -> Iterator[Made]:
    with making() as made:
        yield made


@pytest.fixture
def silent(made: Made) -> HypervAddress:
    """In a Linux guest, where nobody listens: a connect to it takes all of its time."""
    return HypervAddress(made.vm("linux"), made.registered())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


@contextlib.asynccontextmanager
async def serving(
    factory: Callable[[], asyncio.Protocol], address: Address, **options: Any
) -> AsyncIterator[HvServer]:
    server = await create_hv_server(factory, address, **options)
    try:
        yield server
    finally:
        server.close()
        server.abort_clients()
        await server.wait_closed()


# -- connected ---------------------------------------------------------------------------------------------


async def test_names(address: Address) -> None:
    """The accepted socket's own name is arbitrary: the listener's is remembered."""
    factory = Collecting()
    async with serving(factory, address):
        transport, protocol = await create_hv_connection(Recorder, address)
        await factory.count(1)
        served = factory.made[0].transport
        assert served is not None
        accepted = served.get_extra_info("socket")
        assert accepted.getsockname() != sockaddr(address)
        assert served.get_extra_info("hv_local") == address
        assert served.get_extra_info("sockname") == sockaddr(address)
        assert transport.get_extra_info("hv_peer") == address
        assert transport.get_extra_info("peername") == sockaddr(address)
        # The other one is random, but for who it is.
        assert transport.get_extra_info("hv_local").vm_id == HypervAddress("children", 1).vm_id
        assert served.get_extra_info("hv_peer").vm_id == HypervAddress("loopback", 1).vm_id
        assert served.get_extra_info("hv_peer").service_id == transport.get_extra_info("hv_local").service_id
        transport.close()
        await protocol.lost


async def test_half_closed_both_ways(address: Address) -> None:
    class Open(Recorder):
        def __init__(self) -> None:
            super().__init__(keep_open=True)
            opened.append(self)

    def names(transport: asyncio.BaseTransport | None) -> list[object]:
        assert transport is not None
        return [transport.get_extra_info(name) for name in ("hv_peer", "hv_local", "peername", "sockname")]

    opened: list[Recorder] = []
    async with serving(Open, address):
        transport, client = await create_hv_connection(Open, address)
        before = names(transport)
        transport.write(b"question")
        transport.write_eof()
        await until(lambda: len(opened) == 2)
        (server,) = [each for each in opened if each is not client]
        await server.called("eof_received")
        assert server.data == b"question"
        served = server.transport
        assert served is not None
        there = names(served)
        served.write(b"answer" * 50_000)
        served.write_eof()
        await client.called("eof_received")
        assert client.data == b"answer" * 50_000
        assert names(transport) == before
        assert names(served) == there
        assert None not in before + there
        for each in (transport, served):
            each.close()
        assert await client.lost is None
        assert await server.lost is None
        assert names(transport) == before


async def test_echo(address: Address) -> None:
    data = os.urandom(2**20)
    async with await start_hv_server(echo, address):
        reader, writer = await open_hv_connection(address)
        writer.write(data)
        writer.write_eof()
        assert await reader.read() == data
        writer.close()
        await writer.wait_closed()


async def test_echo_on_tls(address: Address) -> None:
    server, client = contexts()
    data = os.urandom(2**20)
    async with await start_hv_server(echo, address, ssl=server):
        reader, writer = await open_hv_connection(address, ssl=client, server_hostname=NAME)
        for _ in range(3):
            writer.write(data)
            assert await reader.readexactly(len(data)) == data
        writer.close()
        await writer.wait_closed()


async def test_100_connections_at_once(address: Address) -> None:
    async def talk(number: int) -> None:
        reader, writer = await open_hv_connection(address)
        data = b"%08d" % number * 1000
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        writer.close()
        await writer.wait_closed()

    async with await start_hv_server(echo, address):
        await asyncio.gather(*map(talk, range(100)))


# -- connecting --------------------------------------------------------------------------------------------


async def test_cancelled_while_nobody_answers(silent: HypervAddress) -> None:
    before = open_sockets()
    for count in range(12):
        attempt = asyncio.ensure_future(create_hv_connection(Recorder, silent))
        await turns(count)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
    thread = watcher_of(asyncio.get_running_loop())
    assert isinstance(thread, SelectThread)
    assert not thread._writers
    thread.close()
    thread._thread.join()
    assert open_sockets() <= before


async def test_cancelled_as_it_succeeds(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread has told that it is connected, and the loop has not looked."""
    before = open_sockets()
    async with serving(asyncio.Protocol, address):
        thread = watcher_of(asyncio.get_running_loop())
        assert isinstance(thread, SelectThread)
        passes = Passes(monkeypatch)
        for count in range(4):
            attempt = asyncio.ensure_future(create_hv_connection(Recorder, address))
            await until(lambda: thread._writers)
            while not any(each.told for each in thread._writers.values()):
                passes.another(thread)
            await turns(count)
            attempt.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                transport, protocol = await attempt
                transport.abort()
                await protocol.lost
                assert count
        assert not thread._writers
        thread.close()
        thread._thread.join()
    assert open_sockets() <= before


async def test_connects_that_are_cancelled_cost_the_others_nothing(
    silent: HypervAddress, address: Address
) -> None:
    """Their sockets are closed, and the numbers given away again, while the thread asks about them."""
    async with await start_hv_server(echo, address):

        async def waver() -> None:
            for _ in range(30):
                attempt = asyncio.ensure_future(create_hv_connection(Recorder, silent))
                await turns(3)
                attempt.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await attempt

        async def talk() -> None:
            for _ in range(10):
                reader, writer = await open_hv_connection(address)
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
                writer.close()
                await writer.wait_closed()

        await asyncio.gather(waver(), waver(), *(talk() for _ in range(5)))


async def test_more_at_once_than_one_select_takes(
    silent: HypervAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_MOST", 3)
    attempts = [asyncio.ensure_future(create_hv_connection(Recorder, silent)) for _ in range(8)]
    await turns(3)
    assert not any(attempt.done() for attempt in attempts)
    for attempt in attempts:
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt


@pytest.mark.timeout(120)
async def test_a_thousand_at_once(address: Address) -> None:
    factory = Collecting()
    async with await create_hv_server(factory, address):
        async with asyncio.TaskGroup() as group:
            attempts = [group.create_task(create_hv_connection(Recorder, address)) for _ in range(1000)]
        for attempt in attempts:
            attempt.result()[0].abort()


# -- listening ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 20])
async def test_closed_with_connects_in_its_backlog(address: Address, count: int) -> None:
    factory = Collecting()
    server = await create_hv_server(factory, address, max_connections=1)
    transport, protocol = await create_hv_connection(Recorder, address)
    await factory.count(1)
    attempts = [asyncio.ensure_future(create_hv_connection(Recorder, address)) for _ in range(count)]
    await turns(3)
    server.close()
    for attempt in attempts:
        # Connected, for the system, or not yet.
        with contextlib.suppress(HvConnectionRefused):
            _, waiting = await attempt
            assert isinstance(await waiting.lost, ConnectionError | None)
    assert not protocol.lost.done()  # what is served stays open
    transport.close()
    await protocol.lost
    await server.wait_closed()
    assert len(factory.made) == 1


async def test_clients_that_die_never_stop_the_listener(address: Address) -> None:
    """asyncio's own closes the listener for good (https://github.com/python/cpython/issues/93821)."""
    reports = catch()
    factory = Collecting()

    def die() -> int:
        connected = 0
        for number in range(300):
            with new_socket("hyperv") as sock:
                if number % 3:  # with a reset
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0")
                with contextlib.suppress(OSError):  # the backlog is full, or the like
                    sock.connect(sockaddr(address))
                    connected += 1
                    if number % 2:
                        sock.send(b"x")
        return connected

    async with serving(factory, address) as server:
        assert min(await asyncio.gather(*(asyncio.to_thread(die) for _ in range(2)))) > 200
        transport, protocol = await create_hv_connection(Recorder, address)
        transport.write(b"alive")
        await until(lambda: factory.made and factory.made[-1].data == b"alive")
        assert server.is_serving()
        assert not reports
        transport.close()
        await protocol.lost


async def test_a_listening_socket_that_the_user_closes(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is over, said once, and costs nobody else anything."""
    monkeypatch.setattr(readiness, "ACCEPT_DELAY", 0)
    reports = catch()
    factory = Collecting()
    broken = HypervAddress("loopback", random_port())
    async with serving(Recorder, broken) as server, serving(factory, address):
        served, client = await create_hv_connection(Recorder, broken)
        server.sockets[0].close()
        for number in range(20):
            transport, protocol = await create_hv_connection(Recorder, address)
            transport.close()
            await protocol.lost
            if number == 10:  # of which the server makes room for others
                served.close()
                await client.lost
        assert len(reports) == 1


async def test_a_machine_that_stops_while_it_is_served(address: Address) -> None:
    factory = Collecting()
    async with serving(factory, address):
        for number in range(1, 11):
            _, protocol = await create_hv_connection(Recorder, address)
            await factory.count(number)
            emulated().reset()
            assert isinstance(await protocol.lost, ConnectionResetError)
            assert isinstance(await factory.made[-1].lost, ConnectionResetError)


async def test_a_factory_that_raises_leaves_nothing(address: Address) -> None:
    reports = catch()

    def factory() -> asyncio.Protocol:
        raise ZeroDivisionError

    before = open_sockets()
    async with serving(factory, address):
        for _ in range(50):
            _, protocol = await create_hv_connection(Recorder, address)
            assert await protocol.lost is None
        assert len(reports) == 50
        assert len(open_sockets() - before) <= 3  # the listener, and the thread's two
