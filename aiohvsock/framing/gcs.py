"""The frames of the bridge between hcsshim and the guest compute service (GCS)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any

from ..exceptions import FrameTooLarge
from .base import Buffer, InPlaceDecoder
from .checks import check_max_size, check_payload, check_unsigned
from .decoders import HeaderDecoder

__all__ = ["GCS", "GCSCodec", "GCSFrame"]

_HEADER = Struct("<IIQ")
_LENGTH = Struct("<4xI8x")


@dataclass(frozen=True, slots=True)
class GCSFrame:
    """A message of the bridge.

    Args:
        type: 32 bits; the kind (0x10000000 request, 0x20000000 response, 0x30000000 notification) and the
            procedure in one.
        id: 64 bits; a response has that of its request.
        payload: bytes; JSON.

    Raises:
        ValueError: a number does not fit.
        TypeError: a field has the wrong type.
    """

    type: int
    id: int
    payload: bytes = b""

    def __post_init__(self) -> None:
        check_unsigned("type", self.type, 32)
        check_unsigned("id", self.id, 64)
        check_payload(self.payload)


@dataclass(frozen=True, slots=True)
class GCSCodec:
    """The class of :data:`GCS`.

    Args:
        max_size: bytes; the longest payload. The protocol's own figure is 0x10000 with the header.

    Raises:
        ValueError: ``max_size`` is outside 0 ... 2**32-17.
    """

    max_size: int = 0x10000 - _HEADER.size

    def __post_init__(self) -> None:
        check_max_size(self.max_size, 2**32 - 1 - _HEADER.size)

    def replace(self, **changes: Any) -> GCSCodec:
        """Return a copy with some of its arguments changed."""
        return dataclasses.replace(self, **changes)

    def frame(self, type: int, id: int, payload: bytes = b"") -> GCSFrame:
        """Return a frame to send; the arguments are those of :class:`GCSFrame`."""
        return GCSFrame(type, id, payload)

    def encode(self, frame: GCSFrame) -> Sequence[Buffer]:
        size = len(frame.payload)
        if size > self.max_size:
            raise FrameTooLarge(size, self.max_size)
        return _HEADER.pack(frame.type, _HEADER.size + size, frame.id), frame.payload

    def decoder(self) -> InPlaceDecoder[GCSFrame]:
        return HeaderDecoder(_LENGTH, _HEADER.size, self.max_size, _frame)


def _frame(head: bytes, payload: bytes) -> GCSFrame:
    type, _, id = _HEADER.unpack(head)
    return GCSFrame(type, id, payload)


GCS = GCSCodec()
"""Messages with a type and an id: ``GCS.frame(type=0x10100101, id=1, payload=b"{}")``.

The header is 16 bytes, little-endian: type (32 bits), length with the header (32), id (64). The limit is the
protocol's, 65520 bytes of payload. A length below 16 is a :exc:`FramingError`.

Source: internal/gcs/prot/protocol.go and internal/gcs/bridge.go of github.com/microsoft/hcsshim.
"""
