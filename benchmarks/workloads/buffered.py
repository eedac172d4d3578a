"""Frames over a BufferedProtocol, as one writes it by hand."""

from __future__ import annotations

import asyncio
from typing import cast

from .ends import ANSWER, HEADER, SCRATCH, VIEW, Run, Serving, pack, serve_protocol, unpack_from
from .links import Link

__all__ = ["Speaker"]


class Framed(asyncio.BufferedProtocol):
    """Frames cut from a shared buffer, which they must fit in, and a Python method for each."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's aren't subclasses, so nothing is checked here.
        self.transport = cast(asyncio.Transport, transport)

    def send(self, payload: bytes) -> None:
        self.transport.write(pack(len(payload)) + payload)

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
        if end >= HEADER and unpack_from(SCRATCH)[0] == end - HEADER:  # one whole frame, as nearly always
            self._rest = b""
            self.message_received(bytes(VIEW[HEADER:end]))
        else:
            self._cut(bytes(VIEW[:end]))

    def _cut(self, data: bytes) -> None:
        end, start = len(data), 0
        while end - start >= HEADER:
            size: int = unpack_from(data, start)[0]
            if size > len(SCRATCH) - HEADER:
                raise ValueError(f"a frame of {size} bytes")
            stop = start + HEADER + size
            if stop > end:
                break
            self.message_received(data[start + HEADER : stop])
            start = stop
        self._rest = data[start:]


class Served(Framed):
    def __init__(self, serving: Serving) -> None:
        super().__init__()
        self._serving = serving

    def connection_lost(self, exc: Exception | None) -> None:
        self._serving(exc)


class Echo(Served):
    def message_received(self, message: bytes) -> None:
        self.send(message)


class Count(Served):
    _left = 0

    def message_received(self, message: bytes) -> None:
        if self._left:
            self._left -= 1
            if not self._left:
                self.send(ANSWER)
        else:
            self._left = int.from_bytes(message, "big")


class Client(Framed):
    _done: asyncio.Future[None]

    def __init__(self, payload: bytes) -> None:
        super().__init__()
        self._payload = payload
        self._left = 0

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionResetError("the server has gone"))

    async def run(self, count: int) -> None:
        self._left = count
        self._done = asyncio.get_running_loop().create_future()
        self.start()
        await self._done

    def start(self) -> None:
        raise NotImplementedError


class Pinger(Client):
    def start(self) -> None:
        self.send(self._payload)

    def message_received(self, message: bytes) -> None:
        self._left -= 1
        if self._left:
            self.send(self._payload)
        else:
            self._done.set_result(None)


class Sender(Client):
    _paused = False

    def start(self) -> None:
        self.send(pack(self._left))
        self._send_more()

    def _send_more(self) -> None:
        while self._left and not self._paused:
            self._left -= 1
            self.send(self._payload)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send_more()

    def message_received(self, message: bytes) -> None:
        self._done.set_result(None)


class Speaker:
    def __init__(self, link: Link) -> None:
        self._link = link

    async def serve_echo(self, path: str) -> None:
        await serve_protocol(self._link, Echo, path)

    async def serve_count(self, path: str) -> None:
        await serve_protocol(self._link, Count, path)

    async def pinger(self, path: str, size: int) -> Run:
        return (await self._link.connect(lambda: Pinger(bytes(size)), path)).run

    async def sender(self, path: str, size: int) -> Run:
        return (await self._link.connect(lambda: Sender(bytes(size)), path)).run
