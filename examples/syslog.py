"""A host that collects the logs of its guests, in a framing that is not ours.

LinuxKit's guests send syslog lines over a VM socket, each with its length in decimal digits in front. With
``codec=`` a connection speaks that and nothing else. The guests are played by plain streams.
"""

from __future__ import annotations

import asyncio

import aiohvsock
from aiohvsock.framing import DecimalPrefixed
from aiohvsock.testing import local_address


async def collect(connection: aiohvsock.MessageConnection[bytes]) -> None:
    try:
        async for line in connection:
            print(line.decode(errors="backslashreplace"))
        print("-- end of log")
    except aiohvsock.ConnectionLost as lost:
        # An end inside a line. One between lines would look like the end of the log, whatever the reason.
        print(f"-- cut off: {lost.__cause__}")


async def guest(address: aiohvsock.Address, data: bytes) -> None:
    reader, writer = await aiohvsock.open_hv_connection(address)
    writer.write(data)
    writer.write_eof()
    await reader.read()  # until the host has closed its end, too
    writer.close()
    await writer.wait_closed()


async def main() -> None:
    with local_address() as address:
        codec = DecimalPrefixed(max_size=8192)
        async with await aiohvsock.serve(collect, address, codec=codec, max_connections=100):
            await guest(address, b"20 <30>1 guest7 started20 <30>1 guest7 stopped")
            await guest(address, b"20 <30>1 guest8 started99 <27>1 guest8 out of mem")


if __name__ == "__main__":
    asyncio.run(main())
