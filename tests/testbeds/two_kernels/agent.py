"""The guest's side: on each loop an echo, an echo of messages, and a port on which the host says what to dial.

An order is a JSON object, ``{"do": name, ...arguments}``; the answer is ``{"result": ...}`` or ``{"error": class, "errno":
number}``.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop

import aiohvsock
from aiohvsock import MessageConnection, VsockAddress
from aiohvsock.platforms import linux

__all__ = ["CONTROL", "ECHO", "MESSAGES", "NOBODY", "PORTS", "READY", "echo", "echo_messages", "exchange"]

PORTS = {"asyncio": 7000, "uvloop": 7100}
CONTROL, ECHO, MESSAGES, NOBODY = range(4)  # to be added
READY = "agent on {} is ready\n"

HOST = 2


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back, and end when the peer has."""
    while data := await reader.read(2**16):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
    writer.close()
    await writer.wait_closed()


async def echo_messages(connection: MessageConnection) -> None:
    async for message in connection:
        await connection.send(message)


async def exchange(address: VsockAddress, data: bytes) -> dict[str, Any]:
    """Dial an echo, send all, half-close, and read to the end."""

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    reader, writer = await aiohvsock.open_hv_connection(address)
    try:
        received, _ = await asyncio.gather(reader.read(), send())
    finally:
        writer.close()
        await writer.wait_closed()

    return {
        "peer": str(writer.get_extra_info("hv_peer")),
        "length": len(received),
        "digest": hashlib.sha256(received).hexdigest(),
    }


async def dial_echo(port: int, length: int) -> dict[str, Any]:
    return await exchange(VsockAddress(HOST, port), bytes(length))


async def dial_messages(port: int, lengths: list[int]) -> list[int]:
    async with aiohvsock.connect(VsockAddress(HOST, port)) as connection:
        for length in lengths:
            await connection.send(bytes(length))
        return [len(await connection.recv()) for _ in lengths]


async def read_to_the_end(port: int) -> str:
    reader, writer = await aiohvsock.open_hv_connection(VsockAddress(HOST, port))
    try:
        return (await reader.read()).decode()
    finally:
        writer.close()


async def local_cid() -> int | None:
    return linux.local_cid()


ORDERS: dict[str, Callable[..., Awaitable[Any]]] = {
    order.__name__: order for order in (dial_echo, dial_messages, read_to_the_end, local_cid)
}


async def obey(connection: MessageConnection) -> None:
    async for message in connection:
        order = json.loads(message)
        try:
            answer = {"result": await ORDERS[order.pop("do")](**order)}
        except Exception as error:
            answer = {
                "error": type(error).__name__,
                "errno": getattr(error, "errno", None),
                "text": str(error),
            }
        await connection.send(json.dumps(answer).encode())


async def serve(name: str) -> None:
    def address(offset: int) -> VsockAddress:
        return VsockAddress(aiohvsock.CID_ANY, PORTS[name] + offset)

    async with (
        await aiohvsock.start_hv_server(echo, address(ECHO)),
        await aiohvsock.serve(echo_messages, address(MESSAGES)),
        await aiohvsock.serve(obey, address(CONTROL)) as control,
    ):
        print(READY.format(name), end="", flush=True)
        await control.serve_forever()


def main() -> None:
    def run_on_uvloop() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve("uvloop"))

    threading.Thread(target=run_on_uvloop, daemon=True).start()
    asyncio.run(serve("asyncio"))


if __name__ == "__main__":
    main()
