"""The native protocol once more, from docs/protocol.md alone: slow, a byte at a time, and too simple to be wrong.

It has no clock: what the specification says about times is not in here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Reference"]

MAGIC = [0x89, 0x68, 0x76, 0x6D, 0x73, 0x67, 0x0D, 0x0A]

DATA, PING, PONG, CLOSE = 0x00, 0x01, 0x02, 0x03


def number(digits: bytes | bytearray) -> int:
    value = 0
    for digit in digits:
        value = value * 256 + digit
    return value


def octets(value: int, size: int) -> bytes:
    digits = []
    for _ in range(size):
        digits.append(value % 256)
        value //= 256
    assert value == 0
    return bytes(reversed(digits))


def frame(kind: int, payload: bytes) -> bytes:
    return bytes([kind, 0, 0, 0]) + octets(len(payload), 4) + payload


@dataclass
class Reference:
    """One side of a connection."""

    max_message: int
    patience: int
    nonce: bytes | None = None

    messages: list[bytes] = field(default_factory=list)
    """Delivered."""
    written: bytearray = field(default_factory=bytearray)
    answers: list[bytes] = field(default_factory=list)
    """Payloads of our PINGs that were answered."""

    receiving: str = "HELLO"
    """As in the specification: HELLO, FRAMES, CLOSED or LOST."""
    sending: str = "HELLO"
    """HELLO, OPEN or CLOSED."""
    code: int | None = None
    reason: str | None = None
    """Of the peer's CLOSE."""
    error: int | None = None
    """The code that goes with the rule that the peer broke."""
    stream: str = "read"
    """What becomes of the stream: read, wait or close."""

    peer_max_message: int = 0
    peer_patience: int = 0
    peer_nonce: bytes | None = None

    _pending: bytearray = field(default_factory=bytearray)
    """Of the hello, or of a frame, as far as it has come."""
    _pings: list[bytes] = field(default_factory=list)
    """Ours that wait for an answer."""

    def __post_init__(self) -> None:
        capabilities = 0 if self.nonce is None else 1
        rest = octets(capabilities, 4) + octets(self.max_message, 4) + octets(self.patience, 4)
        if self.nonce is not None:
            assert len(self.nonce) == 16
            rest += self.nonce
        self.written += bytes(MAGIC) + bytes([1, 1]) + octets(len(rest), 2) + rest

    @property
    def outcome(self) -> str:
        if self.receiving == "LOST":
            return "lost"
        if self.receiving == "CLOSED":
            assert self.code is not None
            return "closed" if self.code in (0, 1) or self.code >= 128 else "lost"
        return "open"

    # -- sending -------------------------------------------------------------------------------------------

    def send(self, message: bytes) -> bool:
        """Send a message, if it may be sent."""
        if self.sending != "OPEN" or len(message) > self.peer_max_message:
            return False
        self.written += frame(DATA, message)
        return True

    def ping(self, payload: bytes) -> bool:
        if self.sending != "OPEN" or len(payload) > 64:
            return False
        self._pings.append(payload)
        self.written += frame(PING, payload)
        return True

    def close(self, code: int, reason: str = "") -> None:
        if self.sending != "CLOSED" and self.receiving != "LOST":
            self._write_close(code, reason)

    def _write_close(self, code: int, reason: str = "") -> None:
        assert self.sending != "CLOSED"
        while len(reason.encode()) > 1023:
            reason = reason[:-1]
        self.written += frame(CLOSE, bytes([code]) + reason.encode())
        self.sending = "CLOSED"

    # -- receiving -----------------------------------------------------------------------------------------

    def receive(self, stream: bytes) -> None:
        for octet in stream:
            if self.receiving == "HELLO":
                self._pending.append(octet)
                self._check_hello()
            elif self.receiving == "FRAMES":
                self._pending.append(octet)
                self._check_frame()

    def end(self) -> None:
        """The stream has ended."""
        if self.receiving in ("HELLO", "FRAMES"):
            self.receiving = "LOST"
        self.stream = "close"

    def _error(self, code: int) -> None:
        self.error = code
        self.receiving = "LOST"
        self.stream = "close"
        if self.sending != "CLOSED":
            self._write_close(code, "rule broken")

    def _check_hello(self) -> None:
        have = len(self._pending)
        if have <= 8:
            if self._pending[have - 1] != MAGIC[have - 1]:
                self._error(2)
            return
        if have < 12:
            return
        version, oldest = self._pending[8], self._pending[9]
        length = number(self._pending[10:12])
        if have == 12:
            in_use = min(1, version)
            if oldest < 1 or oldest > version or length < 12 or length > 1012:
                self._error(2)
            elif in_use < oldest:
                self._error(3)
            return
        if have < 12 + length:
            return
        capabilities = number(self._pending[12:16])
        if capabilities % 2 == 1:
            if length < 28:
                self._error(2)
                return
            self.peer_nonce = bytes(self._pending[24:40])
        self.peer_max_message = number(self._pending[16:20])
        self.peer_patience = number(self._pending[20:24])
        self._pending.clear()
        self.receiving = "FRAMES"
        if self.sending == "HELLO":
            self.sending = "OPEN"

    def _check_frame(self) -> None:
        have = len(self._pending)
        if have < 8:
            return
        kind = self._pending[0]
        length = number(self._pending[4:8])
        if have == 8:
            if self._pending[1] or self._pending[2] or self._pending[3]:
                self._error(2)
            elif kind == DATA:
                if length > self.max_message:
                    self._error(4)
            elif kind in (PING, PONG):
                if length > 64:
                    self._error(2)
            elif kind == CLOSE:
                if length < 1 or length > 1024:
                    self._error(2)
            elif kind < 0x80 or length > max(self.max_message, 1024):
                self._error(2)
        if self.receiving == "FRAMES" and have == 8 + length:
            payload = bytes(self._pending[8:])
            self._pending.clear()
            self._frame(kind, payload)

    def _frame(self, kind: int, payload: bytes) -> None:
        if kind == DATA:
            if self.sending != "CLOSED":
                self.messages.append(payload)
        elif kind == PING:
            if self.sending != "CLOSED":
                self.written += frame(PONG, payload)
        elif kind == PONG:
            if payload in self._pings:
                while True:
                    ping = self._pings.pop(0)
                    self.answers.append(ping)
                    if ping == payload:
                        break
        elif kind == CLOSE:
            self.code = payload[0]
            self.reason = payload[1:].decode(errors="replace")
            self.receiving = "CLOSED"
            if self.sending == "CLOSED":
                self.stream = "close"
            else:
                self._write_close(self.code)
                self.stream = "wait"
