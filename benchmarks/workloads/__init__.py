"""The two ends of each workload. `WORKLOADS` maps a workload's name to its module's `serve` and `connect`."""

from __future__ import annotations

from . import pingpong, raw

__all__ = ["WORKLOADS"]

WORKLOADS = {"raw": (raw.serve, raw.connect), "pingpong": (pingpong.serve, pingpong.connect)}
