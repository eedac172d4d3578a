"""End a test that takes too long, and not the run, where pytest-timeout by itself does not.

What the signal of its alarm raises inside a callback, a loop takes for an error of that callback, and goes on. And on
Windows it has no alarm, only a thread, which dumps the stacks and ends the process.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

import pytest
import pytest_timeout  # type: ignore[import-untyped]

__all__ = ["pytest_timeout_set_timer"]

# Seconds after which a test that is not in Python, and so hears no signal, ends the run after all.
PATIENCE = 10.0


class TimedOut(pytest.fail.Exception, SystemExit):  # type: ignore[name-defined,misc,unused-ignore]
    """Leaves every loop: a callback's SystemExit is for who runs it."""


def _failing(fail: Callable[..., object], *arguments: object) -> None:
    __tracebackhide__ = True
    try:
        fail(*arguments)
    except pytest.fail.Exception as failure:
        raise TimedOut(failure.msg) from None


if sys.platform == "win32":
    import _thread

    # Nobody else uses it: Ctrl-Break.
    SIGNAL = signal.SIGBREAK

    def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
        """Start the clock of a test."""
        over, heard = threading.Event(), threading.Event()

        def watch() -> None:
            if over.wait(settings.timeout):
                return
            # Once for the test, and once for what it leaves behind, which may hang as well.
            for _ in range(2):
                heard.clear()
                deadline = time.monotonic() + PATIENCE
                while not heard.is_set() and time.monotonic() < deadline:
                    _thread.interrupt_main(SIGNAL)
                    heard.wait(0.05)
                if over.wait(max(0, deadline - time.monotonic())):
                    return
            pytest_timeout.timeout_timer(item, settings)

        def interrupted(number: int, frame: FrameType | None) -> None:
            __tracebackhide__ = True
            # What is raised inside of a function that C has called comes to nothing. And once is enough.
            if not (heard.is_set() or _in_callback(frame)):
                heard.set()
                _failing(pytest_timeout.timeout_sigalrm, item, settings)

        def cancel() -> None:
            over.set()
            thread.join()
            signal.signal(SIGNAL, signal.SIG_DFL)

        signal.signal(SIGNAL, interrupted)
        item.cancel_timeout = cancel  # type: ignore[attr-defined]  # pytest-timeout calls it
        thread = threading.Thread(target=watch, name="timeout of the test", daemon=True)
        thread.start()
        return True

    def _in_callback(frame: FrameType | None) -> bool:
        while frame is not None:
            if frame.f_globals.get("__name__", "").startswith("tests.testbeds.provider."):
                return True
            frame = frame.f_back
        return False

else:

    @pytest.hookimpl(wrapper=True)
    def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, Any, Any]:
        """Start the clock of a test."""
        result = yield
        fail = signal.getsignal(signal.SIGALRM)

        def alarm(number: int, frame: FrameType | None) -> None:
            __tracebackhide__ = True
            assert callable(fail)
            _failing(fail, number, frame)

        # Not where the method is another one.
        if callable(fail):
            signal.signal(signal.SIGALRM, alarm)
        return result
