"""Connections that the doctor makes: both ends of one, and the near end of another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from time import perf_counter
from typing import TypeAlias

from ...addresses import Address, HybridAddress
from ...exceptions import HvUnsupportedError
from ...messages import MessageConnection, connect, serve
from ...streams import open_hv_connection, start_hv_server
from ...testing import _temporary_monitor
from .findings import Finding, Findings

__all__ = ["Addresses", "Making", "dial", "echo", "hybrid", "random_port"]

Addresses: TypeAlias = Callable[[], Address]
"""Makes addresses that can be listened on and dialled: a new one for each listener."""
Making: TypeAlias = Callable[[], AbstractContextManager[Addresses]]

_SIZE = 2**20
_BLOCK = 64 * 1024
_LAST_WORD = b"the end"
_CONNECT_TIMEOUT = 10.0


async def echo(name: str, making: Making) -> Findings:
    """Send a stream and a message to a service in this process and back.

    A skip if this system has no such sockets: another finding tells.
    """
    try:
        with making() as new_address:
            times = [*await _stream(new_address()), await _message(new_address())]
    except HvUnsupportedError:
        return [Finding("skip", name, "there are no such sockets here, see above")]
    connecting, carrying, asking = (f"{1000 * seconds:.1f} ms" for seconds in times)
    return [
        Finding(
            "ok",
            name,
            f"connected in {connecting}; 1 MiB and a half-close there and back in {carrying}; a message in {asking}",
        )
    ]


async def dial(address: str) -> Findings:
    """Connect to an address, and send nothing."""
    started = perf_counter()
    _, writer = await open_hv_connection(address, connect_timeout=_CONNECT_TIMEOUT)
    elapsed = perf_counter() - started
    writer.close()
    await writer.wait_closed()
    return [Finding("ok", "connect", f"{address} answers: connected in {1000 * elapsed:.1f} ms")]


def random_port() -> int:
    """Return a port that nobody has, of those that Linux guests on Hyper-V know and nobody needs a right for."""
    return random.randrange(2**30, 2**31)


@contextlib.contextmanager
def hybrid() -> Iterator[Addresses]:
    """Give addresses behind a machine's monitor that is none."""
    with _temporary_monitor() as path:
        yield lambda: HybridAddress(path, random_port())


async def _stream(address: Address) -> tuple[float, float]:
    """Return seconds for connecting, and for the bytes there and back."""
    server = await start_hv_server(_answer, address)
    try:
        started = perf_counter()
        reader, writer = await open_hv_connection(address, connect_timeout=_CONNECT_TIMEOUT)
        connected = perf_counter()
        try:
            data = os.urandom(_SIZE)
            _, received = await asyncio.gather(_send(writer, data), reader.read())
            if received != data + _LAST_WORD:
                raise EOFError(f"{len(received)} bytes came back, and not those that were sent")
        finally:
            writer.close()
        ended = perf_counter()
    finally:
        server.close()
        server.abort_clients()
    await server.wait_closed()
    return connected - started, ended - connected


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
    writer.write_eof()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while block := await reader.read(_BLOCK):
            writer.write(block)
            await writer.drain()
        # After the peer's end: only a half-close lets it through.
        writer.write(_LAST_WORD)
        await writer.drain()
    except ConnectionError:
        # The other end tells; or it was interrupted, and nobody asks.
        pass
    finally:
        writer.close()


async def _message(address: Address) -> float:
    """Return seconds for one there and back."""
    async with await serve(_repeat, address), connect(address, connect_timeout=_CONNECT_TIMEOUT) as client:
        started = perf_counter()
        await client.send(b"hello")
        answer = await client.recv()
        if answer != b"hello":
            raise EOFError(f"{answer!r} came back, and not the message that was sent")
        return perf_counter() - started


async def _repeat(connection: MessageConnection[bytes]) -> None:
    async for message in connection:
        await connection.send(message)
