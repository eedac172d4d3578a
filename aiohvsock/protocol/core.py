"""The inner loop of the native protocol: how messages become frames and what comes becomes messages.

:class:`NativeProtocol` is the rest of it, which stands on this. There it is once more in C, in ``_speedups.pyx``: what
changes here changes there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from .._compiled import speedups
from ..exceptions import FrameTooLarge
from ..framing.room import Room
from .events import Frame
from .frames import HEADER_SIZE, LENGTH, SHORTEST_RUN, cut_run, pack, unpack
from .hello import Hello

__all__ = ["LARGE", "NativeCore"]

LARGE = 32 * 1024
"""From here on a payload is not joined to its header, and is received in place."""

# So much of a large message must have come before memory for the whole is taken: a header alone costs nothing.
_LARGE_START = 16 * 1024


class NativeCore:
    """What :class:`NativeProtocol` stands on.

    Args:
        max_size: bytes; the longest message taken from the peer.
    """

    __slots__ = (
        "_large",
        "_limit",
        "_longest_joined",
        "_need",
        "_partial",
        "_peer_max",
        "_skip",
        "attention",
        "buffer",
        "bytes_received",
        "close_received",
        "finished",
        "peer",
    )

    def __init__(self, max_size: int) -> None:
        # Receiving. What has come of a frame, or of the hello, waits in _partial; None is the common case that
        # frames may begin with the next byte. What is larger goes into _large, of which buffer is the rest.
        self._partial: bytearray | None = bytearray()
        self._need = 1  # bytes that _partial must have to go on
        self._skip = 0  # bytes to throw away
        self._large: Room | None = None
        self._limit = max_size  # a header above it is no message to deliver; -1 once none is any more
        self.bytes_received = 0
        self.buffer: memoryview | None = None

        # The longest message the peer takes, and the longest that goes in one piece with its header; -1 while
        # nothing can be sent, so that one comparison finds all that needs a closer look.
        self._peer_max = -1
        self._longest_joined = -1

        self.attention = True
        self.peer: Hello | None = None
        self.close_received = False
        self.finished = False

    # What the rest of the protocol does:

    def _refuse(self) -> NoReturn:
        """Raise why nothing can be sent."""
        raise NotImplementedError  # pragma: no cover

    def _resume(self, data: bytes, messages: list[bytes]) -> bytes:
        """Add to what has come before; returns what frames may be cut from."""
        raise NotImplementedError  # pragma: no cover

    def _other_frame(self, header: int, data: bytes, start: int) -> int:
        """Handle a frame that is no message to deliver.

        Returns where the next one starts, or 0 if there is none in this data.
        """
        raise NotImplementedError  # pragma: no cover

    # -- sending -------------------------------------------------------------------------------------------

    def frame(self, message: bytes) -> Frame:
        """Return what to write for one message: bytes, or anything with a buffer."""
        if type(message) is bytes and (size := len(message)) <= self._longest_joined:
            return pack(size) + message
        view = memoryview(message)
        size = view.nbytes
        if self._peer_max < 0:
            self._refuse()
        if size > self._peer_max:
            raise FrameTooLarge(size, self._peer_max)
        if size <= self._longest_joined or not view.c_contiguous:
            return pack(size) + view.tobytes()
        return pack(size), view.cast("B")

    def add_frames(self, frames: list[Frame], messages: Iterator[bytes], size: int) -> bool:
        """As :meth:`MessageProtocol.add_frames` says."""
        longest = self._longest_joined
        for message in messages:
            # As in frame(), without a call for each.
            if type(message) is bytes and (length := len(message)) <= longest:
                frames.append(pack(length) + message)
                size -= length + HEADER_SIZE
            else:
                frame = self.frame(message)
                frames.append(frame)
                size -= len(frame) if isinstance(frame, bytes) else size
            if size <= 0:
                return False
        return True

    # -- receiving -----------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[bytes]:
        """Take the next bytes of the stream; returns the messages that are whole now."""
        end = len(data)
        self.bytes_received += end
        if self._partial is None and end >= HEADER_SIZE:
            # A read is one message, mostly.
            (header,) = unpack(data)
            if header == end - HEADER_SIZE and header <= self._limit:
                return [data[HEADER_SIZE:]]
        messages: list[bytes] = []
        if self._partial is not None:
            data = self._resume(data, messages)
            end = len(data)
        limit = self._limit
        position, last = 0, end - HEADER_SIZE
        if last >= SHORTEST_RUN:
            position = cut_run(data, limit, messages)
        append = messages.append
        while position <= last:
            (header,) = unpack(data, position)
            start = position + HEADER_SIZE
            if header <= limit:
                following = start + header
                if following > end:
                    break
                append(data[start:following])
            else:
                following = self._other_frame(header, data, start)
                if not following:
                    return messages
                limit = self._limit
            position = following
        if position < end:
            self._keep(data, position)
        return messages

    def received(self, size: int) -> list[bytes]:
        """Tell that so many bytes were received into :attr:`buffer`; returns the message if it is whole now."""
        self.bytes_received += size
        assert self.buffer is not None and self._large is not None
        if size < len(self.buffer):
            self.buffer = self.buffer[size:]
            return []
        message = self._large.take(self.buffer)
        self.buffer = self._large = self._partial = None
        return [message] if self._limit >= 0 else []

    def _keep(self, data: bytes, position: int) -> None:
        """Keep what has come of a frame until there is more."""
        have = len(data) - position
        self._need = HEADER_SIZE
        if have >= HEADER_SIZE:
            (header,) = unpack(data, position)
            size = header & LENGTH
            have -= HEADER_SIZE
            if size >= LARGE and have >= _LARGE_START:
                self._large = Room(size)
                view = self._large.getbuffer()
                view[:have] = memoryview(data)[position + HEADER_SIZE :]
                self.buffer = view[have:]
                self._partial = bytearray()
                self.attention = True
                return
            self._need += size if size < LARGE else _LARGE_START
        self._partial = bytearray(memoryview(data)[position:])


if not TYPE_CHECKING and speedups is not None:
    NativeCore = speedups.NativeCore
