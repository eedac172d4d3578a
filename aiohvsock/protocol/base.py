"""What all message protocols have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

from .events import Event, Frame
from .hello import Hello

__all__ = ["MessageProtocol"]

T = TypeVar("T")


class MessageProtocol(Protocol[T]):
    """A state machine for one side of one connection; what drives it need not know which one it is."""

    attention: bool
    """There is something new in :attr:`events`, in :attr:`buffer` or to send. The driver resets it, before it looks."""
    buffer: memoryview | None
    """Where the next bytes are to be received, if not None; then call :meth:`received` instead of :meth:`receive`."""
    bytes_received: int
    close_received: bool
    """The peer has closed the connection, or is held to have."""
    close_sent: bool
    events: tuple[Event, ...]
    """What happened, oldest first. The driver empties it."""
    finished: bool
    """Nothing more is to be read or waited for: write what is to be sent, then close the stream."""
    timer: float | None
    """When to call :meth:`on_timer`, by the clock; None is never. Every call of a method may change it."""
    half_close: bool
    """Ending the stream is what tells the peer that the connection is closed."""

    @property
    def lateness(self) -> float:
        """Seconds the last timer came late by. Much is a process, or its whole VM, that was stopped."""

    @property
    def latency(self) -> float | None:
        """Seconds; the round trip of the last ping that was answered, None before the first."""

    @property
    def peer(self) -> Hello | None:
        """What the peer has said of itself; None before that, and without a hello."""

    @property
    def pings_sent(self) -> int:
        """How many, the heartbeat's included."""

    def frame(self, message: T) -> Frame:
        """Return what to write for one message.

        Raises:
            FrameTooLarge: the peer does not take a message that long.
            LocalProtocolError: nothing can be sent yet, or any more.
            TypeError: it is no message.
        """

    def add_frames(self, frames: list[Frame], messages: Iterator[T], size: int) -> bool:
        """Append the frames of messages until they have so many bytes, or one comes in pieces.

        Returns:
            Whether there are no more messages.

        Raises:
            FrameTooLarge: as :meth:`frame`, like the others; the frames of the messages before were appended.
        """

    def ping(self) -> int:
        """Ask for a sign of life; returns the token that the answer, a :class:`Pong`, will carry.

        Raises:
            LocalProtocolError: nothing can be sent yet, or any more; or there are no pings.
        """

    def close(self, code: int = ..., reason: str = ...) -> None:
        """Say that nothing more will be sent; messages that come from here on are not delivered."""

    def stop_sending(self) -> None:
        """Refuse messages from here on, while what the peer has sent is still received."""

    def data_to_send(self) -> bytes:
        """Return the bytes, beside messages, that must be written now, and forget them."""

    def receive(self, data: bytes) -> list[T]:
        """Take the next bytes of the stream; returns the messages that are whole now."""

    def received(self, size: int) -> list[T]:
        """Tell that so many bytes were received into :attr:`buffer`; returns the message if it is whole now."""

    def eof(self) -> None:
        """Tell that the stream has ended."""

    def on_timer(self) -> None:
        """Do what is due. Call it when :attr:`timer` has come; earlier does nothing."""

    def set_reading(self, reading: bool) -> None:
        """Tell that the stream is not read for a while, or is again."""
