"""Messages over a VM socket: connect, serve, send, receive."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Self, TypeAlias, Unpack, cast

from ._log import logger
from .addresses import Address, AddressLike
from .endpoints import ConnectOptions, ListenOptions, create_hv_connection, create_hv_server
from .exceptions import ConnectionClosed, ConnectionClosedOK, ConnectionLost, FramingError, LocalProtocolError
from .framing import Buffer, Codec, LengthPrefixed
from .framing.base import DEFAULT_MAX_SIZE
from .server import HvServer

__all__ = ["MessageConnection", "connect", "serve"]

# Bytes of messages queued for recv() before the peer is made to wait; one more read can come on top.
_QUEUE_LIMIT = 256 * 1024

# Bytes that a message takes beyond its own: a peer could fill the memory with empty ones.
_MESSAGE_OVERHEAD = 40

# Seconds close() waits for the peer to close its side.
_CLOSE_TIMEOUT = 10.0

Handler: TypeAlias = Callable[["MessageConnection"], Awaitable[None]]


class MessageConnection(asyncio.Protocol):
    """A connection that carries whole messages, as :func:`connect` and :func:`serve` make it.

    One task may receive and any number may send. ``async for`` yields messages until the peer closes, and
    raises :exc:`ConnectionLost` if it goes without.
    """

    def __init__(self, codec: Codec) -> None:
        self._loop = asyncio.get_running_loop()
        self._codec = codec
        self._decoder = codec.decoder()
        self._transport: asyncio.Transport | None = None
        self._messages: deque[bytes] = deque()
        self._queued = 0  # bytes it takes
        self._receiver: asyncio.Future[None] | None = None
        self._end: ConnectionClosed | None = None  # why nothing more will come, and nothing can be sent
        self._closing = False  # by us
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open"
        return f"<{type(self).__name__} {self}, {state}>"

    def __str__(self) -> str:
        return f"{self.local_address} to {self.peer_address}"

    # -- what it is ----------------------------------------------------------------------------------------

    @property
    def local_address(self) -> Address | None:
        """Our own address, as far as it is known."""
        return cast("Address | None", self._info("hv_local"))

    @property
    def peer_address(self) -> Address | None:
        """The peer's address; None over a ``sock=`` of a foreign family."""
        return cast("Address | None", self._info("hv_peer"))

    @property
    def transport(self) -> asyncio.Transport:
        """The transport below. It is the connection's: look, but do not write."""
        assert self._transport is not None
        return self._transport

    @property
    def closed(self) -> bool:
        """True once nothing can be sent any more."""
        return self._closing or self._end is not None

    def _info(self, name: str) -> object:
        return None if self._transport is None else self._transport.get_extra_info(name)

    # -- sending -------------------------------------------------------------------------------------------

    async def send(self, data: Buffer) -> None:
        """Send one message, and wait while the peer is slow.

        Cancelling it takes nothing back: the message is queued whole before there is anything to wait for.
        Success says that it is on its way, not that the peer has it.

        Raises:
            FrameTooLarge: the message is over ``max_size``; the connection goes on.
            ConnectionClosedOK: the connection was closed.
            ConnectionLost: the connection is gone.
        """
        self._check_open()
        self.transport.writelines(self._codec.encode(data))
        self._check_open()
        if not self._writable.is_set():
            await self._writable.wait()
            self._check_open()

    def _check_open(self) -> None:
        if self._end is not None:
            # Or its traceback would grow with each time it is raised.
            raise self._end.with_traceback(None)
        error = self._info("hv_write_error")
        if error is not None:
            assert isinstance(error, Exception)
            raise ConnectionLost(f"{self} is lost: {error}") from error
        if self._closing or self.transport.is_closing():
            raise ConnectionClosedOK(f"{self} was closed by this side")

    # -- receiving -----------------------------------------------------------------------------------------

    async def recv(self) -> bytes:
        """Return the next message.

        Cancelling it loses nothing: the next call returns the message.

        Raises:
            ConnectionClosedOK: the peer has closed the connection, or this side has.
            ConnectionLost: the connection ended inside a message, was reset, or the peer broke the framing;
                the reason is its ``__cause__``.
            LocalProtocolError: another task is receiving.
        """
        if self._receiver is not None:
            raise LocalProtocolError(f"{self!r}: another task is in recv(); one at a time may receive")
        while not self._messages:
            if self._end is not None:
                raise self._end.with_traceback(None)
            self._receiver = self._loop.create_future()
            try:
                await self._receiver
            finally:
                self._receiver = None
        message = self._messages.popleft()
        self._queued -= len(message) + _MESSAGE_OVERHEAD
        if self._queued <= _QUEUE_LIMIT // 4 and not self._lost.is_set():
            self.transport.resume_reading()
        return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self.recv()
        except ConnectionClosedOK:
            raise StopAsyncIteration from None

    # -- the end -------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Send what is queued, close the connection and wait until the peer has closed too, 10 s at most.

        Messages that come meanwhile are dropped; those that were here before can still be received.
        Cancelling it cuts the connection off at once.
        """
        if not self._closing:
            self._closing = True
            transport = self.transport
            if self._end is None and transport.can_write_eof():
                # Reading on to the peer's end: to close with data unread can look like a reset to the peer.
                transport.write_eof()
                if not self._lost.is_set():
                    transport.resume_reading()
            else:
                transport.close()
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT):
                await self._lost.wait()
        except TimeoutError:
            logger.info("%r: the peer did not close within %g s; cut off", self, _CLOSE_TIMEOUT)
        finally:
            if not self._lost.is_set():
                self.transport.abort()
                self._ended(ConnectionClosedOK(f"{self} was closed by this side"))

    async def wait_closed(self) -> None:
        """Wait until the connection is gone. Cancelling it changes nothing."""
        await self._lost.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _ended(self, end: ConnectionClosed) -> None:
        """Note why the connection ended; the first reason counts."""
        if self._end is None:
            self._end = end
        self._wake_receiver()
        self._writable.set()

    def _wake_receiver(self) -> None:
        if self._receiver is not None and not self._receiver.done():
            self._receiver.set_result(None)

    # -- asyncio.Protocol ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            messages = self._decoder.feed(data)
            self._queue(messages)
            self._decoder.feed(b"")  # raises what had to wait for the messages before it
        except FramingError as error:
            self._fail(error)

    def _queue(self, messages: list[bytes]) -> None:
        if messages:
            self._messages.extend(messages)
            self._queued += sum(map(len, messages)) + _MESSAGE_OVERHEAD * len(messages)
            if self._queued > _QUEUE_LIMIT:
                self.transport.pause_reading()
            self._wake_receiver()

    def eof_received(self) -> None:
        if self._closing:
            self._ended(ConnectionClosedOK(f"{self} was closed by this side"))
            return
        try:
            self._decoder.eof()
        except FramingError as error:
            self._fail(error)
        else:
            self._ended(ConnectionClosedOK(f"{self} was closed by the peer"))

    def _fail(self, error: FramingError) -> None:
        lost = ConnectionLost(f"{self} is lost: {error}")
        lost.__cause__ = error
        logger.warning("%s", lost)
        self._ended(lost)
        self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if error is None or self._closing:
            self._ended(ConnectionClosedOK(f"{self} was closed"))
        else:
            lost = ConnectionLost(f"{self} is lost: {error}")
            lost.__cause__ = error
            self._ended(lost)
        self._lost.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()


class connect:
    """Connect to a server of messages.

    ``await connect(...)`` returns a :class:`MessageConnection`; ``async with connect(...) as connection``
    closes it at the end of the block too. Cancelling it, at any moment, leaves no descriptor behind.

    Args:
        address: whom to dial, as a value or as text.
        codec: how messages are framed; None is :class:`~aiohvsock.framing.LengthPrefixed`.
        max_size: bytes; the longest message, with the default codec.
        options: the keywords of :func:`create_hv_connection`, with its errors.
    """

    def __init__(
        self,
        address: AddressLike | None = None,
        *,
        codec: Codec | None = None,
        max_size: int = DEFAULT_MAX_SIZE,
        **options: Unpack[ConnectOptions],
    ) -> None:
        self._address = address
        self._codec = _codec(codec, max_size)
        self._options = options
        self._connection: MessageConnection | None = None

    async def _connect(self) -> MessageConnection:
        _, connection = await create_hv_connection(
            lambda: MessageConnection(self._codec), self._address, **self._options
        )
        return connection

    def __await__(self) -> Generator[Any, None, MessageConnection]:
        return self._connect().__await__()

    async def __aenter__(self) -> MessageConnection:
        self._connection = await self._connect()
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._connection is not None
        await self._connection.close()


async def serve(
    handler: Handler,
    address: AddressLike | None = None,
    *,
    codec: Codec | None = None,
    max_size: int = DEFAULT_MAX_SIZE,
    **options: Unpack[ListenOptions],
) -> HvServer:
    """Listen for connections that carry messages, and run a handler for each.

    Args:
        handler: a coroutine function, called with each :class:`MessageConnection`. The connection is closed
            when it returns. What it raises is logged once and costs the other connections nothing.
        address: where to listen, as a value or as text.
        codec: how messages are framed; None is :class:`~aiohvsock.framing.LengthPrefixed`.
        max_size: bytes; the longest message, with the default codec.
        options: the keywords of :func:`create_hv_server`, with its errors.
    """
    chosen = _codec(codec, max_size)
    return await create_hv_server(lambda: _ServedConnection(chosen, handler), address, **options)


def _codec(codec: Codec | None, max_size: int) -> Codec:
    if codec is None:
        return LengthPrefixed(max_size=max_size)
    if max_size != DEFAULT_MAX_SIZE:
        raise ValueError("max_size is for the default codec; give it to the codec instead")
    return codec


class _ServedConnection(MessageConnection):
    """The server's end: it runs the handler."""

    def __init__(self, codec: Codec, handler: Handler) -> None:
        super().__init__(codec)
        self._handler = handler
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._task = self._loop.create_task(self._serve())

    async def _serve(self) -> None:
        try:
            await self._handler(self)
        except asyncio.CancelledError:
            self.transport.abort()
            raise
        except ConnectionClosed as error:
            # Not the handler's fault, and the connection knows it.
            logger.debug("%r: the handler ended with its connection: %s", self, error)
        except Exception:
            logger.exception("%r: the handler failed; its connection is closed", self)
        finally:
            await self.close()
            self._task = None
