"""Hear when a socket is ready, on every loop: by a selecting thread where the loop itself cannot tell.

Windows' Proactor loop knows operations, not readiness, and of those it can neither connect nor accept on these
sockets. What it lacks is little: listeners, and connects under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["SelectThread", "Watcher", "is_proactor", "watcher_of"]

# Sockets for one select(): FD_SETSIZE, as CPython defines it for Windows (selectmodule.c), less the one that wakes.
_MOST = 511

# Seconds between two looks at whether the loop was closed with something still watched.
_LOOK = 5.0


class Watcher(Protocol):
    """The part of an event loop that tells when a socket is ready."""

    def add_reader(self, fd: int, callback: Callable[..., object], *args: Any) -> object: ...

    def remove_reader(self, fd: int) -> object: ...

    def add_writer(self, fd: int, callback: Callable[..., object], *args: Any) -> object: ...

    def remove_writer(self, fd: int) -> object: ...


def is_proactor(loop: asyncio.AbstractEventLoop) -> bool:
    """Tell whether this is Windows' Proactor loop."""
    # It has add_reader() too, which raises NotImplementedError.
    proactor = getattr(asyncio, "ProactorEventLoop", None)
    return proactor is not None and isinstance(loop, proactor)


_threads: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, SelectThread] = weakref.WeakKeyDictionary()


def watcher_of(loop: asyncio.AbstractEventLoop) -> Watcher:
    """Return who tells when sockets are ready: the loop itself, or a thread of its own."""
    if not is_proactor(loop):
        return loop
    thread = _threads.get(loop)
    if thread is None or thread.ended:
        thread = _threads[loop] = SelectThread(loop)
    return thread


@dataclass(eq=False, slots=True)
class _Watched:
    callback: Callable[..., object]
    args: tuple[Any, ...]
    context: Context
    told: bool = False
    """The loop was told that it is ready, and has not looked yet: until then it is not watched."""
    bad: bool = False
    """It was closed while it was watched."""


class SelectThread:
    """Watches sockets in a thread, and calls back in the loop's; what is too many for one select() in another thread.

    It ends with the loop. All methods are for the loop's thread.

    Args:
        loop: the running loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        # Reentrant, since the garbage collector can run anywhere, and what it frees may stop watching.
        self._lock = threading.RLock()
        self._readers: dict[int, _Watched] = {}
        self._writers: dict[int, _Watched] = {}
        self._others: list[SelectThread] = []
        self._ended = False
        self._woken = False
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._theirs.setblocking(False)
        self._lifetime = self._live()
        # shutdown_asyncgens(), as asyncio.run() calls it, ends this one, and it ends us.
        with contextlib.suppress(StopIteration):
            self._lifetime.__anext__().send(None)
        self._thread = threading.Thread(target=self._run, name="aiohvsock select", daemon=True)
        self._thread.start()

    async def _live(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self.close()
            self._thread.join()

    @property
    def ended(self) -> bool:
        """True once it is of no use any more."""
        return self._ended

    def add_reader(self, fd: int, callback: Callable[..., object], *args: Any) -> None:
        thread = self._thread_for(fd)
        thread._add(thread._readers, fd, callback, args)

    def remove_reader(self, fd: int) -> bool:
        return any(thread._remove(thread._readers, fd) for thread in (self, *self._others))

    def add_writer(self, fd: int, callback: Callable[..., object], *args: Any) -> None:
        thread = self._thread_for(fd)
        thread._add(thread._writers, fd, callback, args)

    def remove_writer(self, fd: int) -> bool:
        return any(thread._remove(thread._writers, fd) for thread in (self, *self._others))

    def _thread_for(self, fd: int) -> SelectThread:
        """Return the thread that watches it already; otherwise one that has room."""
        if self._ended:
            raise RuntimeError("the event loop is being closed")
        threads = [self, *self._others]
        for thread in threads:
            if fd in thread._readers or fd in thread._writers:
                return thread
        for thread in threads:
            if max(len(thread._readers), len(thread._writers)) < _MOST:
                return thread
        self._others.append(SelectThread(self._loop))
        return self._others[-1]

    def _add(
        self, watched: dict[int, _Watched], fd: int, callback: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        with self._lock:
            watched[fd] = _Watched(callback, args, copy_context())
        self._wake()

    def _remove(self, watched: dict[int, _Watched], fd: int) -> bool:
        with self._lock:
            found = watched.pop(fd, None)
        if found is not None:
            self._wake()
        return found is not None

    def close(self) -> None:
        """Stop watching, and end the thread."""
        for thread in self._others:
            thread.close()
        self._ended = True
        with self._lock:
            self._readers.clear()
            self._writers.clear()
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            if self._woken or self._ours.fileno() < 0:
                return
            self._woken = True
            # Full or gone, it is awake.
            with contextlib.suppress(OSError):
                self._ours.send(b"\0")

    # -- in the loop's thread, called from the other ---------------------------------------------------------

    def _call(self, watched: dict[int, _Watched], fd: int, entry: _Watched) -> None:
        try:
            # Not for another socket that has got its number since.
            if watched.get(fd) is entry:
                entry.callback(*entry.args)
        finally:
            entry.told = False
            if entry.bad and watched.get(fd) is entry:
                del watched[fd]
            self._wake()

    # -- in the thread ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                with self._lock:
                    # In this order: the collector can run in between, and wake.
                    with contextlib.suppress(BlockingIOError):
                        self._theirs.recv(1024)
                    self._woken = False
                    # Only now, or to be woken for this is forgotten.
                    if self._ended or self._loop.is_closed():
                        return
                    readers = {fd: entry for fd, entry in self._readers.copy().items() if not entry.told}
                    writers = {fd: entry for fd, entry in self._writers.copy().items() if not entry.told}
                for watched, fd, entry in self._select(readers, writers):
                    try:
                        self._loop.call_soon_threadsafe(self._call, watched, fd, entry, context=entry.context)
                    except RuntimeError:  # the loop was closed
                        return
        finally:
            self._ended = True
            with self._lock:
                self._ours.close()
                self._theirs.close()
            # It refers to the loop, which would never be forgotten.
            if _threads.get(self._loop) is self:
                del _threads[self._loop]

    def _select(
        self, readers: dict[int, _Watched], writers: dict[int, _Watched]
    ) -> list[tuple[dict[int, _Watched], int, _Watched]]:
        wake = self._theirs.fileno()
        try:
            # On Windows a connect that failed is among the exceptions only.
            readable, writable, failed = select.select([wake, *readers], writers, writers, _LOOK)
        except (OSError, ValueError):
            # One of them was closed while it was watched, and spoils it for all. Who watches it will find out, once.
            readable = [fd for fd in readers if _is_bad(fd)]
            writable = [fd for fd in writers if _is_bad(fd)]
            failed = []
            for entry in (*map(readers.get, readable), *map(writers.get, writable)):
                assert entry is not None
                entry.bad = True
        ready = []
        with self._lock:
            for watched, asked, fds in (
                (self._readers, readers, readable),
                (self._writers, writers, {*writable, *failed}),
            ):
                for fd in fds:
                    # Not another socket that has got its number since.
                    if fd in asked and watched.get(fd) is asked[fd]:
                        asked[fd].told = True
                        ready.append((watched, fd, asked[fd]))
        return ready


def _is_bad(fd: int) -> bool:
    try:
        select.select([fd], [], [], 0)
    except (OSError, ValueError):
        return True
    return False
