"""websockets over VM sockets: ``connect()`` and ``serve()``, with an address in the place of a host and a port.

They stand where :func:`websockets.unix_connect` and :func:`websockets.unix_serve` stand for Unix sockets; all the rest of
websockets is as it is everywhere. They come with ``pip install aiohvsock[websockets]``.
"""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl as _ssl
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Literal, cast

from websockets.asyncio import client as _client
from websockets.asyncio import server as _server
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import Server, ServerConnection
from websockets.client import process_exception as _process_exception
from websockets.version import version as _version

from ..addresses import AddressLike, to_address
from ..dialling import Retry
from ..endpoints import ConnectOptions, SocketOption, create_hv_connection, open_server
from ..exceptions import HvConnectError, HvUnsupportedError
from ..listening import AddressSource, ListenOn
from ..server import Allow, HvServer

__all__ = ["connect", "process_exception", "serve"]


# -- the client --------------------------------------------------------------------------------------------


def process_exception(exc: Exception) -> Exception | None:
    """Tell whether ``async for`` connects again: None if it does, else the error to raise.

    It is :func:`websockets.client.process_exception`, but for connecting: of these errors, which all are an
    :exc:`OSError`, only those help to try again that a machine which boots gives. A missing right does not.
    """
    hopeless = isinstance(exc, HvUnsupportedError) or (isinstance(exc, HvConnectError) and not exc.transient)
    return exc if hopeless else _process_exception(exc)


class connect(_client.connect):
    """Connect to a WebSocket server on a VM socket; the twin of :func:`websockets.unix_connect`.

    - ``websocket = await connect(...)``;
    - ``async with connect(...) as websocket:`` closes it at the end of the block;
    - ``async for websocket in connect(...):`` connects again when the block is left or has lost its connection:
      through reboots of the machine and restarts of the service, each time on a new socket.

    Each can be cancelled at any moment, and leaves no descriptor behind.

    ``websocket.transport.get_extra_info("hv_peer")`` is the machine's whole address, a value, and ``"hv_local"`` our own.

    Args:
        address: whom to dial, as a value or as text; or an async callable that is asked for it before each attempt,
            such as :func:`aiohvsock.hyperv.machine_address`.
        uri: what is asked for there: path, ``Host`` and, with ``wss``, the name in the certificate. None is
            ``ws://localhost/``, or ``wss://localhost/`` with ``ssl``. A redirect to another host is not followed.
        ssl: a context for ``wss``; None or True is asyncio's default one.
        server_hostname: the name in the certificate; None is the URI's host, ``""`` checks none.
        ssl_handshake_timeout, ssl_shutdown_timeout: as in :func:`~aiohvsock.create_hv_connection`.
        connect_timeout: seconds for one attempt; None waits as long as it takes. The whole, with TLS, the opening
            handshake and ``retry``, takes as long as ``open_timeout`` says, 10 s by default.
        retry: how to keep trying while the machine boots; None tries once. How long ``async for`` waits in between is
            websockets' ``reconnect_delays``, for which ``Retry().delays`` will do.
        buffer_size, connected_suspend, socket_options: as in :func:`~aiohvsock.create_hv_connection`.
        process_exception: tells of an error in ``async for`` whether to try again.
        options: those of :func:`websockets.connect`, but for the ones that it hands on to the loop. A proxy makes no sense
            here, and none is asked.

    Raises:
        HvAddressError: the address is malformed or has no counterpart here.
        HvError: connecting failed, as in :func:`~aiohvsock.create_hv_connection`; an :exc:`OSError` to websockets' users.
        TimeoutError: there is no connection in time; its ``__cause__`` can be :exc:`HvTimeout`.
        websockets.InvalidHandshake: the opening handshake failed; :exc:`~websockets.InvalidMessage` if there was no
            answer to it, as with a peer that is not allowed.
    """

    def __init__(
        self,
        address: AddressLike | AddressSource,
        uri: str | None = None,
        *,
        ssl: _ssl.SSLContext | Literal[True] | None = None,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        connect_timeout: float | None = 30.0,
        retry: Retry | None = None,
        buffer_size: int | None = None,
        connected_suspend: bool = False,
        socket_options: Iterable[SocketOption] = (),
        process_exception: Callable[[Exception], Exception | None] = process_exception,
        **options: Any,
    ) -> None:
        if uri is None:
            uri = "ws://localhost/" if ssl is None else "wss://localhost/"
        super().__init__(uri, ssl=ssl, proxy=None, process_exception=process_exception, **options)
        _check_unknown("connect", self.create_connection_kwargs, {"ssl"})
        # process_redirect() looks here: with a host of its own, it does not follow to another than the URI's.
        self.create_connection_kwargs = {"host": str(address)}
        self._target = address if callable(address) else to_address(address)
        self._ssl = ssl
        self._options: ConnectOptions = {
            "server_hostname": server_hostname,
            "ssl_handshake_timeout": ssl_handshake_timeout,
            "ssl_shutdown_timeout": ssl_shutdown_timeout,
            "connect_timeout": connect_timeout,
            "retry": retry,
            "buffer_size": buffer_size,
            "connected_suspend": connected_suspend,
            "socket_options": tuple(socket_options),
        }

    # Not underscored, and not documented either: what the base class calls for each attempt, a redirect's too.
    async def open_tcp_connection(self) -> ClientConnection:
        """Dial; the base class calls it."""
        options = self._options.copy()
        if self.ws_uri.secure:
            options["ssl"] = self._ssl or True
            if options["server_hostname"] is None:
                options["server_hostname"] = self.ws_uri.host
        _, connection = await create_hv_connection(lambda: self.factory(self.ws_uri), self._target, **options)
        return connection


