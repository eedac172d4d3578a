"""A connection that carries whole messages."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from contextvars import Context
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar, cast

from .._log import logger
from ..exceptions import (
    ConnectionClosed,
    ConnectionClosedOK,
    ConnectionLost,
    FramingError,
    HvError,
    IncompleteFrame,
    ProtocolError,
)
from ..protocol import CloseCode, Closed, Event, Failed, Opened, Pong
from .closing import check_close, said
from .core import OnMessage
from .receiving import ReceivingHalf
from .settings import Settings

__all__ = ["ConnectionStats", "MessageConnection"]

T = TypeVar("T")

# Seconds that data may wait to be sent once the connection is done.
_FLUSH_TIMEOUT = 10.0

# One a loop, so that an idle connection has none of its own; two threads cannot be in the same one.
_timer_contexts: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Context] = weakref.WeakKeyDictionary()


def _timer_context(loop: asyncio.AbstractEventLoop) -> Context:
    context = _timer_contexts.get(loop)
    if context is None:
        context = _timer_contexts[loop] = Context()
    return context


@dataclass(frozen=True, slots=True)
class ConnectionStats:
    """What a connection has carried so far."""

    messages_sent: int
    messages_received: int
    """Those that were whole, taken by the application or not yet."""
    bytes_sent: int
    """Of messages, their headers included; they may still wait to be sent."""
    bytes_received: int
    """All of them."""
    pings_sent: int
    """The heartbeat's included."""
    opened_at: float
    """When the connection was made, in seconds since the epoch, as :func:`time.time` gives them."""


