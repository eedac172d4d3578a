from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiohvsock import (
    Address,
    ConnectionClosed,
    ConnectionClosedOK,
    ConnectionLost,
    HvAddressError,
    HvConnectError,
    HybridAddress,
    connect,
    serve,
)
from aiohvsock.testing import hybrid_monitor

from ..conftest import LOOPS
from ..helpers import no_counterpart
from .peers import (
    Connection,
    Handler,
    Server,
    blocked_by,
    catch,
    data,
    dialling,
    echo,
    hello,
    of_ours,
    serving,
    turns,
    until,
)

NO_COUNTERPART = no_counterpart(1)


async def greets(connection: Connection) -> None:
    """Tell the client that its handler has begun, and wait for the end."""
    await connection.send(b"welcome")
    await connection.recv()


async def connected(address: Address) -> Connection:
    connection = await connect(address)
    assert await connection.recv() == b"welcome"
    return connection


# -- handlers ----------------------------------------------------------------------------------------------


async def test_what_a_handler_raises_is_logged_once_and_the_server_goes_on(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(connection: Connection) -> None:
        async for message in connection:
            if message == b"fail":
                raise ZeroDivisionError("a handler with a mistake")
            await connection.send(message)

    reports = catch()
    async with serving(handler, address), connect(address) as good:
        async with connect(address) as bad:
            await bad.send(b"fail")
            with pytest.raises(ConnectionLost, match="the handler failed") as caught:
                await bad.recv()
            assert (caught.value.code, caught.value.reason) == (5, "the handler failed")
        await good.send(b"still here")
        assert await good.recv() == b"still here"

    (record,) = [each for each in of_ours(caplog) if each.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ZeroDivisionError)
    assert str(bad.peer_address) in record.getMessage()
    assert reports == []


def _raises(connection: Connection) -> Awaitable[None]:
    raise ZeroDivisionError


def _returns_nothing(connection: Connection) -> None:
    return None


def _returns_what_is_no_awaitable(connection: Connection) -> int:
    return 5


async def _raises_when_awaited(connection: Connection) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize(
    "handler", [_raises, _returns_nothing, _returns_what_is_no_awaitable, _raises_when_awaited]
)
async def test_a_handler_that_is_none_costs_its_connection_alone(
    address: Address, handler: Any, caplog: pytest.LogCaptureFixture
) -> None:
    reports = catch()
    failing = True

    def choose(connection: Connection) -> Awaitable[None]:
        return handler(connection) if failing else greets(connection)

    async with serving(choose, address):
        for _ in range(2):
            async with connect(address) as bad:
                with pytest.raises(ConnectionLost) as caught:
                    await bad.recv()
                assert caught.value.code == 5
        failing = False
        async with await connected(address):
            pass
    errors = [record for record in of_ours(caplog) if record.levelno == logging.ERROR]
    assert len(errors) == 2
    assert reports == []


async def test_a_handler_may_be_anything_that_returns_an_awaitable(address: Address) -> None:
    made: list[asyncio.Task[None]] = []

    def starts(connection: Connection) -> Awaitable[None]:
        made.append(asyncio.create_task(greets(connection)))
        return made[-1]

    class Object:
        async def __call__(self, connection: Connection) -> None:
            await greets(connection)

    for handler in (starts, Object(), lambda connection: greets(connection)):
        async with serving(handler, address), await connected(address):
            pass
    assert len(made) == 1


async def test_a_handler_that_ends_with_its_connection_is_no_news(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="aiohvsock")
    async with serving(greets, address) as server:
        async with await connected(address):
            pass
        client = await connected(address)
        client.transport.abort()
        await client.wait_closed()
        await until(lambda: not server.connections)
        await turns(3)
    # That one was cut off is told by its own line, at each end.
    assert [record.levelname for record in of_ours(caplog)] == []
    # asyncio's debug mode has its own lines, about slow turns.
    ours = [record.getMessage() for record in caplog.records if record.name == "aiohvsock"]
    assert ours and not any("handler" in each for each in ours)


async def test_what_a_handler_makes_of_the_end_of_its_connection(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    """Another connection's end, or a copy of its own, is no mistake of the handler's once this one has ended."""
    ended: list[ConnectionClosed] = []

    async def handler(connection: Connection) -> None:
        try:
            await greets(connection)
        except ConnectionClosed as end:
            ended.append(end)
            raise ConnectionLost("another one's") from end

    async with serving(handler, address):
        async with await connected(address):
            pass
        await until(lambda: ended)
        await turns(3)
    assert of_ours(caplog) == []


async def test_another_connections_end_is_a_mistake_while_this_one_is_open(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(connection: Connection) -> None:
        raise ConnectionLost("another one's")

    async with serving(handler, address), connect(address) as connection:
        with pytest.raises(ConnectionLost, match="the handler failed"):
            await connection.recv()
    assert [record.levelname for record in of_ours(caplog) if record.exc_info] == ["ERROR"]


async def test_a_connection_is_closed_when_its_handler_returns(address: Address) -> None:
    served: list[Connection] = []

    async def handler(connection: Connection) -> None:
        served.append(connection)
        await connection.send(b"bye")

    async with serving(handler, address):
        async with connect(address) as connection:
            assert await connection.recv() == b"bye"
            with pytest.raises(ConnectionClosedOK) as caught:
                await connection.recv()
            assert caught.value.code == 0
        await served[0].wait_closed()
        assert served[0].closed


async def test_a_handler_may_leave_a_client_that_goes_on_sending(address: Address) -> None:
    async def handler(connection: Connection) -> None:
        await connection.recv()

    async with serving(handler, address), connect(address) as connection:
        with pytest.raises(ConnectionClosedOK):
            while True:
                await connection.send(bytes(50_000))
                await turns()


async def test_a_handler_that_is_cancelled_has_failed(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless it is by the server, in the end."""
    tasks: list[asyncio.Task[Any]] = []

    async def handler(connection: Connection) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await greets(connection)

    async with serving(handler, address):
        async with await connected(address) as connection:
            tasks[0].cancel()
            with pytest.raises(ConnectionLost, match="the handler failed") as caught:
                await connection.recv()
            assert caught.value.code == 5
        async with await connected(address):
            pass
    assert [record.levelname for record in of_ours(caplog) if record.exc_info] == ["ERROR"]


async def test_a_callback_besides_a_handler(address: Address) -> None:
    order: list[object] = []
    ended = asyncio.Event()

    async def handler(connection: Connection) -> None:
        order.append("handler")
        await connection.wait_closed()
        ended.set()

    def note(connection: Connection, message: bytes) -> None:
        order.append(message)

    async with serving(handler, address, on_message=note):
        async with connect(address) as connection:
            await connection.send_many([b"1", b"2"])
        await ended.wait()
    assert sorted(order, key=str) == [b"1", b"2", "handler"]


async def test_neither_a_handler_nor_a_callback(address: Address) -> None:
    with pytest.raises(TypeError, match="needs a handler, or on_message="):
        await serve(None, address)


async def test_its_connections(address: Address) -> None:
    async with serving(greets, address) as server:
        assert server.connections == frozenset()
        first, second = await connected(address), await connected(address)
        served = server.connections
        assert isinstance(served, frozenset)
        assert len(served) == 2
        assert not any(connection.closed for connection in served)
        await first.close()
        await until(lambda: len(server.connections) == 1)
        assert server.connections < served
        with dialling(address) as peer:
            await peer.hello()
            assert len(server.connections) == 2  # not open yet
        await second.close()
        await until(lambda: not server.connections)
        assert "MessageServer" in repr(server)


# -- who may connect ---------------------------------------------------------------------------------------


async def test_a_peer_that_is_not_allowed_never_meets_the_handler(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Handler()
    async with serving(handler, address, allow=[7]):
        for _ in range(3):
            with pytest.raises(ConnectionLost):
                await connect(address)
        assert handler.connections.empty()
    assert [record.getMessage().count("not allowed") for record in of_ours(caplog)] == [1]


async def test_max_connections(address: Address) -> None:
    async with serving(greets, address, max_connections=2) as server:
        first, second = await connected(address), await connected(address)
        third = asyncio.create_task(connected(address))
        await turns(20)
        assert not third.done()
        assert len(server.connections) == 2
        await first.close()
        await (await third).close()
        await second.close()


async def test_max_connections_counts_those_that_have_said_nothing(address: Address) -> None:
    async with serving(greets, address, max_connections=1, open_timeout=0.1):
        with dialling(address) as peer:
            await peer.hello()
            waiting = asyncio.create_task(connected(address))
            assert (await peer.closed())[0] == 8
            await (await waiting).close()


# -- several addresses -------------------------------------------------------------------------------------


async def test_two_addresses(directory: str) -> None:
    paths = [f"{directory}/a.sock", f"{directory}/b.sock"]
    addresses = [HybridAddress(path, 1) for path in paths]
    with hybrid_monitor(paths[0]), hybrid_monitor(paths[1]):
        async with serving(echo, addresses) as server:
            assert server.address == addresses[0]
            assert server.addresses == tuple(addresses)
            assert len(server.sockets) == 2
            for address in addresses:
                async with connect(address) as connection:
                    await connection.send(b"hello")
                    assert await connection.recv() == b"hello"
                    (served,) = server.connections
                    assert served.local_address == address
                await until(lambda: not server.connections)


async def test_an_address_this_machine_has_nothing_for_is_left_out(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="aiohvsock")
    async with serving(echo, iter([NO_COUNTERPART, address])) as server:
        assert server.addresses == (address,)
        (record,) = of_ours(caplog, logging.INFO)
        assert str(NO_COUNTERPART) in record.getMessage()
        assert "left out" in record.getMessage()
        async with connect(address) as connection:
            await connection.send(b"hello")
            assert await connection.recv() == b"hello"


async def test_of_several_addresses_none_will_do() -> None:
    other = no_counterpart(2)
    with pytest.raises(HvAddressError) as caught:
        await serve(echo, [NO_COUNTERPART, other])
    assert str(NO_COUNTERPART) in str(caught.value)
    assert [str(other) in note for note in caught.value.__notes__] == [True]


async def test_no_address_at_all() -> None:
    with pytest.raises(ValueError, match="no address was specified"):
        await serve(echo, [])


async def test_an_address_that_is_taken_leaves_none_of_the_others_open(directory: str) -> None:
    free, taken = HybridAddress(f"{directory}/a.sock", 1), HybridAddress(f"{directory}/b.sock", 1)
    async with serving(echo, taken):
        with pytest.raises(HvConnectError) as caught:
            await serve(echo, [free, taken])
        assert caught.value.errno == errno.EADDRINUSE
    async with serving(echo, [free, taken]):
        pass


# -- the end -----------------------------------------------------------------------------------------------


async def test_closing_tells_the_peers_and_the_handlers(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[ConnectionClosed] = []

    async def handler(connection: Connection) -> None:
        await connection.send(b"welcome")
        try:
            await connection.recv()
        except ConnectionClosed as end:
            ends.append(end)
            with pytest.raises(ConnectionClosedOK):
                await connection.send(b"late")
            raise

    async with await serve(handler, address) as server:
        clients = [await connected(address) for _ in range(3)]
        server.close()
        assert not server.is_serving()
        for client in clients:
            with pytest.raises(ConnectionClosedOK, match="the service goes away") as caught:
                await client.recv()
            assert caught.value.code == 1
            assert [message async for message in client] == []
            await client.wait_closed()
        await server.wait_closed()
        assert not server.connections
    assert [(type(end), end.code) for end in ends] == [(ConnectionClosedOK, 1)] * 3
    assert of_ours(caplog) == []
    with pytest.raises(ConnectionRefusedError):
        await connect(address)


async def test_closing_sends_what_is_queued(address: Address) -> None:
    handler = Handler()
    server: Server = await serve(handler, address)
    client = await connect(address)
    served = await handler.connection()
    count, blocked = await blocked_by(served, bytes(60_000))
    server.close()
    server.close()
    assert [message async for message in client] == [bytes(60_000)] * (count - 1)
    with pytest.raises(ConnectionClosedOK):
        await blocked
    waiting = asyncio.create_task(server.wait_closed())
    await turns(5)
    assert not waiting.done()  # the handler is not done
    handler.released.set()
    await waiting
    await client.wait_closed()


async def test_stubborn_handlers_are_cancelled_in_the_end(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[str] = []

    async def handler(connection: Connection) -> None:
        await connection.send(b"welcome")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    server: Server = await serve(handler, address, close_timeout=0.2)
    client = await connected(address)
    start = time.perf_counter()
    server.close()
    with pytest.raises(ConnectionClosedOK):
        await client.recv()
    await client.wait_closed()
    assert ended == []
    await server.wait_closed()
    assert 0.18 < time.perf_counter() - start < 0.2 + 5
    assert ended == ["cancelled"]
    (record,) = of_ours(caplog)
    assert "cancelling 1 handlers" in record.getMessage()


async def test_stubborn_peers_are_cut_off_in_the_end(address: Address) -> None:
    server: Server = await serve(greets, address, close_timeout=0.1)
    with dialling(address) as silent, dialling(address) as half:
        await half.send(hello())
        await half.hello()
        assert await half.messages(1) == [b"welcome"]
        await silent.hello()
        server.close()
        await server.wait_closed()
        assert not server.connections
        assert await half.closed() == (1, "the service goes away")
        assert await silent.closed() == (1, "the service goes away")
        await half.ended()
        await silent.ended()


async def test_what_has_gone_in_time_is_not_cut_off(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    server: Server = await serve(greets, address, close_timeout=0.05)
    client = await connected(address)
    server.close()
    await client.wait_closed()
    await until(lambda: not server.connections)
    await asyncio.sleep(0.1)
    assert of_ours(caplog) == []
    await server.wait_closed()


async def test_a_server_without_a_limit_waits(address: Address) -> None:
    handler = Handler()
    server: Server = await serve(handler, address, close_timeout=None)
    client = await connect(address)
    await handler.connection()
    server.close()
    await client.wait_closed()
    waiting = asyncio.create_task(server.wait_closed())
    await asyncio.sleep(0.1)
    assert not waiting.done()
    handler.released.set()
    await waiting


async def test_wait_closed_in_a_handler_does_not_wait_for_itself(address: Address) -> None:
    servers: list[Server] = []
    done = asyncio.Event()

    async def handler(connection: Connection) -> None:
        servers[0].close()
        await servers[0].wait_closed()
        done.set()

    servers.append(await serve(handler, address))
    client = await connect(address)
    await done.wait()
    await client.wait_closed()
    await servers[0].wait_closed()


async def test_cancelling_wait_closed_changes_nothing(address: Address) -> None:
    handler = Handler()
    async with serving(handler, address) as server, connect(address) as client:
        await handler.connection()
        waiting = asyncio.create_task(server.wait_closed())
        await turns(2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await client.send(b"still here")
        assert await client.ping() >= 0
        handler.released.set()


async def test_close_clients_alone(address: Address) -> None:
    async with serving(greets, address) as server:
        client = await connected(address)
        server.close_clients()
        with pytest.raises(ConnectionClosedOK) as caught:
            await client.recv()
        assert caught.value.code == 1
        async with await connected(address):
            assert server.is_serving()


async def test_a_peer_that_comes_while_the_server_closes(address: Address) -> None:
    """It is told before it has said its hello, and its handler never starts."""
    handler = Handler()
    server: Server = await serve(handler, address)
    with dialling(address) as peer:
        await peer.hello()
        server.close()
        await peer.send(hello(), data(b"too late"))
        assert await peer.closed() == (1, "the service goes away")
        peer.end()
        await server.wait_closed()
    assert handler.connections.empty()


@pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
def test_a_program_may_end_while_handlers_run(
    address: Address,
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What asyncio.run() does at the end: it cancels the tasks that are left."""
    ended: list[str] = []

    async def handler(connection: Connection) -> None:
        try:
            await greets(connection)
        finally:
            ended.append(str(connection))

    async def main() -> tuple[Server, Connection]:
        server: Server = await serve(handler, address)
        connection = await connected(address)
        server.close()
        return server, connection

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        server, connection = runner.run(main())
        runner.close()
        assert len(ended) == 1
    # Without a loop nobody can close them.
    for transport in [connection.transport, *(each.transport for each in server.connections)]:
        with contextlib.suppress(AttributeError):
            transport.get_extra_info("socket").close()
        transport._sock = None  # type: ignore[attr-defined]
    assert [record for record in of_ours(caplog) if record.levelno >= logging.ERROR] == []
