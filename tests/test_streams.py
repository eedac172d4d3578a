from __future__ import annotations

import asyncio
import os

from aiohvsock import Address, open_hv_connection, start_hv_server


async def test_echo(address: Address) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    data = os.urandom(2**20)
    async with await start_hv_server(handler, address):
        reader, writer = await open_hv_connection(address)
        writer.write(data)
        writer.write_eof()
        assert await reader.read() == data
        writer.close()
        await writer.wait_closed()
