from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aiohvsock import (
    Address,
    HvAddressError,
    HvConnectError,
    HvConnectionRefused,
    HvPermissionError,
    HvServer,
    HvUnsupportedError,
    HybridAddress,
    HypervAddress,
    Retry,
    VsockAddress,
    connect,
    create_hv_connection,
    create_hv_server,
    listening,
)
from aiohvsock.platforms import Listener, Options, platform_for

from .conftest import random_port
from .helpers import Recorder
from .messages.conftest import no_task_left
from .messages.peers import echo, of_ours, serving, turns
from .test_server import Collecting

__all__ = ["no_task_left"]

GONE = HvAddressError("no machine is called 'guest'")
STOPPED = HvConnectError(errno.EHOSTUNREACH, "find machine 'guest'", detail="it is stopped", transient=True)
NO_ANSWER = HvConnectError(errno.EAGAIN, "find machine 'guest'", transient=True)
DENIED = HvPermissionError(errno.EACCES, "find machine 'guest'", hint="ask an administrator")
UNSUPPORTED = HvUnsupportedError(errno.ENOSYS, "there are no machines here")

QUICK = Retry(delay=0.001, max_delay=0.001)


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "_LOOK", 0.001)
    monkeypatch.setattr(listening, "_LOOK_AGAIN", 0.001)


def another(address: Address, number: int = 1) -> Address:
    """Return an address of the same kind, at which nobody listens."""
    match address:
        case HybridAddress():
            assert isinstance(address.port, int)
            return HybridAddress(address.path, address.port + number)
        case VsockAddress():  # not the next one: clients get those
            return VsockAddress(address.cid, random_port())
        case HypervAddress():
            return HypervAddress("loopback", random_port())


class Source:
    """Tells where a machine is, to those who ask. A test can move it.

    Args:
        where: an address, its text, an exception to be raised, or a future that will be one of these.
    """

    def __init__(self, where: Any) -> None:
        self.where = where
        self.asked = 0
        self.cancelled = 0
        self._asked = asyncio.Event()

    def __str__(self) -> str:
        return "the machine 'guest'"

    async def __call__(self) -> Any:
        self.asked += 1
        self._asked.set()
        where = self.where
        if isinstance(where, asyncio.Future):
            try:
                where = await where
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if isinstance(where, BaseException):
            raise where
        return where

    async def asked_again(self, times: int = 1) -> None:
        count = self.asked + times
        while self.asked < count:
            self._asked.clear()
            await self._asked.wait()

    async def moved(self, where: Any) -> None:
        """Move the machine, and wait until what follows from it has been done."""
        self.where = where
        await self.asked_again(2)


@contextlib.asynccontextmanager
async def listening_on(address: Any, **options: Any) -> AsyncIterator[tuple[HvServer, Collecting]]:
    factory = Collecting()
    server = await create_hv_server(factory, address, **options)
    try:
        yield server, factory
    finally:
        server.close()
        server.abort_clients()
        await server.wait_closed()


class Client:
    """A connection to a server, and what serves it."""

    def __init__(self, ours: Recorder, theirs: Recorder) -> None:
        self.ours = ours
        self.theirs = theirs

    async def works(self) -> None:
        """Send something each way."""
        for here, there in ((self.ours, self.theirs), (self.theirs, self.ours)):
            assert here.transport is not None
            count = len(there.data)
            here.transport.write(b"x")
            await there.received(count + 1)

    async def close(self) -> None:
        assert self.ours.transport is not None
        self.ours.transport.close()
        await self.ours.lost
        await self.theirs.lost


async def joined(factory: Collecting, address: Address) -> Client:
    count = len(factory.made)
    _, protocol = await create_hv_connection(Recorder, address)
    await factory.count(count + 1)
    return Client(protocol, factory.made[-1])


async def refuses(address: Address) -> None:
    with pytest.raises(HvConnectionRefused):
        await create_hv_connection(Recorder, address)


# -- listening where a machine is --------------------------------------------------------------------------


