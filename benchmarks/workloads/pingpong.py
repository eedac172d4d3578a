"""One message there and the same message back: what a request costs both sides.

A frame is a four-byte length and a payload.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from struct import Struct
from typing import Any, Protocol, cast

from .ends import SCRATCH, VIEW, Run, ServedOnce, serve_protocol, serve_streams
from .links import HvLink, Link

__all__ = ["connect", "serve"]

_LENGTH = Struct(">I")
HEADER = _LENGTH.size
_pack, _unpack_from = _LENGTH.pack, _LENGTH.unpack_from


class Framed(asyncio.BufferedProtocol):
    """What one writes over a BufferedProtocol: frames cut from a shared buffer, a Python method for each.

    Frames must fit in `SCRATCH`.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's aren't subclasses, so nothing is checked here.
        self.transport = cast(asyncio.Transport, transport)

    def send(self, payload: bytes) -> None:
        self.transport.write(_pack(len(payload)) + payload)

    def message_received(self, message: bytes) -> None:
        raise NotImplementedError

    def get_buffer(self, sizehint: int) -> bytearray | memoryview:
        rest = self._rest
        if not rest:
            return SCRATCH
        SCRATCH[: len(rest)] = rest
        return VIEW[len(rest) :]

    def buffer_updated(self, nbytes: int) -> None:
        end = len(self._rest) + nbytes
        if end >= HEADER and _unpack_from(SCRATCH)[0] == end - HEADER:  # one whole frame, as nearly always
            self._rest = b""
            self.message_received(bytes(VIEW[HEADER:end]))
        else:
            self._cut(bytes(VIEW[:end]))

    def _cut(self, data: bytes) -> None:
        end, start = len(data), 0
        while end - start >= HEADER:
            size: int = _unpack_from(data, start)[0]
            if size > len(SCRATCH) - HEADER:
                raise ValueError(f"a frame of {size} bytes")
            stop = start + HEADER + size
            if stop > end:
                break
            self.message_received(data[start + HEADER : stop])
            start = stop
        self._rest = data[start:]


class Echo(Framed):
    def __init__(self, over: ServedOnce) -> None:
        super().__init__()
        self._over = over

    def connection_lost(self, exc: Exception | None) -> None:
        self._over(exc)

    def message_received(self, message: bytes) -> None:
        self.send(message)


class Pinger(Framed):
    _done: asyncio.Future[None]

    def __init__(self, size: int) -> None:
        super().__init__()
        self._payload = bytes(size)
        self._left = 0

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionResetError("the server has gone"))

    def message_received(self, message: bytes) -> None:
        self._left -= 1
        if self._left:
            self.send(self._payload)
        else:
            self._done.set_result(None)

    async def run(self, count: int) -> None:
        self._left = count
        self._done = asyncio.get_running_loop().create_future()
        self.send(self._payload)
        await self._done


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        header = await reader.readexactly(HEADER)
        payload = await reader.readexactly(_unpack_from(header)[0])
        writer.write(header + payload)
        await writer.drain()


class Connection(Protocol):
    """What is used of `aiohvsock.MessageConnection`."""

    async def send(self, data: bytes) -> None: ...
    async def recv(self) -> bytes: ...


async def _serve_messages(path: str) -> None:
    import aiohvsock

    over = ServedOnce()

    async def handler(connection: Connection) -> None:
        try:
            while True:
                await connection.send(await connection.recv())
        except package.ConnectionClosed:
            over()
        except Exception as error:
            over(error)
            raise

    # Any, because versions without the message layer are measured too.
    package: Any = aiohvsock
    server = await package.serve(handler, HvLink.address(path))
    await over.wait()
    server.close()


async def _connect_messages(path: str) -> Connection:
    import aiohvsock

    package: Any = aiohvsock
    connect: Callable[..., Awaitable[Connection]] = package.connect
    return await connect(sock=await HvLink.dial(path))


async def serve(api: str, link: Link, path: str) -> None:
    if api == "streams":
        await serve_streams(link, _echo, path)
    elif api == "messages":
        await _serve_messages(path)
    else:
        await serve_protocol(link, Echo, path)


async def connect(api: str, link: Link, path: str, size: int) -> Run:
    if api == "buffered":
        return (await link.connect(lambda: Pinger(size), path)).run

    payload = bytes(size)
    if api == "messages":
        connection = await _connect_messages(path)

        async def exchange(count: int) -> None:
            for _ in range(count):
                await connection.send(payload)
                await connection.recv()

        return exchange

    reader, writer = await link.connect_streams(path)

    async def run(count: int) -> None:
        for _ in range(count):
            writer.write(_pack(size) + payload)
            await writer.drain()
            await reader.readexactly(_unpack_from(await reader.readexactly(HEADER))[0])

    return run
