"""Imported by each Python of the Wine testbed when it starts."""

from __future__ import annotations

import _winapi
import functools
import linecache
import os
import sys
from typing import Any

assert sys.platform == "win32"

# Wine 8 crashes in it, and `platform` falls back to what works everywhere.
sys.modules["_wmi"] = None  # type: ignore[assignment]

# In debug mode asyncio has it stat() each file in the stack of each future, and there that takes 0.4 ms.
linecache.checkcache = lambda filename=None: None

_create_process = _winapi.CreateProcess


@functools.wraps(_create_process)
def _create_process_again(*arguments: Any) -> tuple[int, int, int, int]:
    """Start a process; Wine's server gives up on it now and then, when the machine is busy: ERROR_INTERNAL_ERROR."""
    for _ in range(3):
        try:
            return _create_process(*arguments)
        except OSError as error:
            if error.winerror != 1359:
                raise
    return _create_process(*arguments)


_winapi.CreateProcess = _create_process_again

if "AIOHVSOCK_PROVIDER" in os.environ:
    from tests.testbeds.provider import install_from_environment

    install_from_environment()
