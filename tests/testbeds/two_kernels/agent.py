"""The guest's side: on each loop an echo, an echo of messages, a service that answers numbers, and a port for orders.

An order is a JSON object, ``{"do": name, ...arguments}``; the answer is ``{"result": ...}`` or ``{"error": class, "errno":
number}``. The names are the methods of `Orders`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import sys
import termios
import threading
from pathlib import Path
from typing import Any

import uvloop

import aiohvsock
from aiohvsock import ConnectionClosed, MessageConnection, MessageServer, VsockAddress
from aiohvsock.platforms import linux

from .counting import Client, Service

__all__ = [
    "CONTROL",
    "COUNTING",
    "ECHO",
    "EXAMPLES",
    "MESSAGES",
    "NOBODY",
    "PORTS",
    "READY",
    "SERVED",
    "echo",
    "echo_messages",
    "exchange",
]

PORTS = {"asyncio": 7000, "uvloop": 7100}
CONTROL, ECHO, MESSAGES, COUNTING, NOBODY = range(5)  # to be added
READY = "agent on {} is ready\n"
SERVED = "{} served {}.\n"

HOST = 2

EXAMPLES = Path(__file__).parents[3] / "examples" / "host_and_guest"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send everything back, and end when the peer has."""
    while data := await reader.read(2**16):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
    writer.close()
    await writer.wait_closed()


async def echo_messages(connection: MessageConnection[bytes]) -> None:
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


def log_served(name: str, number: int) -> None:
    """Tell the host that a number was served, whatever becomes of this machine afterwards."""
    os.write(sys.stdout.fileno(), SERVED.format(name, number).encode())
    termios.tcdrain(sys.stdout.fileno())


class Orders:
    """What the host may ask for, on one loop."""

    def __init__(self, counting: VsockAddress) -> None:
        self._address = counting
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().partition("-")[0]
        self._starts = 0
        self._server: MessageServer[bytes] | None = None
        self._client: Client | None = None

    async def boot(self) -> str:
        """What names this boot."""
        return self._boot

    async def local_cid(self) -> int | None:
        return linux.local_cid()

    async def dial_echo(self, port: int, length: int) -> dict[str, Any]:
        return await exchange(VsockAddress(HOST, port), bytes(length))

    async def run_example(self, name: str) -> str:
        """Run one of the guest's halves, and return what it printed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(EXAMPLES / name),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        return (await process.communicate())[0].decode()

    async def dial_messages(self, port: int, lengths: list[int]) -> list[int]:
        async with aiohvsock.connect(VsockAddress(HOST, port)) as connection:
            for length in lengths:
                await connection.send(bytes(length))
            return [len(await connection.recv()) for _ in lengths]

    async def read_to_the_end(self, port: int) -> str:
        reader, writer = await aiohvsock.open_hv_connection(VsockAddress(HOST, port))
        try:
            return (await reader.read()).decode()
        finally:
            writer.close()

    async def echo_to_the_end(self, port: int, heartbeat: float, heartbeat_timeout: float) -> dict[str, Any]:
        """Dial a server of messages, and be its echo; tells how that ended."""
        connection = await aiohvsock.connect(
            VsockAddress(HOST, port), heartbeat=heartbeat, heartbeat_timeout=heartbeat_timeout
        )
        try:
            await echo_messages(connection)
        except ConnectionClosed:
            pass
        finally:
            await connection.close()

        end = connection.end
        assert end is not None
        return {"end": type(end).__name__, "code": end.code, "pings": connection.stats.pings_sent}

    async def start_service(self) -> str:
        """Start the service that answers numbers; returns its name."""
        self._starts += 1
        service = Service(f"{self._boot}/{self._starts}", log_served)
        self._server = await aiohvsock.serve(service.answer, self._address)

        return service.name

    async def stop_service(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def start_counting(self, port: int) -> None:
        """Start a client, of a service of the host."""
        self._client = Client(VsockAddress(HOST, port), heartbeat=1.0, heartbeat_timeout=1.0)
        self._client.start()

    async def stop_counting(self) -> dict[str, Any]:
        """Stop it; returns its journal."""
        assert self._client is not None
        return dataclasses.asdict(await self._client.stop())

    async def obey(self, connection: MessageConnection[bytes]) -> None:
        async for message in connection:
            order = json.loads(message)
            try:
                answer = {"result": await getattr(self, order.pop("do"))(**order)}
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

    orders = Orders(address(COUNTING))
    await orders.start_service()
    async with (
        await aiohvsock.start_hv_server(echo, address(ECHO)),
        await aiohvsock.serve(echo_messages, address(MESSAGES)),
        await aiohvsock.serve(orders.obey, address(CONTROL)) as control,
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
