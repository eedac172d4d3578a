"""The first example of the README: a service and its client, on an address that works on every machine."""

from __future__ import annotations

import asyncio

import aiohvsock
from aiohvsock.testing import local_address


async def handler(connection: aiohvsock.MessageConnection[bytes]) -> None:
    async for message in connection:
        await connection.send(b"you said: " + message)


async def main() -> None:
    with (
        local_address() as address
    ):  # between real machines: "vsock://any:2761" here, "vsock://host:2761" there
        async with await aiohvsock.serve(handler, address), aiohvsock.connect(address) as connection:
            await connection.send(b"hello")
            print(await connection.recv())


if __name__ == "__main__":
    asyncio.run(main())
