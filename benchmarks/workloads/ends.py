"""What the workloads have in common: a server that says when it is ready, a client that times itself."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from struct import Struct

from .links import Link

__all__ = [
    "ANSWER",
    "HEADER",
    "SCRATCH",
    "VIEW",
    "Run",
    "Serving",
    "measure",
    "pack",
    "serve_protocol",
    "serve_streams",
    "unpack_from",
]

Run = Callable[[int], Awaitable[None]]
"""Does the workload's step, a write, a message or a round trip, so many times."""

SCRATCH = bytearray(256 * 1024)
VIEW = memoryview(SCRATCH)
"""Where the buffered protocols receive. One for the process: nothing stays in it between two reads."""

_LENGTH = Struct(">Q")
HEADER = _LENGTH.size
pack, unpack_from = _LENGTH.pack, _LENGTH.unpack_from
"""A frame, where the API leaves that to its user: a length and a payload. A count is packed so too."""

ANSWER = b"\0"


class Serving:
    """How long a server of ours goes on: until its standard input ends, or until it is called with an error."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()

    def __call__(self, error: BaseException | None) -> None:
        if error is not None and not self._over.done():
            self._over.set_exception(error)

    async def wait(self) -> None:
        self._loop.add_reader(sys.stdin.fileno(), self._input_ended)
        print("ready", flush=True)
        await self._over

    def _input_ended(self) -> None:
        self._loop.remove_reader(sys.stdin.fileno())
        if not self._over.done():
            self._over.set_result(None)


async def serve_protocol(link: Link, factory: Callable[[Serving], asyncio.BaseProtocol], path: str) -> None:
    """Serve each connection with the protocol made by `factory`, which calls its argument with its errors."""
    serving = Serving()
    server = await link.listen(lambda: factory(serving), path)
    await serving.wait()
    server.close()


async def serve_streams(
    link: Link, handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], path: str
) -> None:
    """Serve each connection with `handler`, which may read on until there is nothing more."""
    serving = Serving()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                serving(error)
        except Exception as error:
            serving(error)
            raise
        finally:
            writer.close()

    server = await link.listen_streams(handle, path)
    await serving.wait()
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
