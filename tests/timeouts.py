"""On Windows, end a test that takes too long, and not the run: what the signal of an alarm does elsewhere.

pytest-timeout has only its own thread there, which dumps the stacks and ends the process.
"""

from __future__ import annotations

import sys
import threading
import time
from types import FrameType
from typing import Any

import pytest

__all__: list[str] = []

# Seconds after which a test that is not in Python, and so hears no signal, ends the run after all.
PATIENCE = 20.0

if sys.platform == "win32":
    import _thread
    import signal

    import pytest_timeout

    # Nobody else uses it: Ctrl-Break.
    SIGNAL = signal.SIGBREAK

    def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
        """Start the clock of a test."""
        over, heard = threading.Event(), threading.Event()

        def watch() -> None:
            if over.wait(settings.timeout):
                return
            deadline = time.monotonic() + PATIENCE
            while not heard.is_set() and time.monotonic() < deadline:
                _thread.interrupt_main(SIGNAL)
                heard.wait(0.05)
            if not over.wait(deadline - time.monotonic()):
                pytest_timeout.timeout_timer(item, settings)

        def interrupted(number: int, frame: FrameType | None) -> None:
            __tracebackhide__ = True
            # What is raised inside of a function that C has called comes to nothing.
            if not _in_callback(frame):
                heard.set()
                pytest_timeout.timeout_sigalrm(item, settings)

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

    __all__ += ["pytest_timeout_set_timer"]
