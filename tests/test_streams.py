from __future__ import annotations

import asyncio
import gc
import inspect
import os
import socket
import traceback
import weakref
from collections.abc import Coroutine
from typing import Any

import pytest

from aiohvsock import Address, Retry, open_hv_connection, start_hv_server

from .conftest import Pair
from .helpers import GONE, fill, own, read_to_end


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


@pytest.mark.linux
def test_signatures_follow_the_unix_ones() -> None:
    for ours, theirs in (
        (open_hv_connection, asyncio.open_unix_connection),
        (start_hv_server, asyncio.start_unix_server),
    ):
        mine, other = inspect.signature(ours).parameters, inspect.signature(theirs).parameters
        assert list(mine)[-2] == "limit"
        assert mine["limit"].default == other["limit"].default
        assert mine["limit"].kind == other["limit"].kind


async def test_they_are_asyncios_own_to_every_caller(address: Address) -> None:
    async with await start_hv_server(echo, address):
        reader, writer = await open_hv_connection(address)
        assert isinstance(reader, asyncio.StreamReader)
        assert isinstance(writer, asyncio.StreamWriter)
        writer.write(b"a line\nand more")
        assert await reader.readline() == b"a line\n"
        assert await reader.readexactly(3) == b"and"
        assert await reader.readuntil(b"e") == b" more"
        writer.writelines([b"x", b"y"])
        assert await reader.read(2) in (b"xy", b"x")
        assert writer.can_write_eof()
        assert writer.get_extra_info("hv_peer") == address
        writer.close()
        assert writer.is_closing()
        await writer.wait_closed()


@pytest.mark.parametrize("size", [1, 2**20])
async def test_echo_with_half_close(address: Address, size: int) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        await writer.drain()
        writer.close()

    data = os.urandom(size)
    async with await start_hv_server(handler, address):
        reader, writer = await open_hv_connection(address, retry=Retry())
        writer.write(data)
        writer.write_eof()
        assert await reader.read() == data
        writer.close()
        await writer.wait_closed()


async def test_limit_bounds_a_line(address: Address) -> None:
    async with await start_hv_server(echo, address):
        reader, writer = await open_hv_connection(address, limit=100)
        writer.write(b"x" * 200)
        with pytest.raises(ValueError, match="limit"):
            await reader.readline()
        writer.close()
        await writer.wait_closed()


async def test_a_slow_reader_stops_the_writer(address: Address) -> None:
    """What one side does not read, the other cannot send without end."""
    go = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        while await reader.read(2**20):
            pass
        writer.close()

    async with await start_hv_server(handler, address):
        _, writer = await open_hv_connection(address)
        sent = 0
        while True:
            writer.write(bytes(65536))
            sent += 65536
            draining = asyncio.ensure_future(writer.drain())
            for _ in range(3):
                await asyncio.sleep(0)
            if not draining.done():
                break
        assert sent < 64 * 2**20
        assert writer.transport.get_write_buffer_size() < 2**20
        go.set()
        await draining
        writer.close()
        await writer.wait_closed()


async def test_the_last_response_is_read_after_a_failed_write(pair: Pair) -> None:
    """asyncio's reader raises at once, with the response in a buffer that nobody can get at."""
    a, b = pair()
    reader, writer = await open_hv_connection(sock=own(a))
    response = os.urandom(100_000)
    b.send(response)
    b.close()
    with pytest.raises(GONE):
        while True:
            writer.write(bytes(100))
            await writer.drain()
    assert await reader.readexactly(50_000) == response[:50_000]
    assert await reader.read() == response[50_000:]
    assert len(tracebacks(await failure(writer.drain()))) <= len(tracebacks(await failure(writer.drain())))
    with pytest.raises(GONE):
        await writer.drain()
    writer.close()
    with pytest.raises(GONE):
        await writer.wait_closed()


async def test_read_to_the_end_gives_all_before_a_reset(pair: Pair) -> None:
    a, _ = pair()
    reader, writer = await open_hv_connection(sock=own(a))
    reader.feed_data(b"last words")
    reader.set_exception(ConnectionResetError())
    assert await reader.read() == b"last words"
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.transport.abort()


async def failure(awaitable: Coroutine[Any, Any, object]) -> BaseException:
    try:
        await awaitable
    except OSError as error:
        return error
    raise AssertionError("it did not fail")


def tracebacks(error: BaseException) -> list[object]:
    """Return the frames an error keeps alive."""
    return list(traceback.walk_tb(error.__traceback__))


