from __future__ import annotations

import asyncio
import logging
import os
import ssl
from functools import cache

import pytest
import trustme

from aiohvsock import (
    Address,
    HvTimeout,
    create_hv_connection,
    create_hv_server,
    open_hv_connection,
    start_hv_server,
)

from ..helpers import Recorder


@cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's and a client's context, of an authority of their own."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("guest.example").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_client_and_server(address: Address) -> None:
    server_context, client_context = contexts()
    async with await start_hv_server(echo, address, ssl=server_context):
        reader, writer = await open_hv_connection(
            address, ssl=client_context, server_hostname="guest.example"
        )
        assert writer.get_extra_info("ssl_object").version().startswith("TLS")
        assert writer.get_extra_info("hv_peer") == address
        assert writer.get_extra_info("peername") is not None
        assert not writer.can_write_eof()
        data = os.urandom(2**20)
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        writer.close()
        await writer.wait_closed()


async def test_no_hostname_to_check(address: Address) -> None:
    server_context, _client_context = contexts()
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    async with await start_hv_server(echo, address, ssl=server_context):
        reader, writer = await open_hv_connection(address, ssl=trusting, server_hostname="")
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        writer.close()
        await writer.wait_closed()


async def test_a_wrong_name_is_refused(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    server_context, client_context = contexts()
    caplog.set_level(logging.INFO, logger="aiohvsock")
    async with await start_hv_server(echo, address, ssl=server_context):
        with pytest.raises(ssl.SSLCertVerificationError):
            await open_hv_connection(address, ssl=client_context, server_hostname="host.example")
        # The server goes on.
        reader, writer = await open_hv_connection(
            address, ssl=client_context, server_hostname="guest.example"
        )
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        writer.close()
        await writer.wait_closed()
    assert [record for record in caplog.records if "TLS handshake" in record.getMessage()]


async def test_a_client_that_speaks_no_tls(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    server_context, _ = contexts()
    caplog.set_level(logging.INFO, logger="aiohvsock")
    made: list[Recorder] = []

    def factory() -> Recorder:
        made.append(Recorder())
        return made[-1]

    async with await create_hv_server(factory, address, ssl=server_context):
        transport, protocol = await create_hv_connection(Recorder, address)
        transport.write(b"GET / HTTP/1.0\r\n\r\n")
        await protocol.lost
    assert made[0].calls == []
    assert str(address) in caplog.text


async def test_a_server_that_speaks_no_tls(address: Address) -> None:
    _, client_context = contexts()
    async with await start_hv_server(echo, address):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await open_hv_connection(address, ssl=client_context, server_hostname="guest.example")


async def test_handshake_timeout_and_cancellation(address: Address) -> None:
    """The autouse fixture sees that no descriptor is left."""
    _, client_context = contexts()
    async with await create_hv_server(Recorder, address):
        with pytest.raises(HvTimeout, match="SSL handshake is taking longer than"):
            await open_hv_connection(
                address, ssl=client_context, server_hostname="guest.example", ssl_handshake_timeout=0.05
            )
        attempt = asyncio.ensure_future(
            open_hv_connection(address, ssl=client_context, server_hostname="guest.example")
        )
        for _ in range(20):
            await asyncio.sleep(0)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt


async def test_start_tls_on_streams(address: Address) -> None:
    server_context, client_context = contexts()
    data = os.urandom(500_000)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"READY\n")
        await writer.start_tls(server_context)
        writer.write(await reader.readexactly(len(data)))
        await writer.drain()
        writer.close()

    async with await start_hv_server(handler, address):
        reader, writer = await open_hv_connection(address)
        writer.write(b"STARTTLS\n")
        assert await reader.readline() == b"READY\n"
        await writer.start_tls(client_context, server_hostname="guest.example")
        assert writer.get_extra_info("sslcontext") is client_context
        assert writer.get_extra_info("hv_peer") == address
        writer.write(data)
        assert await reader.read() == data
        writer.close()
        await writer.wait_closed()


async def test_start_tls_that_fails_aborts(address: Address) -> None:
    _, client_context = contexts()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"no TLS here, sorry\n" * 100)
        writer.close()

    async with await start_hv_server(handler, address):
        _, writer = await open_hv_connection(address)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await writer.start_tls(client_context, server_hostname="guest.example")
        assert writer.is_closing()


async def test_the_last_response_under_tls_is_delivered(address: Address) -> None:
    """The peer answers and closes while we are still writing."""
    server_context, client_context = contexts()
    response = os.urandom(50_000)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        writer.write(response)
        writer.close()

    async with await start_hv_server(handler, address, ssl=server_context):
        reader, writer = await open_hv_connection(
            address, ssl=client_context, server_hostname="guest.example"
        )
        writer.write(b"x")
        received = await reader.readexactly(len(response))
        assert received == response
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_start_tls_after_the_peers_end_fails_at_once(address: Address) -> None:
    _, client_context = contexts()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        await reader.read()
        writer.close()

    async with await start_hv_server(handler, address):
        reader, writer = await open_hv_connection(address)
        assert await reader.read() == b""
        with pytest.raises(ConnectionResetError):
            await writer.start_tls(client_context, server_hostname="guest.example")


async def test_the_loops_own_start_tls(address: Address) -> None:
    """asyncio's takes our transports; uvloop's and winloop's take none but their own, which is why streams have theirs."""
    server_context, client_context = contexts()
    loop = asyncio.get_running_loop()
    async with await start_hv_server(echo, address, ssl=server_context):
        transport, protocol = await create_hv_connection(Recorder, address)
        upgrade = loop.start_tls(transport, protocol, client_context, server_hostname="guest.example")
        if type(loop).__module__ in ("uvloop", "winloop"):
            with pytest.raises(TypeError):
                await upgrade
            transport.abort()
        else:
            over_tls = await upgrade
            assert isinstance(over_tls, asyncio.Transport)
            over_tls.write(b"hello")
            assert await protocol.received(5) == b"hello"
            over_tls.close()
        await protocol.lost
