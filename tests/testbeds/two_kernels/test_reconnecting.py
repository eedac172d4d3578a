"""Clients that connect again and again: through pauses of the guest, and restarts of the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

import aiohvsock
from aiohvsock import CID_ANY, PORT_ANY, CloseCode, VsockAddress

from . import agent
from .conftest import Agent, served
from .counting import PATIENCE, Client, Journal, Service

pytestmark = pytest.mark.timeout(300)  # the first test boots the guest


@pytest.fixture
async def client(guest_agent: Agent) -> AsyncIterator[Client]:
    """A client of the guest's service, that soon finds out when it has gone."""
    client = Client(guest_agent.address(agent.COUNTING), heartbeat=1.0, heartbeat_timeout=1.0)
    client.start()
    yield client
    await client.cancel()


async def finish(client: Client, guest_agent: Agent) -> Journal:
    """Stop a client, and compare its journal with the guest's."""
    journal = await client.stop()
    number, name = journal.answered[-1]
    guest_agent.guest.wait_for_output(agent.SERVED.format(name, number))
    journal.check(served(guest_agent.guest))

    return journal


async def test_through_a_pause_of_the_guest(guest_agent: Agent, client: Client) -> None:
    await client.until_answered()
    guest_agent.guest.pause()
    try:
        await client.until(lambda: ("ConnectionLost", CloseCode.NO_ANSWER) in client.journal.ends)
    finally:
        guest_agent.guest.resume()
    await client.until_answered()

    journal = await finish(client, guest_agent)

    assert CloseCode.NO_ANSWER in dict(journal.reported).values()
    assert len(journal.names) == 1


async def test_through_a_restart_of_the_service(guest_agent: Agent, client: Client) -> None:
    await client.until_answered()
    await guest_agent.tell("stop_service")
    name = await guest_agent.tell("start_service")
    await client.until_answered(name)

    journal = await finish(client, guest_agent)

    assert ("ConnectionClosedOK", CloseCode.GOING_AWAY) in journal.ends
    before, after = journal.names
    assert (before.partition("/")[0], after) == (await guest_agent.tell("boot"), name)


async def test_from_the_guest(guest_agent: Agent) -> None:
    """Through a pause of the guest that the host notices, and a restart of the host's service."""
    first, second = Service("first"), Service("second")
    async with await aiohvsock.serve(
        first.answer, VsockAddress(CID_ANY, PORT_ANY), heartbeat=1.0, heartbeat_timeout=1.0
    ) as server:
        assert isinstance(server.address, VsockAddress)
        await guest_agent.tell("start_counting", port=server.address.port)
        await first.until_served()

        guest_agent.guest.pause()
        try:
            await first.until(lambda: CloseCode.NO_ANSWER in [end.code for end in first.ends if end])
        finally:
            guest_agent.guest.resume()
        await first.until_served()

    async with await aiohvsock.serve(second.answer, server.address):
        await second.until_served()
        async with asyncio.timeout(PATIENCE):
            journal = Journal.parse(await guest_agent.tell("stop_counting"))

    journal.check(first.served + second.served)
    assert journal.names == ["first", "second"]
    assert ("ConnectionLost", CloseCode.NO_ANSWER) in journal.ends
    assert ("ConnectionClosedOK", CloseCode.GOING_AWAY) in journal.ends
