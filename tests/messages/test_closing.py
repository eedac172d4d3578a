from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from aiohvsock import Address, CloseCode, ConnectionClosedOK, ConnectionLost, connect

from ..conftest import Pair
from .peers import (
    PONG,
    Connection,
    Handler,
    blocked_by,
    catch,
    close,
    data,
    frame,
    joined,
    numbered,
    of_ours,
    serving,
    talking,
    turns,
    until,
)

# Codes that a program may close with.
OURS = [0, 1, 5, 6, 7, 128, 200, 255]


def fill(connection: Connection, count: int, size: int) -> list[bytes]:
    """Queue messages in the transport, past what send_nowait() allows."""
    messages = numbered(count, size)
    for message in messages:
        connection.transport.writelines([data(message)])
    return messages


# -- code and reason ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", OURS)
@pytest.mark.parametrize("closer", ["client", "server"])
async def test_code_and_reason_arrive(address: Address, closer: str, code: int) -> None:
    async with joined(address) as (client, server):
        one, other = (client, server) if closer == "client" else (server, client)
        await one.send(b"last words")
        await one.close(code, "grüße")
        kind = ConnectionClosedOK if code in (0, 1) or code >= 128 else ConnectionLost
        assert await other.recv() == b"last words"
        await other.wait_closed()
        for _ in range(2):
            with pytest.raises((ConnectionClosedOK, ConnectionLost), match="grüße") as caught:
                await other.recv()
            assert type(caught.value) is kind
            assert (caught.value.code, caught.value.reason) == (code, "grüße")
            assert "by the peer" in str(caught.value) or "the peer has closed" in str(caught.value)
            assert str(other) in str(caught.value)
        assert other.end is caught.value
        # The side that closed did so properly, whatever it told the other.
        with pytest.raises(ConnectionClosedOK, match="closed by this side") as caught:
            await one.recv()
        assert (caught.value.code, caught.value.reason) == (code, "grüße")
        assert [message async for message in one] == []


@pytest.mark.parametrize("code", [2, 3, 4, 8, 9, 10, 127])
async def test_the_peers_codes_that_are_no_proper_end(pair: Pair, code: int) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(data(b"before"), close(code, "because"), b"anything may follow")
        assert await connection.recv() == b"before"
        for call in (connection.recv(), connection.send(b""), anext(connection)):
            with pytest.raises(ConnectionLost, match="because") as caught:
                await call
            assert (caught.value.code, caught.value.reason) == (code, "because")
            assert caught.value.__cause__ is not None
        # It is answered with the same code.
        assert await peer.closed() == (code, "")


@pytest.mark.parametrize("code", [2, 3, 4, 8, 9, 10, 127, 256, -1, 300, None, "0", 1.5])
async def test_codes_that_are_not_a_programs(pair: Pair, code: Any) -> None:
    async with talking(pair) as (connection, peer):
        with pytest.raises(ValueError, match="not"):
            await connection.close(code)
        with pytest.raises(ValueError, match="not"):
            connection.start_closing(code)
        assert not connection.closed
        await connection.send(b"goes on")
        assert await peer.messages(1) == [b"goes on"]


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("", ""),
        ("x" * 1023, "x" * 1023),
        ("x" * 1024, "x" * 1023),
        ("x" * 1022 + "ü", "x" * 1022),
        ("x" * 1021 + "ü", "x" * 1021 + "ü"),
        ("€" * 400, "€" * 341),
        ("\U0001f600" * 300, "\U0001f600" * 255),
    ],
    ids=["none", "fits", "one too long", "two bytes cut", "two bytes fit", "three bytes", "four bytes"],
)
async def test_a_long_reason_is_cut_between_characters(pair: Pair, reason: str, told: str) -> None:
    async with talking(pair) as (connection, peer):
        closing = asyncio.create_task(connection.close(128, reason))
        assert await peer.answer_close() == (128, told)
        await closing


