"""A whole HTTP stack runs on these transports: aiohttp's server and client, by create_hv_server and create_hv_connection."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.client_proto import ResponseHandler

import aiohvsock
from aiohvsock import Address


class Connector(aiohttp.BaseConnector):
    """Dials one address, whatever the URL says."""

    def __init__(self, address: Address) -> None:
        super().__init__()
        self._address = address

    async def _create_connection(self, req: Any, traces: Any, timeout: Any) -> ResponseHandler:
        loop = asyncio.get_running_loop()
        _, protocol = await aiohvsock.create_hv_connection(lambda: ResponseHandler(loop), self._address)
        return protocol


async def hello(request: web.Request) -> web.Response:
    return web.Response(text=f"hello {request.query['name']}")


async def upload(request: web.Request) -> web.StreamResponse:
    """Send back what comes, as it comes."""
    response = web.StreamResponse()
    await response.prepare(request)
    async for chunk in request.content.iter_any():
        await response.write(chunk)
    return response


async def chat(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(message.data.upper())
    return socket


async def test_aiohttp(address: Address) -> None:
    app = web.Application(client_max_size=0)
    app.add_routes([web.get("/hello", hello), web.post("/upload", upload), web.get("/chat", chat)])
    runner = web.AppRunner(app, tcp_keepalive=False)  # which AF_HYPERV does not have
    await runner.setup()
    assert runner.server is not None
    data = os.urandom(2**20)
    async with (
        await aiohvsock.create_hv_server(runner.server, address),
        aiohttp.ClientSession(connector=Connector(address)) as session,
    ):
        for name in ("one", "two", "three"):
            async with session.get("http://vm/hello", params={"name": name}) as answer:
                assert await answer.text() == f"hello {name}"
        assert len(await asyncio.gather(*(get(session, str(number)) for number in range(50)))) == 50
        async with session.post("http://vm/upload", data=data) as answer:
            assert await answer.read() == data
        async with session.ws_connect("http://vm/chat") as socket:
            await socket.send_str("hello")
            assert await socket.receive_str() == "HELLO"
        await session.close()
        await runner.cleanup()


async def get(session: aiohttp.ClientSession, name: str) -> str:
    async with session.get("http://vm/hello", params={"name": name}) as answer:
        assert answer.status == 200
        return await answer.text()
