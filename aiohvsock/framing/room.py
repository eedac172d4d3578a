"""Where a large payload is received in place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._compiled import speedups

__all__ = ["Room"]

# The last room that was left, for the next payload. Given back to the system and taken anew for each message, its pages
# would cost more than what is received into them.
_spare: list[bytearray] = []

_LARGEST_SPARE = 4 * 2**20


class Room:
    """Room for a payload of a known size.

    It is not a BytesIO, which would give out its bytes without a copy: where the garbage collector finds a
    view of one in a cycle, Python 3.12 crashes, and 3.13 prints a BufferError (python/cpython#111049,
    #111331).

    Args:
        size: bytes, at least one. What is in them at first is of no meaning.
    """

    __slots__ = ("_bytes", "_size")

    def __init__(self, size: int) -> None:
        try:
            room = _spare.pop()  # nobody else can get it now, not even in another thread
        except IndexError:
            room = bytearray()
        self._bytes = room if len(room) >= size else bytearray(size)
        self._size = size

    def getbuffer(self) -> memoryview:
        """Return a view of all of it, to write to."""
        return memoryview(self._bytes)[: self._size]

    def take(self, view: memoryview) -> bytes:
        """Return the payload, and release the last view of it that was handed out: it is of no use any more."""
        with memoryview(self._bytes) as whole:
            payload = bytes(whole[: self._size])
        try:
            view.release()
            # Refused as long as there is a view of it, through which the next payload could be changed.
            self._bytes.append(self._bytes.pop())
        except BufferError:
            pass  # a loop that has read into it still holds it
        else:
            if len(self._bytes) <= _LARGEST_SPARE:
                _spare[:] = [self._bytes]
        self._bytes = bytearray()
        return payload


if not TYPE_CHECKING and speedups is not None:
    Room = speedups.Room
