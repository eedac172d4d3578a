"""How the message connections of a client or a server behave."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from ..framing import Codec
from ..framing.base import DEFAULT_MAX_SIZE
from ..protocol import MAX_MESSAGE, BareProtocol, MessageProtocol, NativeProtocol
from ..protocol.events import Clock

__all__ = ["DEFAULT_CLOSE_TIMEOUT", "DEFAULT_HEARTBEAT", "DEFAULT_OPEN_TIMEOUT", "Settings", "check_callback"]

T = TypeVar("T")

# Seconds, each.
DEFAULT_OPEN_TIMEOUT = 10.0
DEFAULT_CLOSE_TIMEOUT = 10.0
DEFAULT_HEARTBEAT = 20.0


@dataclass(frozen=True, slots=True)
class Settings(Generic[T]):
    """The keywords that :class:`~aiohvsock.connect` and :func:`~aiohvsock.serve` share; they document them.

    Raises:
        ValueError: a figure makes no sense.
    """

    codec: Codec[T] | None = None
    max_size: int = DEFAULT_MAX_SIZE
    open_timeout: float | None = DEFAULT_OPEN_TIMEOUT
    close_timeout: float | None = DEFAULT_CLOSE_TIMEOUT
    heartbeat: float | None = DEFAULT_HEARTBEAT
    heartbeat_timeout: float | None = DEFAULT_HEARTBEAT

    def __post_init__(self) -> None:
        for name in ("open_timeout", "close_timeout", "heartbeat", "heartbeat_timeout"):
            seconds = getattr(self, name)
            if seconds is None:
                continue
            if not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
                raise ValueError(f"{name} must be a positive number of seconds, or None, not {seconds!r}")
        if isinstance(self.codec, type):
            raise TypeError(f"codec must be a codec, not the class {self.codec.__name__}")
        if self.codec is not None and not hasattr(self.codec, "decoder"):
            raise TypeError(f"codec must be a codec, or None, not {self.codec!r}")
        if self.codec is not None and self.max_size != DEFAULT_MAX_SIZE:
            raise ValueError("max_size is for the native protocol; give it to the codec instead")
        if self.codec is not None and {self.heartbeat, self.heartbeat_timeout} - {None, DEFAULT_HEARTBEAT}:
            raise ValueError("heartbeat is for the native protocol; a codec has none")
        if not isinstance(self.max_size, int) or not 0 <= self.max_size <= MAX_MESSAGE:
            raise ValueError(f"max_size must be 0 ... 2**32 - 1 bytes, not {self.max_size!r}")

    def protocol(self, clock: Clock) -> MessageProtocol[T]:
        """Return the state machine for one connection."""
        if self.codec is not None:
            return BareProtocol(clock, self.codec, self.close_timeout)
        native = NativeProtocol(
            clock,
            max_size=self.max_size,
            open_timeout=self.open_timeout,
            close_timeout=self.close_timeout,
            heartbeat=self.heartbeat,
            heartbeat_timeout=self.heartbeat_timeout,
        )
        # mypy cannot know that without a codec T is bytes.
        return cast("MessageProtocol[T]", native)


def check_callback(name: str, callback: object) -> None:
    """Check a plain function that a user gave us, or None.

    Raises:
        TypeError: it is none.
    """
    if inspect.iscoroutinefunction(callback):
        # Nobody would await its coroutine, which besides is always true.
        raise TypeError(f"{name} must be a plain function, not the coroutine function {callback!r}")
    if callback is not None and not callable(callback):
        raise TypeError(f"{name} must be a function, not {callback!r}")
