"""Servers whose handlers, peers and end get in each other's way."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiohvsock import Address, ConnectionClosed, ConnectionClosedOK, connect, serve

from .peers import (
    NAME,
    Connection,
    Peer,
    Server,
    contexts,
    dialling,
    hello,
    of_ours,
    serving,
    turns,
    until,
)

# Seconds in which anything here happens, however busy the machine is.
LATE = 5.0


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return what anybody has logged as an error."""
    return [each for each in caplog.records if each.levelno >= logging.ERROR]


# -- TLS that is done too late -----------------------------------------------------------------------------


class TlsPeer(Peer):
    """A peer that does TLS itself, and only when it is told to."""

    def __init__(self, peer: Peer, context: ssl.SSLContext) -> None:
        super().__init__(peer.sock)
        self._raw = peer
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=NAME)

    async def _do(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                outcome = step()
            except ssl.SSLWantReadError:
                await self._raw.send(self._outgoing.read())
                more = await self._raw.recv()
                if more:
                    self._incoming.write(more)
                else:
                    self._incoming.write_eof()
            else:
                await self._raw.send(self._outgoing.read())
                return outcome

    async def shake_hands(self) -> None:
        await self._do(self._tls.do_handshake)

    async def send(self, *pieces: bytes) -> None:
        await self._do(lambda: self._tls.write(b"".join(pieces)))

    async def recv(self) -> bytes:
        try:
            received: bytes = await self._do(lambda: self._tls.read(2**16))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        return received


async def test_a_handshake_that_ends_after_the_server_was_closed(address: Address) -> None:
    accepted = asyncio.Event()
    started: list[Connection] = []

    def allow(peer: object) -> bool:
        accepted.set()
        return True

    async def handler(connection: Connection) -> None:
        started.append(connection)

    theirs, ours = contexts()
    server: Server = await serve(handler, address, ssl=theirs, allow=allow, close_timeout=None)
    with dialling(address) as raw:
        peer = TlsPeer(raw, ours)
        await accepted.wait()
        await turns(3)
        server.close()
        async with asyncio.timeout(LATE):
            await peer.shake_hands()
            await peer.send(hello())
            await peer.hello()
            assert (await peer.closed())[0] == 1
            raw.kill()
            await server.wait_closed()
    assert started == []
    assert not server.connections


# -- handlers made of several tasks ------------------------------------------------------------------------


async def reads(connection: Connection) -> None:
    while True:
        await connection.recv()


async def writes_on(connection: Connection) -> None:
    while True:
        await connection.send(b"x" * 1000)
        await asyncio.sleep(0)


async def pings(connection: Connection) -> None:
    while True:
        await connection.ping()


@pytest.mark.parametrize("how", ["close", "code", "abort"])
async def test_a_group_of_tasks_that_ends_with_the_connection_has_not_failed(
    address: Address, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    done = asyncio.Event()

    async def handler(connection: Connection) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for task in (reads, writes_on, pings):
                    group.create_task(task(connection))
                async with asyncio.TaskGroup() as inner:
                    inner.create_task(writes_on(connection))
        finally:
            done.set()

    async with serving(handler, address) as server:
        connection: Connection = await connect(address)
        await connection.recv()
        if how == "abort":
            connection.transport.abort()
        else:
            await asyncio.wait_for(connection.close(200 if how == "code" else 0), LATE)
        await asyncio.wait_for(done.wait(), LATE)
        await until(lambda: not server.connections)
        await turns(3)
    assert errors(caplog) == []


async def test_a_group_in_which_something_else_failed_has(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(connection: Connection) -> None:
        await connection.wait_closed()
        raise ValueError("of its own")

    async def handler(connection: Connection) -> None:
        outcome = await asyncio.gather(connection.recv(), fail(connection), return_exceptions=True)
        raise ExceptionGroup("both", [each for each in outcome if isinstance(each, Exception)])

    async with serving(handler, address) as server:
        connection: Connection
        async with connect(address) as connection:
            await connection.ping()
        await until(lambda: not server.connections)
        await until(lambda: errors(caplog))
    (record,) = errors(caplog)
    assert "the handler failed" in record.getMessage()


# -- handlers that wait for the server ---------------------------------------------------------------------


@pytest.mark.parametrize("close_timeout", [60.0, None])
async def test_two_handlers_that_wait_for_the_server(address: Address, close_timeout: float | None) -> None:
    """Neither may wait for the other."""
    go = asyncio.Event()
    tasks: list[asyncio.Task[Any] | None] = []
    returned: list[str] = []

    async def handler(connection: Connection) -> None:
        tasks.append(asyncio.current_task())
        await go.wait()
        server.close()
        await server.wait_closed()
        returned.append("handler")

    server: Server = await serve(handler, address, close_timeout=close_timeout)
    try:
        clients: list[Connection] = [await connect(address) for _ in range(2)]
        await asyncio.gather(*(client.ping() for client in clients))
        go.set()
        async with asyncio.timeout(LATE):
            await asyncio.gather(*(client.wait_closed() for client in clients))
            await server.wait_closed()
        assert returned == ["handler"] * 2
        assert all(isinstance(client.end, ConnectionClosedOK) for client in clients)
    finally:
        for task in tasks:
            assert task is not None
            task.cancel()  # where it failed they wait for ever
        await turns(3)


# -- cancelled ---------------------------------------------------------------------------------------------


async def raises_it(connection: Connection) -> None:
    raise asyncio.CancelledError


async def waits_for_a_cancelled_task(connection: Connection) -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel()
    await task


@pytest.mark.parametrize("handler", [raises_it, waits_for_a_cancelled_task])
async def test_a_handler_that_is_cancelled_by_itself_has_failed(
    address: Address, handler: Callable[[Connection], Awaitable[None]], caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(handler, address) as server:
        connection: Connection = await connect(address)
        with pytest.raises(ConnectionClosed) as caught:
            await asyncio.wait_for(connection.recv(), LATE)
        assert caught.value.code == 5
        await connection.close()
        await until(lambda: not server.connections)
    (record,) = of_ours(caplog, logging.ERROR)
    assert "the handler failed" in record.getMessage()


async def test_handlers_that_a_closing_server_cuts_have_not_failed(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled: list[Connection] = []

    async def handler(connection: Connection) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(connection)
            raise

    server: Server = await serve(handler, address, close_timeout=0.05)
    clients: list[Connection] = [await connect(address) for _ in range(2)]
    await asyncio.gather(*(client.ping() for client in clients))
    server.close()
    async with asyncio.timeout(LATE):
        await server.wait_closed()
        await asyncio.gather(*(client.close() for client in clients))
    assert len(cancelled) == 2
    assert errors(caplog) == []
