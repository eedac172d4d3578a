"""Calls in odd states, and codecs that fail: each is told, and nothing hangs or stays half open."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiohvsock import (
    Address,
    CloseCode,
    ConnectionClosed,
    ConnectionClosedOK,
    ConnectionLost,
    LocalProtocolError,
    connect,
)
from aiohvsock.framing import LengthPrefixed

from ..conftest import Pair
from .peers import (
    NAME,
    Connection,
    blocked_by,
    catch,
    contexts,
    data,
    echo,
    joined,
    numbered,
    serving,
    talking,
    turns,
    until,
)

# Seconds in which anything here happens, however busy the machine is.
LATE = 5.0


# -- sending after the end ---------------------------------------------------------------------------------


def fill(connection: Connection) -> None:
    """Send until the connection refuses."""
    with pytest.raises(LocalProtocolError, match="wait to be sent"):
        for _ in range(10_000):
            connection.send_nowait(bytes(60_000))


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("how", ["start_closing", "close", "abort", "kill"])
async def test_a_send_that_starts_while_writing_is_paused_after_the_end(
    pair: Pair, how: str, many: bool
) -> None:
    async with talking(pair, close_timeout=0.1) as (connection, peer):
        fill(connection)
        match how:
            case "start_closing":
                connection.start_closing()
            case "close":
                await connection.close()
            case "abort":
                connection.transport.abort()
                await connection.wait_closed()
            case "kill":
                peer.kill()
                await connection.wait_closed()
        for _ in range(2):
            with pytest.raises(ConnectionClosed):
                async with asyncio.timeout(LATE):
                    await (connection.send_many([b"late"]) if many else connection.send(b"late"))
            with pytest.raises(ConnectionClosed):
                connection.send_nowait(b"late")


@pytest.mark.parametrize("how", ["start_closing", "abort", "kill"])
async def test_sends_that_wait_as_it_ends(pair: Pair, how: str) -> None:
    async with talking(pair, close_timeout=0.1) as (connection, peer):
        _, sending = await blocked_by(connection, bytes(60_000))
        many = asyncio.create_task(connection.send_many([b"late"]))
        await turns(2)
        match how:
            case "start_closing":
                connection.start_closing()
            case "abort":
                connection.transport.abort()
            case "kill":
                peer.kill()
        for task in (sending, many):
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(task, LATE)


# -- codes and reasons that are none -----------------------------------------------------------------------


@pytest.mark.parametrize("starting", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [(0, None), (0, b"x"), (0, 5), (300,), (-1,), ("7",), (None,), (CloseCode.NO_ANSWER,), (2,), (127,)],
)
async def test_a_close_that_makes_no_sense_does_nothing(
    address: Address, arguments: tuple[Any, ...], starting: bool
) -> None:
    async with joined(address, close_timeout=LATE) as (client, server):
        with pytest.raises((TypeError, ValueError)):
            if starting:
                client.start_closing(*arguments)
            else:
                await client.close(*arguments)
        assert client.end is None
        assert not client.closed
        await client.send(b"alive")
        assert await server.recv() == b"alive"
        assert await client.ping() >= 0
        async with asyncio.timeout(LATE):
            await client.close(200, "now")
            await server.wait_closed()
        for end in (client, server):
            assert isinstance(end.end, ConnectionClosedOK)
            assert end.end.code == 200


# -- a callback and a task that sends ----------------------------------------------------------------------


async def test_sending_to_a_server_that_answers_with_more(address: Address) -> None:
    """What comes must be read while a task waits to send: its peer reads nothing until its answers are taken."""
    count = 3000
    got: list[int] = []
    done = asyncio.Event()

    def answer(connection: Connection, message: bytes) -> None:
        connection.send_nowait(message * 4)

    def note(connection: Connection, message: bytes) -> None:
        got.append(len(message))
        if len(got) == count:
            done.set()

    async with serving(None, address, on_message=answer):
        connection: Connection
        async with connect(address, on_message=note) as connection:
            async with asyncio.timeout(2 * LATE):
                for number in range(count):
                    await connection.send(b"%04d" % number * 256)
                await done.wait()
    assert got == [4096] * count


async def test_a_callback_that_does_not_answer_goes_on_while_a_task_waits_to_send(pair: Pair) -> None:
    got: list[bytes] = []
    async with talking(pair, on_message=lambda _, message: got.append(message)) as (connection, peer):
        count, sending = await blocked_by(connection, bytes(60_000))
        async with asyncio.timeout(LATE):
            # More than the kernel holds: it must be read for that to be sent.
            await peer.send(data(*numbered(500, 10_000)))
            await until(lambda: len(got) == 500)
            assert not sending.done()
            assert await peer.messages(count) == [bytes(60_000)] * count
            await sending
    assert got == numbered(500, 10_000)


# -- a codec over TLS --------------------------------------------------------------------------------------


@asynccontextmanager
async def codec_over_tls(address: Address) -> AsyncIterator[tuple[Connection, Connection]]:
    theirs, ours = contexts()
    async with joined(
        address,
        server={"ssl": theirs, "codec": LengthPrefixed()},
        ssl=ours,
        server_hostname=NAME,
        codec=LengthPrefixed(),
    ) as ends:
        yield ends


@pytest.mark.parametrize("closer", ["client", "server", "both"])
async def test_a_codec_over_tls_ends_properly(
    address: Address, closer: str, caplog: pytest.LogCaptureFixture
) -> None:
    reports = catch()
    asyncio.get_running_loop().slow_callback_duration = LATE  # a slow machine is no finding
    async with codec_over_tls(address) as (client, server):
        names = [(str(end), end.peer_address, end.local_address) for end in (client, server)]
        sent = [b"%06d" % number + bytes(10_000) for number in range(100)]
        one, other = (client, server) if closer != "server" else (server, client)
        await one.send_many(sent[:10])
        if closer == "both":
            await asyncio.wait_for(asyncio.gather(one.close(), other.close()), LATE)
        else:
            sending = asyncio.create_task(one.send_many(sent[10:]))
            got = [await other.recv() for _ in sent]
            await sending
            await asyncio.wait_for(one.close(), LATE)
            got += [message async for message in other]
            assert got == sent
        for end in (one, other):
            await asyncio.wait_for(end.close(), LATE)
            assert isinstance(end.end, ConnectionClosedOK)
        assert [(str(end), end.peer_address, end.local_address) for end in (client, server)] == names
        assert client.peer_address == address
    assert reports == []
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("how", ["close", "abort", "peer aborts"])
@pytest.mark.parametrize("bare", [False, True])
async def test_over_tls_it_keeps_its_names(address: Address, how: str, bare: bool) -> None:
    codec = LengthPrefixed() if bare else None
    theirs, ours = contexts()
    async with joined(
        address,
        server={"ssl": theirs, "codec": codec},
        ssl=ours,
        server_hostname=NAME,
        codec=codec,
    ) as (client, server):
        before = [(str(end), end.peer_address, end.local_address) for end in (client, server)]
        async with asyncio.timeout(LATE):
            match how:
                case "close":
                    await client.close()
                case "abort":
                    client.transport.abort()
                case "peer aborts":
                    server.transport.abort()
            await client.wait_closed()
            await server.wait_closed()
        await turns(3)
        for end, names in zip((client, server), before, strict=True):
            assert (str(end), end.peer_address, end.local_address) == names
            assert names[0] in repr(end)
            assert end.end is not None
            assert names[0] in str(end.end)
            assert "None" not in str(end.end)
            end.start_closing()
            with pytest.raises(ConnectionClosed):
                end.send_nowait(b"late")


# -- a codec that fails ------------------------------------------------------------------------------------


class _Failing:
    """A decoder with a mistake in it."""

    def __init__(self, where: str) -> None:
        self._where = where

    def feed(self, wire: bytes | bytearray | memoryview) -> list[bytes]:
        if self._where == "feed":
            raise KeyError("what")
        return [bytes(wire)]

    def eof(self) -> None:
        raise KeyError("what")


class Mistaken:
    """A user's codec whose decoder raises what no codec should."""

    def __init__(self, where: str) -> None:
        self._where = where

    def encode(self, payload: bytes | bytearray | memoryview) -> tuple[bytes, ...]:
        return (bytes(payload),)

    def decoder(self) -> _Failing:
        return _Failing(self._where)


@pytest.mark.parametrize("where", ["feed", "eof"])
async def test_a_decoder_that_raises_something_else(address: Address, where: str) -> None:
    reports = catch()
    codec: Any = Mistaken(where)
    ends: asyncio.Queue[Connection] = asyncio.Queue()

    async def handler(connection: Connection) -> None:
        try:
            await echo(connection)
        finally:
            ends.put_nowait(connection)

    async with serving(handler, address, codec=codec, close_timeout=0.1):
        connection: Connection = await connect(address, codec=LengthPrefixed(), close_timeout=0.1)
        await connection.send(b"secret")
        if where == "eof":
            await connection.close()
        served = await asyncio.wait_for(ends.get(), LATE)
        with pytest.raises(ConnectionLost, match="KeyError") as caught:
            await served.recv()
        assert isinstance(caught.value.__cause__, Exception)
        assert "secret" not in str(caught.value)
        async with asyncio.timeout(LATE):
            await served.wait_closed()
        with contextlib.suppress(ConnectionClosed):
            await connection.close()
    # It is a mistake in a program, whose traceback somebody should see.
    assert {type(each["exception"]) for each in reports} <= {KeyError}
