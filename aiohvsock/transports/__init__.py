"""The one seam that knows the event loop: it connects, accepts, and carries bytes."""

from __future__ import annotations

import asyncio

from .proactor import ProactorTransport
from .selector import SelectorTransport
from .watching import is_proactor

__all__ = ["transport_class"]


def transport_class(loop: asyncio.AbstractEventLoop) -> type[SelectorTransport]:
    """Return the transport that runs on this event loop."""
    return ProactorTransport if is_proactor(loop) else SelectorTransport
