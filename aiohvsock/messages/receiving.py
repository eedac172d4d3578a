"""The half of a message connection that receives: it queues messages for a task, or calls back with each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Self, TypeAlias, TypeVar

from .._log import logger
from ..exceptions import ConnectionClosed, ConnectionClosedOK, LocalProtocolError
from ..protocol import CloseCode, MessageProtocol
from ..waiter import Waiter
from .sending import SendingHalf

__all__ = ["OnMessage", "ReceivingHalf"]

T = TypeVar("T")

OnMessage: TypeAlias = Callable[[Any, T], None]
"""A plain function ``(connection, message)``."""

# Bytes of messages queued for recv() before the peer is made to wait, and at which it may go on; one more read
# can come on top.
_QUEUE_HIGH = 256 * 1024
_QUEUE_LOW = _QUEUE_HIGH // 4

# Bytes read at most beyond that, while neither side takes what the other sends: more than kernels buffer.
_LISTEN = 2**20

# Bytes that a message takes beyond its own: a peer could fill the memory with empty ones.
_MESSAGE_OVERHEAD = 40


class ReceivingHalf(SendingHalf[T]):
    """What :class:`MessageConnection` receives with; it brings the end."""

    __slots__ = (
        "_counted",
        "_held",
        "_later",
        "_listening_since",
        "_no_more",
        "_on_message",
        "_queued",
        "_reading",
        "_ready",
        "_ready_bytes",
        "_received",
        "_waiter",
        "_waiting",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, wire: MessageProtocol[T], on_message: OnMessage[T] | None
    ) -> None:
        super().__init__(loop, wire)
        self._on_message = on_message
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
        self._no_more: ConnectionClosed | None = None  # the peer has ended its side; ours goes on
        self._waiter: Waiter | None = None
        self._waiting = False  # a task is waiting for a message

    # What the whole connection does, and this half asks for:

    def start_closing(self, code: int = CloseCode.OK, reason: str = "") -> None:
        """Close the connection, without waiting for the end of it."""
        raise NotImplementedError  # pragma: no cover

    def _attend(self) -> None:
        """Do what the state machine asks for."""
        raise NotImplementedError  # pragma: no cover

    def _set_timer(self) -> None:
        """Wait for what the state machine waits for."""
        raise NotImplementedError  # pragma: no cover

    # -- for the application ---------------------------------------------------------------------------------

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

    async def recv_many(self) -> list[T]:
        """Return all messages that have come, one at least: the cheapest way to receive many.

        Cancelling it, and what it raises, is as with :meth:`recv`.
        """
        messages = [await self.recv()]
        while self._ready or self._later:
            if not self._ready:
                self._next_batch()
            self._ready.reverse()
            messages += self._ready
            self._ready = []
        self._check_queue()
        return messages

    def __aiter__(self) -> Self:
        return self

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

    def _next_batch(self) -> Waiter | None:
        """Make the next messages the ones to take from; or return what to wait with, if there are none."""
        if self._queued:
            self._check_queue()
            if self._later:
                self._ready, self._ready_bytes = self._later.pop(0)
                return None
        waiter = self._waiter
        if waiter is None or self._waiting or self._end is not None:
            waiter = self._first_waiter()
        self._waiting = True
        self._counted = self._wire.bytes_received
        return waiter

    def _check_queue(self) -> None:
        """Let the peer go on once little is queued."""
        if not self._ready:
            self._queued -= self._ready_bytes
            self._ready_bytes = 0
            if self._queued <= _QUEUE_LOW:
                self._set_reading(True)

    def _first_waiter(self) -> Waiter:
        end = self._end or self._no_more
        if end is not None:
            raise end.with_traceback(None)
        if self._on_message is not None:
            raise LocalProtocolError(f"{self!r}: its messages go to on_message=, not to recv()")
        if self._waiting:
            raise LocalProtocolError(f"{self!r}: another task is in recv(); one at a time may receive")
        self._waiter = Waiter(self._loop)
        return self._waiter

    def _set_reading(self, reading: bool) -> None:
        if self._reading != reading and not self._lost and (reading or self._end is None):
            self._reading = reading
            if reading:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()
            self._wire.set_reading(reading)
            self._set_timer()

    def _listen(self) -> None:
        """Read on though we are slow, when the peer does not read either: it may be gone.

        Else nobody would find out, since who does not read cannot judge. What it had sent before is still in the
        kernel's buffers, and no sign of life; so there must be room for all of that.
        """
        if self._write_paused and not self._reading:
            if self._listening_since is None:
                self._listening_since = self._wire.bytes_received
            if self._wire.bytes_received - self._listening_since < _LISTEN:
                self._set_reading(True)

    def _stop_reading(self) -> None:
        since = self._listening_since
        if since is None or self._wire.bytes_received - since >= _LISTEN:
            self._set_reading(False)

    # -- asyncio.Protocol ------------------------------------------------------------------------------------

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

    def _call_failed(self, error: Exception) -> None:
        if isinstance(error, ConnectionClosed) and self._end is not None:
            logger.debug("%s: on_message() ended with: %s", self, error)
        else:
            logger.error("%s: on_message() failed; the connection is closed", self, exc_info=error)
            self.start_closing(CloseCode.INTERNAL_ERROR, "the handler failed")

    def _receive_in_place(self) -> None:
        """Receive a large message where it belongs, as far as it has not come."""
        self.transport.set_protocol(_InPlace(self))

    def _received_in_place(self, size: int) -> None:
        messages = self._wire.received(size)
        if self._wire.buffer is None:
            self.transport.set_protocol(self)
        self._take(messages)


class _InPlace(asyncio.BufferedProtocol):
    """Stands in for a connection while a large message is received.

    The connection itself is no BufferedProtocol, since that costs a call more for each small message.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: ReceivingHalf[Any]) -> None:
        self._connection = connection

    def get_buffer(self, sizehint: int) -> memoryview:
        buffer = self._connection._wire.buffer
        assert buffer is not None
        return buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._connection._received_in_place(nbytes)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def writing_failed(self, error: OSError) -> None:
        self._connection.writing_failed(error)

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)
