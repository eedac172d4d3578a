"""The guest's half of an echo, the same in a Windows guest and in a Linux guest; echo_host.py is the other."""

from __future__ import annotations

import asyncio
import sys

import aiohvsock


async def main(address: str = "hvsock://parent:2761") -> None:
    async with aiohvsock.connect(address, retry=aiohvsock.Retry()) as connection:
        for message in (b"hello", b"from", b"a guest"):
            await connection.send(message)
            print("the host has said:", (await connection.recv()).decode())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
