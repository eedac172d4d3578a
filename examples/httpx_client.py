"""A host asks its guests over HTTP with httpx: some are up, one is still booting, one is not there.

Between machines only the addresses change.
"""

from __future__ import annotations

import asyncio

import httpx
from aiohttp import web

from aiohvsock import Address, Retry
from aiohvsock.contrib.aiohttp import HvSite
from aiohvsock.contrib.httpx import HvTransport
from aiohvsock.testing import local_address

# -- the guest ---------------------------------------------------------------------------------------------


async def status(request: web.Request) -> web.Response:
    return web.json_response({"healthy": True, "asked_by": request.remote})


async def guest(address: Address, booted: asyncio.Event) -> None:
    await booted.wait()
    app = web.Application()
    app.add_routes([web.get("/status", status)])
    runner = web.AppRunner(app, tcp_keepalive=False)
    await runner.setup()
    await HvSite(runner, address).start()
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await runner.cleanup()


# -- the host ----------------------------------------------------------------------------------------------


async def host(guests: dict[str, Address], booted: asyncio.Event) -> None:
    patient = httpx.AsyncClient(transport=HvTransport(guests, retry=Retry()), timeout=30)
    async with patient as client:
        asking = asyncio.create_task(client.get("http://web-1/status"))
        booted.set()
        print("status:", (await asking).json())
    async with httpx.AsyncClient(transport=HvTransport(guests)) as client:
        try:
            await client.get("http://web-2/status")
        except httpx.ConnectError as error:
            print(error)


async def main() -> None:
    # Both in one program, to be tried on any machine. A guest listens at "vsock://any:2761", and to its host it is
    # {"web-1": "vsock://3:2761"}.
    booted = asyncio.Event()
    with local_address() as address:
        serving = asyncio.create_task(guest(address, booted))
        await host({"web-1": address}, booted)
        serving.cancel()
        await asyncio.wait([serving])


if __name__ == "__main__":
    asyncio.run(main())
