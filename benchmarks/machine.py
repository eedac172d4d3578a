"""What the figures were measured on, and how much of it was taken away meanwhile."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ticks", "allow_descriptors", "cpu_time", "describe", "pinned", "resident"]


def describe() -> dict[str, str | int]:
    """The machine and the versions a figure is worth nothing without."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 0,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "uvloop": _version("uvloop"),
        "aiohvsock": _version("aiohvsock"),
        "picows": _version("picows"),
        "grpclib": _version("grpclib"),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "cpu model"):
            return value.strip()
    return platform.processor() or "unknown"


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Be on one core; processes started meanwhile stay there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class Ticks:
    """Where the time of some cores went, from `/proc/stat`. Counted by sampling: right to a few hundredths."""

    total: int
    busy: int
    steal: int

    @classmethod
    def read(cls, cores: Iterable[int]) -> Ticks:
        names = {f"cpu{core}" for core in cores}
        total = busy = steal = 0
        for line in Path("/proc/stat").read_text().splitlines():
            name, *fields = line.split()
            if name in names:
                # user nice system idle iowait irq softirq steal; the guest times after them are in user and nice.
                ticks = [int(field) for field in fields[:8]]
                total += sum(ticks)
                busy += sum(ticks) - ticks[3] - ticks[4] - ticks[7]
                steal += ticks[7]
        return cls(total, busy, steal)

    def stolen_since(self, before: Ticks) -> float:
        """The share of the time since `before` that the hypervisor took."""
        total = self.total - before.total
        return (self.steal - before.steal) / total if total else 0.0

    def others_since(self, before: Ticks, cpu: float) -> float:
        """The share of the time since `before` used by processes other than those that used `cpu` seconds."""
        total = self.total - before.total
        return max(0.0, (self.busy - before.busy - cpu * _TICKS_PER_SECOND) / total) if total else 0.0


def cpu_time(pid: int) -> float:
    """Seconds of CPU that a process has used, to the microsecond, which `/proc/PID/stat` is not."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def resident(pid: int) -> float:
    """KiB of a process's memory that are in RAM; to the page, which `/proc/PID/statm` is not."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "Rss":
            return float(value.split()[0])
    raise RuntimeError("smaps_rollup has no Rss")


def allow_descriptors() -> None:
    """Let the processes we start have as many descriptors as the system allows at all."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
