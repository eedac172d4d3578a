"""A service and its client on anyio: bytes, then messages, on whichever backend is there, trio for one."""

from __future__ import annotations

import importlib.util

import anyio

from aiohvsock.contrib.anyio import HvAttribute, HvStream, MessageStream, connect_hv, create_hv_listener
from aiohvsock.testing import local_address


async def echo(stream: HvStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send(data)


async def shout(stream: HvStream) -> None:
    async with MessageStream(stream) as messages:
        async for message in messages:
            await messages.send(message.upper())


async def main() -> None:
    with (
        local_address() as address
    ):  # between real machines: "vsock://any:2761" here, "vsock://host:2761" there
        async with await create_hv_listener(address) as listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, echo)
            async with await connect_hv(address) as stream:
                print("the service is", stream.extra(HvAttribute.peer_address))
                await stream.send(b"hello")
                print(await stream.receive())
            tasks.cancel_scope.cancel()

        async with await create_hv_listener(address) as listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, shout)
            async with MessageStream(await connect_hv(address)) as messages:
                await messages.send(b"hello")
                print(await messages.receive())
            tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main, backend="trio" if importlib.util.find_spec("trio") else "asyncio")
