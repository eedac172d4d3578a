"""A codec as a message protocol of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from ..exceptions import FramingError, LocalProtocolError
from ..framing import Codec
from .events import Clock, CloseCode, Closed, Event, Failed, Frame, Opened
from .hello import Hello

__all__ = ["BareProtocol"]

T = TypeVar("T")

# From here on the pieces of a frame are not joined.
_LARGE = 32 * 1024


class BareProtocol(Generic[T]):
    """A codec and nothing else, for peers that are not ours: the methods and attributes of :class:`NativeProtocol`.

    There is no hello, no ping, no code and no reason: the end of the stream is what closes it.

    Args:
        clock: seconds, only ever going forward.
        codec: how messages are framed.
        close_timeout: seconds for the peer to end its side; None waits as long as it takes.
    """

    __slots__ = (
        "_clock",
        "_close_timeout",
        "_codec",
        "_decoder",
        "_in_place",
        "_mute",
        "attention",
        "buffer",
        "bytes_received",
        "close_received",
        "close_sent",
        "events",
        "finished",
        "timer",
    )

    half_close = True

    # What NativeProtocol has and a bare codec cannot.
    lateness = 0.0
    latency: float | None = None
    peer: Hello | None = None
    pings_sent = 0

    def __init__(self, clock: Clock, codec: Codec[T], close_timeout: float | None = None) -> None:
        self._clock = clock
        self._close_timeout = close_timeout
        self._codec = codec
        self._decoder: Any = codec.decoder()
        self._in_place = hasattr(self._decoder, "received")
        self._mute = False
        self.attention = True
        self.buffer: memoryview | None = None
        self.bytes_received = 0
        self.close_received = False
        self.close_sent = False
        self.events: tuple[Event, ...] = (Opened(None),)
        self.finished = False
        self.timer: float | None = None

    def frame(self, message: T) -> Frame:
        """Return what to write for one message.

        Raises:
            FrameTooLarge: the codec does not take a message that long.
            LocalProtocolError: a close was sent.
        """
        if self.close_sent or self._mute:
            raise LocalProtocolError("nothing can be sent any more")
        pieces = self._codec.encode(message)
        if sum(memoryview(piece).nbytes for piece in pieces) < _LARGE:
            return b"".join(pieces)
        return pieces

    def add_frames(self, frames: list[Frame], messages: Iterator[T], size: int) -> bool:
        """As :meth:`MessageProtocol.add_frames` says."""
        for message in messages:
            frame = self.frame(message)
            frames.append(frame)
            size -= len(frame) if isinstance(frame, bytes) else size
            if size <= 0:
                return False
        return True

    def stop_sending(self) -> None:
        """Refuse messages from here on, while what the peer has sent is still received."""
        self._mute = True

    def ping(self) -> int:
        """There is none.

        Raises:
            LocalProtocolError: always.
        """
        raise LocalProtocolError("a bare codec has no ping; the native protocol has")

    def close(self, code: int = CloseCode.OK, reason: str = "") -> None:
        """End our side; code and reason stay here. Messages that come from here on are not delivered."""
        if not self.close_sent:
            self.close_sent = True
            if self.close_received:
                self.finished = self.attention = True
            if not self.finished and self._close_timeout is not None:
                self.timer = self._clock() + self._close_timeout

    def data_to_send(self) -> bytes:
        """Return nothing: there is only messages."""
        return b""

    def receive(self, data: bytes) -> list[T]:
        """Take the next bytes of the stream; returns the messages that are whole now."""
        return self._decode(len(data), self._decoder.feed, data)

    def received(self, size: int) -> list[T]:
        """Tell that so many bytes were received into :attr:`buffer`."""
        return self._decode(size, self._decoder.received, size)

    def _decode(self, size: int, decode: Callable[[Any], list[T]], argument: object) -> list[T]:
        self.bytes_received += size
        if self.close_sent or self.close_received or self.finished:
            self.buffer = None
            return []
        messages: list[T] = []
        try:
            messages = decode(argument)
            self._decoder.feed(b"")  # raises what had to wait for the messages before it
        except FramingError as error:
            self._end(Failed(error))
        else:
            if self._in_place:
                self.buffer = self._decoder.buffer
                self.attention = self.attention or self.buffer is not None
        return messages

    def eof(self) -> None:
        """Tell that the stream has ended."""
        if self.finished or self.close_received:
            return
        self.close_received = True
        if self.close_sent:
            self._end(Closed(CloseCode.OK, ""))
            return
        try:
            self._decoder.eof()
        except FramingError as error:
            self._end(Failed(error))
        else:
            # Not the end of it: the peer may wait for an answer.
            self.events += (Closed(CloseCode.OK, ""),)
            self.attention = True

    def on_timer(self) -> None:
        """Do what is due. Call it when :attr:`timer` has come; earlier does nothing."""
        if self.timer is not None and self._clock() >= self.timer:
            self.finished = True
            self.attention = True
            self.timer = None

    def set_reading(self, reading: bool) -> None:
        """Tell that the stream is not read for a while, or is again."""

    def _end(self, event: Event) -> None:
        self.finished = True
        self.timer = None
        self.buffer = None
        self.events += (event,)
        self.attention = True
