"""The message layer of aiohvsock, by each of its APIs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol, Self

from . import speakers
from .ends import ANSWER, Run, Serving, pack
from .links import HvLink

__all__ = ["SPEAKERS"]

# Bytes given to send_many() at a time.
BATCH = 64 * 1024


class Connection(Protocol):
    """What is used of `aiohvsock.MessageConnection`."""

    async def send(self, data: bytes) -> None: ...
    def send_nowait(self, data: bytes) -> None: ...
    async def send_many(self, messages: Iterable[bytes]) -> None: ...
    async def recv(self) -> bytes: ...
    async def recv_many(self) -> list[bytes]: ...
    def __aiter__(self) -> Self: ...
    async def __anext__(self) -> bytes: ...


Handler = Callable[[Connection], Awaitable[None]]
OnMessage = Callable[[Connection, bytes], object]


async def _serve(path: str, handler: Handler | None = None, **options: OnMessage) -> None:
    """Serve each connection with `handler`, which may receive on until there is nothing more, or a callback."""
    import aiohvsock

    # Any, because versions without parts of the message layer are measured too.
    package: Any = aiohvsock
    serving = Serving()

    # What the handler raises is logged; the connection is then closed, which the client reports.
    server = await package.serve(handler, HvLink.address(path), **options)
    await serving.wait()
    server.close()


async def _connect(path: str, **options: OnMessage) -> Connection:
    import aiohvsock

    package: Any = aiohvsock
    connection: Connection = await package.connect(sock=await HvLink.dial(path), **options)
    return connection


class Callback:
    """`on_message` at both ends. What is sent without a message to answer goes out with `send_many`."""

    async def serve_echo(self, path: str) -> None:
        await _serve(path, on_message=lambda connection, message: connection.send_nowait(message))

    async def serve_count(self, path: str) -> None:
        left = 0

        def count(connection: Connection, message: bytes) -> None:
            nonlocal left
            if left:
                left -= 1
                if not left:
                    connection.send_nowait(ANSWER)
            else:
                left = int.from_bytes(message, "big")

        await _serve(path, on_message=count)

    async def pinger(self, path: str, size: int) -> Run:
        payload = bytes(size)
        left = 0
        done: asyncio.Future[None]

        def ping(connection: Connection, message: bytes) -> None:
            nonlocal left
            left -= 1
            if left:
                connection.send_nowait(payload)
            else:
                done.set_result(None)

        connection = await _connect(path, on_message=ping)

        async def run(count: int) -> None:
            nonlocal left, done
            left = count
            done = asyncio.get_running_loop().create_future()
            connection.send_nowait(payload)
            await done

        return run

    async def sender(self, path: str, size: int) -> Run:
        done: asyncio.Future[None]
        connection = await _connect(path, on_message=lambda connection, message: done.set_result(None))
        send = _in_batches(connection, size)

        async def run(count: int) -> None:
            nonlocal done
            done = asyncio.get_running_loop().create_future()
            await send(count)
            await done

        return run


class Await:
    """`send` and `recv`."""

    async def serve_echo(self, path: str) -> None:
        async def echo(connection: Connection) -> None:
            while True:
                await connection.send(await connection.recv())

        await _serve(path, echo)

    async def serve_count(self, path: str) -> None:
        async def count(connection: Connection) -> None:
            while True:
                for _ in range(int.from_bytes(await connection.recv(), "big")):
                    await connection.recv()
                await connection.send(ANSWER)

        await _serve(path, count)

    async def pinger(self, path: str, size: int) -> Run:
        connection = await _connect(path)
        payload = bytes(size)

        async def run(count: int) -> None:
            for _ in range(count):
                await connection.send(payload)
                await connection.recv()

        return run

    async def sender(self, path: str, size: int) -> Run:
        connection = await _connect(path)
        payload = bytes(size)

        async def run(count: int) -> None:
            await connection.send(pack(count))
            for _ in range(count):
                await connection.send(payload)
            await connection.recv()

        return run


class AsyncFor(Await):
    """`send` and `async for`."""

    async def serve_count(self, path: str) -> None:
        async def count(connection: Connection) -> None:
            left = 0
            async for message in connection:
                if left:
                    left -= 1
                    if not left:
                        await connection.send(ANSWER)
                else:
                    left = int.from_bytes(message, "big")

        await _serve(path, count)


class Many(Await):
    """`send_many` and `recv_many`."""

    async def serve_count(self, path: str) -> None:
        async def count(connection: Connection) -> None:
            left = 0
            while True:
                for message in await connection.recv_many():
                    if left:
                        left -= 1
                        if not left:
                            await connection.send(ANSWER)
                    else:
                        left = int.from_bytes(message, "big")

        await _serve(path, count)

    async def sender(self, path: str, size: int) -> Run:
        connection = await _connect(path)
        send = _in_batches(connection, size)

        async def run(count: int) -> None:
            await send(count)
            await connection.recv()

        return run


def _in_batches(connection: Connection, size: int) -> Run:
    batch = [bytes(size)] * max(1, BATCH // size)

    async def send(count: int) -> None:
        await connection.send(pack(count))
        for _ in range(count // len(batch)):
            await connection.send_many(batch)
        await connection.send_many(batch[: count % len(batch)])

    return send


SPEAKERS: Mapping[str, speakers.Speaker] = {
    "callback": Callback(),
    "await": Await(),
    "async-for": AsyncFor(),
    "many": Many(),
}
