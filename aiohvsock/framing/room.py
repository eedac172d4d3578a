"""Where a large payload is received in place."""

from __future__ import annotations

__all__ = ["Room"]


class Room:
    """Room for a payload of a known size.

    It is not a BytesIO, which would give out its bytes without a copy: where the garbage collector finds a
    view of one in a cycle, Python 3.12 crashes, and 3.13 prints a BufferError (python/cpython#111049,
    #111331).

    Args:
        size: bytes.
    """

    __slots__ = ("_bytes",)

    def __init__(self, size: int) -> None:
        self._bytes = bytearray(size)

    def getbuffer(self) -> memoryview:
        """Return a view of all of it, to write to."""
        return memoryview(self._bytes)

    def take(self, view: memoryview) -> bytes:
        """Return the payload, and release the last view of it that was handed out: it is of no use any more."""
        try:
            view.release()
        except BufferError:
            pass  # a loop that has read into it still holds it
        return bytes(self._bytes)
