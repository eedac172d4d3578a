"""One way, no framing: how fast bytes move through a transport or a stream.

Eight bytes say how many follow; one byte answers them, and one answers the last of those that follow.
"""

from __future__ import annotations

import asyncio
from typing import cast

from .ends import SCRATCH, Run, Serving, serve_protocol, serve_streams
from .links import LINKS

__all__ = ["connect", "serve"]

HEADER = 8
ANSWER = b"\0"
READ_SIZE = 64 * 1024


class Sink(asyncio.BaseProtocol):
    """The reading end; how it reads is its children's."""

    transport: asyncio.Transport

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's aren't subclasses, so nothing is checked here.
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._serving(exc)

    def header_received(self, header: bytes) -> None:
        self._left = int.from_bytes(header, "big")
        self.transport.write(ANSWER)

    def bytes_received(self, count: int) -> None:
        self._left -= count
        if not self._left:
            self.transport.write(ANSWER)


class BufferedSink(Sink, asyncio.BufferedProtocol):
    def get_buffer(self, sizehint: int) -> bytearray:
        return SCRATCH

    def buffer_updated(self, nbytes: int) -> None:
        if self._left:
            self.bytes_received(nbytes)
        else:
            self.header_received(bytes(SCRATCH[:nbytes]))


class ProtocolSink(Sink, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        if self._left:
            self.bytes_received(len(data))
        else:
            self.header_received(data)


class Source(asyncio.BufferedProtocol):
    """The writing end: writes until told to pause, as a file server would."""

    transport: asyncio.Transport
    _answer: asyncio.Future[None]

    def __init__(self, size: int) -> None:
        self._chunk = bytes(size)
        self._left = 0
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's aren't subclasses, so nothing is checked here.
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the server has gone"))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._write_more()

    def get_buffer(self, sizehint: int) -> bytearray:
        return SCRATCH

    def buffer_updated(self, nbytes: int) -> None:
        self._answer.set_result(None)

    async def run(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        self.transport.write((count * len(self._chunk)).to_bytes(HEADER, "big"))
        await self._answer
        self._answer = loop.create_future()
        self._left = count
        self._write_more()
        await self._answer

    def _write_more(self) -> None:
        while self._left and not self._paused:
            self._left -= 1
            self.transport.write(self._chunk)


async def _sink(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        left = int.from_bytes(await reader.readexactly(HEADER), "big")
        writer.write(ANSWER)
        while left:
            data = await reader.read(READ_SIZE)
            if not data:
                raise ConnectionResetError("the client has gone")
            left -= len(data)
        writer.write(ANSWER)


async def serve(library: str, api: str, path: str) -> None:
    link = LINKS[library]
    if api == "streams":
        await serve_streams(link, _sink, path)
    else:
        await serve_protocol(link, {"buffered": BufferedSink, "protocol": ProtocolSink}[api], path)


async def connect(library: str, api: str, path: str, size: int) -> Run:
    link = LINKS[library]
    if api != "streams":
        return (await link.connect(lambda: Source(size), path)).run

    reader, writer = await link.connect_streams(path)
    chunk = bytes(size)

    async def run(count: int) -> None:
        writer.write((count * size).to_bytes(HEADER, "big"))
        await reader.readexactly(1)
        for _ in range(count):
            writer.write(chunk)
            await writer.drain()
        await reader.readexactly(1)

    return run
