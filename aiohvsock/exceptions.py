"""What can go wrong.

The tree::

    HvError
    ├── HvAddressError (ValueError)           an address that is wrong, or has no counterpart on this system
    ├── HvUnsupportedError (OSError)          this system, Python or event loop cannot do it; the text has the cure
    ├── HvConnectError (OSError)              connecting or listening failed
    │   ├── HvConnectionRefused (ConnectionRefusedError)      the peer is there, nobody listens
    │   ├── HvTimeout (TimeoutError)                          the peer gave no answer in time
    │   └── HvPermissionError (PermissionError)               a right is missing
    ├── FramingError                          the byte stream cannot be cut into frames
    │   ├── FrameTooLarge                     a frame is longer than ``max_size``
    │   └── IncompleteFrame                   the stream ended inside a frame
    ├── ProtocolError                         the peer broke the protocol
    ├── LocalProtocolError                    this program broke the protocol
    └── ConnectionClosed                      the message connection has ended
        ├── ConnectionClosedOK                ... as both sides wished
        └── ConnectionLost                    ... without a proper end

The standard class in brackets is a base too, so that ``except OSError`` and
``except ConnectionRefusedError`` written for other sockets go on working.
"""

from __future__ import annotations

import errno as _errno
import os
import sys
from collections.abc import Sequence
from typing import Any

__all__ = [
    "ConnectionClosed",
    "ConnectionClosedOK",
    "ConnectionLost",
    "FrameTooLarge",
    "FramingError",
    "HvAddressError",
    "HvConnectError",
    "HvConnectionRefused",
    "HvError",
    "HvPermissionError",
    "HvTimeout",
    "HvUnsupportedError",
    "IncompleteFrame",
    "LocalProtocolError",
    "ProtocolError",
]


class HvError(Exception):
    """Base of every error this package raises on its own account."""


class HvAddressError(HvError, ValueError):
    """An address is malformed, or has no counterpart on this system.

    Raised before any socket is made. The text names the part at fault.
    """


class HvUnsupportedError(HvError, OSError):
    """This system, this Python or this event loop cannot do what was asked; the text says what would."""


class HvConnectError(HvError, OSError):
    """Connecting to, or listening on, an address failed.

    Args:
        code: the system's error number; it becomes :attr:`errno`.
        operation: ``"connect"``, ``"listen"`` or ``"accept"``.
        remote: the peer's address, where there is one.
        local: our own address, as far as it is known.
        hint: what to check. The bare numbers mislead on these families.
        detail: the reason in words, where the text of ``code`` is not the reason.
        transient: see the attribute.

    The system's own error, if there was one, is ``__cause__``.
    """

    operation: str
    """``"connect"``, ``"listen"`` or ``"accept"``."""

    remote: object
    """The address that was dialled, or None."""

    local: object
    """Our own address, or None while it is not known."""

    hint: str
    """What to check."""

    transient: bool
    """True if a virtual machine that is still booting gives this error: trying again can help."""

    def __init__(
        self,
        code: int,
        operation: str,
        *,
        remote: object = None,
        local: object = None,
        hint: str = "",
        detail: str = "",
        transient: bool = False,
    ) -> None:
        self.operation = operation
        self.remote = remote
        self.local = local
        self.hint = hint
        self.detail = detail
        self.transient = transient
        text = operation
        if remote is not None:
            text += f" to {remote}"
        if local is not None:
            text += f" {'from' if remote is not None else 'on'} {local}"
        text += f" failed: {detail or _strerror(code)} ({_errno.errorcode.get(code, code)})"
        if hint:
            text += f"; {hint}"
        OSError.__init__(self, code, text)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {
            "remote": self.remote,
            "local": self.local,
            "hint": self.hint,
            "detail": self.detail,
            "transient": self.transient,
        }
        return _rebuild_connect_error, (type(self), self.errno, self.operation, fields)


def _strerror(code: int) -> str:
    if sys.platform == "win32" and code >= 10000:  # Winsock's, which C does not know
        import ctypes

        return ctypes.FormatError(code)
    return os.strerror(code)


def _rebuild_connect_error(
    cls: type[HvConnectError], code: int, operation: str, fields: dict[str, Any]
) -> HvConnectError:
    return cls(code, operation, **fields)


class HvConnectionRefused(HvConnectError, ConnectionRefusedError):
    """Nobody listens on that port or service, or the listener's backlog is full.

    :attr:`errno` keeps the system's number, which is ``ECONNRESET`` on AF_VSOCK.
    """


class HvTimeout(HvConnectError, TimeoutError):
    """The peer did not answer in time; :attr:`errno` is ``ETIMEDOUT``.

    The machine may be booting, paused or hung. :func:`asyncio.timeout` raises a plain
    :exc:`TimeoutError` without an ``errno``: that tells the two apart.
    """


class HvPermissionError(HvConnectError, PermissionError):
    """A right is missing; the hint says which."""


class FramingError(HvError):
    """The byte stream cannot be cut into frames."""


class FrameTooLarge(FramingError):
    """A frame is longer than the codec's ``max_size``; it was not allocated.

    Args:
        size: length of the frame in bytes, as its header says.
        max_size: the limit in bytes.
    """

    def __init__(self, size: int, max_size: int) -> None:
        super().__init__(size, max_size)
        self.size = size
        self.max_size = max_size

    def __str__(self) -> str:
        return f"a frame of {self.size} bytes is over the limit of {self.max_size}; raise max_size on both sides if it is meant"


class IncompleteFrame(FramingError):
    """The stream ended inside a frame.

    Args:
        received: bytes of the frame that had come.
        expected: its whole length in bytes, or None if not even that is known.
    """

    def __init__(self, received: int, expected: int | None = None) -> None:
        super().__init__(received, expected)
        self.received = received
        self.expected = expected

    def __str__(self) -> str:
        whole = "an unknown length" if self.expected is None else f"{self.expected} bytes"
        return f"the stream ended inside a frame, after {self.received} of {whole}"


class ProtocolError(HvError):
    """The peer broke the protocol."""


class LocalProtocolError(HvError):
    """This program broke the protocol: two tasks receive at once, a message is over the limit, ..."""


class ConnectionClosed(HvError):
    """The message connection has ended.

    Args:
        text: what happened, for people.
        code: see the attribute.
        reason: see the attribute.
    """

    code: int | None
    """The close code, as :class:`~aiohvsock.CloseCode` names those below 128; None if there was no close."""

    reason: str
    """What was said along with the code; empty mostly."""

    def __init__(self, text: str = "", *, code: int | None = None, reason: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.reason = reason


class ConnectionClosedOK(ConnectionClosed):
    """The connection has ended as both sides wished."""


class ConnectionLost(ConnectionClosed):
    """The connection ended without a proper end: inside a frame, by a reset, or because the peer is gone.

    What was sent last may or may not have been delivered; the reason is ``__cause__``.
    """

    undelivered: Sequence[object] = ()
    """Messages known not to have been taken by the peer. Empty unless a layer with receipts fills it: the native
    protocol has none."""
