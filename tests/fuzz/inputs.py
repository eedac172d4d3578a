"""What the targets have in common: any bytes mean something to them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias, cast

__all__ = ["TARGETS", "Script", "Target", "Tell", "ignore", "load"]

TARGETS = ("framing", "bare", "native")

Tell: TypeAlias = Callable[[str], None]
"""Hears what is done, for who replays an input."""


def ignore(text: str) -> None:
    pass


class Target(Protocol):
    """The module of a target."""

    def one_input(self, data: bytes, tell: Tell = ...) -> None:
        """Do what the bytes say; any exception is a finding."""

    def seeds(self) -> Iterable[bytes]:
        """Return inputs to begin with."""


def load(name: str) -> Target:
    return cast(Target, importlib.import_module(f"{__package__}.{name}"))


class Script:
    """Reads an input: first the settings, then what to do. Behind its end all is zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def __bool__(self) -> bool:
        return self._position < len(self._data)

    def take(self, size: int) -> bytes:
        """Return so many bytes, or those that are left."""
        part = self._data[self._position : self._position + size]
        self._position += len(part)
        return part

    def rest(self) -> bytes:
        return self.take(len(self._data))

    def byte(self) -> int:
        return int.from_bytes(self.take(1), "big")

    def size(self) -> int:
        """Return a length, of two bytes."""
        return int.from_bytes(self.take(2), "big")
