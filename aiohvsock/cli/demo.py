"""``aiohvsock demo``: a host agent and a guest agent, two processes, talk framed messages, and HTTP where aiohttp is."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from .. import __version__
from ..addresses import AddressLike, HybridAddress, HypervAddress, VsockAddress, parse_address, to_address
from ..dialling import Retry
from ..messages import MessageConnection, connect, serve
from ..testing import local_address
from . import demo_http
from .output import say

__all__ = ["add_parser"]

# The whole demo ends by itself in under 20 s: some measurements, and a limit for everything.
_MEASURE = 2.0
_LIMIT = 18.0

_PING = bytes(256)
_CHUNK = bytes(64 * 1024)

# On Windows any signal but Ctrl-C does.
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)

_EXAMPLE = """\
examples:
  aiohvsock demo                                      both agents on this machine
  aiohvsock demo --role host vsock://any:2761         the host's half, on a host
  aiohvsock demo --role guest vsock://host:2761       the guest's half, in a guest
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="a host agent and a guest agent talk to each other",
        description=__doc__,
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--role", choices=("host", "guest"), help="run one of the agents only")
    parser.add_argument(
        "--loop", choices=("auto", "asyncio", "uvloop"), default="auto", help="default: %(default)s"
    )
    parser.add_argument(
        "address", nargs="?", help="where the host agent listens; default: one on this machine"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.role is None:
        if arguments.address is not None:
            return asyncio.run(_run_both(arguments.loop, str(parse_address(arguments.address))))
        with local_address() as address:
            return asyncio.run(_run_both(arguments.loop, str(address)))
    if arguments.address is None:
        print("aiohvsock demo: --role needs an address, as in vsock://host:2761", file=sys.stderr)
        return 2
    agent = _host if arguments.role == "host" else _guest
    loop_factory = _loop_factory(arguments.loop)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_limited(agent(arguments.address), arguments.role))


async def _run_both(loop: str, address: str) -> int:
    """Start each agent as a process of its own, and wait for both, or for one that fails."""
    agents = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "aiohvsock", "demo", "--loop", loop, "--role", role, address
        )
        for role in ("host", "guest")
    ]
    try:
        for ending in asyncio.as_completed([agent.wait() for agent in agents]):
            if status := await ending:
                return abs(status)
        return 0
    finally:
        for agent in agents:
            if agent.returncode is None:
                # Not agent.kill(): that can reap the process behind asyncio's back, which then complains on stderr.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(agent.pid, _KILL)
            await agent.wait()


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if name == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if name == "uvloop":
            raise SystemExit(
                "aiohvsock demo: uvloop is not installed; pip install aiohvsock[uvloop]"
            ) from None
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


async def _limited(agent: Any, role: str) -> int:
    try:
        async with asyncio.timeout(_LIMIT) as limit:
            await agent
    except TimeoutError:
        if not limit.expired():
            raise
        _say(role, f"gave up after {_LIMIT:g} s")
        return 1
    return 0


def _say(role: str, text: str) -> None:
    # One write for the whole line: the other agent prints to the same terminal.
    say(f"{role:>5} | {text}")


# -- the host's half ---------------------------------------------------------------------------------------


async def _host(address: AddressLike) -> None:
    """Serve one guest: messages, and then HTTP at the same address."""
    served: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def handler(connection: MessageConnection[bytes]) -> None:
        try:
            _say("host", f"a guest called: {connection.peer_address}")
            with_http = await _answer(connection)
        except Exception as error:
            served.set_exception(error)
        else:
            served.set_result(with_http)

    async with await serve(handler, address, max_connections=1) as server:
        _say("host", f"listening on {server.address}")
        with_http = await served
    if with_http:
        await demo_http.serve_one(address, partial(_say, "host"))


async def _answer(connection: MessageConnection[bytes]) -> bool:
    """Return whether both sides have HTTP."""
    hello = json.loads(await connection.recv())
    _say("host", f"it says: {hello['text']}")
    with_http = bool(hello["http"] and demo_http.has_aiohttp())
    welcome = {"text": f"welcome, this is {_self()}", "time": time.time(), "http": with_http}
    await connection.send(json.dumps(welcome).encode())
    received = 0
    async for message in connection:
        match message[:1]:
            case b"=":
                await connection.send(b"%d" % received)
                received = 0
            case b"+":
                received += len(message)
            case _:
                await connection.send(message)
    _say("host", "the guest hung up")
    return with_http


# -- the guest's half --------------------------------------------------------------------------------------


async def _guest(address: AddressLike) -> None:
    """Call the host, and measure how well one can talk to it."""
    address = to_address(address)
    _say("guest", f"calling {address}")
    async with connect(address, retry=Retry()) as connection:
        hello = {"text": f"hello, this is {_self()}", "http": demo_http.has_aiohttp()}
        await connection.send(json.dumps(hello).encode())
        welcome = json.loads(await connection.recv())
        _say("guest", f"the host says: {welcome['text']}")
        _say("guest", f"its clock is {(welcome['time'] - time.time()) * 1000:+.1f} ms from mine")
        trips = await _round_trips(connection)
        speed = await _throughput(connection)
    loop = asyncio.get_running_loop()
    _say("guest", f"address kind   {_kind(address)}")
    _say("guest", f"event loop     {type(loop).__module__}.{type(loop).__qualname__}")
    _say("guest", f"transport      {type(connection.transport).__qualname__}")
    _say("guest", f"round trips    {trips:,.0f} a second, {len(_PING)} bytes each way")
    _say("guest", f"throughput     {speed / 2**20:,.0f} MiB/s, {len(_CHUNK) // 1024} KiB messages")
    if welcome["http"]:
        await demo_http.ask(address, partial(_say, "guest"))
    else:
        _say("guest", "no HTTP        both sides need aiohttp: pip install aiohvsock[aiohttp]")


async def _round_trips(connection: MessageConnection[bytes]) -> float:
    """Return round trips per second."""
    count = 0
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < _MEASURE:
        await connection.send(_PING)
        await connection.recv()
        count += 1
    return count / elapsed


async def _throughput(connection: MessageConnection[bytes]) -> float:
    """Return bytes per second from here to the host, which confirms them all."""
    chunk = b"+" + _CHUNK
    started = time.perf_counter()
    while time.perf_counter() - started < _MEASURE:
        await connection.send(chunk)
    await connection.send(b"=")
    received = int(await connection.recv())
    return received / (time.perf_counter() - started)


def _self() -> str:
    return (
        f"aiohvsock {__version__} on Python {platform.python_version()}, "
        f"{platform.system()} {platform.release()}, process {os.getpid()}"
    )


def _kind(address: VsockAddress | HypervAddress | HybridAddress) -> str:
    match address:
        case HybridAddress():
            return "hybrid vsock (a Unix socket with the CONNECT handshake)"
        case _ if sys.platform == "win32":
            return "AF_HYPERV"
    return "AF_VSOCK" + (" loopback" if getattr(address, "cid", None) == 1 else "")
