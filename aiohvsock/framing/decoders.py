"""What the decoders have in common."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, Generic, TypeVar

from ..exceptions import FrameTooLarge, FramingError, IncompleteFrame
from .base import Buffer
from .room import Room

__all__ = ["HeaderDecoder", "LengthDecoder", "StreamDecoder"]

_T = TypeVar("_T")

# Bytes of payload from which on a frame gets room of its own; below, a copy costs less than one more read.
_LARGE = 32 * 1024

# It gets it when this part of the payload is here. So a peer that only promises a large frame has no memory
# set aside, and one that goes on promising has no more than this many times what it has sent.
_PART = 16


class StreamDecoder(Generic[_T]):
    """What every decoder keeps: the start of a frame, and an error that waits for the frames before it."""

    __slots__ = ("_error", "_rest")

    def __init__(self) -> None:
        self._rest = bytearray()
        self._error: FramingError | None = None

    def _check(self) -> None:
        if self._error is not None:
            # Or its traceback would grow with each time it is raised.
            raise self._error.with_traceback(None)

    def _broken(self, error: FramingError, frames: list[_T]) -> list[_T]:
        """Give the stream up: the frames before the error are returned, and the next call raises it."""
        self._error = error
        self._rest.clear()
        if not frames:
            raise error
        return frames


class LengthDecoder(StreamDecoder[_T]):
    """Decodes frames with a header, of whatever form, that tells the size of the payload behind it.

    A subclass reads the header. This one keeps what is not whole, and lets large frames be received in place.

    Args:
        max_size: bytes; the longest payload.
        shortest: bytes of the shortest header.
        make: makes a frame of its header and its payload; None: the payload is the frame.
        skipped: makes what stands for a frame over the limit, of its header and its size; the payload is
            discarded. None: such a frame is an error.
    """

    __slots__ = (
        "_expected",
        "_head",
        "_left",
        "_make",
        "_max_size",
        "_need",
        "_room",
        "_shortest",
        "_size",
        "_skipped",
        "buffer",
    )

    def __init__(
        self,
        max_size: int,
        shortest: int = 1,
        make: Callable[[bytes, bytes], _T] | None = None,
        skipped: Callable[[bytes, int], _T] | None = None,
    ) -> None:
        super().__init__()
        self._max_size = max_size
        self._shortest = shortest
        self._make = make
        self._skipped = skipped
        # Of a frame whose start is in _rest:
        self._need = 0  # how much of it there must be to go on
        self._expected: int | None = None  # its length with the header, where that is known
        # Of a frame whose payload does not go there, for it is large, or discarded:
        self._head = b""
        self._size = 0  # of its payload
        self._left = 0  # of that, still to come
        self._room: Room | None = None  # for its payload; None: discarded
        self.buffer: memoryview | None = None  # the part of the room that is to be filled

    def _header(self, data: bytes, position: int) -> tuple[int, int] | None:
        """Return where the payload of the frame at a position starts, and its size; None: more bytes tell.

        Raises:
            FramingError: this is no header.
        """
        raise NotImplementedError

    def feed(self, data: Buffer) -> list[_T]:
        self._check()
        if not data:
            return []
        if self._left:
            return self._feed_large(bytes(data))
        rest = self._rest
        if rest:
            if len(rest) + memoryview(data).nbytes < self._need:
                rest += data
                return []
            data = b"".join((rest, data))
            rest.clear()
        # One snapshot, of which slices are cheap.
        return self._cut(bytes(data), 0, [])

    def received(self, size: int) -> list[_T]:
        if self.buffer is None or not 0 <= size <= len(self.buffer):
            room = "no buffer" if self.buffer is None else f"a buffer of {len(self.buffer)} bytes"
            raise ValueError(f"{size!r} bytes cannot have been received: there is {room}")
        return self._advance(size)

    def eof(self) -> None:
        self._check()
        if self._left:
            expected = len(self._head) + self._size
            raise IncompleteFrame(expected - self._left, expected)
        if self._rest:
            raise IncompleteFrame(len(self._rest), self._expected)

    def _cut(self, data: bytes, position: int, frames: list[_T]) -> list[_T]:
        """Append the frames from a position on, and keep what is left of the data."""
        end = len(data)
        while position < end:
            try:
                header = self._header(data, position)
            except FramingError as error:
                return self._broken(error, frames)
            if header is None:
                self._rest += memoryview(data)[position:]
                self._need = self._shortest
                self._expected = None
                break
            start, size = header
            if size > self._max_size and self._skipped is None:
                return self._broken(FrameTooLarge(size, self._max_size), frames)
            following = start + size
            if following > end:
                self._begin(data[position:start], memoryview(data)[start:], size)
                break
            frames.append(self._frame(data[position:start], data[start:following]))
            position = following
        return frames

    def _frame(self, head: bytes, payload: bytes) -> _T:
        if self._skipped is not None and len(payload) > self._max_size:
            return self._skipped(head, len(payload))
        if self._make is None:
            return payload  # type: ignore[return-value]  # _T is bytes
        return self._make(head, payload)

    # -- a frame that is not whole -------------------------------------------------------------------------

    def _begin(self, head: bytes, first: memoryview, size: int) -> None:
        """Take in a frame whose header is whole, and whose payload is not."""
        discarded = size > self._max_size
        part = size if size < _LARGE else -(-size // _PART)
        if len(first) < part and not discarded:
            self._rest += head
            self._rest += first
            self._need = len(head) + part
            self._expected = len(head) + size
            return
        self._head, self._size, self._left = head, size, size - len(first)
        if not discarded:
            self._room = Room(size)
            view = self._room.getbuffer()
            view[: len(first)] = first
            self.buffer = view[len(first) :]

    def _feed_large(self, data: bytes) -> list[_T]:
        size = min(len(data), self._left)
        if self.buffer is not None:
            self.buffer[:size] = memoryview(data)[:size]
        return self._cut(data, size, self._advance(size))

    def _advance(self, size: int) -> list[_T]:
        """Count bytes of payload that are in place, or discarded."""
        self._left -= size
        if not self._left:
            return [self._finish()]
        if self.buffer is not None:
            self.buffer = self.buffer[size:]
        return []

    def _finish(self) -> _T:
        if self._room is None:
            assert self._skipped is not None
            return self._skipped(self._head, self._size)
        room, buffer = self._room, self.buffer
        assert buffer is not None
        self._room = self.buffer = None
        return self._frame(self._head, room.take(buffer))


class HeaderDecoder(LengthDecoder[_T]):
    """Decodes frames whose header has one size.

    Args:
        length: the header; all but the length is padding.
        extra: bytes that the length counts beyond the payload.
        max_size, make, skipped: as for :class:`LengthDecoder`.
    """

    __slots__ = ("_extra", "_longest", "_unpack")

    def __init__(
        self,
        length: Struct,
        extra: int,
        max_size: int,
        make: Callable[[bytes, bytes], _T] | None = None,
        skipped: Callable[[bytes, int], _T] | None = None,
    ) -> None:
        super().__init__(max_size, length.size, make, skipped)
        self._unpack = length.unpack_from
        self._extra = extra
        self._longest = max_size + extra

    def _header(self, data: bytes, position: int) -> tuple[int, int] | None:
        start = position + self._shortest
        if start > len(data):
            return None
        (length,) = self._unpack(data, position)
        if length < self._extra:
            raise FramingError(f"a frame says it is {length} bytes long, less than its header")
        return start, length - self._extra

    # From here on it is the same once more, for speed; what is out of the ordinary is left to the base class.

    def feed(self, data: Buffer) -> list[_T]:
        header, make = self._shortest, self._make
        if len(data) >= header and not (self._rest or self._left or self._error):
            (length,) = self._unpack(data)
            # One frame and nothing else, which is what most reads bring. A memoryview can have wider items.
            if (
                length - self._extra == len(data) - header
                and length <= self._longest
                and (type(data) is bytes or memoryview(data).nbytes == len(data))
            ):
                payload: Any = bytes(data[header:])
                return [payload if make is None else make(bytes(data[:header]), payload)]
        return super().feed(data)

    def _cut(self, data: bytes, position: int, frames: list[_T]) -> list[_T]:
        unpack, make, header = self._unpack, self._make, self._shortest
        extra, longest = self._extra, self._longest
        append: Callable[[Any], None] = frames.append
        end = len(data)
        last = end - header
        while position <= last:
            (length,) = unpack(data, position)
            start = position + header
            following = start + length - extra
            if following > end or length > longest or length < extra:
                break
            if make is None:
                append(data[start:following])
            else:
                append(make(data[position:start], data[start:following]))
            position = following
        return super()._cut(data, position, frames)
