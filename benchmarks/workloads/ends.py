"""What the workloads have in common: a server of one connection, a client that times itself."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable

from .links import Link

__all__ = ["SCRATCH", "VIEW", "Run", "ServedOnce", "measure", "serve_protocol", "serve_streams"]

Run = Callable[[int], Awaitable[None]]
"""Does the workload's step, a write or a round trip, so many times."""

SCRATCH = bytearray(256 * 1024)
VIEW = memoryview(SCRATCH)
"""Where the buffered protocols receive. One for the process: nothing stays in it between two reads."""


class ServedOnce:
    """The end of the one connection a server of ours has, and what ended it."""

    def __init__(self) -> None:
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __call__(self, error: BaseException | None = None) -> None:
        if self._over.done():
            return
        if error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)

    async def wait(self) -> None:
        print("ready", flush=True)
        await self._over


async def serve_protocol(
    link: Link, factory: Callable[[ServedOnce], asyncio.BaseProtocol], path: str
) -> None:
    """Serve one connection with the protocol made by `factory`, which calls its argument at the end."""
    over = ServedOnce()
    server = await link.listen(lambda: factory(over), path)
    await over.wait()
    server.close()


async def serve_streams(
    link: Link, handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], path: str
) -> None:
    """Serve one connection with `handler`."""
    over = ServedOnce()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except asyncio.IncompleteReadError as error:
            over(error if error.partial else None)
        except Exception as error:
            over(error)
            raise
        finally:
            over()
            writer.close()

    server = await link.listen_streams(once, path)
    await over.wait()
    server.close()


async def measure(run: Run, seconds: float) -> None:
    """Warm up until the speed is known, then run for about `seconds` and print what came of it."""
    count = 64
    while True:
        start = time.perf_counter()
        await run(count)
        elapsed = time.perf_counter() - start
        if elapsed >= seconds / 8:
            break
        count *= 2

    count = int(count * seconds / elapsed) + 1
    print("go", flush=True)
    start = time.perf_counter()
    await run(count)
    print(json.dumps({"count": count, "seconds": time.perf_counter() - start}), flush=True)