async def test_one_that_is_there_is_asked_for_less_often(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Asking WSL keeps it from stopping.
    monkeypatch.setattr(listening, "_LOOK_AGAIN", 3600)
    source = Source(GONE)
    async with listening_on([source, another(address)]):
        await source.asked_again()

    monkeypatch.setattr(listening, "_LOOK_AGAIN", 0.001)
    source = Source(address)
    async with listening_on(source):
        await source.asked_again()
        # What it could not find out it finds out soon.
        source.where = NO_ANSWER
        await source.asked_again()
        monkeypatch.setattr(listening, "_LOOK_AGAIN", 3600)
        await source.asked_again(2)
        monkeypatch.setattr(listening, "_LOOK_AGAIN", 0.001)
        source.where = address
        await source.asked_again()
        monkeypatch.setattr(listening, "_LOOK", 3600)
        await source.asked_again()


async def test_an_address_that_changes(address: Address) -> None:
    fixed, second = another(address, 1), another(address, 2)
    source = Source(address)
    async with listening_on([fixed, source]) as (server, factory):
        assert server.addresses == (fixed, address)
        clients = [await joined(factory, each) for each in (fixed, address)]
        before = server.sockets
        for where in (second, address, second):
            await source.moved(where)
            assert server.addresses == (fixed, where)
            assert server.sockets[0] is before[0]
            assert before[1].fileno() == -1
            await refuses(address if where is second else second)
            for each in clients:  # those that are open stay open
                await each.works()
            clients += [await joined(factory, each) for each in (fixed, where)]
        for each in clients:
            await each.works()
            await each.close()


async def test_nothing_happens_while_it_stays(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    source = Source(address)
    async with listening_on(source) as (server, _):
        sockets = server.sockets
        with caplog.at_level(logging.DEBUG, logger="aiohvsock"):
            for where in (address, str(address), address):
                await source.moved(where)
        assert server.sockets == sockets
        assert not of_ours(caplog, logging.DEBUG)


@pytest.mark.parametrize("gone", [GONE, STOPPED])
async def test_a_machine_that_goes_and_comes_back(
    address: Address, gone: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source(address)
    async with listening_on(source) as (server, factory):
        client = await joined(factory, address)
        for _ in range(2):
            await source.moved(gone)
            assert not server.addresses
            assert not server.sockets
            assert server.address is None
            assert server.is_serving()
            await refuses(address)
            await source.asked_again(3)
            (record,) = of_ours(caplog)  # once is enough
            assert str(source) in record.getMessage()
            assert str(gone) in record.getMessage()
            caplog.clear()
            await source.moved(address)
            assert server.addresses == (address,)
            await (await joined(factory, address)).close()
        await client.works()
        await client.close()
    assert not of_ours(caplog)


@pytest.mark.parametrize("absent", [GONE, NO_ANSWER])
async def test_a_machine_that_is_not_there_yet(
    address: Address, absent: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source(absent)
    async with listening_on(source) as (server, factory):
        assert not server.addresses
        assert server.is_serving()
        await source.asked_again(3)
        assert len(of_ours(caplog)) == 1
        await source.moved(address)
        await (await joined(factory, address)).close()


async def test_text_that_is_no_address_is_no_machine(address: Address) -> None:
    source = Source("guest")
    async with listening_on(source) as (server, factory):
        assert not server.addresses
        await source.moved(str(address))
        assert server.addresses == (address,)
        await (await joined(factory, address)).close()
        await source.moved(None)
        assert not server.addresses


@pytest.mark.parametrize("error", [UNSUPPORTED, DENIED, ZeroDivisionError("x")])
async def test_what_will_not_pass_is_raised_at_once(address: Address, error: Exception) -> None:
    for where in (Source(error), [address, Source(error)]):
        if error is UNSUPPORTED and isinstance(where, list):
            continue
        with pytest.raises(type(error)) as caught:
            await create_hv_server(Recorder, where)
        assert caught.value is error
    async with listening_on(address):  # it is free again
        pass


async def test_of_several_what_is_not_supported_is_left_out(address: Address) -> None:
    first, second = Source(UNSUPPORTED), Source(HvUnsupportedError(errno.ENOSYS, "nor here"))
    async with listening_on([first, address, second]) as (server, factory):
        assert server.addresses == (address,)
        await (await joined(factory, address)).close()
        assert (first.asked, second.asked) == (1, 1)
    with pytest.raises(HvUnsupportedError, match="no machines here") as caught:
        await create_hv_server(Recorder, [first, second])
    assert "nor here" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    "error", [UNSUPPORTED, DENIED, NO_ANSWER, ZeroDivisionError("x"), asyncio.CancelledError("another task")]
)
async def test_not_knowing_where_it_is_costs_nothing(
    address: Address, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """What listens goes on: it may still be right, and harms nobody if it is not."""
    source = Source(address)
    async with listening_on(source) as (server, factory):
        sockets = server.sockets
        for where in (address, another(address)):
            await source.moved(error)
            await source.asked_again(3)
            assert server.sockets == sockets
            await (await joined(factory, address)).close()
            (record,) = of_ours(caplog)  # each time it begins
            assert record.exc_info is not None
            assert record.exc_info[1] is error
            caplog.clear()
            await source.moved(where)
        assert server.addresses == (where,)
        await (await joined(factory, where)).close()
        assert not of_ours(caplog)


async def test_an_address_that_is_taken(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    taken = another(address)
    source = Source(address)
    async with listening_on(source) as (server, factory):
        async with listening_on(taken):
            await source.moved(taken)
            assert not server.addresses
            await source.asked_again(3)
            assert len(of_ours(caplog)) == 1
            await refuses(address)
        await source.moved(taken)
        assert server.addresses == (taken,)
        await (await joined(factory, taken)).close()


@pytest.mark.parametrize("error", [DENIED, ZeroDivisionError("x")])
async def test_a_bind_that_fails_once(
    address: Address, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform, errors = platform_for(address), [error]
    listen = platform.listen

    def failing(where: Address, options: Options) -> Listener:
        if where == second and errors:
            raise errors.pop()
        return listen(where, options)

    second = another(address)
    source = Source(address)
    async with listening_on(source) as (server, factory):
        monkeypatch.setattr(platform, "listen", failing)
        await source.moved(second)
        await source.asked_again()
        assert not errors
        assert server.addresses == (second,)
        await refuses(address)
        await (await joined(factory, second)).close()
    await refuses(second)


async def test_a_listen_that_fails_once(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses a service that is disabled only here."""
    platform = platform_for(address)
    listen = platform.listen
    spoilt: list[Listener] = []

    class Disabled(socket.socket):
        def listen(self, backlog: int = 0) -> None:
            raise OSError(errno.EINVAL, "disabled")

    def spoiling(where: Address, options: Options) -> Listener:
        listener = listen(where, options)
        if not spoilt:
            spoilt.append(listener)
            sock = listener.sock
            listener.sock = Disabled(sock.family, sock.type, sock.proto, fileno=sock.detach())
        return listener

    second = another(address)
    source = Source(address)
    async with listening_on(source) as (server, factory):
        monkeypatch.setattr(platform, "listen", spoiling)
        await source.moved(second)
        await source.asked_again()
        assert spoilt[0].sock.fileno() == -1
        assert server.addresses == (second,)
        await (await joined(factory, second)).close()


async def test_two_machines(address: Address) -> None:
    """Neither waits for the other."""
    second, third = another(address, 1), another(address, 2)
    slow, quick = Source(address), Source(second)
    async with listening_on([slow, quick]) as (server, factory):
        slow.where = asyncio.get_running_loop().create_future()
        await slow.asked_again()
        await quick.moved(third)
        assert server.addresses == (address, third)
        for each in (address, third):
            await (await joined(factory, each)).close()
    await turns()
    assert slow.cancelled == 1


async def test_max_connections_reached_while_it_changes(address: Address) -> None:
    second = another(address)
    source = Source(address)
    async with listening_on(source, max_connections=1) as (_, factory):
        client = await joined(factory, address)
        await source.moved(second)
        waiting = asyncio.ensure_future(joined(factory, second))
        await client.works()
        await source.asked_again(3)
        assert len(factory.made) == 1
        await client.close()
        await (await waiting).close()


async def test_it_changes_before_it_is_served(address: Address) -> None:
    second = another(address)
    source = Source(address)
    async with listening_on(source, start_serving=False) as (server, factory):
        await source.moved(second)
        assert server.addresses == (second,)
        assert not server.is_serving()
        await refuses(address)
        await refuses(second)
        await server.start_serving()
        await (await joined(factory, second)).close()


async def test_messages(address: Address) -> None:
    second = another(address)
    source = Source(address)
    async with serving(echo, source):  # type: ignore[arg-type]
        for where in (address, second):
            await source.moved(where)
            async with connect(source) as connection:
                await connection.send(b"hello")
                assert await connection.recv() == b"hello"


# -- the end -----------------------------------------------------------------------------------------------


async def test_closed_while_it_looks(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    second = another(address)
    source = Source(address)
    async with listening_on(source):
        source.where = asyncio.get_running_loop().create_future()
        await source.asked_again()
    await turns()
    assert source.cancelled == 1
    assert not of_ours(caplog)
    source.where = asyncio.get_running_loop().create_future()
    # In the turn in which it has found out.
    source.where.set_result(address)
    async with listening_on(source):
        source.where = asyncio.get_running_loop().create_future()
        await source.asked_again()
        source.where.set_result(second)
    await turns(3)
    for each in (address, second):
        await refuses(each)


async def test_closed_is_not_asked_any_more(address: Address) -> None:
    source = Source(address)
    async with listening_on(source):
        await source.asked_again(3)
    await turns()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_closed_by_the_one_who_is_asked(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    second = another(address)
    servers: list[HvServer] = []

    async def source() -> Address:
        for server in servers:
            server.close()
            return second
        return address

    async with listening_on(source) as (server, _):
        servers.append(server)
        await server.wait_closed()
    await turns(3)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    for each in (address, second):
        await refuses(each)
    assert not of_ours(caplog)


async def test_cancelled_while_it_is_asked_for_the_first_time(address: Address) -> None:
    source = Source(asyncio.get_running_loop().create_future())
    starting = asyncio.ensure_future(create_hv_server(Recorder, [address, source]))
    await source.asked_again()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert source.cancelled == 1
    async with listening_on(address):  # it is free again
        pass
