"""Wait until a socket is ready, on each of anyio's backends.

On Windows' Proactor loop anyio has a selecting thread for this, which may be selecting on a socket still while
it is closed, and then ends for good (anyio 4.16, anyio/_core/_asyncio_selector_thread.py). There it is our own thread.
"""

from __future__ import annotations

import asyncio
import socket

import anyio
from anyio.lowlevel import current_token

from ..platforms import READABLE, WRITABLE, Readiness
from ..transports.readiness import when_ready
from ..transports.watching import is_proactor

__all__ = ["Waiting"]

# Seconds between two tries to send. While data is unread, a peer that has gone does not make an AF_VSOCK socket with a
# full window writable (Linux 6.1), so to wait for that alone could take for ever.
_STUCK_RETRY = 2.0


class Waiting:
    """Waits for a non-blocking socket.

    Args:
        sock: the socket; it stays the caller's.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._ours: set[asyncio.Future[None]] = set()

    async def readable(self) -> None:
        """Wait until there is something to receive or to accept."""
        await self.ready(READABLE)

    async def writable(self) -> None:
        """Wait until something can be sent, or it is time to try."""
        with anyio.move_on_after(_STUCK_RETRY):
            await self.ready(WRITABLE)

    async def ready(self, wanted: Readiness) -> None:
        loop = getattr(current_token(), "native_token", None)
        if not (isinstance(loop, asyncio.AbstractEventLoop) and is_proactor(loop)):
            await (anyio.wait_readable if wanted == READABLE else anyio.wait_writable)(self._sock)
            return
        with when_ready(loop, self._sock, wanted) as future:
            self._ours.add(future)
            try:
                await future
            finally:
                self._ours.discard(future)

    def closing(self) -> None:
        """Wake those who wait: the socket is about to be closed."""
        anyio.notify_closing(self._sock)
        for future in self._ours:
            if not future.done():
                future.set_result(None)
