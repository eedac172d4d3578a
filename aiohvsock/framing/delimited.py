"""Frames with a mark behind them: lines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..exceptions import FrameTooLarge, IncompleteFrame, LocalProtocolError
from .base import DEFAULT_MAX_SIZE, Buffer, Decoder
from .decoders import StreamDecoder

__all__ = ["Delimited"]


@dataclass(frozen=True, slots=True)
class Delimited:
    """The payload, then a delimiter, which the payload must not contain.

    With the default it is lines: JSON for qemu-ga, for one. What else a line may hold, like the ``\\r``
    before its end, or the byte 0xFF with which qemu-ga and its clients resynchronise, is the caller's to
    strip.

    Args:
        delimiter: what ends a payload; bytes, at least one. It is not part of the payload.
        max_size: bytes; the longest payload, without the delimiter.

    Raises:
        ValueError: ``delimiter`` is empty or not bytes, or ``max_size`` is negative.

    Encoding a payload that contains the delimiter, or forms one with it early, raises
    :exc:`LocalProtocolError`. On a stream, its decoder raises :exc:`FrameTooLarge` as soon as a line cannot
    end within the limit any more; ``size`` is what had come of it. :exc:`IncompleteFrame` at the end means
    that the last line had no delimiter.
    """

    delimiter: bytes = b"\n"
    max_size: int = DEFAULT_MAX_SIZE

    def __post_init__(self) -> None:
        if not isinstance(self.delimiter, bytes) or not self.delimiter:
            raise ValueError(f"delimiter must be bytes, at least one, not {self.delimiter!r}")
        if self.max_size < 0:
            raise ValueError(f"max_size cannot be negative, as {self.max_size!r} is")

    def replace(self, **changes: Any) -> Delimited:
        """Return a copy with some of its arguments changed."""
        return dataclasses.replace(self, **changes)

    def encode(self, payload: Buffer) -> Sequence[Buffer]:
        line = bytes(payload)
        if len(line) > self.max_size:
            raise FrameTooLarge(len(line), self.max_size)
        delimiter = self.delimiter
        # The second: of b"abab", say, and a payload that ends in b"ab".
        tail = line[-len(delimiter) :]
        if delimiter in line or (tail + delimiter).find(delimiter) < len(tail):
            raise LocalProtocolError(f"a payload cannot contain the delimiter {delimiter!r}")
        return payload, delimiter

    def decoder(self) -> Decoder[bytes]:
        return _Decoder(self)


class _Decoder(StreamDecoder[bytes]):
    __slots__ = ("_delimiter", "_max_size", "_searched")

    def __init__(self, codec: Delimited) -> None:
        super().__init__()
        self._delimiter = codec.delimiter
        self._max_size = codec.max_size
        self._searched = 0  # bytes of _rest in which no delimiter can start

    def feed(self, data: Buffer) -> list[bytes]:
        self._check()
        if not data:
            return []
        stream = bytes(data)
        rest = self._rest
        if rest:
            rest += stream
            if rest.find(self._delimiter, self._searched) < 0:
                return self._checked([])
            stream = bytes(rest)
        lines = stream.split(self._delimiter)
        rest[:] = lines.pop()
        if len(stream) > self._max_size:
            for number, line in enumerate(lines):
                if len(line) > self._max_size:
                    return self._broken(FrameTooLarge(len(line), self._max_size), lines[:number])
        return self._checked(lines)

    def _checked(self, lines: list[bytes]) -> list[bytes]:
        """Return the lines, if what is kept can still become one within the limit."""
        kept = len(self._rest)
        if kept > self._max_size:
            kept -= self._delimiter_begun()
            if kept > self._max_size:
                return self._broken(FrameTooLarge(kept, self._max_size), lines)
        self._searched = max(0, len(self._rest) - len(self._delimiter) + 1)
        return lines

    def _delimiter_begun(self) -> int:
        """Return how many bytes at the end can be the start of a delimiter."""
        size = len(self._delimiter) - 1
        while not self._rest.endswith(self._delimiter[:size]):
            size -= 1
        return size

    def eof(self) -> None:
        self._check()
        if self._rest:
            raise IncompleteFrame(len(self._rest))
