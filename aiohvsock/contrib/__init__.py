"""Adapters for other libraries: one a file, and none is imported before you do."""

from __future__ import annotations

__all__: list[str] = []
