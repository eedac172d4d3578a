"""The inner loop of a message connection: what every message goes through on its way in and out.

The rest of the connection stands on it. There it is once more in C, in ``_speedups.pyx``: what changes here changes there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeAlias, TypeVar, cast

from .._compiled import speedups
from ..exceptions import ConnectionClosed, ConnectionClosedOK, LocalProtocolError
from ..framing import Buffer
from ..protocol import Frame, MessageProtocol
from ..waiter import Waiter

__all__ = ["MessageCore", "OnMessage"]

T = TypeVar("T")

OnMessage: TypeAlias = Callable[[Any, T], None]
"""A plain function ``(connection, message)``."""

# Bytes of messages gathered before they are written.
_GATHER = 64 * 1024

# Bytes waiting to be sent beyond which send_nowait() refuses.
_SEND_LIMIT = 2**20

# Bytes of messages queued for recv() before the peer is made to wait; one more read can come on top.
_QUEUE_HIGH = 256 * 1024

# Bytes that a message takes beyond its own: a peer could fill the memory with empty ones.
_MESSAGE_OVERHEAD = 40


class MessageCore(Generic[T]):
    """What :class:`MessageConnection` stands on."""

    __slots__ = (
        "_counted",
        "_direct",
        "_end",
        "_flush_scheduled",
        "_gathered",
        "_gathered_bytes",
        "_held",
        "_later",
        "_listening_since",
        "_loop",
        "_on_message",
        "_queued",
        "_reading",
        "_ready",
        "_ready_bytes",
        "_received",
        "_sent",
        "_sent_bytes",
        "_transport",
        "_waiter",
        "_waiting",
        "_wire",
        "_write_paused",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, wire: MessageProtocol[T], on_message: OnMessage[T] | None
    ) -> None:
        self._loop = loop
        self._wire = wire
        self._on_message = on_message
        self._transport: asyncio.Transport | None = None
        self._end: ConnectionClosed | None = None  # why nothing more will come, and nothing can be sent

        # The first message after a read is written at once, those after it are gathered.
        self._direct = True
        self._gathered: list[bytes] | None = None
        self._gathered_bytes = 0
        self._flush_scheduled = False
        self._sent = 0
        self._sent_bytes = 0
        self._write_paused = False

        self._held: list[T] = []  # for it, last first: their answers must wait until the peer reads

        # _ready is the batch that messages are taken from, last first; _later are those that follow, each with the
        # bytes that came with it. What all take is reckoned once a batch, not once a message.
        self._ready: list[T] = []
        self._ready_bytes = 0
        self._later: list[tuple[list[T], int]] | None = None
        self._queued = 0
        self._counted = 0  # as far as this of bytes_received is in it, or taken
        self._received = 0  # messages
        self._reading = True
        self._listening_since: int | None = None  # bytes_received when _listen() began to
        self._waiter: Waiter | None = None
        self._waiting = False  # a task is waiting for a message

    def _attach(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    @property
    def transport(self) -> asyncio.Transport:
        """The transport below. It is the connection's: look, but do not write."""
        assert self._transport is not None
        return self._transport

    # What the rest of the connection does:

    def _raise_end(self) -> None:
        """Raise why nothing can be sent any more, if that is so."""
        raise NotImplementedError  # pragma: no cover

    async def _send_in_turn(self, message: T | Buffer) -> None:
        """Send a message when those that wait longer have sent theirs."""
        raise NotImplementedError  # pragma: no cover

    def _next_batch(self) -> Waiter | None:
        """Make the next messages the ones to take from; or return what to wait with, if there are none."""
        raise NotImplementedError  # pragma: no cover

    def _check_queue(self) -> None:
        """Let the peer go on once little is queued."""
        raise NotImplementedError  # pragma: no cover

    def _attend(self) -> None:
        """Do what the state machine asks for."""
        raise NotImplementedError  # pragma: no cover

    def _stop_reading(self) -> None:
        """Make the peer wait."""
        raise NotImplementedError  # pragma: no cover

    def _call_failed(self, error: Exception) -> None:
        """Close the connection, for ``on_message`` raised."""
        raise NotImplementedError  # pragma: no cover

    # -- sending -------------------------------------------------------------------------------------------

    async def send(self, message: T | Buffer) -> None:
        """Send one message; wait first while the peer is slow.

        If it is cancelled the message was not sent. Success says that it is on its way, not that the peer has it.

        Raises:
            FrameTooLarge: the peer does not take a message that long; the connection goes on.
            ConnectionClosedOK: the connection was closed.
            ConnectionLost: the connection is gone.
            TypeError: it is no message.
        """
        if self._write_paused:
            await self._send_in_turn(message)
        else:
            self.send_nowait(message)

    def send_nowait(self, message: T | Buffer) -> None:
        """Send one message without ever waiting, as a callback must.

        The first message after something was received goes straight out; those that follow in the same turn of
        the loop leave together.

        Raises:
            LocalProtocolError: 1 MiB is waiting already for a peer that is slow; the message was not sent.
            FrameTooLarge: as :meth:`send`.
            ConnectionClosed: as :meth:`send`.
        """
        try:
            frame = self._wire.frame(message)  # type: ignore[arg-type]
        except LocalProtocolError:
            self._raise_end()
            raise
        gathered = self._gathered
        if type(frame) is not bytes:
            self._check_room()
            self._flush()
            self._sent += 1
            self._write(*frame)
        elif gathered is not None:
            gathered.append(frame)
            self._gathered_bytes += len(frame)
            if self._gathered_bytes >= _GATHER:
                self._flush()
        elif self._direct:
            self._direct = False
            self._sent += 1
            self._sent_bytes += len(frame)
            self._transport.write(frame)  # type: ignore[union-attr]
        else:
            self._check_room()
            self._gathered = [frame]
            self._gathered_bytes = len(frame)
            if not self._flush_scheduled:
                self._flush_scheduled = True
                self._loop.call_soon(self._flush_soon)

    def _check_room(self) -> None:
        if self._write_paused:
            waiting = self.transport.get_write_buffer_size()
            if waiting >= _SEND_LIMIT:
                self._raise_full(waiting)

    def _raise_full(self, waiting: int) -> NoReturn:
        raise LocalProtocolError(
            f"{self!r}: {waiting} bytes wait to be sent to a peer that reads slowly; await send() instead"
        )

    def _flush_soon(self) -> None:
        self._flush_scheduled = False
        self._flush()
        self._direct = not self._write_paused

    def _flush(self) -> None:
        frames, self._gathered = self._gathered, None
        if frames is not None:
            self._gathered_bytes = 0
            self._sent += len(frames)
            self._write(b"".join(frames))

    def _write(self, data: Buffer, *pieces: Buffer) -> None:
        if type(data) is bytes and not pieces:
            self._sent_bytes += len(data)
            self.transport.write(data)
        else:
            # Of what the user gave, len() may count items.
            self._sent_bytes += sum(memoryview(piece).nbytes for piece in (data, *pieces))
            self.transport.writelines((data, *pieces))

    def _send_some(self, messages: Iterator[T | Buffer]) -> bool:
        """Send as many as make a large write; returns whether there are no more."""
        self._flush()
        frames: list[Frame] = []
        try:
            return self._wire.add_frames(frames, cast("Iterator[T]", messages), _GATHER)
        except LocalProtocolError:
            self._raise_end()
            raise
        finally:
            self._sent += len(frames)
            if frames:
                in_pieces = () if isinstance(frames[-1], bytes) else frames.pop()
                self._write(b"".join(cast("list[bytes]", frames)), *in_pieces)

    # -- receiving -----------------------------------------------------------------------------------------

    async def recv(self) -> T:
        """Return the next message.

        If it is cancelled nothing is lost: the next call returns the message.

        Raises:
            ConnectionClosedOK: the peer has closed the connection, or this side has.
            ConnectionLost: the connection ended otherwise; why is its ``__cause__``.
            LocalProtocolError: another task is receiving, or ``on_message=`` is.
        """
        while not self._ready:
            waiter = self._next_batch()
            if waiter is not None:
                try:
                    await waiter
                finally:
                    self._waiting = False
        message = self._ready.pop()
        if not self._reading:
            self._check_queue()
        return message

    async def __anext__(self) -> T:
        # Not by way of recv(): a coroutine of its own would cost as much as all of this.
        while not self._ready:
            try:
                waiter = self._next_batch()
            except ConnectionClosedOK:
                raise StopAsyncIteration from None
            if waiter is not None:
                try:
                    await waiter
                finally:
                    self._waiting = False
        message = self._ready.pop()
        if not self._reading:
            self._check_queue()
        return message

    def data_received(self, data: bytes) -> None:
        self._take(self._wire.receive(data))

    def _take(self, messages: list[T]) -> None:
        """Do what a read asks for, with which these messages came."""
        self._direct = not (self._flush_scheduled or self._write_paused)
        if messages:
            self._received += len(messages)
            if self._waiting and not self._ready:  # a waiting task that was cancelled can have some already
                messages.reverse()
                self._ready = messages
            elif self._on_message is not None:
                if self._wire.close_received:
                    self._attend()  # so that an answer is refused with the reason
                self._call(self._on_message, messages)
            else:
                self._queue(messages)
        if self._wire.attention:
            self._attend()
        # Last of all, since the task runs on right here.
        if self._waiting and messages:
            self._waiter.run_on()  # type: ignore[union-attr]

    def _queue(self, messages: list[T]) -> None:
        counted, self._counted = self._counted, self._wire.bytes_received
        size = self._counted - counted + _MESSAGE_OVERHEAD * len(messages)
        messages.reverse()
        if self._ready or self._later:
            if self._later is None:
                self._later = []
            self._later.append((messages, size))
        else:
            self._queued -= self._ready_bytes
            self._ready, self._ready_bytes = messages, size
        self._queued += size
        if self._queued > _QUEUE_HIGH:
            self._stop_reading()

    def _call(self, on_message: OnMessage[T], messages: list[T]) -> None:
        if len(messages) == 1 and not (self._held or self._write_paused):
            try:
                on_message(self, messages[0])
            except Exception as error:
                self._call_failed(error)
            if self._write_paused:
                self._stop_reading()
        else:
            messages.reverse()
            self._held = messages + self._held
            # What was only read to hear whether the peer lives waits, as what came before it does.
            if self._listening_since is None or self._end is not None:
                self._call_held()

    def _call_held(self) -> None:
        """Call back with what is held, as long as the peer reads what is answered.

        A callback that answers cannot wait: so nothing more is read then. One that does not is called on, even
        if somebody else has sent more than the peer has read; or both sides could wait for each other.
        """
        assert self._on_message is not None
        held, end = self._held, self._end
        # What they send leaves together.
        self._direct = False
        self._flush_scheduled = True
        while held and self._end is end:
            unsent = self._unsent() if self._write_paused else -1
            try:
                self._on_message(self, held.pop())
            except Exception as error:
                self._call_failed(error)
            if self._write_paused and self._unsent() > unsent and self._end is None:
                self._stop_reading()
                break
        if self._end is not end:
            held.clear()
        self._flush_soon()

    def _unsent(self) -> int:
        return self.transport.get_write_buffer_size() + self._gathered_bytes


if not TYPE_CHECKING and speedups is not None:

    class MessageCore(speedups.MessageCore, Generic[T]):
        __slots__ = ()
