"""What a codec is. Anything with these methods is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, TypeVar, runtime_checkable

__all__ = ["DEFAULT_MAX_SIZE", "Buffer", "Codec", "Decoder", "InPlaceDecoder"]

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes in one piece; a memoryview must be contiguous."""

DEFAULT_MAX_SIZE = 2**20
"""Bytes of payload. Peers bound a frame at 64 KiB (GCS) to 16 MiB (WSL); what is not bounded, a peer can fill."""

_T = TypeVar("_T")


class Decoder(Protocol[_T]):
    """Cuts one stream into payloads; it keeps what is left of a frame between calls."""

    def feed(self, data: Buffer) -> list[_T]:
        """Take the next bytes of the stream, and return the payloads that are whole now.

        The bytes are copied: the caller may overwrite them afterwards.

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


@runtime_checkable
class InPlaceDecoder(Decoder[_T], Protocol[_T]):
    """A decoder that lets a large frame be received where it will stay: a decoder may be one, and need not.

    Read into :attr:`buffer` while there is one, and call :meth:`received`; read into anything, and call
    :meth:`feed`, while there is none. Using :meth:`feed` alone is right as well, and costs a copy.
    """

    @property
    def buffer(self) -> memoryview | None:
        """Where the next bytes of the stream belong; None where :meth:`feed` takes them.

        It changes with every call of :meth:`feed` and :meth:`received`: look it up before each read.
        """

    def received(self, size: int) -> list[_T]:
        """Take note that ``size`` bytes were written to the start of :attr:`buffer`; otherwise as :meth:`feed`.

        Raises:
            ValueError: there is no buffer, or it is shorter than that.
        """


class Codec(Protocol[_T]):
    """A way of framing. It holds no state, so one codec serves any number of connections.

    Most carry plain bytes, and are ``Codec[bytes]``: they send any :data:`Buffer`, and yield bytes. A codec
    whose headers say more, like :data:`TTRPC`, carries values of its own.
    """

    def encode(self, payload: _T) -> Sequence[Buffer]:
        """Return the pieces to write for one payload, which is not copied.

        Raises:
            FrameTooLarge: the payload is over the limit.
            LocalProtocolError: the framing cannot carry it.
        """

    def decoder(self) -> Decoder[_T]:
        """Return a decoder for one stream."""
