"""What a peer gets to hear, and what a log gets to see, at the edges: the last message, an unread answer, a rude reason."""

from __future__ import annotations

import asyncio
import logging

import pytest

import aiohvsock
from aiohvsock import Address, CloseCode, ConnectionClosed, ConnectionLost
from aiohvsock.framing import DecimalPrefixed, Delimited

HELLO = bytes.fromhex("8968766d73670d0a0101000c 00000000 00100000 00000000")


async def test_an_answer_to_a_message_that_came_along_with_the_close(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    """on_message= with DATA and CLOSE in one read: send_nowait() must raise ConnectionClosedOK, not LocalProtocolError."""
    raised: list[Exception] = []
    called = asyncio.Event()

    def answer(connection: aiohvsock.MessageConnection[bytes], message: bytes) -> None:
        called.set()
        try:
            connection.send_nowait(message)
        except Exception as error:
            raised.append(error)
            raise

    with caplog.at_level(logging.ERROR, "aiohvsock"):
        async with await aiohvsock.serve(None, address, on_message=answer, close_timeout=0.2):
            reader, writer = await aiohvsock.open_hv_connection(address)
            data = bytes(7) + b"\x05hello"
            close = b"\x03" + bytes(6) + b"\x01\x00"
            writer.write(HELLO + data + close)
            await reader.read()
            writer.close()
            await called.wait()
    assert all(isinstance(error, ConnectionClosed) for error in raised), raised
    assert not caplog.records  # as in a handler, a ConnectionClosed of its own connection is no failure


async def test_many_small_requests_with_larger_answers(address: Address) -> None:
    """on_message= and a peer that keeps every rule: 1000 requests of 40 bytes, 8 KiB for each answer."""

    def answer(connection: aiohvsock.MessageConnection[bytes], message: bytes) -> None:
        connection.send_nowait(bytes(8192))

    async with (
        await aiohvsock.serve(None, address, on_message=answer),
        aiohvsock.connect(address) as connection,
    ):
        sending = asyncio.create_task(connection.send_many([bytes(40)] * 1000))
        for _ in range(1000):
            await connection.recv()
        await sending


async def test_a_close_that_was_not_confirmed_shows(address: Address) -> None:
    """protocol.md, A proper end: for the side that has not seen the peer's CLOSE, the connection was lost."""
    done = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HELLO)
        await done.wait()
        writer.close()

    async with await aiohvsock.start_hv_server(silent, address):
        connection = await aiohvsock.connect(address, close_timeout=0.1)
        await connection.close()
        done.set()
        assert isinstance(connection.end, ConnectionLost)


async def test_a_reason_is_escaped_in_the_log(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    """protocol.md, Security: escape a reason before it goes into a log."""

    async def rude(connection: aiohvsock.MessageConnection[bytes]) -> None:
        await connection.close(CloseCode.NOT_ALLOWED, "go\nERROR forged line \x1b[31m")

    with caplog.at_level(logging.DEBUG, "aiohvsock"):
        async with await aiohvsock.serve(rude, address):
            connection = await aiohvsock.connect(address)
            with pytest.raises(ConnectionLost):
                await connection.recv()
            await connection.wait_closed()
    assert not [
        record for record in caplog.records if "\n" in record.getMessage() or "\x1b" in record.getMessage()
    ]


async def test_an_error_of_framing_has_no_payload(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(connection: aiohvsock.MessageConnection[bytes]) -> None:
        await connection.recv()

    with caplog.at_level(logging.DEBUG, "aiohvsock"):
        async with await aiohvsock.serve(handler, address, codec=DecimalPrefixed()):
            reader, writer = await aiohvsock.open_hv_connection(address)
            writer.write(b"password=hunter2")
            await reader.read()
            writer.close()
    assert "hunter2" not in caplog.text
    lost = [record for record in caplog.records if record.levelno > logging.DEBUG]
    assert [record.levelname for record in lost] == ["WARNING"]  # a broken rule, as with the native protocol


async def test_a_codec_and_a_heartbeat(address: Address) -> None:
    """max_size= with codec= is a ValueError; heartbeat= is dropped in silence."""
    with pytest.raises(ValueError, match="heartbeat"):
        aiohvsock.connect(address, codec=Delimited(), heartbeat=1.0)  # type: ignore[call-overload]


async def test_a_peer_that_half_closes_gets_its_answer(address: Address) -> None:
    """A bare codec: `printf 'hello\\n' | socat - ...`; with the await in it, the answer is refused."""

    async def handler(connection: aiohvsock.MessageConnection[bytes]) -> None:
        message = await connection.recv()
        with pytest.raises(aiohvsock.ConnectionClosedOK):
            await connection.recv()
        await connection.send(message)

    async with await aiohvsock.serve(handler, address, codec=Delimited()):
        reader, writer = await aiohvsock.open_hv_connection(address)
        writer.write(b"hello\n")
        writer.write_eof()
        async with asyncio.timeout(2):
            assert await reader.read() == b"hello\n"
        writer.close()
