"""What the state machines tell whoever drives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from ..exceptions import HvError
from ..framing import Buffer
from .hello import Hello

__all__ = ["Clock", "CloseCode", "Closed", "Event", "Failed", "Frame", "Opened", "Pong"]

Clock: TypeAlias = Callable[[], float]
"""Seconds, only ever going forward."""

Frame: TypeAlias = bytes | Sequence[Buffer]
"""What to write for one message: its bytes, or for a large one pieces that are better not joined."""


class CloseCode(IntEnum):
    """Why a connection was closed. Codes from 128 to 255 are the application's own."""

    OK = 0
    GOING_AWAY = 1
    PROTOCOL_ERROR = 2
    NO_COMMON_VERSION = 3
    MESSAGE_TOO_LARGE = 4
    INTERNAL_ERROR = 5
    NOT_ALLOWED = 6
    TRY_AGAIN_LATER = 7
    NO_HELLO = 8
    NO_ANSWER = 9

    @staticmethod
    def is_ok(code: int) -> bool:
        """Tell whether the code stands for a proper end."""
        return code <= CloseCode.GOING_AWAY or code >= 128


@dataclass(frozen=True, slots=True)
class Opened:
    """The peer has said hello: messages can be sent."""

    peer: Hello | None
    """None where the protocol has no hello."""


@dataclass(frozen=True, slots=True)
class Pong:
    """The peer has answered a ping, and with it all before."""

    token: int
    latency: float
    """Seconds from the ping to its answer."""


@dataclass(frozen=True, slots=True)
class Closed:
    """The peer has closed the connection; nothing more will come from it."""

    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The connection is over because of the peer: it broke a rule, is silent, or ended without closing."""

    error: HvError
    code: int | None = None
    """The close code the peer is told; None if it is not, because it has gone."""


Event: TypeAlias = Opened | Pong | Closed | Failed
