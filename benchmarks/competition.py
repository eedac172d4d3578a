"""Rounds of shuffled measurements, and the ratios they give."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median

from .contenders import WORKLOADS, Contender, Workload
from .processes import Bench, ContenderFailed, Sample

__all__ = ["Entry", "Spread", "compete"]

MAX_DISTURBANCE = 0.03


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some figures, and the least and the greatest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        figures = sorted(values)
        return cls(median(figures), figures[0], figures[-1])


@dataclass(slots=True)
class Entry:
    """A contender and what became of it."""

    contender: Contender
    rounds: dict[int, list[Sample]] = field(default_factory=dict)
    missing: str | None = None
    failure: str | None = None

    @property
    def samples(self) -> list[Sample]:
        return [sample for samples in self.rounds.values() for sample in samples]

    def value(self) -> Spread | None:
        return Spread.of(sample.value for sample in self.samples) if self.rounds else None

    def ratio(self, baseline: Entry) -> Spread | None:
        """The share of `baseline` reached, round by round: machines drift, and one round is short."""
        ratios = [
            _mean(samples) / _mean(baseline.rounds[number])
            for number, samples in self.rounds.items()
            if number in baseline.rounds
        ]
        return Spread.of(ratios) if ratios else None


def _mean(samples: Iterable[Sample]) -> float:
    return fmean(sample.value for sample in samples)


async def compete(
    bench: Bench, contenders: Sequence[Contender], rounds: int, max_tries: int, say: Callable[[str], None]
) -> list[Entry]:
    """Measure every contender in every round, C twice. One that fails isn't measured again.

    Args:
        max_tries: how often at most a measurement is made in which others took time that belonged to it.
        say: called with a line for each measurement.
    """
    entries = [Entry(contender, missing=contender.missing()) for contender in contenders]
    for number in range(1, rounds + 1):
        for workload, entry in _order(entries):
            if entry.missing or entry.failure:
                continue
            name = f"round {number}/{rounds}  {entry.contender.key:<38}"
            try:
                sample = await _least_disturbed(bench, entry.contender, workload, max_tries)
            except ContenderFailed as error:
                entry.failure = str(error)
                say(f"{name}    FAILED")
            else:
                entry.rounds.setdefault(number, []).append(sample)
                say(
                    f"{name}{workload.shown(sample.value):>10} {workload.unit:<14} steal {sample.steal:4.1%}  others {sample.others:5.1%}  "
                    f"cpu {sample.cpu:4.2f}" + (f"  {sample.tries} tries" if sample.tries > 1 else "")
                )
    return entries


def _order(entries: Iterable[Entry]) -> Iterable[tuple[Workload, Entry]]:
    """One round: the workloads in any order, and within each the contenders, close in time to C."""
    for workload in random.sample(WORKLOADS, len(WORKLOADS)):
        turn = [entry for entry in entries if entry.contender.workload == workload.name]
        turn += [entry for entry in turn if entry.contender.is_baseline]
        random.shuffle(turn)
        for entry in turn:
            yield workload, entry


async def _least_disturbed(bench: Bench, contender: Contender, workload: Workload, max_tries: int) -> Sample:
    """Measure again when the hypervisor, or other processes, took too much. The result is never looked at."""
    samples: list[Sample] = []
    while len(samples) < max_tries:
        samples.append(await bench.measure(contender, workload))
        if workload.memory or samples[-1].disturbance <= MAX_DISTURBANCE:
            break
    return replace(min(samples, key=lambda sample: sample.disturbance), tries=len(samples))