async def test_a_reason_that_is_no_utf8_is_shown_somehow(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(frame(3, b"\x80caf\xe9"))
        with pytest.raises(ConnectionClosedOK) as caught:
            await connection.recv()
        assert caught.value.reason == "caf\N{REPLACEMENT CHARACTER}"


async def test_the_codes_have_names() -> None:
    assert [CloseCode(code).name for code in range(10)] == [
        "OK",
        "GOING_AWAY",
        "PROTOCOL_ERROR",
        "NO_COMMON_VERSION",
        "MESSAGE_TOO_LARGE",
        "INTERNAL_ERROR",
        "NOT_ALLOWED",
        "TRY_AGAIN_LATER",
        "NO_HELLO",
        "NO_ANSWER",
    ]


# -- everything before it is delivered ---------------------------------------------------------------------


async def test_close_sends_what_is_queued(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        count, blocked = await blocked_by(connection, bytes(60_000))
        connection.send_nowait(b"last")
        connection.send_nowait(b"words")
        closing = asyncio.create_task(connection.close())
        assert await peer.messages() == [bytes(60_000)] * (count - 1) + [b"last", b"words"]
        await peer.send(close())
        await peer.ended()
        await closing
        with pytest.raises(ConnectionClosedOK):
            await blocked


@pytest.mark.parametrize("count", [3, 500])
@pytest.mark.parametrize("closer", ["client", "server", "both"])
async def test_with_data_under_way_both_ways(address: Address, closer: str, count: int) -> None:
    """3 fit into the queues; 500 stop both senders."""
    async with joined(address) as ends:
        client, server = ends
        expected = fill(client, count, 10_000)
        fill(server, count, 10_000)
        if count == 500:
            await until(lambda: not any(end.transport.is_reading() for end in ends))
        reports = catch()
        if closer == "both":
            await asyncio.gather(client.close(), server.close())
            for end in ends:
                got = [message async for message in end]
                assert got == expected[: len(got)]
                with pytest.raises(ConnectionClosedOK, match="closed by this side"):
                    await end.recv()
        else:
            one, other = (client, server) if closer == "client" else (server, client)
            closing = asyncio.create_task(one.close(200, "enough"))
            await turns(5)
            assert [message async for message in other] == expected
            with pytest.raises(ConnectionClosedOK) as caught:
                await other.recv()
            assert caught.value.code == 200
            await closing
            # What was here before the close can still be received.
            got = [message async for message in one]
            assert got == expected[: len(got)]
        await asyncio.gather(client.wait_closed(), server.wait_closed())
        assert reports == []


async def test_messages_that_were_here_before_can_be_received_after(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(data(*numbered(3)))
        assert await connection.recv() == numbered(3)[0]
        closing = asyncio.create_task(connection.close())
        assert await peer.messages() == []
        await peer.send(data(b"too late"), frame(PONG), close(200, "never told"))
        await peer.ended()
        await closing
        assert [message async for message in connection] == numbered(3)[1:]
        with pytest.raises(ConnectionClosedOK) as caught:
            await connection.recv()
        assert caught.value.code == 0


async def test_a_receiver_that_waits_learns_of_it(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        receiving = [asyncio.create_task(connection.recv())]
        await turns()
        closing = asyncio.create_task(connection.close(200, "enough"))
        with pytest.raises(ConnectionClosedOK, match="closed by this side"):
            await receiving[0]
        await peer.answer_close()
        await closing


async def test_an_iterator_that_waits_ends(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):

        async def iterate() -> list[bytes]:
            return [message async for message in connection]

        receiving = asyncio.create_task(iterate())
        await turns()
        connection.start_closing()
        assert await receiving == []
        await peer.answer_close()


async def test_nothing_is_sent_after_it(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        closing = asyncio.create_task(connection.close())
        await turns()
        assert connection.closed
        with pytest.raises(ConnectionClosedOK, match="closed by this side"):
            await connection.send(b"hello")
        await peer.send(frame(1, b"ping"))
        assert await peer.answer_close() == (0, "")
        await closing


async def test_the_peers_close_is_answered_after_what_is_queued(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        connection.send_nowait(b"1")
        connection.send_nowait(b"2")
        await peer.send(close(130, "enough"))
        assert await peer.messages() == [b"1", b"2"]
        assert peer.close == (130, "")
        peer.kill()
        await connection.wait_closed()


# -- who closes, and when ----------------------------------------------------------------------------------


async def test_both_sides_at_once(address: Address) -> None:
    async with joined(address) as (client, server):
        await asyncio.gather(client.close(201), server.close(202))
        for connection, code in ((client, 201), (server, 202)):
            with pytest.raises(ConnectionClosedOK) as caught:
                await connection.recv()
            assert caught.value.code == code


async def test_twice_and_by_several(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        closing = [asyncio.create_task(connection.close(200 + number)) for number in range(3)]
        assert await peer.answer_close() == (200, "")
        await asyncio.gather(*closing)
        await connection.close()
        await connection.close(250)
        connection.start_closing(251)
        assert connection.end is not None
        assert connection.end.code == 200
        assert await peer.recv() == b""


async def test_after_the_peer_has(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(data(b"bye"), close(200))
        await peer.closed()
        closing = asyncio.create_task(connection.close(201))
        await turns(3)
        assert not closing.done()  # the peer closes the stream
        peer.kill()
        await closing
        assert await connection.recv() == b"bye"
        with pytest.raises(ConnectionClosedOK, match="closed by the peer") as caught:
            await connection.recv()
        assert caught.value.code == 200


async def test_after_a_loss(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        peer.end()
        await connection.wait_closed()
        await connection.close()
        with pytest.raises(ConnectionLost):
            await connection.recv()


async def test_by_a_handler(address: Address) -> None:
    async def handler(connection: Connection) -> None:
        await connection.send(b"bye")
        await connection.close(200, "enough")
        assert connection.closed

    async with serving(handler, address), connect(address) as connection:
        assert [message async for message in connection] == [b"bye"]
        assert connection.end is not None
        assert connection.end.code == 200


async def test_at_the_end_of_a_block(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        answering = asyncio.create_task(peer.answer_close())
        async with connection as same:
            assert same is connection
        assert await answering == (0, "")
        with pytest.raises(ZeroDivisionError):
            async with connection:
                raise ZeroDivisionError


async def test_in_a_callback_of_the_loop(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        connection.send_nowait(b"1")
        connection.send_nowait(b"2")
        asyncio.get_running_loop().call_soon(connection.start_closing, 200, "enough")
        assert await peer.messages() == [b"1", b"2"]
        assert peer.close == (200, "enough")
        await peer.send(close())
        await connection.wait_closed()
        await peer.ended()


# -- peers that do not confirm -----------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.05, 0.3])
async def test_a_peer_that_says_nothing_is_cut_off(pair: Pair, limit: float) -> None:
    async with talking(pair, close_timeout=limit) as (connection, peer):
        start = time.perf_counter()
        await connection.close()
        assert limit - 0.01 <= time.perf_counter() - start < limit + 2
        assert await peer.closed() == (0, "")
        await peer.ended()
        with pytest.raises(ConnectionLost, match="not confirmed"):
            await connection.recv()


async def test_a_peer_that_does_not_read_is_cut_off(pair: Pair) -> None:
    async with talking(pair, close_timeout=0.05) as (connection, _):
        _, blocked = await blocked_by(connection, bytes(60_000))
        await connection.close()
        with pytest.raises(ConnectionClosedOK):
            await blocked


async def test_a_peer_that_goes_on_sending_is_cut_off(pair: Pair) -> None:
    async with talking(pair, close_timeout=0.05) as (connection, peer):

        async def speak() -> None:
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                while True:
                    await peer.send(data(bytes(50_000)))

        speaking = asyncio.create_task(speak())
        await connection.recv()
        await connection.close()
        # On AF_VSOCK nothing wakes who waits to write when the other side has gone (af_vsock.c, vsock_poll()).
        await asyncio.wait([speaking], timeout=0.5)
        speaking.cancel()
        await asyncio.wait([speaking])


async def test_a_peer_that_confirms_and_does_not_end_is_left(pair: Pair) -> None:
    """Who receives last ends the stream: that is us."""
    async with talking(pair, close_timeout=None) as (connection, peer):
        closing = asyncio.create_task(connection.close())
        await peer.closed()
        await turns(3)
        assert not closing.done()
        await peer.send(close())
        await closing
        await peer.ended()


async def test_a_peer_that_closes_and_does_not_end_is_cut_off(pair: Pair) -> None:
    async with talking(pair, close_timeout=0.05) as (connection, peer):
        await peer.send(close())
        assert await peer.closed() == (0, "")
        await connection.wait_closed()
        await peer.ended()


async def test_a_peer_that_is_gone_while_we_close(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await connection.send(b"never read")
        closing = asyncio.create_task(connection.close(200))
        await turns()
        peer.kill()
        await closing
        # A reset says why itself; a clean end, as AF_VSOCK has for both, that nobody has confirmed.
        with pytest.raises((ConnectionClosedOK, ConnectionLost)) as caught:
            await connection.recv()
        if isinstance(caught.value, ConnectionClosedOK):
            assert caught.value.code == 200
        else:
            assert "not confirmed" in str(caught.value)


async def test_without_a_limit_close_waits(pair: Pair) -> None:
    async with talking(pair, close_timeout=None) as (connection, peer):
        closing = asyncio.create_task(connection.close())
        await asyncio.sleep(0.1)  # time is what this is about
        assert not closing.done()
        await peer.answer_close()
        await closing


# -- what is logged ----------------------------------------------------------------------------------------


async def test_a_proper_end_is_no_news(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="aiohvsock")
    handler = Handler()
    async with serving(handler, address):
        async with connect(address) as client:
            server = await handler.connection()
            await client.send(b"hello")
            await server.recv()
        await server.wait_closed()
        handler.released.set()
    assert of_ours(caplog, logging.INFO) == []


async def test_what_a_peer_says_cannot_forge_a_line_of_the_log(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="aiohvsock")
    async with talking(pair) as (connection, peer):
        await peer.send(close(5, "oh\nERROR aiohvsock: the machine is on fire\x1b[2J"))
        with pytest.raises(ConnectionLost) as caught:
            await connection.recv()
        assert caught.value.reason.startswith("oh\nERROR")  # the program may look at it as it is
    for record in of_ours(caplog, logging.DEBUG):
        assert record.getMessage().isprintable()
