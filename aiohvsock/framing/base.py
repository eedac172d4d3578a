"""What a codec is. Anything with these methods is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

__all__ = ["DEFAULT_MAX_SIZE", "Buffer", "Codec", "Decoder"]

Buffer: TypeAlias = bytes | bytearray | memoryview

DEFAULT_MAX_SIZE = 2**20
"""Bytes of payload. Peers bound a frame at 64 KiB (GCS) to 16 MiB (WSL); what is not bounded, a peer can fill."""


class Decoder(Protocol):
    """Cuts one stream into payloads; it keeps what is left of a frame between calls."""

    def feed(self, data: Buffer) -> list[bytes]:
        """Take the next bytes of the stream, and return the payloads that are whole now.

        Raises:
            FramingError: the stream is broken. Payloads that were whole before it are returned first, and
                the next call raises, with ``b""`` too.
        """

    def eof(self) -> None:
        """Tell that the stream has ended.

        Raises:
            IncompleteFrame: it ended inside a frame.
            FramingError: it was broken already.
        """


class Codec(Protocol):
    """A way of framing. It holds no state, so one codec serves any number of connections."""

    def encode(self, payload: Buffer) -> Sequence[Buffer]:
        """Return the pieces to write for one payload, which is not copied.

        Raises:
            FrameTooLarge: the payload is over the limit.
        """

    def decoder(self) -> Decoder:
        """Return a decoder for one stream."""
