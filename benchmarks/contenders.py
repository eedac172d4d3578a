"""What is measured, on what, and what is asked of it."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

__all__ = ["CONTENDERS", "GATES", "LOOPS", "WORKLOADS", "Contender", "Gate", "Workload", "select"]


@dataclass(frozen=True, slots=True)
class Workload:
    """Something a server and a client process do over connections, `size` bytes at a time."""

    name: str
    title: str
    size: int
    cores: int
    """Cores the two processes have: on one, what is measured is the CPU time of both sides together; on two,
    the slower side, and on a virtual machine also how fast an idle core wakes up."""
    unit: str
    per_count: float = 1
    """How much of the unit one write, one message or one round trip is."""
    connections: int = 1
    client_in_c: bool = False
    """Whether each contender's client is the C program, and only the server is the contender's own."""
    memory: bool = False
    """Whether the figure is how much each connection adds to the server's memory, instead of a rate."""

    def shown(self, value: float) -> str:
        return f"{value:,.2f}" if self.memory else f"{value:,.0f}"


@dataclass(frozen=True, slots=True)
class Contender:
    """A workload done with one API of one library on one event loop."""

    workload: str
    library: str
    api: str = ""
    loop: str = ""
    needs: tuple[str, ...] = ()
    """Names the library must have; a version without them is reported as such and not run."""
    compiled: bool = False
    """Of aiohvsock: with its inner loops in C, not in Python."""

    @property
    def key(self) -> str:
        return f"{self.workload}/{self.name}"

    @property
    def name(self) -> str:
        words = [self.library, self.api, "compiled" if self.compiled else ""]
        return "-".join(filter(None, words)) + (f"@{self.loop}" if self.loop else "")

    @property
    def is_baseline(self) -> bool:
        """Whether this is what the others of its workload are measured against."""
        return self.name == "c"

    @property
    def dialect(self) -> str:
        """What a client of this contender's server must speak: one of those of `c/many.c`."""
        if self.library == "picows":
            return "websocket"
        return "native" if self.library == "aiohvsock" and self.api in _MESSAGE_APIS else "plain"

    def missing(self) -> str | None:
        """Why this contender cannot take part here, or None."""
        try:
            if self.loop == "uvloop":
                importlib.import_module("uvloop")
            if self.library == "c":
                return None
            package = importlib.import_module(self.library)
        except ImportError as error:
            return str(error)
        if self.compiled and not importlib.import_module("aiohvsock._compiled").speedups:
            return "its inner loops are not compiled here"
        absent = [name for name in self.needs if not _has(package, name)]
        return f"{self.library} has no {', '.join(absent)}" if absent else None


def _has(package: object, name: str) -> bool:
    try:
        attrgetter(name)(package)
    except AttributeError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Gate:
    """What a contender should reach: so many times what `of` does, another contender of the workload.

    Without `of`, it is the figure itself that must not be over the bound.
    """

    text: str
    contender: str
    bound: float
    of: str | None = "c"

    def is_met_by(self, figure: float) -> bool:
        return figure >= self.bound if self.of else figure <= self.bound


# Two cores for raw, as the figures had that its gates come from. On one, each chunk costs Python's 3 to 5 us on
# top of C's 12, and no transport written in it comes near the gates.
RAW = Workload("raw", "raw stream, 64 KiB writes", 65536, cores=2, unit="MiB/s", per_count=65536 / 2**20)
PINGPONG = Workload("pingpong", "ping-pong, 256 B messages", 256, cores=1, unit="round trips/s")
PIPELINED = Workload("pipelined", "pipelined one way, 256 B messages", 256, cores=1, unit="messages/s")
LARGE = Workload("large", "pipelined one way, 1 MiB messages", 2**20, cores=1, unit="MiB/s")
CONNECTIONS = Workload(
    "connections",
    "a 256 B request outstanding on each of 100 connections, of one client in C",
    256,
    cores=1,
    unit="round trips/s",
    connections=100,
    client_in_c=True,
)
IDLE = Workload(
    "idle",
    "memory of the server for each of 1000 idle connections",
    256,
    cores=1,
    unit="KiB",
    connections=1000,
    client_in_c=True,
    memory=True,
)
WORKLOADS = (RAW, PINGPONG, PIPELINED, LARGE, CONNECTIONS, IDLE)

STOCK, UVLOOP = LOOPS = ("stock", "uvloop")
_TRANSPORTS = ("create_hv_connection", "create_hv_server", "HybridAddress")
_STREAMS = ("open_hv_connection", "start_hv_server", "HybridAddress")
_MESSAGES = ("connect", "serve", "HybridAddress")
# What came with aiohvsock's own protocol and with callbacks.
_NATIVE = (*_MESSAGES, "MessageConnection.send_nowait")
_MANY = (*_MESSAGES, "MessageConnection.recv_many", "MessageConnection.send_many")
_CALLBACK = (*_NATIVE, "MessageConnection.send_many")
_MESSAGE_APIS = ("callback", "await", "async-for", "many")


def _on_each_loop(
    workload: Workload, library: str, api: str = "", needs: tuple[str, ...] = ()
) -> list[Contender]:
    ours = (False, True) if library == "aiohvsock" else (False,)
    return [
        Contender(workload.name, library, api, loop, needs, compiled) for compiled in ours for loop in LOOPS
    ]


