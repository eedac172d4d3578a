"""The table, the gates and the JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .competition import Entry, Spread
from .contenders import GATES, WORKLOADS, Gate, Workload

__all__ = ["Results", "as_text", "write_json"]

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """What was measured, and how."""

    machine: dict[str, str | int]
    rounds: int
    seconds: float
    cores: dict[str, tuple[int, int]]
    """By workload: the server's core and the client's."""
    entries: Sequence[Entry]

    def of(self, workload: Workload) -> list[Entry]:
        return [entry for entry in self.entries if entry.contender.workload == workload.name]

    def ratio(self, entry: Entry) -> Spread | None:
        """The share of C that `entry` reached."""
        for other in self.entries:
            if other.contender.library == "c" and other.contender.workload == entry.contender.workload:
                return entry.ratio(other)
        return None

    def measured(self, gate: Gate) -> Spread | None:
        for entry in self.entries:
            if entry.contender.key == gate.contender:
                return self.ratio(entry)
        return None


def as_text(results: Results) -> str:
    """The tables for people: fastest first, then the gates, then who is not in them and why."""
    blocks = [
        "{cpu}, {cores} cores, {kernel}\n{python}, uvloop {uvloop}, aiohvsock {aiohvsock}\n".format_map(
            results.machine
        )
        + f"{results.rounds} rounds of {results.seconds:g} s; medians, and least .. greatest; "
        "cpu: cores used; lost: share of them that went to the hypervisor and to other processes"
    ]
    for workload in WORKLOADS:
        if entries := results.of(workload):
            server, client = results.cores[workload.name]
            title = f"{workload.title}; server on core {server}, client on core {client}"
            rows: list[Row] = [("", workload.unit, "", "of C", "", "cpu", "lost")]
            rows += [_row(entry, results.ratio(entry)) for entry in sorted(entries, key=_speed, reverse=True)]
            blocks.append("\n".join([title, *_aligned(rows)]))

    blocks.append(
        "\n".join(["gates", *_aligned([_gate_row(gate, results.measured(gate)) for gate in GATES])])
    )
    for reason in sorted({entry.missing for entry in results.entries if entry.missing}):
        names = [entry.contender.key for entry in results.entries if entry.missing == reason]
        blocks.append("\n  ".join([f"not available: {reason}", *names]))
    blocks += [
        f"FAILED: {entry.contender.key}\n  {entry.failure}" for entry in results.entries if entry.failure
    ]
    return "\n\n".join(blocks)


def write_json(path: Path, results: Results) -> None:
    """Everything there is, down to the single measurement, for plots and for comparing runs."""
    document = {
        "machine": results.machine,
        "rounds": results.rounds,
        "seconds": results.seconds,
        "cores": results.cores,
        "rows": [_json_row(entry, results.ratio(entry)) for entry in results.entries],
        "gates": [_json_gate(gate, results.measured(gate)) for gate in GATES],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def _speed(entry: Entry) -> float:
    value = entry.value()
    return value.median if value else 0.0


def _row(entry: Entry, ratio: Spread | None) -> Row:
    value = entry.value()
    if value is None:
        return (entry.contender.name, "failed" if entry.failure else "not available", *[""] * 5)
    return (
        entry.contender.name,
        f"{value.median:,.0f}",
        f"{value.low:,.0f} .. {value.high:,.0f}",
        f"{ratio.median:.2f}" if ratio else "",
        f"{ratio.low:.2f} .. {ratio.high:.2f}" if ratio else "",
        f"{Spread.of(sample.cpu for sample in entry.samples).median:.2f}",
        f"{Spread.of(sample.disturbance for sample in entry.samples).median:.0%}",
    )


def _gate_row(gate: Gate, measured: Spread | None) -> Row:
    if measured is None:
        return (gate.text, "", "", "not measured")
    verdict = "met" if measured.median >= gate.ratio else "NOT MET"
    return (gate.text, f"{measured.median:.2f}", f"{measured.low:.2f} .. {measured.high:.2f}", verdict)


def _json_row(entry: Entry, ratio: Spread | None) -> dict[str, Any]:
    value = entry.value()
    samples = [(number, sample) for number, samples in entry.rounds.items() for sample in samples]
    return {
        "key": entry.contender.key,
        "workload": entry.contender.workload,
        "library": entry.contender.library,
        "api": entry.contender.api,
        "loop": entry.contender.loop,
        "value": asdict(value) if value else None,
        "ratio": asdict(ratio) if ratio else None,
        "samples": [{"round": number, **asdict(sample)} for number, sample in samples],
        "missing": entry.missing,
        "failure": entry.failure,
    }


def _json_gate(gate: Gate, measured: Spread | None) -> dict[str, Any]:
    return {
        **asdict(gate),
        "measured": asdict(measured) if measured else None,
        "met": measured.median >= gate.ratio if measured else None,
    }


def _aligned(rows: Iterable[Row]) -> list[str]:
    """The first column to the left, the others to the right."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for name, *cells in table:
        padded = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([f"  {name:<{widths[0]}}", *padded]).rstrip())
    return lines
