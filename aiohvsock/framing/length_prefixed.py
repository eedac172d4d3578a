"""Frames with their length in front: what most hand-written agents speak."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..exceptions import FrameTooLarge, FramingError, IncompleteFrame
from .base import DEFAULT_MAX_SIZE, Buffer, Decoder

__all__ = ["LengthPrefixed"]


@dataclass(frozen=True, slots=True)
class LengthPrefixed:
    """A header with the payload's length, then the payload.

    The default, 32 bits in network order, is the one most often met.

    Args:
        width: bytes of the length: 1, 2, 4 or 8.
        byteorder: ``"big"`` or ``"little"``.
        includes_header: the length counts the header too.
        offset: bytes of the header in front of the length; sent as zeros, and ignored.
        pad: bytes of the header behind the length; likewise.
        max_size: bytes; the longest payload, checked on the header before anything is allocated for it.

    Raises:
        ValueError: a figure makes no sense, or ``max_size`` does not fit into ``width``.
    """

    width: int = 4
    byteorder: Literal["big", "little"] = "big"
    includes_header: bool = False
    offset: int = 0
    pad: int = 0
    max_size: int = DEFAULT_MAX_SIZE

    def __post_init__(self) -> None:
        if self.width not in (1, 2, 4, 8):
            raise ValueError(f"width must be 1, 2, 4 or 8, not {self.width!r}")
        if self.byteorder not in ("big", "little"):
            raise ValueError(f"byteorder must be 'big' or 'little', not {self.byteorder!r}")
        if self.offset < 0 or self.pad < 0 or self.max_size < 0:
            raise ValueError(f"{self!r}: offset, pad and max_size cannot be negative")
        longest = (1 << 8 * self.width) - 1 - self._extra
        if longest < 0:
            raise ValueError(f"{self!r}: the length of the header does not fit into {self.width} bytes")
        if self.max_size > longest:
            # A default that is too large for a narrow length is nobody's mistake.
            if self.max_size != DEFAULT_MAX_SIZE:
                raise ValueError(
                    f"max_size {self.max_size} does not fit: {self.width} bytes reach to {longest}"
                )
            object.__setattr__(self, "max_size", longest)

    def replace(self, **changes: Any) -> LengthPrefixed:
        """Return a copy with some of its arguments changed."""
        return dataclasses.replace(self, **changes)

    @property
    def _header(self) -> int:
        return self.offset + self.width + self.pad

    @property
    def _extra(self) -> int:
        """What the length counts beyond the payload."""
        return self._header if self.includes_header else 0

    def encode(self, payload: Buffer) -> Sequence[Buffer]:
        size = memoryview(payload).nbytes
        if size > self.max_size:
            raise FrameTooLarge(size, self.max_size)
        length = (size + self._extra).to_bytes(self.width, self.byteorder)
        return bytes(self.offset) + length + bytes(self.pad), payload

    def decoder(self) -> Decoder:
        return _Decoder(self)


class _Decoder:
    def __init__(self, codec: LengthPrefixed) -> None:
        self._max_size = codec.max_size
        self._byteorder = codec.byteorder
        self._start = codec.offset
        self._stop = codec.offset + codec.width
        self._header = codec._header
        self._extra = codec._extra
        self._rest = bytearray()  # of an incomplete frame
        self._need = 0  # bytes it takes to go on: the header, or the frame
        self._error: FramingError | None = None

    def feed(self, data: Buffer) -> list[bytes]:
        if self._error is not None:
            # Or its traceback would grow with each time it is raised.
            raise self._error.with_traceback(None)
        rest = self._rest
        if rest:
            rest += data
            if len(rest) < self._need:
                return []
            data = bytes(rest)
            rest.clear()
        # One snapshot, of which slices are cheap.
        stream = bytes(data)
        header, end = self._header, len(stream)
        payloads: list[bytes] = []
        position = 0
        self._need = header
        while end - position >= header:
            length = stream[position + self._start : position + self._stop]
            size = int.from_bytes(length, self._byteorder) - self._extra
            if not 0 <= size <= self._max_size:
                return self._broken(size, payloads)
            following = position + header + size
            if following > end:
                self._need = header + size
                break
            payloads.append(stream[position + header : following])
            position = following
        rest += memoryview(stream)[position:]
        return payloads

    def _broken(self, size: int, payloads: list[bytes]) -> list[bytes]:
        if size < 0:
            self._error = FramingError(
                f"a frame says it is {size + self._extra} bytes long, less than its header"
            )
        else:
            self._error = FrameTooLarge(size, self._max_size)
        if payloads:
            return payloads
        raise self._error

    def eof(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)
        if self._rest:
            known = self._need > self._header or len(self._rest) >= self._header
            raise IncompleteFrame(len(self._rest), self._need if known else None)
