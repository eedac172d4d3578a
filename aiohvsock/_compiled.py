"""Which inner loops run: those in C, where they were built and are not switched off, or those in Python."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

__all__ = ["speedups", "switched_off"]


def switched_off() -> bool:
    """Tell whether the environment variable AIOHVSOCK_PURE asks for those in Python: it is set, and not to 0."""
    return os.environ.get("AIOHVSOCK_PURE", "0") not in ("", "0")


def _load() -> ModuleType | None:
    if switched_off():
        return None
    try:
        return importlib.import_module("._speedups", __package__)
    except ImportError:
        return None


speedups = _load()
"""The compiled module; None where everything is Python, because it was not built or is switched off."""
