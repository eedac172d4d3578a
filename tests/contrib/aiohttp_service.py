"""A service on aiohttp, its client, and what tests of both ask of them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from functools import cache
from hashlib import sha256
from typing import Any, NoReturn

import aiohttp
import trustme
from aiohttp import ClientTimeout, web

from aiohvsock import (
    Address,
    HybridAddress,
    HypervAddress,
)
from aiohvsock.addresses import AddressLike
from aiohvsock.contrib.aiohttp import HvConnector, HvSite

MIB = 2**20

# What is sent in the tests of memory: so much that it does not go unnoticed if it is all held.
LARGE = 32 * MIB


def machine(address: Address) -> str:
    """Return what request.remote is for a peer at this address."""
    if isinstance(address, HybridAddress):
        return address.path
    return str(address.vm_id if isinstance(address, HypervAddress) else address.cid)


# -- the service -------------------------------------------------------------------------------------------

NAME = web.AppKey("name", str)
SEEN = web.AppKey("seen", list[Any])  # what was asked: each request's transport


async def who(request: web.Request) -> web.Response:
    """Say which server this is, and who asks."""
    assert request.transport is not None
    request.app[SEEN].append(request.transport)
    peer = request.transport.get_extra_info("hv_peer")
    return web.json_response(
        {"server": request.app[NAME], "host": request.host, "remote": request.remote, "peer": str(peer)}
    )


async def digest(request: web.Request) -> web.Response:
    """Take an upload as it comes."""
    seen = sha256()
    async for chunk in request.content.iter_any():
        seen.update(chunk)
    return web.Response(text=seen.hexdigest())


async def zeros(request: web.Request) -> web.StreamResponse:
    """Send a download as it is taken."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(int(request.query["size"]) // MIB):
        await response.write(bytes(MIB))
    return response


async def file(request: web.Request) -> web.FileResponse:
    return web.FileResponse(request.query["path"])


async def chat(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for message in ws:
        await ws.send_str(message.data.upper())
    return ws


async def forever(request: web.Request) -> NoReturn:
    request.app[SEEN].append(request.transport)
    await asyncio.get_running_loop().create_future()
    raise AssertionError


def application(name: str = "one") -> web.Application:
    app = web.Application()
    app[NAME] = name
    app[SEEN] = []
    app.add_routes(
        [
            web.get("/", who),
            web.put("/digest", digest),
            web.get("/zeros", zeros),
            web.get("/file", file),
            web.get("/chat", chat),
            web.get("/forever", forever),
        ]
    )
    return app


@contextlib.asynccontextmanager
async def serving(address: AddressLike, name: str = "one", **options: Any) -> AsyncIterator[web.AppRunner]:
    runner = web.AppRunner(application(name), tcp_keepalive=False, shutdown_timeout=1.0)
    await runner.setup()
    site = HvSite(runner, address, **options)
    try:
        await site.start()
        yield runner
    finally:
        await runner.cleanup()
        if site.server is not None:
            # A monitor takes its time to pass on that a client is gone.
            await site.server.wait_closed()


@contextlib.asynccontextmanager
async def session(address: Any, **options: Any) -> AsyncIterator[aiohttp.ClientSession]:
    timeout = ClientTimeout(**options.pop("timeout", {}))
    async with aiohttp.ClientSession(connector=HvConnector(address, **options), timeout=timeout) as opened:
        yield opened


async def ask(client: aiohttp.ClientSession, url: str = "http://vm/", **options: Any) -> dict[str, str]:
    async with client.get(url, **options) as answer:
        assert answer.status == 200
        found: dict[str, str] = await answer.json()
        return found


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110  # aiohttp has no event for it
        await asyncio.sleep(0.001)


@cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext, bytes]:
    """Return a server's and a client's context, of an authority of their own, and the certificate's fingerprint."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = authority.issue_cert("guest.example")
    certificate.configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    der = ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())
    return server, client, sha256(der).digest()
