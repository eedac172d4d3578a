"""The stream functions: a reader and a writer instead of a protocol."""

from __future__ import annotations

import asyncio
import ssl as _ssl
import warnings
from collections.abc import Awaitable, Callable
from typing import TypeAlias, Unpack, cast

from .addresses import AddressLike
from .endpoints import ConnectOptions, ListenOptions, create_hv_connection, create_hv_server
from .listening import AddressSource, ListenOn
from .reader import HvStreamReader
from .server import HvServer
from .transports.tls import TLS, start_tls

__all__ = ["HvStreamProtocol", "HvStreamReader", "HvStreamWriter", "open_hv_connection", "start_hv_server"]

_DEFAULT_LIMIT = 2**16


class HvStreamWriter(asyncio.StreamWriter):
    """An :class:`asyncio.StreamWriter` that says at once when writing has failed, and speaks TLS on every loop."""

    _protocol: HvStreamProtocol
    _reader: asyncio.StreamReader

    def __del__(self) -> None:
        # asyncio's own has this from Python 3.11.5 on, and Debian 12 is older.
        if not self.transport.is_closing():
            if self._loop.is_closed():  # type: ignore[attr-defined]
                warnings.warn("loop is closed", ResourceWarning, stacklevel=1)
            else:
                self.close()
                warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=1)

    async def drain(self) -> None:
        """Wait until the peer keeps up.

        Cancelling it changes nothing: what was written stays queued.

        Raises:
            OSError: writing has failed, because the peer has closed. What it sent before can still be read.
        """
        if self._protocol._paused or self._transport.is_closing() or self._reader.exception() is not None:
            self._check_write_error()
            await super().drain()
            self._check_write_error()

    def _check_write_error(self) -> None:
        error = self.get_extra_info("hv_write_error")
        if error is not None:
            # Or its traceback would keep alive what each caller had in hand.
            raise error.with_traceback(None)

    async def start_tls(
        self,
        sslcontext: _ssl.SSLContext,
        *,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        """Speak TLS from here on; the arguments are those of :meth:`asyncio.StreamWriter.start_tls`.

        If it fails or is cancelled, the connection is aborted.

        Raises:
            ssl.SSLError: the handshake failed.
        """
        await self.drain()
        await start_tls(
            cast("asyncio.Transport", self.transport),
            self._protocol,
            TLS(sslcontext, server_hostname, ssl_handshake_timeout, ssl_shutdown_timeout),
            server_side=self._protocol.server_side,
            on_wrapped=self._wrapped,
        )

    def _wrapped(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._protocol.transport_replaced(transport)


ClientConnected: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]


class HvStreamProtocol(asyncio.StreamReaderProtocol):
    """Feeds a reader, and makes the writer: asyncio's own, with ours for its reader and writer.

    Args:
        limit: bytes; twice as many are buffered at most.
        client_connected_cb: on a server, called with the reader and the writer of each connection.
    """

    _closed: asyncio.Future[None]
    _paused: bool

    def __init__(self, limit: int, client_connected_cb: ClientConnected | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self.reader = HvStreamReader(limit=limit, loop=self._loop)
        self.writer: HvStreamWriter | None = None
        self.server_side = client_connected_cb is not None
        self._client_connected = client_connected_cb
        self._handler: asyncio.Task[None] | None = None
        # Without the callback: StreamReaderProtocol would make a plain StreamWriter for it.
        super().__init__(self.reader, None, loop=self._loop)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.writer = HvStreamWriter(cast("asyncio.WriteTransport", transport), self, self.reader, self._loop)
        if self._client_connected is not None:
            result = self._client_connected(self.reader, self.writer)
            # The handler has them from here on; the writer warns if it forgets to close.
            self.writer = None
            if asyncio.iscoroutine(result):
                self._handler = self._loop.create_task(result)
                self._handler.add_done_callback(lambda task: self._handler_done(task, transport))

    def _handler_done(self, task: asyncio.Task[None], transport: asyncio.BaseTransport) -> None:
        self._handler = None
        if task.cancelled():
            transport.close()
        elif (error := task.exception()) is not None:
            self._loop.call_exception_handler(
                {
                    "message": "Unhandled exception in client_connected_cb",
                    "exception": error,
                    "transport": transport,
                }
            )
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # The reader and the writer tell the error. asyncio marks it as told when the protocol is deleted; but of a
        # collected cycle the future may be the first to go, and complain.
        if self._closed.done() and not self._closed.cancelled():
            self._closed.exception()

    def data_received(self, data: bytes) -> None:
        self.reader.receive(data)

    def transport_replaced(self, transport: asyncio.Transport) -> None:
        """TLS has been put between: end of stream is now the end of both directions."""
        self._transport = transport
        self._over_ssl = True
        self.reader._transport = transport


async def open_hv_connection(
    address: AddressLike | AddressSource | None = None,
    *,
    limit: int = _DEFAULT_LIMIT,
    **options: Unpack[ConnectOptions],
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a VM socket and return a reader and a writer; the twin of :func:`asyncio.open_unix_connection`.

    Args:
        address: whom to dial, as a value or as text.
        limit: bytes; the longest line, and half of what the reader buffers.
        options: the keywords of :func:`create_hv_connection`, with its errors, ownership and cancellation.
    """
    _, protocol = await create_hv_connection(lambda: HvStreamProtocol(limit), address, **options)
    writer, protocol.writer = protocol.writer, None
    assert writer is not None
    return protocol.reader, writer


async def start_hv_server(
    client_connected_cb: ClientConnected,
    address: ListenOn | None = None,
    *,
    limit: int = _DEFAULT_LIMIT,
    **options: Unpack[ListenOptions],
) -> HvServer:
    """Listen on a VM socket and call back with a reader and a writer; the twin of :func:`asyncio.start_unix_server`.

    Args:
        client_connected_cb: called with the reader and the writer of each connection; a plain function, or a
            coroutine function, which becomes a task. If it raises, the connection is closed and the error goes
            to the loop's exception handler. It owns the writer, and closes it.
        address: where to listen, as a value or as text.
        limit: bytes; the longest line, and half of what the reader buffers.
        options: the keywords of :func:`create_hv_server`, with its errors and ownership.
    """
    return await create_hv_server(lambda: HvStreamProtocol(limit, client_connected_cb), address, **options)
