"""When to ask the peer for a sign of life, and when to hold it for gone."""

from __future__ import annotations

from enum import Enum, auto

__all__ = ["Liveness", "Verdict"]

# A timer that comes this much too late, in seconds or as a share of the timeout, finds a process that was
# stopped, or whose whole VM was: what its peer sent meanwhile was not heard, so it must be asked again.
_LATE = 1.0
_LATE_SHARE = 0.25

# Seconds between signs of life at least, however impatient the peer says it is.
_OFTEN = 0.05


class Verdict(Enum):
    """What is due."""

    NOTHING = auto()
    ASK = auto()
    """Ask the peer for a sign of life."""
    GIVE = auto()
    """Give the peer one, since we do not hear what it asks."""
    GONE = auto()
    """The peer is gone."""


class Liveness:
    """The heartbeat of one side of a connection.

    A byte of any kind is a sign of life. The times are given by the caller, from one clock.

    Args:
        interval: seconds between two questions; None asks none.
        timeout: seconds without a sign of life after a question, until the peer is gone; None is never.
    """

    __slots__ = ("_asked", "_bytes", "_gave", "_interval", "_next", "_patience", "_reading", "_timeout")

    def __init__(self, interval: float | None, timeout: float | None) -> None:
        self._interval = interval
        self._timeout = timeout
        self._patience = 0.0  # the peer's
        self._next = 0.0  # when to ask next
        self._asked: float | None = None  # since when we wait
        self._bytes = 0  # received then
        self._reading = True
        self._gave = 0.0  # when we gave a sign of life unasked

    @property
    def patience(self) -> float:
        """Seconds that the peer may be silent once it was asked; 0 is for ever."""
        return 0.0 if self._interval is None or self._timeout is None else self._timeout

    def start(self, now: float, patience: float) -> None:
        """Begin, with what the peer has said of its own patience."""
        self._patience = patience
        self._gave = now
        if self._interval is not None:
            self._next = now + self._interval

    def set_reading(self, reading: bool, now: float) -> None:
        """Tell that the stream is not read for a while, or is again: who does not listen cannot judge."""
        self._reading = reading
        self._next = max(self._next, now)
        self._asked = None

    def deadline(self, now: float) -> float | None:
        """Return when :meth:`check` is due; None is never."""
        if not self._reading:
            due = [] if self._interval is None else [self._next]
            if self._patience:
                due.append(self._gave + max(self._patience / 3, _OFTEN))
            return max(now, min(due)) if due else None
        if self._interval is None:
            return None
        if self._asked is None or self._timeout is None:
            return self._next
        return min(self._next, self._asked + self._timeout)

    def check(self, now: float, lateness: float, bytes_received: int) -> Verdict:
        """Say what is due.

        Args:
            now: the time.
            lateness: seconds since it was due.
            bytes_received: how many have come from the peer so far.
        """
        if not self._reading:
            self._gave = now
            self._next = now + (self._interval or 0.0)
            return Verdict.GIVE
        late = lateness > max(_LATE, _LATE_SHARE * (self._timeout or 0.0))
        if late or bytes_received != self._bytes:
            self._asked = None
        if self._asked is not None and self._timeout is not None and now >= self._asked + self._timeout:
            return Verdict.GONE
        if now < self._next and not late:
            return Verdict.NOTHING
        assert self._interval is not None
        self._next = now + self._interval
        if self._asked is None:
            self._asked = now
            self._bytes = bytes_received
        return Verdict.ASK