CONTENDERS = (
    Contender(RAW.name, "c"),
    *_on_each_loop(RAW, "asyncio", "buffered"),
    *_on_each_loop(RAW, "asyncio", "protocol"),
    *_on_each_loop(RAW, "asyncio", "streams"),
    *_on_each_loop(RAW, "aiohvsock", "buffered", _TRANSPORTS),
    *_on_each_loop(RAW, "aiohvsock", "protocol", _TRANSPORTS),
    *_on_each_loop(RAW, "aiohvsock", "streams", _STREAMS),
    Contender(PINGPONG.name, "c"),
    *_on_each_loop(PINGPONG, "asyncio", "buffered"),
    *_on_each_loop(PINGPONG, "asyncio", "streams"),
    *_on_each_loop(PINGPONG, "aiohvsock", "buffered", _TRANSPORTS),
    *_on_each_loop(PINGPONG, "aiohvsock", "streams", _STREAMS),
    *_on_each_loop(PINGPONG, "aiohvsock", "callback", _CALLBACK),
    *_on_each_loop(PINGPONG, "aiohvsock", "await", _MESSAGES),
    *_on_each_loop(PINGPONG, "picows"),
    *_on_each_loop(PINGPONG, "grpclib"),
    Contender(PIPELINED.name, "c"),
    Contender(PIPELINED.name, "c", "naive"),
    *_on_each_loop(PIPELINED, "asyncio", "buffered"),
    *_on_each_loop(PIPELINED, "asyncio", "streams"),
    *_on_each_loop(PIPELINED, "aiohvsock", "callback", _CALLBACK),
    *_on_each_loop(PIPELINED, "aiohvsock", "many", _MANY),
    *_on_each_loop(PIPELINED, "aiohvsock", "async-for", _MESSAGES),
    *_on_each_loop(PIPELINED, "picows"),
    *_on_each_loop(PIPELINED, "grpclib"),
    Contender(LARGE.name, "c"),
    *_on_each_loop(LARGE, "asyncio", "streams"),
    *_on_each_loop(LARGE, "aiohvsock", "callback", _CALLBACK),
    *_on_each_loop(LARGE, "aiohvsock", "async-for", _MESSAGES),
    *_on_each_loop(LARGE, "picows"),
    Contender(CONNECTIONS.name, "c"),
    *_on_each_loop(CONNECTIONS, "asyncio", "streams"),
    *_on_each_loop(CONNECTIONS, "aiohvsock", "callback", _CALLBACK),
    *_on_each_loop(CONNECTIONS, "aiohvsock", "await", _NATIVE),
    *_on_each_loop(CONNECTIONS, "picows"),
    *_on_each_loop(IDLE, "asyncio", "streams"),
    *_on_each_loop(IDLE, "aiohvsock", "callback", _CALLBACK),
    *_on_each_loop(IDLE, "aiohvsock", "await", _NATIVE),
    *_on_each_loop(IDLE, "picows"),
)

GATES = (
    Gate("raw stream 64 KiB >= 0.90 of C on the stock loop", "raw/aiohvsock-buffered@stock", 0.90),
    Gate("raw stream 64 KiB >= 0.90 of C on uvloop", "raw/aiohvsock-buffered@uvloop", 0.90),
    Gate(
        "ping-pong 256 B BufferedProtocol >= 0.45 of C on the stock loop",
        "pingpong/aiohvsock-buffered@stock",
        0.45,
    ),
    Gate(
        "ping-pong 256 B BufferedProtocol >= 0.55 of C on uvloop", "pingpong/aiohvsock-buffered@uvloop", 0.55
    ),
    Gate(
        "ping-pong 256 B callback >= 0.50 of C on the stock loop", "pingpong/aiohvsock-callback@stock", 0.50
    ),
    Gate("ping-pong 256 B await >= 0.38 of C on the stock loop", "pingpong/aiohvsock-await@stock", 0.38),
    Gate("ping-pong 256 B callback >= 0.62 of C on uvloop", "pingpong/aiohvsock-callback@uvloop", 0.62),
    Gate("ping-pong 256 B await >= 0.52 of C on uvloop", "pingpong/aiohvsock-await@uvloop", 0.52),
    Gate(
        "pipelined 256 B callback on the stock loop >= 6 x picows on uvloop",
        "pipelined/aiohvsock-callback@stock",
        6.0,
        of="picows@uvloop",
    ),
    Gate(
        "pipelined 256 B async for on the stock loop >= 3 x picows on uvloop",
        "pipelined/aiohvsock-async-for@stock",
        3.0,
        of="picows@uvloop",
    ),
    Gate(
        "100 connections callback >= 0.45 of C's epoll on the stock loop",
        "connections/aiohvsock-callback@stock",
        0.45,
    ),
    Gate(
        "idle connection <= 3 KiB with a task on the stock loop", "idle/aiohvsock-await@stock", 3.0, of=None
    ),
    Gate("idle connection <= 3 KiB with a task on uvloop", "idle/aiohvsock-await@uvloop", 3.0, of=None),
)


def select(patterns: Sequence[str]) -> list[Contender]:
    """The contenders whose key holds, or as a glob matches, one of `patterns`; and what they are compared with."""
    chosen = {c.key for c in CONTENDERS if not patterns or any(_matches(c, p) for p in patterns)}
    workloads = {key.partition("/")[0] for key in chosen}
    wanted = {f"{gate.contender.partition('/')[0]}/{gate.of}" for gate in GATES if gate.contender in chosen}
    return [
        c
        for c in CONTENDERS
        if c.key in chosen or c.key in wanted or (c.is_baseline and c.workload in workloads)
    ]


def _matches(contender: Contender, pattern: str) -> bool:
    return pattern in contender.key or fnmatch.fnmatchcase(contender.key, pattern)
