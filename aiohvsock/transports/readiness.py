"""Connect and accept, on any loop, by hearing when a socket is ready."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Generator, Iterator

from ..platforms import READABLE, Readiness
from .watching import watcher_of

__all__ = ["ACCEPT_DELAY", "PEER_GONE", "Acceptor", "connect", "when_ready"]

# How long a listener rests when accept() fails for want of descriptors or memory; asyncio's own figure.
ACCEPT_DELAY = 1.0

# A peer that went away before it was accepted: its own trouble, not the listener's.
PEER_GONE = frozenset((errno.ECONNABORTED, errno.ECONNRESET, errno.EPROTO, errno.ENOTCONN, errno.ETIMEDOUT))


async def connect(loop: asyncio.AbstractEventLoop, sock: socket.socket, steps: Generator[Readiness]) -> None:
    """Drive a platform's ``dial`` to its end.

    The socket stays the caller's, who closes it when this fails or is cancelled.
    """
    for wanted in steps:
        with when_ready(loop, sock, wanted) as ready:
            await ready


@contextlib.contextmanager
def when_ready(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, wanted: Readiness
) -> Iterator[asyncio.Future[None]]:
    """Return a future that is done when the socket is ready; it is watched until the end of the block."""
    fd = sock.fileno()
    watcher = watcher_of(loop)
    ready = loop.create_future()
    add, remove = (
        (watcher.add_reader, watcher.remove_reader)
        if wanted == READABLE
        else (watcher.add_writer, watcher.remove_writer)
    )
    add(fd, _wake, ready)
    try:
        yield ready
    finally:
        remove(fd)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Acceptor:
    """Takes connections off a listening socket.

    Args:
        loop: the running loop.
        sock: the listening socket; it stays the caller's.
        backlog: connections taken at most before the loop's other work gets its turn.
        on_accept: called with each accepted, non-blocking socket, which it then owns. It must not raise.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        backlog: int,
        on_accept: Callable[[socket.socket], None],
    ) -> None:
        self._loop = loop
        self._watcher = watcher_of(loop)
        self._sock = sock
        self._fd = sock.fileno()  # the user may close it
        self._burst = max(1, backlog)
        self._on_accept = on_accept
        self._active = False
        self._delay: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start, or go on, accepting; one whose socket was closed by somebody else does not."""
        if not self._active and self._sock.fileno() >= 0:
            self._active = True
            self._watcher.add_reader(self._fd, self._accept)

    def stop(self) -> None:
        """Stop accepting; peers then wait in the backlog."""
        if self._delay is not None:
            self._delay.cancel()
            self._delay = None
        if self._active:
            self._active = False
            self._watcher.remove_reader(self._fd)

    def _accept(self) -> None:
        for _ in range(self._burst):
            # The callback can stop us: the server is full, or closed.
            if not self._active:
                return
            try:
                sock, _ = self._sock.accept()
                sock.setblocking(False)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in PEER_GONE:
                    continue
                self._rest(error)
                return
            self._on_accept(sock)

    def _rest(self, error: OSError) -> None:
        """Out of descriptors, or the like: the listener stays readable, so asking at once would spin."""
        closed = self._sock.fileno() < 0
        then = "its socket was closed by somebody else" if closed else f"it goes on in {ACCEPT_DELAY:g} s"
        self._loop.call_exception_handler(
            {"message": f"accept failed; the listener: {then}", "exception": error, "socket": self._sock}
        )
        self.stop()
        if closed:  # its number may be another's by now
            return
        self._delay = self._loop.call_later(ACCEPT_DELAY, self.start)
