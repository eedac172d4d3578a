"""The frames of ttrpc: containerd's shims and Kata's agent."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Any, Literal

from ..exceptions import FrameTooLarge, LocalProtocolError
from .base import Buffer, InPlaceDecoder
from .checks import check_max_size, check_payload, check_unsigned
from .decoders import HeaderDecoder

__all__ = ["TTRPC", "OversizedFrame", "TTRPCCodec", "TTRPCFlag", "TTRPCFrame", "TTRPCType"]

_HEADER = Struct(">IIBB")
_LENGTH = Struct(">I6x")


class TTRPCType(enum.IntEnum):
    """What a frame is; see PROTOCOL.md of ttrpc."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class TTRPCFlag(enum.IntFlag):
    """What a frame says of its stream; see PROTOCOL.md and channel.go of ttrpc."""

    REMOTE_CLOSED = 1
    """The sender sends no more data on the stream."""
    REMOTE_OPEN = 2
    """The sender will send data on the stream."""
    NO_DATA = 4
    """The frame carries no message, not even an empty one."""


@dataclass(frozen=True, slots=True)
class TTRPCFrame:
    """A frame of ttrpc. It can have any numbers that fit: what they may be is the protocol's business.

    Args:
        stream_id: 32 bits; odd for the streams of the client.
        type: 8 bits; see :class:`TTRPCType`.
        flags: 8 bits; see :class:`TTRPCFlag`.
        payload: bytes; a protobuf message.

    Raises:
        ValueError: a number does not fit.
        TypeError: a field has the wrong type.
    """

    stream_id: int
    type: int
    flags: int = 0
    payload: bytes = b""

    def __post_init__(self) -> None:
        check_unsigned("stream_id", self.stream_id, 32)
        check_unsigned("type", self.type, 8)
        check_unsigned("flags", self.flags, 8)
        check_payload(self.payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class OversizedFrame(TTRPCFrame):
    """Stands where a frame over the limit was, whose payload was discarded. It cannot be sent.

    Args:
        size: bytes; how long the payload was.
    """

    size: int


@dataclass(frozen=True, slots=True)
class TTRPCCodec:
    """The class of :data:`TTRPC`.

    Args:
        max_size: bytes; the longest payload.
        oversize: what becomes of a longer one on the stream: ``"error"`` ends it with
            :exc:`FrameTooLarge`; ``"skip"`` discards the payload as it comes, and yields an
            :class:`OversizedFrame` in its place. The stream survives, and the request can be answered with
            an error, as ttrpc's own server does.

    Raises:
        ValueError: ``max_size`` is outside 0 ... 2**32-1, or ``oversize`` is something else.
    """

    max_size: int = 4 * 2**20
    oversize: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        check_max_size(self.max_size, 2**32 - 1)
        if self.oversize not in ("error", "skip"):
            raise ValueError(f"oversize must be 'error' or 'skip', not {self.oversize!r}")

    def replace(self, **changes: Any) -> TTRPCCodec:
        """Return a copy with some of its arguments changed."""
        return dataclasses.replace(self, **changes)

    def frame(self, stream_id: int, type: int, flags: int = 0, payload: bytes = b"") -> TTRPCFrame:
        """Return a frame to send; the arguments are those of :class:`TTRPCFrame`."""
        return TTRPCFrame(stream_id, type, flags, payload)

    def encode(self, frame: TTRPCFrame) -> Sequence[Buffer]:
        if isinstance(frame, OversizedFrame):
            raise LocalProtocolError("an OversizedFrame has no payload to send")
        size = len(frame.payload)
        if size > self.max_size:
            raise FrameTooLarge(size, self.max_size)
        return _HEADER.pack(size, frame.stream_id, frame.type, frame.flags), frame.payload

    def decoder(self) -> InPlaceDecoder[TTRPCFrame]:
        skipped = _skipped if self.oversize == "skip" else None
        return HeaderDecoder(_LENGTH, 0, self.max_size, _frame, skipped)


def _frame(head: bytes, payload: bytes) -> TTRPCFrame:
    _, stream_id, type, flags = _HEADER.unpack(head)
    return TTRPCFrame(stream_id, type, flags, payload)


def _skipped(head: bytes, size: int) -> TTRPCFrame:
    _, stream_id, type, flags = _HEADER.unpack(head)
    return OversizedFrame(stream_id, type, flags, size=size)


TTRPC = TTRPCCodec()
"""Frames with a stream, a type and flags: ``TTRPC.frame(stream_id=1, type=1, payload=b"...")``.

The header is 10 bytes, big-endian: the payload's length (32 bits), stream id (32), type (8), flags (8). The
limit is the protocol's, 4 MiB of payload; so the first byte of a frame is always 0.

Source: PROTOCOL.md and channel.go of github.com/containerd/ttrpc.
"""