async def test_drain_is_told_of_a_failure_while_it_waits(pair: Pair) -> None:
    a, b = pair()
    _reader, writer = await open_hv_connection(sock=own(a))
    await fill(writer.get_extra_info("socket"))
    writer.write(bytes(200_000))
    draining = asyncio.ensure_future(writer.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    b.close()
    with pytest.raises(ConnectionError):
        await draining
    writer.close()
    with pytest.raises(ConnectionError):
        await writer.wait_closed()


async def test_data_before_a_reset_is_read_first(pair: Pair) -> None:
    a, _ = pair()
    reader, writer = await open_hv_connection(sock=own(a))
    error = ConnectionResetError("the transport was reset")
    reader.feed_data(b"one\ntwo and a half")
    reader.set_exception(error)
    assert await reader.readline() == b"one\n"
    assert await reader.readexactly(3) == b"two"
    with pytest.raises(asyncio.IncompleteReadError) as caught:
        await reader.readuntil(b"\n")
    assert caught.value.partial == b" and a half"
    assert await reader.read(0) == b""
    for read in (
        reader.read(),
        reader.read(5),
        reader.readexactly(1),
        reader.readuntil(b"\n"),
        reader.readline(),
    ):
        with pytest.raises(ConnectionResetError):
            await read
    writer.transport.abort()


async def test_readline_gives_what_is_left_before_a_reset(pair: Pair) -> None:
    a, _ = pair()
    reader, writer = await open_hv_connection(sock=own(a))
    reader.feed_data(b"half a line")
    reader.set_exception(ConnectionResetError())
    assert await reader.readline() == b"half a line"
    with pytest.raises(ConnectionResetError):
        await reader.readline()
    writer.transport.abort()


async def test_a_plain_function_as_callback(address: Address) -> None:
    served: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.set_result(writer)

    async with await start_hv_server(callback, address):
        reader, writer = await open_hv_connection(address)
        (await served).write(b"hello")
        (await served).close()
        assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()
        await served.result().wait_closed()


async def test_a_failing_callback_costs_one_connection(address: Address) -> None:
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: reports.append(context["exception"])
    )

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1) == b"!":
            raise ZeroDivisionError
        writer.close()

    async with await start_hv_server(handler, address):
        for byte in (b"!", b"x", b"!"):
            reader, writer = await open_hv_connection(address)
            writer.write(byte)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
    assert [type(report) for report in reports] == [ZeroDivisionError] * 2


async def test_a_raising_plain_callback_costs_one_connection(address: Address) -> None:
    reports: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: reports.append(context["exception"])
    )

    def callback(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise ZeroDivisionError

    async with await start_hv_server(callback, address) as server:
        for _ in range(2):
            reader, writer = await open_hv_connection(address)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        assert server.is_serving()
    assert len(reports) == 2


async def test_a_cancelled_handler_closes_its_connection(address: Address) -> None:
    handling: asyncio.Future[asyncio.Task[None]] = asyncio.get_running_loop().create_future()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handling.set_result(task)
        await reader.read()

    async with await start_hv_server(handler, address):
        reader, writer = await open_hv_connection(address)
        (await handling).cancel()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_cancelling_a_read_loses_nothing(address: Address) -> None:
    async with await start_hv_server(echo, address):
        reader, writer = await open_hv_connection(address)
        for _ in range(10):
            reading = asyncio.ensure_future(reader.readexactly(4))
            await asyncio.sleep(0)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        writer.write(b"1234")
        assert await reader.readexactly(4) == b"1234"
        writer.close()
        await writer.wait_closed()


async def test_a_forgotten_writer_warns() -> None:
    a, b = socket.socketpair()
    with b:
        b.setblocking(False)
        streams = list(await open_hv_connection(sock=a))
        gone = weakref.ref(streams[1])
        with pytest.warns(ResourceWarning, match="unclosed <HvStreamWriter"):
            streams.clear()
        assert gone() is None
        assert await read_to_end(b) == b""


@pytest.mark.parametrize("when", ["before", "after"])
async def test_wait_closed_after_a_clean_end(address: Address, when: str) -> None:
    async with await start_hv_server(echo, address):
        reader, writer = await open_hv_connection(address)
        writer.write_eof()
        if when == "after":
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        await writer.wait_closed()


async def test_an_error_is_not_complained_of_when_it_is_collected(pair: Pair) -> None:
    """Of a cycle the collector may take the future of the end before the protocol that would mark it as told."""
    a, _ = pair()
    reader, writer = await open_hv_connection(sock=own(a))
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    protocol: Any = writer.transport.get_protocol()
    protocol.connection_lost(BrokenPipeError())
    del protocol._closed
    gc.collect()
    assert complaints == []
    with pytest.raises(BrokenPipeError):
        await reader.read()
    writer.transport.abort()