# -- the server --------------------------------------------------------------------------------------------


class _Server(HvServer):
    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        # websockets logs the name of each, and fails where that is none of IP or a Unix socket (get_socket_name() in
        # utils.py: "unsupported socket family").
        return ()


def serve(
    handler: Callable[[ServerConnection], Awaitable[None]],
    address: ListenOn,
    *,
    ssl: _ssl.SSLContext | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    backlog: int = 128,
    start_serving: bool = True,
    allow: Allow | None = None,
    max_connections: int | None = None,
    buffer_size: int | None = None,
    connected_suspend: bool = False,
    socket_options: Iterable[SocketOption] = (),
    **options: Any,
) -> Server:
    """Serve WebSockets on VM sockets; the twin of :func:`websockets.unix_serve`.

    ``async with serve(...) as server:``, or ``server = await serve(...)``. The ``server.server`` of what it returns is the
    :class:`~aiohvsock.HvServer`, which knows its ``addresses``; the ``sockets`` are not shown.

    In a handler, ``websocket.transport.get_extra_info("hv_peer")`` is who has connected, a value.

    Args:
        handler: called with each connection, a :class:`websockets.ServerConnection`.
        address: where to listen, as in :func:`~aiohvsock.create_hv_server`: a value or its text, an async callable, or
            several of these.
        ssl: a context for TLS; None for none.
        ssl_handshake_timeout: seconds; None is ``open_timeout``.
        ssl_shutdown_timeout: seconds; None is ``close_timeout``.
        backlog, start_serving, allow, max_connections, buffer_size, connected_suspend, socket_options: as in
            :func:`~aiohvsock.create_hv_server`.
        options: those of :func:`websockets.serve`, but for the ones that it hands on to the loop.

    Raises:
        HvError: when awaited: an address is malformed, or cannot be listened on.
    """
    # Those of TLS go through it, for it has better defaults than the loop.
    timeouts = {"ssl_handshake_timeout": ssl_handshake_timeout, "ssl_shutdown_timeout": ssl_shutdown_timeout}
    options |= {name: value for name, value in timeouts.items() if value is not None}
    server = _server.serve(handler, None, None, ssl=ssl, **options)

    # The server asks create_server() for its listener. That is a closure: what it would give to the loop's create_server(),
    # a factory of protocols and the keywords that serve() did not know, is in no public attribute.
    handed_on = inspect.getclosurevars(server.create_server).nonlocals
    try:
        factory, tls = handed_on["protocol_factory"], handed_on["kwargs"]
    except KeyError as error:
        raise RuntimeError(f"websockets {_version} is not known to aiohvsock; 17.4 is") from error
    _check_unknown("serve", tls, {"ssl", *timeouts})

    async def create_server() -> asyncio.Server:
        opened = await open_server(
            partial(_Server, protocol_factory=factory),
            address,
            backlog=backlog,
            start_serving=start_serving,
            allow=allow,
            max_connections=max_connections,
            buffer_size=buffer_size,
            connected_suspend=connected_suspend,
            socket_options=socket_options,
            **tls,
        )
        if opened.is_serving():
            for each in opened.addresses:
                server.logger.info("server listening on %s", each)
        return cast("asyncio.Server", opened)  # which it is in all but name

    server.create_server = create_server
    return server


def _check_unknown(function: str, given: Iterable[str], known: set[str]) -> None:
    for name in given:
        if name not in known:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
