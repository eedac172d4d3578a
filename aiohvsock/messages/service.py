"""Listen for connections that carry messages, and run a handler for each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar, Unpack, overload

from .._log import logger
from ..endpoints import ListenOptions, open_server
from ..exceptions import ConnectionClosed
from ..framing import Codec
from ..framing.base import DEFAULT_MAX_SIZE
from ..listening import ListenOn
from ..platforms import Listener
from ..protocol import CloseCode
from ..server import HvServer
from .connection import MessageConnection
from .core import OnMessage
from .settings import DEFAULT_CLOSE_TIMEOUT, DEFAULT_HEARTBEAT, DEFAULT_OPEN_TIMEOUT, Settings, check_callback

__all__ = ["Handler", "MessageServer", "serve"]

T = TypeVar("T")

Handler: TypeAlias = Callable[[MessageConnection[T]], Awaitable[None]]


class _ServedConnection(MessageConnection[T]):
    """The server's end of a connection."""

    __slots__ = ("_server",)

    def __init__(
        self, server: MessageServer[T], settings: Settings[T], on_message: OnMessage[T] | None
    ) -> None:
        super().__init__(settings, on_message)
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._server._made(self)
        super().connection_made(transport)
        if not self._server.is_open:  # it was closed while TLS shook hands
            self.start_closing(CloseCode.GOING_AWAY, "the service goes away")

    def _on_opened(self) -> None:
        self._server._opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._server._gone_from(self)

    def handler_done(self, task: asyncio.Future[None]) -> None:
        """Close the connection as its handler has ended."""
        self._server._tasks.discard(task)
        if task.cancelled() and not self._server.is_open:  # by us
            self.start_closing(CloseCode.GOING_AWAY)
            self.transport.abort()
            return
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if isinstance(error, BaseExceptionGroup):  # of a TaskGroup, in which all tasks hear of the end
            error = error.split(ConnectionClosed)[1] or error.exceptions[0]
        if error is None:
            self.start_closing()
        elif isinstance(error, ConnectionClosed) and (self.closed or error is self._no_more):
            # Mostly the reason of our own end, which was told already.
            logger.debug("%s: the handler ended with: %s", self, error)
            self.start_closing()
        else:
            logger.error("%s: the handler failed; the connection is closed", self, exc_info=error)
            self.start_closing(CloseCode.INTERNAL_ERROR, "the handler failed")


class MessageServer(HvServer, Generic[T]):
    """A server of messages, as :func:`~aiohvsock.serve` returns it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listeners: Sequence[Listener],
        *,
        handler: Handler[T] | None,
        on_message: OnMessage[T] | None,
        settings: Settings[T],
        **keywords: Any,
    ) -> None:
        super().__init__(loop, listeners, self._new_connection, **keywords)
        self._handler = handler
        self._on_message = on_message
        self._settings = settings
        self._connections: set[_ServedConnection[T]] = set()
        self._tasks: set[asyncio.Future[None]] = set()
        self._cutting: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> frozenset[MessageConnection[T]]:
        """Those that are open, or being opened or closed."""
        return frozenset(self._connections)

    # -- its connections -------------------------------------------------------------------------------------

    def _new_connection(self) -> MessageConnection[T]:
        return _ServedConnection(self, self._settings, self._on_message)

    def _made(self, connection: _ServedConnection[T]) -> None:
        self._connections.add(connection)

    def _opened(self, connection: _ServedConnection[T]) -> None:
        # The one place where a connection meets its handler. A layer that resumes sessions would look here at
        # the nonce in the peer's hello, and hand the connection to a handler that runs already.
        logger.debug("%s: accepted", connection)
        if self._handler is not None:
            # The task is the handler's own coroutine: an idle connection is cheaper so than with one around it.
            task = _start(self._handler, connection)
            self._tasks.add(task)
            task.add_done_callback(connection.handler_done)

    def _gone_from(self, connection: _ServedConnection[T]) -> None:
        logger.debug("%s: gone", connection)
        self._connections.discard(connection)

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop listening, tell the peers that the service goes away, and cut off what is left in the end.

        What was sent goes out; handlers get :exc:`ConnectionClosedOK` when they send, and when they have received
        what had come. Connections, and handlers, that are still there after ``close_timeout`` are cut off and
        cancelled. :meth:`wait_closed` waits for all of that.
        """
        if not self._closed:
            super().close()
            self.close_clients()
            if self._settings.close_timeout is not None:
                self._cutting = self._loop.call_later(self._settings.close_timeout, self._cut)

    def _cut(self) -> None:
        if self._tasks or self._connections:
            logger.warning(
                "%r: cutting off %d connections, cancelling %d handlers",
                self,
                len(self._connections),
                len(self._tasks),
            )
        self.abort_clients()
        for task in self._tasks:
            task.cancel()

    def close_clients(self) -> None:
        """Tell every peer that the service goes away, and close its connection."""
        for connection in self.connections:
            connection.start_closing(CloseCode.GOING_AWAY, "the service goes away")

    async def wait_closed(self) -> None:
        """Wait until the server is closed, its last connection gone and its last handler done.

        In a handler it waits for the connections only. Cancelling it changes nothing.
        """
        await super().wait_closed()
        if asyncio.current_task() in self._tasks:
            return  # two of them would wait for each other
        while self._tasks:
            await asyncio.wait(self._tasks)
        if self._cutting is not None:
            self._cutting.cancel()


