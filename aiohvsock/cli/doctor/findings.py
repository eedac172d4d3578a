"""What the doctor finds, and what it looks at."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Check", "Finding", "Findings", "LoopFactory", "Status"]

Status: TypeAlias = Literal["ok", "warn", "fail", "skip"]
LoopFactory: TypeAlias = Callable[[], asyncio.AbstractEventLoop]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    status: Status
    name: str
    text: str
    cure: str = ""
    """What to do about it; the hints of the package's own errors are in the text already."""


Findings: TypeAlias = list[Finding]


@dataclass(frozen=True, slots=True)
class Check:
    """One look at the machine, which may find several things."""

    section: str
    name: str
    """What the report calls it if it breaks."""
    look: Callable[[], Awaitable[Findings]]
    loop_factory: LoopFactory | None = None
    """None is asyncio's default."""
