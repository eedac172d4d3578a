"""What :class:`NativeProtocol` must do: the reference of ``tests/reference_protocol.py``, and the rules about time.

The latter are those of docs/protocol.md, each as a check of what happened, not as a second way to reckon it.
"""

from __future__ import annotations

from typing import TypeAlias

from ..reference_protocol import Reference, number

__all__ = ["CLOSE", "DATA", "PING", "PONG", "Expected", "Model", "frames"]

DATA, PING, PONG, CLOSE = range(4)

LINGER = 1.0  # seconds, after the peer broke a rule
OFTEN = 0.05  # seconds between signs of life at least, however impatient the peer is
LATE = 1.0  # seconds, or more: a timer that comes this much too late cannot judge

Expected: TypeAlias = tuple[object, ...]
"""An event: its name and what is to be in it."""


def frames(stream: bytes | bytearray) -> list[tuple[int, bytes]]:
    """Take what was written apart."""
    found = []
    while stream:
        size = 8 + number(stream[4:8])
        assert len(stream) >= size >= 8
        assert stream[1:4] == b"\0\0\0"
        found.append((stream[0], bytes(stream[8:size])))
        stream = stream[size:]
    return found


class Model:
    """The reference, with a clock, and with the calls that the specification has no name for.

    Args:
        now: the time. All times are multiples of 1/64 s, so that sums are exact.
        heartbeat, timeout, open_timeout, close_timeout: seconds, or None.
    """

    def __init__(
        self,
        now: float,
        max_message: int,
        nonce: bytes | None,
        heartbeat: float | None,
        timeout: float | None,
        open_timeout: float | None,
        close_timeout: float | None,
    ) -> None:
        self.now = now
        self.heartbeat = heartbeat
        self.timeout = timeout
        self.close_timeout = close_timeout
        patience = 0.0 if heartbeat is None or timeout is None else timeout
        self.side = Reference(max_message, int(patience * 1000), nonce)
        self.mute = False
        self.finished = False
        self.expected: list[Expected] = []
        self.pings_sent = 0
        self.pings: dict[int, float] = {}  # unanswered
        # When what there is to wait for besides a heartbeat is over.
        self.deadline = self._later(open_timeout)

        # The heartbeat.
        self.reading = True
        self.gave = False  # a PONG unasked, which waits to be written
        self.asked_at = now  # when a PING was last due
        self.judge_from = now  # when waiting for a sign of life had to begin anew
        self.late_at = now  # when a timer last came late, if only a little
        self.heard_at = now
        self.said_at = now

    @property
    def live(self) -> bool:
        """The heartbeat beats."""
        return self.side.sending == "OPEN" and self.side.receiving == "FRAMES"

    @property
    def patience(self) -> float:
        """The peer's, in seconds."""
        return self.side.peer_patience / 1000

    # -- what is done, and what comes ------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        side = self.side
        if data:
            self.heard_at = self.now
        for octet in data:
            receiving, sending = side.receiving, side.sending
            side.receive(bytes((octet,)))
            if side.answers:
                self._answered([number(payload) for payload in side.answers])
                side.answers.clear()
            if side.receiving != receiving:
                self._changed(first=sending != "CLOSED")

    def _answered(self, tokens: list[int]) -> None:
        self.expected.append(("Pong", tokens[-1], self.now - self.pings[tokens[-1]]))
        for token in tokens:
            del self.pings[token]

    def _changed(self, first: bool) -> None:
        """Note a new state of receiving; first: we have not sent a CLOSE before."""
        side = self.side
        if side.receiving == "FRAMES":
            if side.sending == "OPEN":
                self.expected.append(("Opened", side.peer_max_message, self.patience, side.peer_nonce))
                self.asked_at = self.judge_from = self.said_at = self.now
                self.deadline = None
        elif side.receiving == "CLOSED":
            self.expected.append(("Closed", side.code, side.reason))
            if first:
                self.deadline = self._later(self.close_timeout)
            else:
                self.finished = True
        else:
            self.expected.append(("Failed", side.error))
            self.deadline = self._later(LINGER)

    def end(self) -> None:
        if not self.finished:
            if self.side.receiving in ("HELLO", "FRAMES"):
                self.expected.append(("Failed", None))
            self.side.end()
            self._finish()

    def ping(self) -> int:
        self.pings_sent += 1
        assert self.side.ping(self.pings_sent.to_bytes(8, "big"))
        self.pings[self.pings_sent] = self.now
        return self.pings_sent

    def send(self, message: bytes) -> bytes | None:
        """Return the bytes of a message, or None if it cannot be sent."""
        before = len(self.side.written)
        if self.mute or not self.side.send(message):
            return None
        written = bytes(self.side.written[before:])
        del self.side.written[before:]
        return written

    def close(self, code: int, reason: str) -> None:
        if self.side.sending != "CLOSED":
            self.side.close(code, reason)
            self.deadline = self._later(self.close_timeout)

    def set_reading(self, reading: bool) -> None:
        self.reading = reading
        self.judge_from = self.now

    def _later(self, timeout: float | None) -> float | None:
        return None if timeout is None else self.now + timeout

    def _finish(self) -> None:
        self.finished = True
        self.deadline = None

    # -- times -----------------------------------------------------------------------------------------------

    def check_timer(self, timer: float | None) -> None:
        """Check when the protocol wants to be called."""
        if self.finished:
            # There is nothing left to wait for, but nor does it matter.
            assert timer is None or timer == self.deadline
        elif not self.live:
            assert timer == self.deadline
        elif not self.reading:
            # It may speak more often, and to one who does not ask for it.
            latest = max(self.now, self.said_at + max(self.patience / 3, OFTEN))
            assert self.patience == 0 or (timer is not None and timer <= latest + 1e-6)
        elif self.heartbeat is None:
            assert timer is None
        else:
            assert timer is not None and timer <= self.now + self.heartbeat

    def fired(self, lateness: float, gone: bool, pinged: bool) -> None:
        """The timer has come, and this is what the protocol made of it; what must come of it is noted."""
        if self.finished:
            assert not gone and not pinged
        elif not self.live:
            assert not pinged
            self._silent(8) if self.side.sending == "HELLO" else self._finish()
        elif not self.reading:
            assert not gone and not pinged
            self.gave = True
            self.said_at = self.now
        else:
            self._beat(lateness, gone, pinged)

    def _beat(self, lateness: float, gone: bool, pinged: bool) -> None:
        assert self.heartbeat is not None
        timeout = self.timeout
        excused = lateness > max(LATE, (timeout or 0.0) / 4)
        silent_since = max(self.heard_at, self.judge_from)
        if gone:
            assert timeout is not None and not pinged and not excused
            assert self.now >= silent_since + timeout
            assert any(self.now >= sent + timeout for sent in self.pings.values())
            self._silent(9)
            return
        if lateness:
            self.late_at = self.now
        elif timeout is not None:
            latest = max(silent_since, self.late_at) + self.heartbeat + timeout
            assert self.now < latest, "the peer should be held for gone"
        if excused:
            self.judge_from = self.now
        due = self.now >= self.asked_at + self.heartbeat
        if due or excused:
            assert pinged or self.pings, "a PING is due"
            self.asked_at = self.now
        else:
            assert not pinged
        if pinged:
            self.ping()

    def _silent(self, code: int) -> None:
        self.side._error(code)
        self.expected.append(("Failed", code))
        self._finish()
