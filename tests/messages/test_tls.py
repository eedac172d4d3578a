from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiohvsock import Address, ConnectionClosedOK, ConnectionLost, connect
from aiohvsock.framing import LengthPrefixed

from .peers import (
    NAME,
    Connection,
    catch,
    contexts,
    data,
    echo,
    joined,
    numbered,
    serving,
    turns,
    until,
)


@asynccontextmanager
async def over_tls(
    address: Address, *, server: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[tuple[Connection, Connection]]:
    theirs, ours = contexts()
    async with joined(
        address,
        server={"ssl": theirs, **(server or {})},
        ssl=ours,
        server_hostname=NAME,
        **options,
    ) as ends:
        yield ends


async def test_messages_both_ways(address: Address) -> None:
    async with over_tls(address) as (client, server):
        for one, other in ((client, server), (server, client)):
            for size in (0, 1, 10_000, 100_000, 2**20):
                payload = os.urandom(size)
                await one.send(payload)
                assert await other.recv() == payload
            content = bytearray(b"a" * 100_000)
            one.send_nowait(memoryview(content))
            content[:] = b"b" * 100_000
            assert await other.recv() == b"a" * 100_000
        assert client.peer_address == address
        assert client.transport.get_extra_info("ssl_object") is not None
        assert await client.ping() >= 0
        assert await server.ping() >= 0


async def test_callbacks(address: Address) -> None:
    def answer(connection: Connection, message: bytes) -> None:
        connection.send_nowait(message.upper())

    async with serving(None, address, on_message=answer, ssl=contexts()[0]) as server:
        async with connect(address, ssl=contexts()[1], server_hostname=NAME) as connection:
            await connection.send_many([b"a"] * 1000)
            assert [await connection.recv() for _ in range(1000)] == [b"A"] * 1000
        await until(lambda: not server.connections)


@pytest.mark.parametrize("closer", ["client", "server", "both"])
@pytest.mark.parametrize("count", [1, 300])
async def test_close_with_data_both_ways(address: Address, closer: str, count: int) -> None:
    async with over_tls(address) as (client, server):
        reports = catch()
        expected = numbered(count, 10_000)
        for end in (client, server):
            for message in expected:
                end.transport.writelines([data(message)])
        if closer == "both":
            await asyncio.gather(client.close(), server.close())
        else:
            one, other = (client, server) if closer == "client" else (server, client)
            closing = asyncio.create_task(one.close(200, "enough"))
            assert [message async for message in other] == expected
            with pytest.raises(ConnectionClosedOK, match="enough") as caught:
                await other.recv()
            assert caught.value.code == 200
            await closing
        for end in (client, server):
            await end.wait_closed()
            assert isinstance(end.end, ConnectionClosedOK)
        assert reports == []


async def test_close_sends_what_is_queued(address: Address) -> None:
    async with over_tls(address) as (client, server):
        sending = asyncio.create_task(client.send_many(numbered(1000, 10_000)))
        await turns(20)
        assert not sending.done()
        sending.cancel()
        await asyncio.wait([sending])
        sent = client.stats.messages_sent
        closing = asyncio.create_task(client.close())
        assert [message async for message in server] == numbered(sent, 10_000)
        await closing


@pytest.mark.parametrize("slow", [False, True])
async def test_a_peer_that_is_killed(address: Address, slow: bool) -> None:
    async with over_tls(address) as (client, server):
        count = 60 if slow else 3
        for message in numbered(count, 10_000):
            client.transport.writelines([data(message)])
        if slow:
            await until(lambda: not server.transport.is_reading())
        await until(lambda: client.transport.get_write_buffer_size() == 0)
        client.transport.close()  # TLS says goodbye, the protocol does not
        got: list[bytes] = []
        with pytest.raises(ConnectionLost, match="without closing") as caught:
            while True:
                got += await server.recv_many()
        assert got == numbered(count, 10_000)
        assert caught.value.__cause__ is not None


async def test_a_peer_that_is_cut_off(address: Address) -> None:
    async with over_tls(address) as (client, server):
        client.transport.abort()
        for end in (client, server):
            with pytest.raises(ConnectionLost):
                await end.recv()
            await end.wait_closed()
        assert server.end is not None
        assert server.end.__cause__ is not None


async def test_flow_control(address: Address) -> None:
    async with over_tls(address) as (client, server):
        sending = asyncio.create_task(client.send_many(numbered(4000, 1000)))
        while server.transport.is_reading() or client.transport.get_write_buffer_size() == 0:
            await turns()
        await turns(50)
        assert not sending.done()
        got: list[bytes] = []
        while len(got) < 4000:
            got += await server.recv_many()
            await turns()
        assert got == numbered(4000, 1000)
        await sending


async def test_a_server_that_closes(address: Address) -> None:
    async with over_tls(address, server={"close_timeout": 5.0}) as (client, server):
        assert await client.ping() >= 0
        closing = asyncio.create_task(server.close(1))
        with pytest.raises(ConnectionClosedOK) as caught:
            await client.recv()
        assert caught.value.code == 1
        await closing


async def test_a_codec_over_tls(address: Address) -> None:
    """The end of the stream is what closes it, and TLS has only one for both ways."""
    codec = LengthPrefixed()
    async with serving(echo, address, codec=codec, ssl=contexts()[0]):
        connection = await connect(address, codec=codec, ssl=contexts()[1], server_hostname=NAME)
        for payload in (b"", b"hello", bytes(300_000)):
            await connection.send(payload)
            assert await connection.recv() == payload
        await connection.close()
        with pytest.raises(ConnectionClosedOK):
            await connection.recv()


async def test_a_client_that_speaks_no_tls_never_meets_the_handler(address: Address) -> None:
    met: list[Connection] = []

    async def handler(connection: Connection) -> None:
        met.append(connection)

    async with serving(handler, address, ssl=contexts()[0]):
        with pytest.raises(ConnectionLost):
            await connect(address)
    assert met == []
