"""uvloop's relative for Windows: what it does differently would show in connecting, accepting, or waiting to write."""

from __future__ import annotations

import asyncio
import os

import pytest

import aiohvsock
from aiohvsock import Address, ConnectionClosedOK, HvConnectionRefused

winloop = pytest.importorskip("winloop", reason="needs winloop: make test-windows has it")


async def echo(connection: aiohvsock.MessageConnection[bytes]) -> None:
    async for message in connection:
        await connection.send(message)


async def talk(address: Address) -> None:
    with pytest.raises(HvConnectionRefused):
        await aiohvsock.connect(address)
    async with await aiohvsock.serve(echo, address):
        connections = await asyncio.gather(*(aiohvsock.connect(address) for _ in range(20)))
        for number, connection in enumerate(connections):
            await connection.send(b"%d" % number)
            assert await connection.recv() == b"%d" % number
        large = os.urandom(2**20)
        sending = asyncio.create_task(
            connections[0].send_many([large] * 8)
        )  # more than a socket takes at once
        for _ in range(8):
            assert await connections[0].recv() == large
        await sending
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await connections[0].recv()
        for connection in connections:
            await connection.close()
            assert isinstance(connection.end, ConnectionClosedOK)


def test_messages_on_winloop(address: Address) -> None:
    with asyncio.Runner(loop_factory=winloop.new_event_loop, debug=True) as runner:
        runner.run(talk(address))
