"""The half of a message connection that receives: it queues messages for a task, or calls back with each."""

from __future__ import annotations

import asyncio
from typing import Any, Self, TypeVar

from .._log import logger
from ..exceptions import ConnectionClosed, LocalProtocolError
from ..protocol import CloseCode, MessageProtocol
from ..waiter import Waiter
from .core import OnMessage
from .sending import SendingHalf

__all__ = ["ReceivingHalf"]

T = TypeVar("T")

# Bytes of messages queued for recv() at which the peer may go on: a quarter of those at which it has to wait.
_QUEUE_LOW = 64 * 1024

# Bytes read at most beyond that, while neither side takes what the other sends: more than kernels buffer.
_LISTEN = 2**20


class ReceivingHalf(SendingHalf[T]):
    """What :class:`MessageConnection` receives with; it brings the end."""

    __slots__ = ("_no_more",)

    def __init__(
        self, loop: asyncio.AbstractEventLoop, wire: MessageProtocol[T], on_message: OnMessage[T] | None
    ) -> None:
        super().__init__(loop, wire, on_message)
        self._no_more: ConnectionClosed | None = None  # the peer has ended its side; ours goes on

    # What the whole connection does, and this half asks for:

    def start_closing(self, code: int = CloseCode.OK, reason: str = "") -> None:
        """Close the connection, without waiting for the end of it."""
        raise NotImplementedError  # pragma: no cover

    def _set_timer(self) -> None:
        """Wait for what the state machine waits for."""
        raise NotImplementedError  # pragma: no cover

    # -- for the application ---------------------------------------------------------------------------------

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
