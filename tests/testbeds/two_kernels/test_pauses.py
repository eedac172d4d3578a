"""What a host sees of a guest that is paused."""

from __future__ import annotations

import asyncio
import errno

import pytest

import aiohvsock
from aiohvsock import HvTimeout

from . import agent
from .conftest import Agent

pytestmark = pytest.mark.timeout(300)  # the first test boots the guest


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
