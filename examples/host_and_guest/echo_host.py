"""The host's half of an echo: ``python echo_host.py``, then ``python echo_guest.py`` in a virtual machine.

The same lines serve a Windows host and a Linux host. On a Windows host with ordinary Hyper-V machines, an administrator
registers the service once: ``python -c "from aiohvsock.hyperv import register_service; register_service('Echo', 2761)"``.
"""

from __future__ import annotations

import asyncio
import sys

import aiohvsock


async def echo(connection: aiohvsock.MessageConnection[bytes]) -> None:
    print("a guest has called:", connection.peer_address, flush=True)
    async for message in connection:
        await connection.send(message)


async def main(address: str = "hvsock://any:2761") -> None:
    async with await aiohvsock.serve(echo, address) as server:
        print("listening on", server.address, flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        pass