class MessageConnection(ReceivingHalf[T]):
    """A connection that carries whole messages, as :class:`~aiohvsock.connect` and :func:`~aiohvsock.serve` make it.

    One task may receive and any number may send. ``async for`` yields messages until the connection is closed, and
    raises :exc:`ConnectionLost` if it ends otherwise. ``async with`` closes it at the end of the block.
    A message is bytes, or with ``codec=`` what that codec gives.
    """

    __slots__ = (
        "__weakref__",
        "_gone",
        "_open",
        "_opened",
        "_pings",
        "_since",
        "_timer",
        "_timer_at",
        "_transport_closed",
    )

    def __init__(self, settings: Settings[T], on_message: OnMessage[T] | None = None) -> None:
        loop = asyncio.get_running_loop()
        # Not loop.time(), which is in milliseconds on uvloop, nor time.monotonic(), which ticks each 15.6 ms on Windows
        # before Python 3.13.
        super().__init__(loop, settings.protocol(time.perf_counter), on_message)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._since = time.time()
        self._pings: dict[int, asyncio.Future[None]] | None = None

        self._open = False  # the peer has said hello
        self._transport_closed = False  # by us
        self._opened: asyncio.Future[None] | None = None  # somebody waits for that
        self._gone: asyncio.Future[None] | None = None  # somebody waits for the transport to be gone

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<{type(self).__name__} {self}, {state}>"

    # -- what it is ------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True once nothing can be sent any more."""
        return self._end is not None

    @property
    def end(self) -> ConnectionClosed | None:
        """Why it ended, or None while it is open."""
        return self._end

    @property
    def latency(self) -> float | None:
        """Seconds that the last ping and its answer took, the heartbeat's included; None before the first."""
        return self._wire.latency

    @property
    def stats(self) -> ConnectionStats:
        """What was carried so far."""
        return ConnectionStats(
            self._sent,
            self._received,
            self._sent_bytes,
            self._wire.bytes_received,
            self._wire.pings_sent,
            self._since,
        )

    # -- ping ------------------------------------------------------------------------------------------------

    async def ping(self) -> float:
        """Ask the peer for a sign of life; returns the seconds that its answer took.

        It has no limit of its own; bound it with :func:`asyncio.timeout`. Cancelling it changes nothing.

        Raises:
            ConnectionClosed: the connection ended before the answer came.
            LocalProtocolError: a bare codec has no ping.
        """
        while self._write_paused:
            await self._wait_for_room()
        self._raise_end()
        start = time.perf_counter()
        token = self._wire.ping()
        if self._pings is None:
            self._pings = {}
        answer = self._pings[token] = self._loop.create_future()
        self._attend()
        try:
            await answer
        finally:
            self._pings.pop(token, None)
        return time.perf_counter() - start

    # -- the end ---------------------------------------------------------------------------------------------

    async def close(self, code: int = CloseCode.OK, reason: str = "") -> None:
        """Send what is queued, close the connection, and wait until the peer has confirmed it.

        It waits ``close_timeout`` seconds at most, then cuts the connection off. Messages that come meanwhile are
        dropped; those that were here before can still be received. Cancelling it cuts the connection off at once.
        A second call waits for the first one's end. A bare codec tells the peer neither code nor reason.

        Args:
            code: why: ``CloseCode.OK``, ``GOING_AWAY``, ``INTERNAL_ERROR``, ``NOT_ALLOWED`` or
                ``TRY_AGAIN_LATER``; or 128 to 255, whose meaning is the application's.
            reason: text for people, cut at 1023 bytes of UTF-8.

        Raises:
            ValueError: a code that is not for an application to use.
        """
        self.start_closing(code, reason)
        try:
            await self.wait_closed()
        except asyncio.CancelledError:
            self.transport.abort()
            raise

    def start_closing(self, code: int = CloseCode.OK, reason: str = "") -> None:
        """Do what :meth:`close` does, but do not wait for its end; for callbacks."""
        check_close(code, reason)
        if self._end is None:
            self._flush()
            error = self.transport.get_extra_info("hv_write_error")
            if error is None:
                self._set_ended(
                    ConnectionClosedOK(f"{self} was closed by this side", code=code, reason=reason)
                )
            else:
                self._set_lost(error)
            self._wire.close(code, reason)
            # Reading goes on to the peer's end: to close with data unread can look like a reset to the peer.
            self._attend()
            if self._wire.half_close and not self._wire.finished:
                self._half_close()

    def _half_close(self) -> None:
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self._close_transport()

    def _close_transport(self) -> None:
        # Once only: asyncio's TLS transport forgets its protocol when it is closed again.
        if not self._transport_closed:
            self._transport_closed = True
            self.transport.close()
            if self.transport.get_write_buffer_size():
                self._loop.call_later(_FLUSH_TIMEOUT, self.transport.abort)

    async def wait_closed(self) -> None:
        """Wait until the connection is gone. Cancelling it changes nothing."""
        if not self._lost:
            if self._gone is None:
                self._gone = self._loop.create_future()
            # Shielded, since others may wait for it too.
            await asyncio.shield(self._gone)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _set_ended(self, end: ConnectionClosed) -> None:
        """Note why the connection ended; the first reason counts."""
        if self._end is None:
            self._end = end
            self._wire.stop_sending()
            # What comes from here on is dropped, but for the end itself.
            self._set_reading(True)
            if self._waiter is not None:
                self._waiter.run_on_soon()
            if self._opened is not None and not self._opened.done():
                self._opened.set_result(None)
            for answer in (self._pings or {}).values():
                if not answer.done():
                    answer.set_exception(end)
            self._wake_senders()

    def _set_no_more(self, end: ConnectionClosedOK) -> None:
        """Note that nothing more will come, while the peer may wait for an answer: it can with a bare codec."""
        self._no_more = end
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.run_on_soon()

    def _set_lost(self, cause: Exception, code: int | None = None, reason: str = "") -> None:
        text = cause if isinstance(cause, (HvError, OSError)) else repr(cause)
        lost = ConnectionLost(f"{self} is lost: {text}", code=code, reason=reason)
        lost.__cause__ = cause
        first = self._end is None
        self._set_ended(lost)
        if first:
            # Somebody is at fault, or has only gone.
            gone = isinstance(cause, (IncompleteFrame, OSError)) or code in (None, CloseCode.NO_ANSWER)
            broken = isinstance(cause, FramingError) and not isinstance(cause, IncompleteFrame)
            logger.log(logging.INFO if gone and not broken else logging.WARNING, "%s", lost)

    # -- the protocol below ----------------------------------------------------------------------------------

    def _attend(self) -> None:
        """Do what the state machine asks for."""
        wire = self._wire
        while wire.attention:
            wire.attention = False
            events, wire.events = wire.events, ()
            for event in events:
                self._handle(event)
            if wire.close_sent or not self._write_paused:
                self._write_control()
        if wire.buffer is not None and self.transport.get_protocol() is self:
            self._receive_in_place()
        if wire.finished:
            self._close_transport()
        self._set_timer()

    def _handle(self, event: Event) -> None:
        match event:
            case Opened():
                self._open = True
                if self._opened is not None and not self._opened.done():
                    self._opened.set_result(None)
                self._on_opened()
            case Pong(token):
                for asked, answer in (self._pings or {}).items():
                    if asked <= token and not answer.done():
                        answer.set_result(None)
            case Closed(code, reason) if CloseCode.is_ok(code):
                text = f"{self} was closed by the peer{said(code, reason)}"
                end = ConnectionClosedOK(text, code=code, reason=reason)
                # TLS has no half of an end.
                if self._wire.half_close and self._on_message is None and self.transport.can_write_eof():
                    self._set_no_more(end)
                else:
                    self._set_ended(end)
                    self._wire.close()
            case Closed(code, reason):
                self._set_lost(ProtocolError(f"the peer has closed it{said(code, reason)}"), code, reason)
            case Failed(error, code):
                self._set_lost(error, code)

    def _on_opened(self) -> None:
        """Hear that the peer has said hello."""

    async def wait_opened(self) -> None:
        """Wait for the peer's hello.

        Raises:
            ConnectionClosed: it did not come.
        """
        if not self._open and self._end is None:
            self._opened = self._loop.create_future()
            await self._opened
        # One that has ended since was open all the same: what came before the end is to be received.
        if not self._open:
            self._raise_end()

    def _set_timer(self) -> None:
        when = self._wire.timer
        if self._timer is not None and (when is None or when < self._timer_at):
            self._timer.cancel()
            self._timer = None
        # One that comes too early does nothing and is set again: cheaper than to cancel it.
        if when is not None and self._timer is None and not self._lost:
            delay = max(0.0, when - time.perf_counter())
            self._timer_at = when
            self._timer = self._loop.call_later(delay, self._on_timer, context=_timer_context(self._loop))

    def _on_timer(self) -> None:
        self._timer = None
        self._wire.on_timer()
        self._listen()
        self._attend()
        if self._wire.finished:
            self.transport.abort()

    # -- asyncio.BufferedProtocol ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._attach(cast("asyncio.Transport", transport))
        # Kept, since a TLS transport forgets them in the end.
        self.local_address = transport.get_extra_info("hv_local")
        self.peer_address = transport.get_extra_info("hv_peer")
        self._attend()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._listening_since = None
        if self._on_message is not None:
            self._call_held()
            if not self._held:
                self._set_reading(True)

    def eof_received(self) -> bool:
        self._wire.eof()
        self._attend()
        return self._end is None

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if exc is not None:
            self._set_lost(exc)
        elif self._end is None:
            self._set_ended(ConnectionLost(f"{self} was cut off by this side"))
        elif isinstance(self._end, ConnectionClosedOK) and not self._wire.close_received:
            self._end = ConnectionLost(f"{self} was closed, but the peer has not confirmed it")
            logger.info("%s", self._end)
        if self._held:
            self._call_held()
        if self._gone is not None:
            self._gone.set_result(None)
