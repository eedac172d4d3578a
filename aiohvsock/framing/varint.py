"""Frames with their length in front, seven bits to a byte: protobuf's delimited streams."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..exceptions import FrameTooLarge, FramingError
from .base import DEFAULT_MAX_SIZE, Buffer, InPlaceDecoder
from .checks import check_max_size
from .decoders import LengthDecoder

__all__ = ["Varint"]

_LONGEST = 10  # bytes of 64 bits


@dataclass(frozen=True, slots=True)
class Varint:
    """The payload's length as an unsigned LEB128 number of at most 64 bits, then the payload.

    It is what ``writeDelimitedTo`` of protobuf's Java, ``protodelim`` of Go and many others write.

    Args:
        max_size: bytes; the longest payload, checked on the length before anything is allocated for it.

    Raises:
        ValueError: ``max_size`` is outside 0 ... 2**64-1.

    On a stream, its decoder raises :exc:`FrameTooLarge` for a payload over the limit, and
    :exc:`FramingError` for a length of more than 64 bits, or in more bytes than it needs: a length has one
    spelling.

    Source: protobuf.dev, "Encoding", "Base 128 Varints".
    """

    max_size: int = DEFAULT_MAX_SIZE

    def __post_init__(self) -> None:
        check_max_size(self.max_size, 2**64 - 1)

    def replace(self, **changes: Any) -> Varint:
        """Return a copy with some of its arguments changed."""
        return dataclasses.replace(self, **changes)

    def encode(self, payload: Buffer) -> Sequence[Buffer]:
        size = memoryview(payload).nbytes
        if size > self.max_size:
            raise FrameTooLarge(size, self.max_size)
        length = bytearray()
        while size > 0x7F:
            length.append(size & 0x7F | 0x80)
            size >>= 7
        length.append(size)
        return bytes(length), payload

    def decoder(self) -> InPlaceDecoder[bytes]:
        return _Decoder(self.max_size)


class _Decoder(LengthDecoder[bytes]):
    __slots__ = ()

    def _header(self, data: bytes, position: int) -> tuple[int, int] | None:
        window = data[position : position + _LONGEST]
        size = 0
        for count, byte in enumerate(window):
            size |= (byte & 0x7F) << 7 * count
            if byte < 0x80 and size < 1 << 64:
                if count and not byte:
                    raise FramingError("a length ends in zeros that it does not need")
                return position + count + 1, size
        if len(window) < _LONGEST:
            return None
        raise FramingError("a length has more than 64 bits")
