"""Imported by each Python of the Wine testbed when it starts."""

from __future__ import annotations

import linecache
import os
import sys

assert sys.platform == "win32"

# Wine 8 crashes in it, and `platform` falls back to what works everywhere.
sys.modules["_wmi"] = None  # type: ignore[assignment]

# In debug mode asyncio has it stat() each file in the stack of each future, and there that takes 0.4 ms.
linecache.checkcache = lambda filename=None: None

if "AIOHVSOCK_PROVIDER" in os.environ:
    from tests.testbeds.provider import install_from_environment

    install_from_environment()
