"""Make small messages take the way of large ones, in Python and in C."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from aiohvsock._compiled import speedups
from aiohvsock.protocol import core, native

__all__ = ["LARGE", "LARGE_START", "large_from"]

LARGE, LARGE_START = core.LARGE, core._LARGE_START


@contextlib.contextmanager
def large_from(size: int, start: int) -> Iterator[None]:
    """Receive a message in place from ``size`` bytes on, when ``start`` of them have come."""
    with (
        mock.patch.multiple(core, LARGE=size, _LARGE_START=start),
        mock.patch.object(native, "LARGE", size),
    ):
        if speedups is not None:
            speedups.set_large(size, start)
        try:
            yield
        finally:
            if speedups is not None:
                speedups.set_large(LARGE, LARGE_START)
