"""Whole messages over any byte stream of anyio's."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import anyio
from anyio import CancelScope, aclose_forcefully
from anyio.abc import ByteStream, ObjectStream, TaskGroup
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint_if_cancelled

from ..exceptions import (
    ConnectionClosed,
    ConnectionClosedOK,
    ConnectionLost,
    LocalProtocolError,
    ProtocolError,
)
from ..framing import Buffer, Codec
from ..framing.base import DEFAULT_MAX_SIZE
from ..messages.closing import check_close, said
from ..messages.settings import DEFAULT_CLOSE_TIMEOUT, DEFAULT_HEARTBEAT, DEFAULT_OPEN_TIMEOUT, Settings
from ..protocol import CloseCode, Closed, Event, Failed, Opened

__all__ = ["MessageStream"]

T = TypeVar("T")

# What a byte stream raises when it has failed, or was closed by somebody else; ssl.SSLError is an OSError.
_FAILED = (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)

_READ = 256 * 1024

# Bytes of messages received before the peer is made to wait, and at which it may go on; one more read can come on
# top. What a message takes beyond its own bytes counts, or a peer could fill the memory with empty ones.
_QUEUE_HIGH = 256 * 1024
_QUEUE_LOW = _QUEUE_HIGH // 4
_MESSAGE_OVERHEAD = 40

# Bytes read at most beyond that, while neither side takes what the other sends: more than kernels buffer.
_LISTEN = 2**20

# Bytes waiting to be sent from which on send() waits.
_SEND_HIGH = 64 * 1024

# Seconds that data may wait to be sent, and the stream to be closed, once the connection is done.
_FLUSH_TIMEOUT = 10.0


class MessageStream(ObjectStream[T]):
    """Whole messages over a byte stream of anyio's: a VM socket, TLS around one, or any other.

    It speaks what :class:`aiohvsock.connect` and :func:`aiohvsock.serve` speak, with which it can be at either end.
    ``async with`` says hello and waits for the peer's; at the end of the block the connection is closed, and with it
    the byte stream. In between, tasks of its own read, write and keep the time: so a program that is busy
    elsewhere gives signs of life, and ``send()`` that is cancelled never leaves half of a message.

    One task may receive and any number may send. A message is bytes, or with ``codec=`` what that codec gives.
    What is to be found about the byte stream by ``extra()`` is found here, too.

    Args:
        stream: the byte stream; it is owned by this one from here on.
        codec: how messages are framed, for peers that are not ours; None is the native protocol, which has a hello, a
            heartbeat and a proper close. A codec alone has none of these.
        max_size: bytes; the longest message taken. Both sides tell each other.
        open_timeout: seconds for the peer's hello; None waits as long as it takes.
        close_timeout: seconds :meth:`close` waits for the peer; None as long as it takes.
        heartbeat: seconds between pings; None sends none.
        heartbeat_timeout: seconds without a sign of life after a ping until the connection is lost; None never.

    Raises:
        ValueError: a figure makes no sense.
        BrokenResourceError: from ``async with``, there was no hello; its ``__cause__`` is a
            :exc:`~aiohvsock.ConnectionClosed`.
    """

    @overload
    def __init__(
        self: MessageStream[bytes],
        stream: ByteStream,
        *,
        codec: None = None,
        max_size: int = ...,
        open_timeout: float | None = ...,
        close_timeout: float | None = ...,
        heartbeat: float | None = ...,
        heartbeat_timeout: float | None = ...,
    ) -> None: ...

    @overload
    def __init__(
        self,
        stream: ByteStream,
        *,
        codec: Codec[T],
        open_timeout: float | None = ...,
        close_timeout: float | None = ...,
    ) -> None: ...

    def __init__(
        self,
        stream: ByteStream,
        *,
        codec: Codec[Any] | None = None,
        max_size: int = DEFAULT_MAX_SIZE,
        open_timeout: float | None = DEFAULT_OPEN_TIMEOUT,
        close_timeout: float | None = DEFAULT_CLOSE_TIMEOUT,
        heartbeat: float | None = DEFAULT_HEARTBEAT,
        heartbeat_timeout: float | None = DEFAULT_HEARTBEAT,
    ) -> None:
        settings: Settings[T] = Settings(
            codec, max_size, open_timeout, close_timeout, heartbeat, heartbeat_timeout
        )
        self._stream = stream
        self._wire = settings.protocol(anyio.current_time)
        self._tasks: TaskGroup | None = None  # has one task, _run()
        self._scope = CancelScope()  # of its tasks
        self._alarm: CancelScope | None = None  # ends when the state machine's timer has come

        self._open = False  # the peer has said hello
        self._opened = anyio.Event()  # or it never will
        self._closed = False  # by us
        self._end: ConnectionClosed | None = None  # why nothing more will come
        self._gone = anyio.Event()

        self._ready: deque[tuple[T, int]] = deque()  # messages, and the bytes each counts
        self._queued = 0
        self._counted = 0  # as far as this of bytes_received is in _ready, or taken
        self._receive_guard = anyio.ResourceGuard("receiving from")
        self._arrival = anyio.Event()
        self._drained: anyio.Event | None = None  # somebody waits until little is queued

        self._outgoing: list[bytes] = []  # frames
        self._unsent = 0  # bytes, what is being written included
        self._writing = False
        self._write_error: Exception | None = None
        self._eof_sent = False
        self._work = anyio.Event()  # for the writing task
        self._room = anyio.Event()  # _unsent has become less
        self._turn = anyio.Lock()  # who waits in send()

    # -- its life --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        if self._tasks is not None:
            raise RuntimeError("a MessageStream is entered once")
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        try:
            self._tasks.start_soon(self._run)
            await self._opened.wait()
            # One that has ended since was open all the same: what came before the end is to be received.
            if not self._open:
                await self._gone.wait()
                assert self._end is not None
                raise anyio.BrokenResourceError(str(self._end)) from self._end
        except BaseException:
            self._tasks.cancel_scope.cancel()
            await self._tasks.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._tasks is not None
        try:
            # An end by an error must not look like a proper one to the peer.
            if isinstance(error, Exception):
                await self.close(CloseCode.INTERNAL_ERROR, "the program failed")
            else:
                await self.close()
        finally:
            # Without the error, which is the block's: the task group would wrap it into a group.
            await self._tasks.__aexit__(None, None, None)

    async def aclose(self) -> None:
        """Close the connection with ``CloseCode.OK``, as :meth:`close` does."""
        await self.close()

    async def close(self, code: int = CloseCode.OK, reason: str = "") -> None:
        """Send what is queued, close the connection and the byte stream, and wait until the peer has confirmed it.

        It waits ``close_timeout`` seconds at most. Cancelled, it cuts the connection off at once. What was received
        and not taken is dropped. A second call waits for the first one's end. A bare codec tells the peer neither
        code nor reason.

        Args:
            code: why: ``CloseCode.OK``, ``GOING_AWAY``, ``INTERNAL_ERROR``, ``NOT_ALLOWED`` or ``TRY_AGAIN_LATER``;
                or 128 to 255, whose meaning is the application's.
            reason: text for people, cut at 1023 bytes of UTF-8.

        Raises:
            ValueError: a code that is not for an application to use.
            TypeError: a reason that is no text.
        """
        check_close(code, reason)
        if self._tasks is None:
            self._closed = True
            await self._stream.aclose()
            return
        if not self._closed:
            self._closed = True
            self._set_end(ConnectionClosedOK("closed by this side", code=code, reason=reason))
            self._ready.clear()
            self._wire.close(code, reason)
            self._work.set()
            self._attend()
        try:
            await self._gone.wait()
        except BaseException:
            self._scope.cancel()
            with CancelScope(shield=True):
                await self._gone.wait()
            raise

    @property
    def end(self) -> ConnectionClosed | None:
        """Why the connection ended, with the code and the reason of who closed it; None while it is open."""
        return self._end

    @property
    def latency(self) -> float | None:
        """Seconds that the heartbeat's last ping and its answer took; None before the first."""
        return self._wire.latency

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return self._stream.extra_attributes

    # -- for the application ---------------------------------------------------------------------------------

    async def receive(self) -> T:
        """Return the next message. If it is cancelled nothing is lost: the next call returns the message.

        Raises:
            EndOfStream: the peer has closed the connection; :attr:`end` has its code and reason.
            BrokenResourceError: the connection ended otherwise; its ``__cause__`` is a :exc:`ConnectionLost`.
            ClosedResourceError: this side closed it.
            BusyResourceError: another task is receiving.
        """
        with self._receive_guard:
            await checkpoint_if_cancelled()
            if self._ready:
                await cancel_shielded_checkpoint()
            while not self._ready:
                self._check_entered()
                if isinstance(self._end, ConnectionClosedOK):
                    raise anyio.EndOfStream from self._end
                if self._end is not None:
                    raise anyio.BrokenResourceError(str(self._end)) from self._end
                self._arrival = anyio.Event()
                await self._arrival.wait()
            message, size = self._ready.popleft()
            self._queued -= size
            if self._drained is not None and self._queued <= _QUEUE_LOW:
                self._drained.set()
            return message

    async def send(self, item: T | Buffer) -> None:
        """Send one message; wait first while the peer is slow.

        If it is cancelled the message was not sent. Success says that it is on its way, not that the peer has it.

        Raises:
            BrokenResourceError: the connection is gone, or the peer has closed it; the reason is its ``__cause__``.
            ClosedResourceError: this side closed it, or called :meth:`send_eof`.
            FrameTooLarge: the peer does not take a message that long; the connection goes on.
            TypeError: it is no message.
        """
        async with self._turn:
            await self._wait_unsent(_SEND_HIGH - 1)
            try:
                frame = self._wire.frame(item)  # type: ignore[arg-type]
            except LocalProtocolError:
                self._check_sending()
                raise
            # One that comes in pieces may have the caller's own memory in it, which may change when we are back.
            data = frame if isinstance(frame, bytes) else b"".join(frame)
            self._outgoing.append(data)
            self._unsent += len(data)
            self._work.set()

    async def send_eof(self) -> None:
        """With a bare codec, end our direction while the peer's goes on. A second call does nothing.

        Raises:
            NotImplementedError: the native protocol has no half of an end, nor has TLS.
            BrokenResourceError: as :meth:`send`.
            ClosedResourceError: this side closed the connection.
        """
        if not self._wire.half_close:
            raise NotImplementedError("the native protocol closes both directions; use close()")
        async with self._turn:
            if not self._eof_sent:
                await self._wait_unsent(0)
                await self._stream.send_eof()
                self._eof_sent = True
                self._wire.stop_sending()

    async def _wait_unsent(self, limit: int) -> None:
        """Wait until so many bytes, or less, are not sent yet."""
        self._check_sending()
        while self._unsent > limit:
            self._room = anyio.Event()
            await self._room.wait()
            self._check_sending()

    def _check_entered(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError
        if self._tasks is None:
            raise RuntimeError("a MessageStream is used inside of its async with")

    def _check_sending(self) -> None:
        self._check_entered()
        if self._eof_sent:
            raise anyio.ClosedResourceError
        if self._write_error is not None:
            raise anyio.BrokenResourceError(str(self._write_error)) from self._write_error
        # With a bare codec a peer that has ended its direction can still be answered.
        half = self._wire.half_close and isinstance(self._end, ConnectionClosedOK)
        if self._end is not None and not half:
            raise anyio.BrokenResourceError(str(self._end)) from self._end

    # -- its own tasks ---------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Carry the connection from its hello to its end."""
        finished = False
        self._attend()
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._read)
                    tasks.start_soon(self._write)
                    tasks.start_soon(self._keep_time)
            finished = self._wire.finished and not self._writing
            if finished:
                with anyio.move_on_after(_FLUSH_TIMEOUT), suppress(anyio.EndOfStream, *_FAILED):
                    await self._stream.aclose()
        finally:
            if not finished:  # cut off, perhaps inside a frame
                with CancelScope(shield=True), suppress(anyio.EndOfStream, *_FAILED):
                    await aclose_forcefully(self._stream)
            self._wire.stop_sending()
            if self._closed and isinstance(self._end, ConnectionClosedOK) and not self._wire.close_received:
                self._end = ConnectionLost("it was closed, but the peer has not confirmed it")
            self._set_end(ConnectionLost("cut off by this side"))
            self._gone.set()

    async def _read(self) -> None:
        wire = self._wire
        try:
            while True:
                data = await self._stream.receive(_READ)
                messages = wire.receive(bytes(data))
                if messages:
                    size, self._counted = wire.bytes_received - self._counted, wire.bytes_received
                    share = size // len(messages) + _MESSAGE_OVERHEAD
                    self._ready.extend((message, share) for message in messages)
                    self._queued += share * len(messages)
                    self._arrival.set()
                self._attend()
                if self._queued > _QUEUE_HIGH and self._end is None:
                    await self._pause_reading()
        except anyio.EndOfStream:
            wire.eof()
            self._attend()
        except _FAILED as error:
            self._set_lost(error)
            self._scope.cancel()

    async def _pause_reading(self) -> None:
        self._wire.set_reading(False)
        self._set_alarm()
        self._drained = anyio.Event()
        await self._drained.wait()
        self._drained = None
        self._wire.set_reading(True)
        self._set_alarm()

    async def _write(self) -> None:
        wire = self._wire
        try:
            while True:
                pieces, self._outgoing = self._outgoing, []
                if control := wire.data_to_send():
                    pieces.append(control)
                if pieces:
                    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                    self._writing = True
                    await self._stream.send(data)
                    self._writing = False
                    self._unsent -= len(data) - len(control)
                    self._room.set()
                elif wire.finished:
                    break
                elif wire.close_sent and wire.half_close and not self._eof_sent:
                    self._eof_sent = True
                    await self._stream.send_eof()
                else:
                    self._work = anyio.Event()
                    await self._work.wait()
        except NotImplementedError:  # TLS has no half of an end
            wire.eof()
        except _FAILED as error:
            # What the peer has sent before it went is still to be received.
            self._write_error = error
            wire.stop_sending()
            self._room.set()
            if not wire.finished:
                return
        self._scope.cancel()

    async def _keep_time(self) -> None:
        while True:
            with CancelScope() as self._alarm:
                self._set_alarm()
                await anyio.sleep_forever()
            self._wire.on_timer()
            # Read on though we are slow, when the peer does not read either: it may be gone, and who does not read
            # cannot judge. What it had sent before is still in the kernel's buffers, and no sign of life.
            if self._drained is not None and self._writing and self._queued < _QUEUE_HIGH + _LISTEN:
                self._drained.set()
            self._attend()
            if self._wire.finished and self._writing:
                self._scope.cancel()

    # -- the protocol below ----------------------------------------------------------------------------------

    def _attend(self) -> None:
        """Do what the state machine asks for."""
        wire = self._wire
        while wire.attention:
            wire.attention = False
            events, wire.events = wire.events, ()
            for event in events:
                self._handle(event)
            self._work.set()
        if wire.finished:
            if self._write_error is not None:
                self._scope.cancel()
            else:
                self._scope.deadline = min(self._scope.deadline, anyio.current_time() + _FLUSH_TIMEOUT)
        self._set_alarm()

    def _handle(self, event: Event) -> None:
        match event:
            case Opened():
                self._open = True
                self._opened.set()
            case Closed(code, reason) if CloseCode.is_ok(code):
                text = f"closed by the peer{said(code, reason)}"
                self._set_end(ConnectionClosedOK(text, code=code, reason=reason))
            case Closed(code, reason):
                self._set_lost(ProtocolError(f"the peer has closed it{said(code, reason)}"), code, reason)
            case Failed(error, code):
                self._set_lost(error, code)

    def _set_lost(self, cause: Exception, code: int | None = None, reason: str = "") -> None:
        lost = ConnectionLost(f"the connection is lost: {cause or repr(cause)}", code=code, reason=reason)
        lost.__cause__ = cause
        self._set_end(lost)

    def _set_end(self, end: ConnectionClosed) -> None:
        """Note why the connection ended, and wake all who wait; the first reason counts."""
        if self._end is None:
            self._end = end
        self._opened.set()
        self._arrival.set()
        self._room.set()
        if self._drained is not None:
            self._drained.set()

    def _set_alarm(self) -> None:
        when = self._wire.timer
        deadline = math.inf if when is None else when
        if self._alarm is not None and self._alarm.deadline != deadline:
            self._alarm.deadline = deadline
