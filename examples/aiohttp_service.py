"""A guest's HTTP service on aiohttp, and its host: a question, an upload that is streamed, a WebSocket.

The host has many guests, and calls each by its name. Between machines only the addresses change.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from aiohvsock import Address
from aiohvsock.contrib.aiohttp import HvConnector, HvSite
from aiohvsock.testing import local_address

# -- the guest ---------------------------------------------------------------------------------------------


async def status(request: web.Request) -> web.Response:
    return web.json_response({"healthy": True, "asked_by": request.remote})


async def upload(request: web.Request) -> web.Response:
    """Take a file of any size, a piece at a time."""
    size, digest = 0, hashlib.sha256()
    async for chunk in request.content.iter_any():
        size += len(chunk)
        digest.update(chunk)
    return web.json_response({"size": size, "sha256": digest.hexdigest()})


async def shell(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        await ws.send_str(f"you typed {message.data}")
    return ws


def service() -> web.Application:
    app = web.Application()
    app.add_routes([web.get("/status", status), web.put("/upload", upload), web.get("/shell", shell)])
    return app


# -- the host ----------------------------------------------------------------------------------------------


async def pieces(count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield os.urandom(2**16)


async def host(guests: dict[str, Address]) -> None:
    async with aiohttp.ClientSession(connector=HvConnector(guests)) as session:
        async with session.get("http://web-1/status") as answer:
            print("status:", await answer.json())
        async with session.put("http://web-1/upload", data=pieces(64)) as answer:
            print("taken:", (await answer.json())["size"], "bytes")
        async with session.ws_connect("ws://web-1/shell") as ws:
            await ws.send_str("uptime")
            print(await ws.receive_str())
        try:
            await session.get("http://web-2/status")
        except aiohttp.ClientConnectorError as error:
            print(error.os_error.strerror)


async def main() -> None:
    # Both in one program, to be tried on any machine. A guest says run_app(service(), "vsock://any:2761"), and its host
    # {"web-1": "vsock://3:2761"}.
    with local_address() as address:
        runner = web.AppRunner(service(), tcp_keepalive=False)
        await runner.setup()
        await HvSite(runner, address).start()
        try:
            await host({"web-1": address})
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
