"""What the heartbeat makes of a guest that is paused, and of a host that the paused guest does not hear."""

from __future__ import annotations

import asyncio
from typing import Any, Self

import pytest

import aiohvsock
from aiohvsock import (
    CID_ANY,
    PORT_ANY,
    CloseCode,
    ConnectionLost,
    HvServer,
    MessageConnection,
    VsockAddress,
)

from . import agent
from .conftest import Agent

pytestmark = pytest.mark.timeout(300)  # the first test boots the guest

ANY = VsockAddress(CID_ANY, PORT_ANY)

HEARTBEAT = 1.0
TIMEOUT = 1.0


class Metronome:
    """Measures how late this machine is by itself: emulated, or busy, it can stand still for seconds."""

    TICK = 0.05
    LONG = 1.0  # so late, a side must not judge, but has to ask again (docs/protocol.md, Liveness 5)

    def __init__(self) -> None:
        self.late = 0.0
        self.stalls = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._beat())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _beat(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self.TICK
            await asyncio.sleep(self.TICK)
            late = loop.time() - due
            self.late += late
            self.stalls += late > self.LONG

    def tolerance(self) -> float:
        """Seconds that may come on top of a heartbeat and its timeout.

        What the machine was late by; a tick for each of the two timers, which can be due that much before the
        tick that is late with them; and where it was late by much, the timeout that the peer then gets again.
        """
        return self.late + 2 * self.TICK + self.stalls * TIMEOUT


async def test_a_pause_longer_than_the_heartbeat_is_noticed_in_time(guest_agent: Agent) -> None:
    loop = asyncio.get_running_loop()
    messages = guest_agent.address(agent.MESSAGES)
    patient = await aiohvsock.connect(messages, heartbeat=None)
    reader, writer = await aiohvsock.open_hv_connection(guest_agent.address(agent.ECHO))
    connection = await aiohvsock.connect(messages, heartbeat=HEARTBEAT, heartbeat_timeout=TIMEOUT)
    await connection.send(b"are you there?")
    assert await connection.recv() == b"are you there?"

    async with asyncio.timeout(60), Metronome() as metronome:
        guest_agent.guest.pause()
        paused = loop.time()
        try:
            await patient.send(b"no hurry")
            writer.write(b"none at all")
            # Neither hears anything: it is the heartbeat alone that tells.
            listening = [asyncio.create_task(patient.recv()), asyncio.create_task(reader.readexactly(11))]
            with pytest.raises(ConnectionLost) as caught:
                await connection.recv()
            noticed = loop.time() - paused
            assert caught.value.code == CloseCode.NO_ANSWER
            assert noticed <= HEARTBEAT + TIMEOUT + metronome.tolerance()

            await connection.close()
            assert not any(task.done() for task in listening)
            assert not patient.closed
        finally:
            guest_agent.guest.resume()

    async with asyncio.timeout(60):
        assert await asyncio.gather(*listening) == [b"no hurry", b"none at all"]
        await patient.close()
        writer.close()
        await writer.wait_closed()


async def test_a_pause_shorter_than_the_timeout_loses_nothing(guest_agent: Agent) -> None:
    messages = [b"%d" % number for number in range(20)]
    async with aiohvsock.connect(
        guest_agent.address(agent.MESSAGES), heartbeat=0.2, heartbeat_timeout=30
    ) as connection:
        await connection.send_many(messages[:10])
        guest_agent.guest.pause()
        try:
            pings = connection.stats.pings_sent
            await connection.send_many(messages[10:])
            await asyncio.sleep(1)
            # One is under way; there are no more as long as it is not answered.
            assert 0 < connection.stats.pings_sent <= pings + 1
        finally:
            guest_agent.guest.resume()

        async with asyncio.timeout(60):
            assert [await connection.recv() for _ in messages] == messages
            assert await connection.ping() > 0


class Host:
    """A server of the host that gets one connection, and keeps it."""

    def __init__(self) -> None:
        self.arrived: asyncio.Future[MessageConnection[bytes]] = asyncio.get_running_loop().create_future()

    async def keep(self, connection: MessageConnection[bytes]) -> None:
        self.arrived.set_result(connection)
        await connection.wait_closed()


# The native protocol by hand, as docs/protocol.md has it: no message is over 1 KiB, and there is no patience.
HELLO = b"\x89hvmsg\r\n" + bytes((1, 1, 0, 12)) + bytes((0, 0, 0, 0) + (0, 0, 4, 0) + (0, 0, 0, 0))
DATA, PING, PONG, CLOSE = range(4)


def frame(kind: int, payload: bytes) -> bytes:
    return bytes((kind, 0, 0, 0)) + len(payload).to_bytes(4, "big") + payload


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    header = await reader.readexactly(8)
    return header[0], await reader.readexactly(int.from_bytes(header[4:], "big"))


def echoing(guest_agent: Agent, server: HvServer) -> asyncio.Task[Any]:
    """Let the guest dial the server and be its echo; returns what will tell how that ended."""
    assert isinstance(server.address, VsockAddress)
    return asyncio.create_task(
        guest_agent.tell("echo_to_the_end", port=server.address.port, heartbeat=0.5, heartbeat_timeout=2)
    )


async def test_a_guest_that_was_paused_does_not_judge_its_host(guest_agent: Agent) -> None:
    """The clock of a guest that QEMU pauses stands still, so its timers go on where they were."""
    host = Host()
    async with await aiohvsock.serve(host.keep, ANY, heartbeat=None) as server, asyncio.timeout(120):
        guest_end = echoing(guest_agent, server)
        connection = await host.arrived
        await connection.send(b"before")
        assert await connection.recv() == b"before"

        guest_agent.guest.pause()
        try:
            await connection.send(b"meanwhile")
            await asyncio.sleep(3)  # longer than the guest's heartbeat and its timeout
        finally:
            guest_agent.guest.resume()

        assert await connection.recv() == b"meanwhile"
        await asyncio.sleep(3)  # and again: time for a verdict that is wrong
        await connection.send(b"after")
        assert await connection.recv() == b"after"
        await connection.close()
        end = await guest_end

    assert (end["end"], end["code"]) == ("ConnectionClosedOK", CloseCode.OK)
    assert end["pings"] > 0


async def test_a_guest_whose_timers_fire_late_asks_again(guest_agent: Agent) -> None:
    """When it runs on, the answer to its ping has not come, and by its clock the timeout has passed."""
    loop = asyncio.get_running_loop()
    pinged: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]] = loop.create_future()

    async def be_asked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await reader.readexactly(len(HELLO))
        kind, token = await read_frame(reader)
        assert kind == PING
        pinged.set_result((reader, writer, token))

    async with await aiohvsock.start_hv_server(be_asked, ANY) as server, asyncio.timeout(120):
        guest_end = echoing(guest_agent, server)
        reader, writer, token = await pinged

        guest_agent.guest.freeze()
        try:
            await asyncio.sleep(4)  # longer than what is left of the guest's timeout
        finally:
            guest_agent.guest.thaw()
        await guest_agent.tell("boot")  # its timers have fired

        writer.write(frame(PONG, token) + frame(DATA, b"here I am"))
        while (got := await read_frame(reader))[0] == PING:
            pass
        assert got == (DATA, b"here I am")
        writer.write(frame(CLOSE, b"\0"))
        while (await read_frame(reader))[0] != CLOSE:
            pass
        writer.close()
        await writer.wait_closed()
        end = await guest_end

    assert (end["end"], end["code"]) == ("ConnectionClosedOK", CloseCode.OK)


async def test_a_guest_that_was_held_for_gone_is_told(guest_agent: Agent) -> None:
    host = Host()
    async with (
        await aiohvsock.serve(host.keep, ANY, heartbeat=HEARTBEAT, heartbeat_timeout=TIMEOUT) as server,
        asyncio.timeout(120),
    ):
        guest_end = echoing(guest_agent, server)
        connection = await host.arrived

        guest_agent.guest.pause()
        try:
            await connection.wait_closed()
        finally:
            guest_agent.guest.resume()

        end = await guest_end

    assert isinstance(connection.end, ConnectionLost)
    assert connection.end.code == CloseCode.NO_ANSWER
    assert (end["end"], end["code"]) == ("ConnectionLost", CloseCode.NO_ANSWER)
