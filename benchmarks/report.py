"""The table, the gates and the JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .competition import Entry, Spread
from .contenders import CONTENDERS, GATES, WORKLOADS, Gate, Workload
from .processes import Sample

__all__ = ["Results", "as_text", "read_json", "write_json"]

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """What was measured, and how."""

    date: str
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
        return self.figure(entry.contender.key, "c")

    def figure(self, key: str, reference: str | None) -> Spread | None:
        """What a contender did: as a multiple of another one of its workload, or without one, its figure itself."""
        entries = {entry.contender.key: entry for entry in self.entries}
        entry = entries.get(key)
        if entry is None:
            return None
        if reference is None:
            return entry.value()
        other = entries.get(f"{entry.contender.workload}/{reference}")
        return entry.ratio(other) if other else None

    def measured(self, gate: Gate) -> Spread | None:
        return self.figure(gate.contender, gate.of)


def as_text(results: Results) -> str:
    """The tables for people: the best first, then the gates, then who is not in them and why."""
    blocks = [
        "{cpu}, {cores} cores, {kernel}\n"
        "{python}, uvloop {uvloop}, aiohvsock {aiohvsock}, picows {picows}, grpclib {grpclib}\n".format_map(
            results.machine
        )
        + f"{results.rounds} rounds of {results.seconds:g} s; medians, and least .. greatest; "
        "cpu: cores used; lost: share of them that went to the hypervisor and to other processes"
    ]
    for workload in WORKLOADS:
        if entries := results.of(workload):
            server, client = results.cores[workload.name]
            title = f"{workload.title}; server on core {server}, client on core {client}"
            of_c = "of C" if any(entry.contender.is_baseline for entry in entries) else ""
            rows: list[Row] = [("", workload.unit, "", of_c, "", "cpu", "lost")]
            rows += [_row(entry, results.ratio(entry), workload) for entry in _best_first(entries, workload)]
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
        "date": results.date,
        "machine": results.machine,
        "rounds": results.rounds,
        "seconds": results.seconds,
        "cores": results.cores,
        "rows": [_json_row(entry, results.ratio(entry)) for entry in results.entries],
        "gates": [_json_gate(gate, results.measured(gate)) for gate in GATES],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def read_json(path: Path) -> Results:
    """What `write_json` wrote, as far as it is of contenders that there still are."""
    document = json.loads(path.read_text())
    contenders = {contender.key: contender for contender in CONTENDERS}
    entries = []
    for row in document["rows"]:
        if row["key"] in contenders:
            entry = Entry(contenders[row["key"]], missing=row["missing"], failure=row["failure"])
            for sample in row["samples"]:
                entry.rounds.setdefault(sample.pop("round"), []).append(Sample(**sample))
            entries.append(entry)
    return Results(
        document["date"],
        document["machine"],
        document["rounds"],
        document["seconds"],
        {workload: tuple(cores) for workload, cores in document["cores"].items()},
        entries,
    )


def _best_first(entries: Iterable[Entry], workload: Workload) -> list[Entry]:
    """Those without a figure come last."""

    def rank(entry: Entry) -> float:
        value = entry.value()
        if value is None:
            return math.inf
        return value.median if workload.memory else -value.median

    return sorted(entries, key=rank)


def _row(entry: Entry, ratio: Spread | None, workload: Workload) -> Row:
    value = entry.value()
    if value is None:
        return (entry.contender.name, "failed" if entry.failure else "not available", *[""] * 5)
    return (
        entry.contender.name,
        workload.shown(value.median),
        f"{workload.shown(value.low)} .. {workload.shown(value.high)}",
        f"{ratio.median:.2f}" if ratio else "",
        f"{ratio.low:.2f} .. {ratio.high:.2f}" if ratio else "",
        f"{Spread.of(sample.cpu for sample in entry.samples).median:.2f}",
        f"{Spread.of(sample.disturbance for sample in entry.samples).median:.0%}",
    )


def _gate_row(gate: Gate, measured: Spread | None) -> Row:
    if measured is None:
        return (gate.text, "", "", "not measured")
    verdict = "met" if gate.is_met_by(measured.median) else "NOT MET"
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
        "met": gate.is_met_by(measured.median) if measured else None,
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
