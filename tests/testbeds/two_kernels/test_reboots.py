"""What a host sees of a guest that is reset, or dies and comes back.

A boot takes 10 s, or 60 s on a busy machine: the loops go through the same one, each in a thread of its own.
"""

from __future__ import annotations

import asyncio
import errno
from functools import partial
from typing import Self

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

from ..guest import Guest
from . import agent
from .conftest import Agent, BothLoops, served
from .counting import Client, Journal

pytestmark = pytest.mark.timeout(400)

RETRY = Retry(max_delay=0.5)

# Seconds.
AT_ONCE = 30  # of which what is meant takes a small part
BOOT = 150


class Witness:
    """Somebody on the host, on one of its loops: with a client of the guest's service, and more."""

    def __init__(self, guest: Guest) -> None:
        self.agent = Agent(guest)
        self.client = Client(self.agent.address(agent.COUNTING), heartbeat=1.0, heartbeat_timeout=1.0)

    @classmethod
    async def begin(cls, guest: Guest) -> Self:
        witness = cls(guest)
        witness.client.start()
        await witness.client.until_answered()
        await witness.connect()

        return witness

    async def connect(self) -> None:
        """Open other connections."""
        raise NotImplementedError

    async def see_the_client_go_on(self) -> Journal:
        """Wait until another boot has answered the client; then stop it."""
        first, *_ = self.client.journal.names
        await self.client.until(lambda: self.client.journal.names[-1] != first, timeout=BOOT)
        await self.client.until_answered()
        journal = await self.client.stop()

        assert [name.partition("/")[0] for name in journal.names[1:]] == [await self.agent.tell("boot")]
        assert journal.reported  # something was under way
        assert {end for end, _ in journal.ends} == {"ConnectionLost"}
        return journal


def check(guest: Guest, journals: list[Journal]) -> None:
    """Compare the clients' journals with what the guest has served in all its boots."""
    for journal in journals:
        number, name = journal.answered[-1]
        guest.wait_for_output(agent.SERVED.format(name, number))
        journal.check(served(guest))


class WitnessOfReset(Witness):
    async def connect(self) -> None:
        self.reader, self.writer = await aiohvsock.open_hv_connection(self.agent.address(agent.ECHO))
        self.reading = asyncio.create_task(self.reader.read())

    async def see_silence_until_something_is_sent(self) -> None:
        """The host's kernel does not tell: only the new boot, asked about what it does not know."""
        assert not self.reading.done()

        self.writer.write(b"are you still there?")
        async with asyncio.timeout(AT_ONCE):
            assert await self.reading == b""
        self.writer.close()
        await self.writer.wait_closed()


def test_a_reset(guest: Guest, both_loops: BothLoops) -> None:
    witnesses = both_loops.run(partial(WitnessOfReset.begin, guest))

    guest.reset()

    journals = both_loops.run(WitnessOfReset.see_the_client_go_on, witnesses)
    both_loops.run(WitnessOfReset.see_silence_until_something_is_sent, witnesses)
    check(guest, journals)


class WitnessOfDeath(Witness):
    async def connect(self) -> None:
        self.echo = self.agent.address(agent.ECHO)
        self.served = 0
        self.server = await aiohvsock.start_hv_server(self.serve, VsockAddress(CID_ANY, PORT_ANY))

        self.idle_reader, self.idle_writer = await aiohvsock.open_hv_connection(self.echo)
        self.reader, self.writer = await aiohvsock.open_hv_connection(self.echo)
        self.writer.write(b"sent back before the end")
        assert await self.reader.readexactly(4) == b"sent"
        self.connection = await aiohvsock.connect(self.agent.address(agent.MESSAGES))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.served += 1
        await agent.echo(reader, writer)

    async def dial_the_paused(self) -> None:
        """A request that a paused guest never sees dies with it, and nobody tells: its own limit ends it."""
        self.pending = asyncio.create_task(aiohvsock.open_hv_connection(self.echo, connect_timeout=3))
        await asyncio.wait([self.pending], timeout=0.5)

    async def see_it_dead(self) -> None:
        async with asyncio.timeout(AT_ONCE):
            with pytest.raises(ConnectionResetError):
                await self.idle_reader.read()
            assert await self.reader.readexactly(20) == b" back before the end"
            with pytest.raises(ConnectionResetError):
                await self.reader.read()
            with pytest.raises(ConnectionLost):
                await self.connection.recv()
            with pytest.raises(HvTimeout):
                await self.pending
        for each in (self.idle_writer, self.writer):
            each.close()
        await self.connection.close()

        with pytest.raises(HvConnectError) as caught:
            await aiohvsock.open_hv_connection(self.echo)
        assert (caught.value.errno, caught.value.transient) == (errno.ENODEV, True)

    async def dial_the_booting(self) -> None:
        async with asyncio.timeout(BOOT):
            _, writer = await aiohvsock.open_hv_connection(self.echo, retry=RETRY, connect_timeout=1)
        writer.close()
        await writer.wait_closed()

    async def see_it_dial(self) -> None:
        assert isinstance(self.server.address, VsockAddress)
        async with self.server:
            answer = await self.agent.tell("dial_echo", port=self.server.address.port, length=1000)
        assert answer["length"] == 1000
        assert self.served == 1


def test_a_death_and_a_new_life(guest: Guest, both_loops: BothLoops) -> None:
    witnesses = both_loops.run(partial(WitnessOfDeath.begin, guest))
    guest.pause()
    both_loops.run(WitnessOfDeath.dial_the_paused, witnesses)

    guest.kill()

    both_loops.run(WitnessOfDeath.see_it_dead, witnesses)
    guest.start()
    both_loops.run(WitnessOfDeath.dial_the_booting, witnesses)
    journals = both_loops.run(WitnessOfDeath.see_the_client_go_on, witnesses)
    both_loops.run(WitnessOfDeath.see_it_dial, witnesses)
    check(guest, journals)
