"""Frames with their length in front: what most hand-written agents speak."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..exceptions import FrameTooLarge
from .base import DEFAULT_MAX_SIZE, Buffer, InPlaceDecoder
from .decoders import HeaderDecoder

__all__ = ["LengthPrefixed"]

_FORMATS = {1: "B", 2: "H", 4: "I", 8: "Q"}
_ORDERS = {"big": ">", "little": "<"}


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
            The default is 1 MiB, or what ``width`` reaches if that is less.

    Raises:
        ValueError: a figure makes no sense, or ``max_size`` does not fit into ``width``.

    On a stream that is not of this form, its decoder raises :exc:`FrameTooLarge` or :exc:`FramingError`.
    """

    width: int = 4
    byteorder: Literal["big", "little"] = "big"
    includes_header: bool = False
    offset: int = 0
    pad: int = 0
    max_size: int = DEFAULT_MAX_SIZE
    _asked: int = field(init=False, repr=False, compare=False)  # the limit before width lowered it
    _extra: int = field(init=False, repr=False, compare=False)  # what the length counts beyond the payload
    _format: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.width not in _FORMATS:
            raise ValueError(f"width must be 1, 2, 4 or 8, not {self.width!r}")
        if self.byteorder not in _ORDERS:
            raise ValueError(f"byteorder must be 'big' or 'little', not {self.byteorder!r}")
        if self.offset < 0 or self.pad < 0 or self.max_size < 0:
            raise ValueError(f"{self!r}: offset, pad and max_size cannot be negative")
        extra = self.offset + self.width + self.pad if self.includes_header else 0
        longest = (1 << 8 * self.width) - 1 - extra
        if longest < 0:
            raise ValueError(f"{self!r}: the length of the header does not fit into {self.width} bytes")
        # A default that is too large for a narrow length is nobody's mistake.
        if self.max_size > longest and self.max_size != DEFAULT_MAX_SIZE:
            raise ValueError(f"max_size {self.max_size} does not fit: {self.width} bytes reach to {longest}")
        layout = f"{_ORDERS[self.byteorder]}{self.offset}x{_FORMATS[self.width]}{self.pad}x"
        object.__setattr__(self, "_asked", self.max_size)
        object.__setattr__(self, "_extra", extra)
        object.__setattr__(self, "_format", layout)
        object.__setattr__(self, "max_size", min(self.max_size, longest))

    def replace(self, **changes: Any) -> LengthPrefixed:
        """Return a copy with some of its arguments changed."""
        return dataclasses.replace(self, **{"max_size": self._asked, **changes})

    def encode(self, payload: Buffer) -> Sequence[Buffer]:
        size = memoryview(payload).nbytes
        if size > self.max_size:
            raise FrameTooLarge(size, self.max_size)
        return struct.pack(self._format, size + self._extra), payload

    def decoder(self) -> InPlaceDecoder[bytes]:
        return HeaderDecoder(struct.Struct(self._format), self._extra, self.max_size)
