"""What is made of an input that fails: a smaller one that fails alike, and what it does, to read."""

from __future__ import annotations

import time
import traceback
from typing import TypeAlias

from .inputs import Target, Tell

__all__ = ["minimised", "replay"]

Place: TypeAlias = tuple[type[Exception], str, int | None]

# Seconds to spend on one.
_LONGEST = 20.0


def place(target: Target, data: bytes) -> Place | None:
    """Return what an input fails with, and where; None if it does not."""
    try:
        target.one_input(data)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return type(error), last.filename, last.lineno
    return None


def minimised(target: Target, data: bytes) -> bytes:
    """Return the smallest input found that fails in the same place."""
    wanted = place(target, data)
    end = time.monotonic() + _LONGEST
    size = len(data)
    while wanted and size:
        start = 0
        while start < len(data) and time.monotonic() < end:
            for shorter in (b"", b"\0" * len(data[start:][:size])):
                candidate = data[:start] + shorter + data[start + size :]
                if candidate != data and place(target, candidate) == wanted:
                    data = candidate
                    break
            else:
                start += size
                continue
            start += len(shorter)
        size //= 2
    return data


def replay(target: Target, data: bytes, tell: Tell) -> bool:
    """Do what an input says, step by step; returns whether it fails."""
    try:
        target.one_input(data, tell)
    except Exception:
        tell(traceback.format_exc())
        return True
    return False
