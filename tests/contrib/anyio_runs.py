"""Run a test on every backend of anyio's, asyncio on each of its loops and trio; and what such tests share."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trustme
from anyio import aclose_forcefully, create_task_group
from anyio.abc import ByteStream

from aiohvsock.contrib.anyio import HvStream, MessageStream
from aiohvsock.protocol import Hello

from ..conftest import LOOPS, Pair

__all__ = [
    "BACKENDS",
    "DATA",
    "HELLO",
    "asyncio_elsewhere",
    "both",
    "clog",
    "contexts",
    "everywhere",
    "expect",
    "on",
    "one",
    "read_to_end",
    "shout",
    "streams",
    "until",
]

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    name: ("asyncio", {"loop_factory": factory, "debug": True}) for name, factory in LOOPS.items()
}
if sys.platform != "win32":  # where trio has not been tried on AF_HYPERV
    BACKENDS["trio"] = ("trio", {})


def on(name: str, test: Callable[..., Awaitable[object]]) -> None:
    """Run a test on one backend."""
    backend, options = BACKENDS[name]
    anyio.run(test, backend=backend, backend_options=options)


def everywhere(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make an asynchronous test a plain one, which pytest-asyncio leaves alone, on every backend."""

    def run(backend: str, **fixtures: Any) -> None:
        on(backend, functools.partial(test, **fixtures))

    run.__name__, run.__doc__, run.__module__ = test.__name__, test.__doc__, test.__module__
    run.pytestmark = list(getattr(test, "pytestmark", ()))  # type: ignore[attr-defined]
    backend = inspect.Parameter("backend", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [backend, *inspect.signature(test).parameters.values()]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parametrised: Callable[..., None] = pytest.mark.parametrize("backend", BACKENDS)(run)
    return parametrised


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds that another task brings about."""
    while not condition():
        await anyio.lowlevel.checkpoint()


@contextlib.asynccontextmanager
async def asyncio_elsewhere(
    body: Callable[[Callable[[], None], asyncio.Event], Awaitable[None]],
) -> AsyncIterator[None]:
    """Run something of asyncio's in a thread and a loop of its own, whatever the backend is here.

    Args:
        body: is given a function to call when it is ready, and an event that tells it to end.
    """
    ready = threading.Event()
    ends: list[Callable[[], object]] = []
    failures: list[BaseException] = []

    async def main() -> None:
        stop = asyncio.Event()
        ends.append(functools.partial(asyncio.get_running_loop().call_soon_threadsafe, stop.set))
        await body(ready.set, stop)

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    await anyio.to_thread.run_sync(ready.wait)
    try:
        if not failures:
            yield
    finally:
        with contextlib.suppress(RuntimeError):  # its loop has ended by itself
            ends[0]()
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(thread.join)
    if failures:
        raise failures[0]


@functools.cache
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the TLS contexts of a server named ``vm`` and of its client."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("vm").configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    return server, client


# -- streams ------------------------------------------------------------------------------------------------

DATA = os.urandom(2**20)


async def streams(pair: Pair) -> tuple[HvStream, HvStream]:
    ours, theirs = pair()
    return await HvStream.from_socket(ours), await HvStream.from_socket(theirs)


async def shout(stream: ByteStream) -> None:
    """Answer in capitals, to the end."""
    async with stream:
        async for data in stream:
            await stream.send(data.upper())
        await stream.send_eof()


async def read_to_end(stream: ByteStream) -> bytes:
    return b"".join([data async for data in stream])


async def expect(error: object, operation: Callable[[], Awaitable[object]]) -> None:
    allowed = error if isinstance(error, tuple) else (error,)
    try:
        await operation()
    except tuple(each for each in allowed if each is not None):
        return
    assert None in allowed


# -- messages -----------------------------------------------------------------------------------------------

HELLO = Hello(2**20).encode()


@contextlib.asynccontextmanager
async def both(pair: Pair) -> AsyncIterator[tuple[MessageStream[bytes], MessageStream[bytes]]]:
    """Give both ends of a connection; whoever is left is closed at the end."""
    ours, theirs = await streams(pair)
    ends: list[MessageStream[bytes]] = []
    stop = anyio.Event()

    async def other() -> None:
        async with MessageStream(theirs) as end:
            ends.append(end)
            await stop.wait()

    async with create_task_group() as tasks:
        tasks.start_soon(other)
        try:
            async with MessageStream(ours) as end:
                await until(lambda: bool(ends))
                yield end, ends[0]
        finally:
            stop.set()


@contextlib.asynccontextmanager
async def one(pair: Pair, **options: float) -> AsyncIterator[tuple[MessageStream[bytes], HvStream]]:
    """Give one end, and what has come from it apart from its hello; the peer has said hello."""
    ours, theirs = await streams(pair)
    async with theirs:
        await theirs.send(HELLO)
        async with MessageStream(ours, **options) as end:  # type: ignore[call-overload]
            await theirs.receive(len(HELLO))
            try:
                yield end, theirs
            finally:
                await aclose_forcefully(theirs)  # nobody is there to confirm a close


async def clog(end: MessageStream[bytes]) -> int:
    """Send until no more is taken; returns how many messages were."""
    count = 0
    while True:
        with anyio.move_on_after(0.05) as scope:
            await end.send(b"%6d" % count + bytes(60_000))
        if scope.cancelled_caught:
            return count
        count += 1
