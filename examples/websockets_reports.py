"""A guest reports to its host over a WebSocket, and goes on when the host's service is restarted.

Between machines only the addresses change: the host listens at "vsock://any:2761", a guest dials "vsock://host:2761".
"""

from __future__ import annotations

import asyncio
import json
from collections import deque

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from aiohvsock import Address, Retry
from aiohvsock.contrib.websockets import connect, serve
from aiohvsock.testing import local_address

# -- the host ----------------------------------------------------------------------------------------------


async def take(websocket: ServerConnection) -> None:
    guest = websocket.transport.get_extra_info("hv_peer")  # it is who the hypervisor says it is
    print("connected:", type(guest).__name__)
    async for report in websocket:
        print("reported:", json.loads(report))
        await websocket.send("noted")


async def host(address: Address, done: asyncio.Event) -> None:
    first = asyncio.Event()

    async def take_the_first(websocket: ServerConnection) -> None:
        print("reported:", json.loads(await websocket.recv()))
        await websocket.send("noted")
        first.set()
        await websocket.wait_closed()

    async with serve(take_the_first, address):
        await first.wait()
    print("the service is restarted")
    async with serve(take, address, max_connections=100):
        await done.wait()


# -- the guest ---------------------------------------------------------------------------------------------


async def guest(address: Address) -> None:
    reports = deque({"number": number, "load": 0.25} for number in range(3))
    async for websocket in connect(address, "ws://host/reports", reconnect_delays=Retry().delays):
        try:
            while reports:
                await websocket.send(json.dumps(reports[0]))
                await websocket.recv()
                reports.popleft()  # not before it is noted
            await websocket.close()
            break
        except ConnectionClosed as error:
            print("connecting again:", error)


async def main() -> None:
    # Both in one program, to be tried on any machine.
    done = asyncio.Event()
    with local_address() as address:
        serving = asyncio.create_task(host(address, done))
        await guest(address)
        done.set()
        await serving


if __name__ == "__main__":
    asyncio.run(main())
