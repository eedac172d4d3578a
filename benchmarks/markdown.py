"""The README's tables."""

from __future__ import annotations

from dataclasses import dataclass

from .competition import Spread
from .contenders import LOOPS
from .report import Results

__all__ = ["as_markdown"]


@dataclass(frozen=True, slots=True)
class Line:
    """A row: a contender on each loop, and a peer of it in parentheses."""

    text: str
    contender: str
    peer: str = ""
    called: str = ""
    """How the peer is named, in the row's first cell."""


OF_C = (
    Line(
        "stream of 64 KiB writes, transport with a `BufferedProtocol`",
        "raw/aiohvsock-buffered",
        "raw/asyncio-buffered",
        "asyncio's own transport",
    ),
    Line(
        "stream of 64 KiB writes, reader and writer",
        "raw/aiohvsock-streams",
        "raw/asyncio-streams",
        "asyncio's own",
    ),
    Line(
        "ping-pong of 256 bytes, transport with a `BufferedProtocol`",
        "pingpong/aiohvsock-buffered",
        "pingpong/asyncio-buffered",
        "asyncio's own transport",
    ),
    Line(
        "ping-pong of 256 bytes, reader and writer",
        "pingpong/aiohvsock-streams",
        "pingpong/asyncio-streams",
        "asyncio's own",
    ),
    Line(
        "ping-pong of 256 bytes, messages to `on_message`",
        "pingpong/aiohvsock-callback",
        "pingpong/picows",
        "picows",
    ),
    Line(
        "ping-pong of 256 bytes, `send` and `recv`", "pingpong/aiohvsock-await", "pingpong/grpclib", "grpclib"
    ),
    Line(
        "100 connections, messages to `on_message`",
        "connections/aiohvsock-callback",
        "connections/picows",
        "picows",
    ),
    Line(
        "100 connections, `send` and `recv`",
        "connections/aiohvsock-await",
        "connections/asyncio-streams",
        "asyncio's streams",
    ),
)
OF_PICOWS = (
    Line("messages to `on_message`", "pipelined/aiohvsock-callback", "pipelined/picows", "picows"),
    Line("`send_many` and `recv_many`", "pipelined/aiohvsock-many"),
    Line(
        "`send` and `async for`",
        "pipelined/aiohvsock-async-for",
        "pipelined/asyncio-streams",
        "asyncio's streams",
    ),
)
MEMORY = (
    Line("messages to `on_message`", "idle/aiohvsock-callback", "idle/picows", "picows"),
    Line("a task in `recv`", "idle/aiohvsock-await", "idle/asyncio-streams", "asyncio's streams"),
)


def as_markdown(results: Results) -> str:
    """What was measured on, and the tables that have figures."""
    machine = results.machine
    described = (
        f"{results.date}; {machine['cores']} cores of {machine['cpu']}, {machine['kernel']}, {machine['python']}, "
        f"uvloop {machine['uvloop']}; medians of {results.rounds} interleaved rounds."
    )
    lines = [described]
    tables = (
        ("share of what C reaches", OF_C, "c"),
        ("256 bytes one way, pipelined: times what picows does on uvloop", OF_PICOWS, "picows@uvloop"),
        ("KiB of memory for each idle connection", MEMORY, None),
    )
    for title, rows, reference in tables:
        cells = [_cells(results, row, reference) for row in rows]
        if any(cells):
            lines += ["", f"| {title} | asyncio's loop | uvloop |", "|---|---|---|"]
            lines += [f"| {' | '.join(row)} |" for row in cells if row]
    return "\n".join(lines)


def _cells(results: Results, line: Line, reference: str | None) -> list[str]:
    """None at all for what wasn't measured."""
    ours = [_figure(results.figure(f"{line.contender}@{loop}", reference)) for loop in LOOPS]
    if not any(ours):
        return []
    peers = [results.figure(f"{line.peer}@{loop}", reference) for loop in LOOPS]
    return [
        line.text + (f" ({line.called})" if line.called else ""),
        *(our + (f" ({_figure(peer)})" if peer else "") for our, peer in zip(ours, peers, strict=True)),
    ]


def _figure(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.median:.2f}" if spread.median < 2 else f"{spread.median:.1f}"
