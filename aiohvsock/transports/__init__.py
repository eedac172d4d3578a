"""The one seam that knows the event loop: it connects, accepts, and carries bytes."""

from __future__ import annotations

import asyncio
import errno

from ..exceptions import HvUnsupportedError

__all__ = ["check_loop"]


def check_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Check that these transports run on this event loop.

    Raises:
        HvUnsupportedError: they do not.
    """
    # The Proactor loop has add_reader() too; it raises NotImplementedError.
    proactor = getattr(asyncio, "ProactorEventLoop", None)
    if proactor is not None and isinstance(loop, proactor):
        raise HvUnsupportedError(
            errno.EAFNOSUPPORT,
            "this version does not run on Windows' Proactor loop; use asyncio.SelectorEventLoop",
        )