def _start(handler: Handler[T], connection: MessageConnection[T]) -> asyncio.Future[None]:
    try:
        return asyncio.ensure_future(handler(connection))
    except Exception as error:
        # It is no coroutine function: what it raises, or that it returns nothing to wait for, is treated alike.
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        failed.set_exception(error)
        return failed


@overload
async def serve(
    handler: Handler[bytes] | None,
    address: ListenOn | None = None,
    *,
    on_message: OnMessage[bytes] | None = None,
    codec: None = None,
    max_size: int = ...,
    open_timeout: float | None = ...,
    close_timeout: float | None = ...,
    heartbeat: float | None = ...,
    heartbeat_timeout: float | None = ...,
    **options: Unpack[ListenOptions],
) -> MessageServer[bytes]: ...


@overload
async def serve(
    handler: Handler[T] | None,
    address: ListenOn | None = None,
    *,
    on_message: OnMessage[T] | None = None,
    codec: Codec[T],
    open_timeout: float | None = ...,
    close_timeout: float | None = ...,
    **options: Unpack[ListenOptions],
) -> MessageServer[T]: ...


async def serve(
    handler: Handler[T] | None,
    address: ListenOn | None = None,
    *,
    on_message: OnMessage[T] | None = None,
    codec: Codec[T] | None = None,
    max_size: int = DEFAULT_MAX_SIZE,
    open_timeout: float | None = DEFAULT_OPEN_TIMEOUT,
    close_timeout: float | None = DEFAULT_CLOSE_TIMEOUT,
    heartbeat: float | None = DEFAULT_HEARTBEAT,
    heartbeat_timeout: float | None = DEFAULT_HEARTBEAT,
    **options: Unpack[ListenOptions],
) -> MessageServer[T]:
    """Listen for connections that carry messages, and run a handler for each.

    Args:
        handler: a coroutine function, called with each :class:`MessageConnection` once its peer has said hello. The
            connection is closed when it returns. What it raises is logged once, closes the connection with
            ``CloseCode.INTERNAL_ERROR``, and costs the other connections nothing. None with ``on_message``.
        address: where to listen, as a value or as text. Of several, those that this machine has nothing for are left
            out.
        on_message: a plain function, as with :class:`connect`; besides, or instead of, a handler.
        codec: as with :class:`connect`.
        max_size: as with :class:`connect`.
        open_timeout: seconds a peer has for its hello; None is for ever.
        close_timeout: seconds a peer has to confirm a close, and handlers have to end once the server is closed.
        heartbeat: as with :class:`connect`.
        heartbeat_timeout: as with :class:`connect`.
        options: the keywords of :func:`create_hv_server`, with its errors. ``max_connections`` counts those that
            have not said hello, too.

    Raises:
        ValueError: a figure makes no sense.
        TypeError: there is neither a handler nor ``on_message``.
    """
    if handler is None and on_message is None:
        raise TypeError("serve() needs a handler, or on_message=")
    if handler is not None and not callable(handler):
        raise TypeError(f"handler must be a coroutine function, or None with on_message=, not {handler!r}")
    check_callback("on_message", on_message)
    settings = Settings(codec, max_size, open_timeout, close_timeout, heartbeat, heartbeat_timeout)
    make = partial(MessageServer[T], handler=handler, on_message=on_message, settings=settings)
    return await open_server(make, address, **options)
