"""What is measured, on what, and what is asked of it."""

from __future__ import annotations

import fnmatch
import importlib
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["CONTENDERS", "GATES", "WORKLOADS", "Contender", "Gate", "Workload", "select"]


@dataclass(frozen=True, slots=True)
class Workload:
    """Something two processes do over one connection, `size` bytes at a time."""

    name: str
    title: str
    size: int
    cores: int
    """Cores the two processes have: on one, what is measured is the CPU time of both sides together; on two,
    the slower side, and on a virtual machine also how fast an idle core wakes up."""
    unit: str
    per_count: float
    """How much of the unit one write, or one round trip, is."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A workload done with one API of one library on one event loop."""

    workload: str
    library: str
    api: str = ""
    loop: str = ""
    needs: tuple[str, ...] = ()
    """Names the library must have; a version without them is reported as such and not run."""

    @property
    def key(self) -> str:
        return f"{self.workload}/{self.name}"

    @property
    def name(self) -> str:
        return self.library + (f"-{self.api}" if self.api else "") + (f"@{self.loop}" if self.loop else "")

    def missing(self) -> str | None:
        """Why this contender cannot take part here, or None."""
        if self.loop == "uvloop":
            try:
                importlib.import_module("uvloop")
            except ImportError as error:
                return str(error)
        if self.library != "aiohvsock":
            return None
        try:
            package = importlib.import_module(self.library)
        except ImportError as error:
            return str(error)
        absent = [name for name in self.needs if not hasattr(package, name)]
        return f"{self.library} has no {', '.join(absent)}" if absent else None


@dataclass(frozen=True, slots=True)
class Gate:
    """What a contender should reach, as a share of C."""

    text: str
    contender: str
    ratio: float


# Two cores for raw, as the figures had that its gates come from. On one, each chunk costs Python's 3 to 5 us on
# top of C's 12, and no transport written in it comes near the gates.
RAW = Workload("raw", "raw stream, 64 KiB writes", 65536, cores=2, unit="MiB/s", per_count=65536 / 2**20)
PINGPONG = Workload("pingpong", "ping-pong, 256 B messages", 256, cores=1, unit="round trips/s", per_count=1)
WORKLOADS = (RAW, PINGPONG)

STOCK, UVLOOP = LOOPS = ("stock", "uvloop")
_TRANSPORTS = ("create_hv_connection", "create_hv_server", "HybridAddress")
_STREAMS = ("open_hv_connection", "start_hv_server", "HybridAddress")
_MESSAGES = ("connect", "serve", "HybridAddress")


def _on_each_loop(workload: Workload, library: str, api: str, needs: tuple[str, ...] = ()) -> list[Contender]:
    return [Contender(workload.name, library, api, loop, needs) for loop in LOOPS]


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
    *_on_each_loop(PINGPONG, "aiohvsock", "messages", _MESSAGES),
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
)


def select(patterns: Sequence[str]) -> list[Contender]:
    """The contenders whose key holds, or as a glob matches, one of `patterns`; and C, for the ratios."""
    chosen = [c for c in CONTENDERS if not patterns or any(_matches(c, p) for p in patterns)]
    workloads = {c.workload for c in chosen}
    return [c for c in CONTENDERS if c in chosen or (c.library == "c" and c.workload in workloads)]


def _matches(contender: Contender, pattern: str) -> bool:
    return pattern in contender.key or fnmatch.fnmatchcase(contender.key, pattern)
