"""What a transport could not send yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["PIECES", "SMALL_WRITE", "SendQueue"]

# Below these it is cheaper to copy pieces into one than to describe each to the kernel.
SMALL_PIECE = 4 * 1024
SMALL_WRITE = 32 * 1024

# Pieces for one sendmsg(); the kernel takes 1024 (UIO_MAXIOV), and more than this brings nothing.
PIECES = 256


class SendQueue:
    """Pieces of data in the order they are to be sent, large ones without a copy where that is safe."""

    __slots__ = ("_pieces", "size")

    def __init__(self) -> None:
        # A bytearray is a tail that small pieces are added to. A list, since an empty deque takes 600 bytes.
        self._pieces: list[memoryview | bytearray] = []
        self.size = 0
        """Bytes in the queue."""

    def add(self, data: bytes | bytearray | memoryview[Any], start: int = 0) -> None:
        """Add data from byte ``start`` on; the caller may change its buffer afterwards."""
        view = memoryview(data)
        size = view.nbytes - start
        if not size:
            return
        if not view.c_contiguous:
            view = memoryview(view.tobytes())
        rest = view.cast("B")[start:]
        pieces = self._pieces
        self.size += size
        if size >= SMALL_PIECE:
            # Only bytes can be kept without a copy: anything else may change.
            pieces.append(rest if isinstance(rest.obj, bytes) else memoryview(bytes(rest)))
        elif pieces and isinstance(pieces[-1], bytearray) and len(pieces[-1]) < SMALL_WRITE:
            pieces[-1] += rest
        else:
            pieces.append(bytearray(rest))

    def head(self) -> Sequence[memoryview | bytearray]:
        """Return the pieces to send next."""
        return self._pieces[:PIECES]

    def sent(self, size: int) -> None:
        """Drop what has been sent."""
        self.size -= size
        whole = 0
        for piece in self._pieces:
            if size < len(piece):
                break
            size -= len(piece)
            whole += 1
        del self._pieces[:whole]
        if size:
            # From here on it is a memoryview, so that nothing is added to a bytearray with a view on it.
            self._pieces[0] = memoryview(self._pieces[0])[size:]

    def clear(self) -> None:
        """Drop everything."""
        self._pieces.clear()
        self.size = 0
