from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from aiohvsock import (
    Address,
    HvConnectError,
    HvConnectionRefused,
    HybridAddress,
    Retry,
    open_hv_connection,
    start_hv_server,
)
from aiohvsock.contrib.sockets import connected_socket, listening_socket

from ..descriptors import open_sockets


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.read()).upper())
    writer.close()


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello" * 50_000)
    writer.write_eof()
    assert await reader.read() == b"HELLO" * 50_000
    writer.close()
    await writer.wait_closed()


async def test_a_loop_takes_a_connected_one(address: Address) -> None:
    async with await start_hv_server(shout, address):
        sock = await connected_socket(address)
        assert sock.getblocking() is False
        await talk(*await asyncio.open_connection(sock=sock))
        if sys.platform != "win32":
            await talk(*await asyncio.open_unix_connection(sock=await connected_socket(address)))


@pytest.mark.linux
async def test_a_loop_takes_a_listening_one(address: Address) -> None:
    # Twice: the next one comes to an end that the last one left.
    for _ in range(2):
        sock = listening_socket(address)
        assert sock.getblocking() is False
        server = await asyncio.start_unix_server(shout, sock=sock)
        await talk(*await open_hv_connection(address))
        server.close()
        await server.wait_closed()


@pytest.mark.linux
async def test_the_names_are_its_own(address: Address) -> None:
    with listening_socket(address) as listener, await connected_socket(address) as sock:
        assert (listener.family, sock.family) == (socket.AF_UNIX, socket.AF_UNIX)
        if not isinstance(address, HybridAddress):
            assert sock.getpeername() == listener.getsockname()


async def test_it_waits_for_a_listener(address: Address) -> None:
    with pytest.raises(HvConnectionRefused, match="nobody listens" if sys.platform != "win32" else None):
        await connected_socket(address)
    pending = asyncio.ensure_future(connected_socket(address, retry=Retry(delay=0.01)))
    await asyncio.sleep(0)
    async with await start_hv_server(shout, address):
        await talk(*await asyncio.open_connection(sock=await pending))


async def test_what_is_taken_already(address: Address) -> None:
    before = open_sockets()
    with listening_socket(address), pytest.raises(HvConnectError, match="listen"):
        listening_socket(address)
    assert open_sockets() <= before


async def test_arguments_are_checked(address: Address) -> None:
    with pytest.raises(ValueError, match="connect_timeout"):
        await connected_socket(address, connect_timeout=0)
    with pytest.raises(ValueError, match="buffer_size"):
        listening_socket(address, buffer_size=0)
    with pytest.raises(TypeError):
        listening_socket(address, backlog="many")  # type: ignore[arg-type]


async def test_cancelled_it_leaves_no_descriptor(address: Address) -> None:
    with pytest.raises(HvConnectionRefused):
        await connected_socket(address)  # the first one can start what watches them
    before = open_sockets()
    for turns in range(20):
        pending = asyncio.ensure_future(connected_socket(address, retry=Retry()))
        for _ in range(turns):
            await asyncio.sleep(0)
        pending.cancel()
        await asyncio.wait([pending])
        assert pending.cancelled()
    # Of a connection that the monitor of hybrid vsock had begun, too, in its thread.
    while not open_sockets() <= before:  # noqa: ASYNC110
        await asyncio.sleep(0)
