"""One task waiting for the event loop to bring something."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any, cast

from ._compiled import speedups

__all__ = ["Waiter"]


class Waiter:
    """What a task awaits; like a future, but a callback of the loop can let the task run on at once.

    A future lets it run in the next turn of the loop, which for a short message costs as much as all the rest.
    It does for tasks what a future does (``asyncio/tasks.py`` and ``_asynciomodule.c`` name what they ask for), and
    can be awaited again and again, by one task at a time.
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_cancelled", "_context", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._callback: Callable[[Any], object] | None = (
            None  # None: no task waits, or it will run on by itself
        )
        self._context: Context | None = None
        self._cancelled: asyncio.CancelledError | None = None

    # -- for the side that brings something ------------------------------------------------------------------

    def run_on(self) -> None:
        """Let the task run on, here and now; nothing happens if none waits.

        Only for callbacks of the loop: no other task may be running.
        """
        callback = self._callback
        if callback is not None:
            self._callback = None
            self._context.run(callback, self)  # type: ignore[union-attr]

    def run_on_soon(self) -> None:
        """Let the task run on in the loop's next turn; nothing happens if none waits."""
        callback, self._callback = self._callback, None
        if callback is not None:
            self._loop.call_soon(callback, self, context=self._context)

    # -- for the task ----------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Waiter, None, None]:
        self._asyncio_future_blocking = True
        # All that is asked of it is to give itself to the task once, and this is the least that does.
        return cast("Generator[Waiter, None, None]", iter((self,)))

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context | None = None) -> None:
        self._callback = callback
        self._context = context

    def cancel(self, msg: object = None) -> bool:
        if self._callback is None:
            return False
        self._cancelled = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        self.run_on_soon()
        return True

    def result(self) -> None:
        if self._cancelled is not None:
            cancelled, self._cancelled = self._cancelled, None
            raise cancelled


if not TYPE_CHECKING and speedups is not None:
    Waiter = speedups.Waiter
