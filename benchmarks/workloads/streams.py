"""Frames over a reader and a writer."""

from __future__ import annotations

import asyncio

from .ends import ANSWER, HEADER, Run, pack, serve_streams, unpack_from
from .links import Link

__all__ = ["Speaker"]


async def _read_frame(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(unpack_from(await reader.readexactly(HEADER))[0])


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        payload = await _read_frame(reader)
        writer.write(pack(len(payload)) + payload)
        await writer.drain()


async def _count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        left = int.from_bytes(await _read_frame(reader), "big")
        while left:
            await _read_frame(reader)
            left -= 1
        writer.write(pack(len(ANSWER)) + ANSWER)


class Speaker:
    def __init__(self, link: Link) -> None:
        self._link = link

    async def serve_echo(self, path: str) -> None:
        await serve_streams(self._link, _echo, path)

    async def serve_count(self, path: str) -> None:
        await serve_streams(self._link, _count, path)

    async def pinger(self, path: str, size: int) -> Run:
        reader, writer = await self._link.connect_streams(path)
        payload = bytes(size)

        async def run(count: int) -> None:
            for _ in range(count):
                writer.write(pack(size) + payload)
                await writer.drain()
                await _read_frame(reader)

        return run

    async def sender(self, path: str, size: int) -> Run:
        reader, writer = await self._link.connect_streams(path)
        payload = bytes(size)

        async def run(count: int) -> None:
            writer.write(pack(HEADER) + pack(count))
            for _ in range(count):
                writer.write(pack(size) + payload)
                await writer.drain()
            await _read_frame(reader)

        return run
