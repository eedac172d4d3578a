"""The frames between WSL's service and the init of its virtual machine."""

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

__all__ = ["WSL", "WSLCodec", "WSLFrame"]

_HEADER = Struct("<IIII")
_LENGTH = Struct("<4xI8x")


@dataclass(frozen=True, slots=True)
class WSLFrame:
    """A message of WSL. What its numbers mean is in lxinitshared.h.

    Args:
        type: 32 bits; ``LX_MESSAGE_TYPE``.
        transaction_id: 32 bits; a reply has that of its request.
        transaction_step: 32 bits; 0 none, 1 request, 2 and up a reply: ``TRANSACTION_STEP``.
        payload: bytes; what follows ``MESSAGE_HEADER`` in the message's struct.

    Raises:
        ValueError: a number does not fit.
        TypeError: a field has the wrong type.
    """

    type: int
    transaction_id: int
    transaction_step: int
    payload: bytes = b""

    def __post_init__(self) -> None:
        check_unsigned("type", self.type, 32)
        check_unsigned("transaction_id", self.transaction_id, 32)
        check_unsigned("transaction_step", self.transaction_step, 32)
        check_payload(self.payload)


@dataclass(frozen=True, slots=True)
class WSLCodec:
    """The class of :data:`WSL`.

    Args:
        max_size: bytes; the longest payload. WSL's own figure is 16 MiB with the header.

    Raises:
        ValueError: ``max_size`` is outside 0 ... 2**32-17.
    """

    max_size: int = 16 * 2**20 - _HEADER.size

    def __post_init__(self) -> None:
        check_max_size(self.max_size, 2**32 - 1 - _HEADER.size)

    def replace(self, **changes: Any) -> WSLCodec:
        """Return a copy with some of its arguments changed."""
        return dataclasses.replace(self, **changes)

    def frame(self, type: int, transaction_id: int, transaction_step: int, payload: bytes = b"") -> WSLFrame:
        """Return a frame to send; the arguments are those of :class:`WSLFrame`."""
        return WSLFrame(type, transaction_id, transaction_step, payload)

    def encode(self, frame: WSLFrame) -> Sequence[Buffer]:
        size = len(frame.payload)
        if size > self.max_size:
            raise FrameTooLarge(size, self.max_size)
        header = _HEADER.pack(frame.type, _HEADER.size + size, frame.transaction_id, frame.transaction_step)
        return header, frame.payload

    def decoder(self) -> InPlaceDecoder[WSLFrame]:
        return HeaderDecoder(_LENGTH, _HEADER.size, self.max_size, _frame)


def _frame(head: bytes, payload: bytes) -> WSLFrame:
    type, _, transaction_id, transaction_step = _HEADER.unpack(head)
    return WSLFrame(type, transaction_id, transaction_step, payload)


WSL = WSLCodec()
"""Messages with a type and a place in a transaction.

``WSL.frame(type=1, transaction_id=1, transaction_step=0, payload=b"...")``. The header is 16 bytes,
little-endian: type, length with the header, transaction id, transaction step, of 32 bits each. The limit is
that of WSL, 16 MiB with the header; its releases of early 2026 take no more than 4 MiB. A length below 16 is
a :exc:`FramingError`.

Source: src/shared/inc/lxinitshared.h and socketshared.h of github.com/microsoft/WSL.
"""
