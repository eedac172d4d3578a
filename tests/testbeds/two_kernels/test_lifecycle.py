"""What a host sees of a guest that boots, is paused, is reset and dies."""

from __future__ import annotations

import asyncio
import errno

import pytest

import aiohvsock
from aiohvsock import (
    CID_ANY,
    PORT_ANY,
    ConnectionLost,
    HvConnectError,
    HvTimeout,
    Retry,
    VsockAddress,
)

from . import agent
from .conftest import Agent

pytestmark = pytest.mark.timeout(300)  # a guest takes 10 s to boot, or 60 s on a busy machine

RETRY = Retry(max_delay=0.5)

# Seconds, of which what is meant takes a small part.
AT_ONCE = 10


async def test_a_paused_guest_is_silence(guest_agent: Agent) -> None:
    data = bytes(2**20)  # four times what the kernel takes
    reader, writer = await aiohvsock.open_hv_connection(guest_agent.address(agent.ECHO))
    guest_agent.guest.pause()
    try:
        writer.write(data)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await writer.drain()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await reader.read(1)

        with pytest.raises(HvTimeout) as caught:
            await aiohvsock.open_hv_connection(guest_agent.address(agent.ECHO), connect_timeout=0.5)
        assert caught.value.errno == errno.ETIMEDOUT
        assert caught.value.transient
    finally:
        guest_agent.guest.resume()

    assert await reader.readexactly(len(data)) == data
    writer.close()
    await writer.wait_closed()


async def test_a_connect_outlasts_a_pause(guest_agent: Agent) -> None:
    """The kernel by itself would give up after 2 s."""
    guest_agent.guest.pause()
    try:
        connecting = asyncio.create_task(aiohvsock.open_hv_connection(guest_agent.address(agent.ECHO)))
        done, _ = await asyncio.wait([connecting], timeout=3)
        assert not done
    finally:
        guest_agent.guest.resume()

    _, writer = await connecting
    writer.close()
    await writer.wait_closed()


@pytest.mark.asyncio(loop_factories=["asyncio"])  # a boot more for each loop, and the silence is the kernel's
async def test_a_reset_is_silence_until_something_is_sent(guest_agent: Agent) -> None:
    """The host's kernel does not tell: only the new boot, asked about a connection it does not know, ends it."""
    reader, writer = await aiohvsock.open_hv_connection(guest_agent.address(agent.ECHO))
    reading = asyncio.create_task(reader.read())
    guest_agent.guest.reset()

    _, new_writer = await connect_while_booting(guest_agent)
    assert not reading.done()

    writer.write(b"are you still there?")
    async with asyncio.timeout(AT_ONCE):
        assert await reading == b""

    for each in (writer, new_writer):
        each.close()
        await each.wait_closed()


async def test_a_guest_that_dies_and_comes_back(guest_agent: Agent) -> None:
    guest = guest_agent.guest
    echo = guest_agent.address(agent.ECHO)
    served = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        await agent.echo(reader, writer)

    async with await aiohvsock.start_hv_server(serve, VsockAddress(CID_ANY, PORT_ANY)) as server:
        assert isinstance(server.address, VsockAddress)
        port = server.address.port

        idle_reader, idle_writer = await aiohvsock.open_hv_connection(echo)
        reader, writer = await aiohvsock.open_hv_connection(echo)
        writer.write(b"sent back before the end")
        assert await reader.readexactly(4) == b"sent"
        connection = await aiohvsock.connect(guest_agent.address(agent.MESSAGES))
        # A request that a paused guest never sees dies with it, and nobody tells: only its own limit ends the attempt.
        guest.pause()
        pending = asyncio.create_task(aiohvsock.open_hv_connection(echo, connect_timeout=3))
        await asyncio.wait([pending], timeout=0.5)

        guest.kill()

        async with asyncio.timeout(AT_ONCE):
            with pytest.raises(ConnectionResetError):
                await idle_reader.read()
            assert await reader.readexactly(20) == b" back before the end"
            with pytest.raises(ConnectionResetError):
                await reader.read()
            with pytest.raises(ConnectionLost):
                await connection.recv()
            with pytest.raises(HvTimeout):
                await pending
        for each in (idle_writer, writer):
            each.close()
        await connection.close()

        with pytest.raises(HvConnectError) as caught:
            await aiohvsock.open_hv_connection(echo)
        assert (caught.value.errno, caught.value.transient) == (errno.ENODEV, True)

        connecting = asyncio.create_task(connect_while_booting(guest_agent))
        guest.start()
        _, writer = await connecting
        writer.close()
        await writer.wait_closed()

        answer = await guest_agent.ask("dial_echo", port=port, length=1000)
        assert answer["result"]["length"] == 1000
        assert served == 1


async def connect_while_booting(
    guest_agent: Agent,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    async with asyncio.timeout(150):
        return await aiohvsock.open_hv_connection(
            guest_agent.address(agent.ECHO), retry=RETRY, connect_timeout=1
        )
