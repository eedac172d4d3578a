"""The demo's second half: an aiohttp service on the host, and its client in the guest."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from ..addresses import Address, AddressLike
from ..dialling import Retry

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["ask", "has_aiohttp", "serve_one"]

# Bytes of the upload, and of one piece.
_SIZE = 16 * 2**20
_PIECE = 64 * 1024
_MEASURE = 1.0

Say = Callable[[str], None]


def has_aiohttp() -> bool:
    return importlib.util.find_spec("aiohttp") is not None


async def serve_one(address: AddressLike, say: Say) -> None:
    """Serve until one guest has uploaded a file."""
    from aiohttp import web

    from ..contrib.aiohttp import HvSite

    uploaded = asyncio.Event()

    async def status(request: web.Request) -> web.Response:
        return web.json_response({"healthy": True, "asked_by": request.remote})

    async def upload(request: web.Request) -> web.Response:
        size, digest = 0, hashlib.sha256()
        async for piece in request.content.iter_any():
            size += len(piece)
            digest.update(piece)
        say(f"{request.method} {request.path}: {size // 2**20} MiB, a piece at a time")
        uploaded.set()
        return web.json_response({"size": size, "sha256": digest.hexdigest()})

    app = web.Application()
    app.add_routes([web.get("/status", status), web.put("/upload", upload)])
    runner = web.AppRunner(app, access_log=None, tcp_keepalive=False)
    await runner.setup()
    try:
        site = HvSite(runner, address)
        await site.start()
        say(f"an aiohttp service at {site.name}")
        await uploaded.wait()
    finally:
        # It gives the answer that is under way the time it needs.
        await runner.cleanup()


async def ask(address: Address, say: Say) -> None:
    """Ask the host's service, and upload a file to it."""
    import aiohttp

    from ..contrib.aiohttp import HvConnector

    digest = hashlib.sha256()

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(_SIZE // _PIECE):
            piece = os.urandom(_PIECE)
            digest.update(piece)
            yield piece

    async with aiohttp.ClientSession("http://host", connector=HvConnector(address, retry=Retry())) as session:
        async with session.get("/status") as answer:
            say(f"GET /status    {answer.status} {await answer.text()}")
        count = 0
        started = time.perf_counter()
        while (elapsed := time.perf_counter() - started) < _MEASURE:
            async with session.get("/status") as answer:
                await answer.read()
            count += 1
        say(f"requests       {count / elapsed:,.0f} a second, one after the other")
        async with session.put("/upload", data=pieces()) as answer:
            same = (await answer.json())["sha256"] == digest.hexdigest()
            say(f"PUT /upload    {answer.status}, {'the same' if same else 'ANOTHER'} SHA-256 on both sides")
    if not same:
        raise RuntimeError("what the host got is not what was sent")
