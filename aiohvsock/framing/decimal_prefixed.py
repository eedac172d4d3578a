"""Frames with their length in front, in decimal digits: syslog's octet counting."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..exceptions import FrameTooLarge, FramingError, LocalProtocolError
from .base import DEFAULT_MAX_SIZE, Buffer, InPlaceDecoder
from .checks import check_max_size
from .decoders import LengthDecoder

__all__ = ["DecimalPrefixed"]

_DIGITS = 20  # of 64 bits


@dataclass(frozen=True, slots=True)
class DecimalPrefixed:
    """The payload's length in decimal digits, a space, then the payload: ``b"5 hello"``.

    There are no empty payloads, for the length must not begin with a zero.

    Args:
        max_size: bytes; the longest payload, checked on the length before anything is allocated for it.

    Raises:
        ValueError: ``max_size`` is outside 0 ... 2**64-1.

    Encoding an empty payload raises :exc:`LocalProtocolError`. On a stream, its decoder raises
    :exc:`FrameTooLarge` for a payload over the limit, and :exc:`FramingError` for a length that begins with
    a zero, has anything but digits before the space, or more than 20 of them.

    Source: RFC 5425, section 4.3; RFC 6587, section 3.4.1; vsyslog.go of LinuxKit's vsudd.
    """

    max_size: int = DEFAULT_MAX_SIZE

    def __post_init__(self) -> None:
        check_max_size(self.max_size, 2**64 - 1)

    def replace(self, **changes: Any) -> DecimalPrefixed:
        """Return a copy with some of its arguments changed."""
        return dataclasses.replace(self, **changes)

    def encode(self, payload: Buffer) -> Sequence[Buffer]:
        size = memoryview(payload).nbytes
        if size > self.max_size:
            raise FrameTooLarge(size, self.max_size)
        if not size:
            raise LocalProtocolError("octet counting (RFC 5425) has no empty frames")
        return b"%d " % size, payload

    def decoder(self) -> InPlaceDecoder[bytes]:
        return _Decoder(self.max_size)


class _Decoder(LengthDecoder[bytes]):
    __slots__ = ()

    def _header(self, data: bytes, position: int) -> tuple[int, int] | None:
        window = data[position : position + _DIGITS + 1]
        digits, space, _ = window.partition(b" ")
        if not digits.isdigit() or digits.startswith(b"0") or len(digits) > _DIGITS:
            # What it is instead stays out of the text: errors go into logs, and payloads do not.
            raise FramingError(f"a length must be up to {_DIGITS} digits, no zero first, and a space")
        if not space:
            return None
        return position + len(digits) + 1, int(digits)
