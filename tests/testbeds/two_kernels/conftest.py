from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import aiohvsock
from aiohvsock import Retry, VsockAddress

from ..guest import Guest
from . import agent


class Agent:
    """The guest's agent on the loop that the test is on, and the way to give it orders."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._base = agent.PORTS[
            "uvloop" if "uvloop" in type(asyncio.get_running_loop()).__module__ else "asyncio"
        ]

    def address(self, offset: int) -> VsockAddress:
        return VsockAddress(self.guest.cid, self._base + offset)

    async def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        async with aiohvsock.connect(self.address(agent.CONTROL), retry=Retry(max_delay=0.2)) as connection:
            await connection.send(json.dumps({"do": do, **arguments}).encode())
            answer: dict[str, Any] = json.loads(await connection.recv())

        return answer


@pytest.fixture(scope="session")
def machine() -> Iterator[Guest]:
    """The guest, which may be off: booting it takes seconds, so all tests share it."""
    with Guest([sys.executable, "-m", agent.__name__]) as guest:
        yield guest


@pytest.fixture
def guest(machine: Guest) -> Guest:
    """The guest, booted, with its agents ready."""
    if not machine.running:
        machine.start()
    for name in agent.PORTS:
        machine.wait_for_output(agent.READY.format(name))

    return machine


@pytest.fixture
async def guest_agent(guest: Guest) -> AsyncIterator[Agent]:
    yield Agent(guest)
