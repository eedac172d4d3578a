"""aiohttp over VM sockets: a connector for its client, a site and ``run_app()`` for its server.

They stand where :class:`aiohttp.UnixConnector`, :class:`aiohttp.web.UnixSite` and :func:`aiohttp.web.run_app` stand for
other sockets; all the rest of aiohttp is as it is everywhere. It comes with ``pip install aiohvsock[aiohttp]``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import ssl as _ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any, NoReturn, cast
from weakref import WeakKeyDictionary, WeakSet

import aiohttp
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection
from aiohttp.log import access_logger
from aiohttp.tracing import Trace
from aiohttp.web_log import AccessLogger

from ..addresses import AddressLike, HybridAddress, HypervAddress, VsockAddress, to_address
from ..dialling import Retry
from ..endpoints import ConnectOptions, SocketOption, create_hv_connection, open_server
from ..exceptions import HvAddressError, HvConnectError
from ..listening import AddressSource, ListenOn
from ..server import Allow, HvServer
from ..transports.proactor import ProactorTransport
from ..transports.selector import SelectorTransport
from ._hosts import Hosts, Resolver, Target

__all__ = ["HvConnector", "HvSite", "Resolver", "run_app"]

# Seconds to say goodbye to a peer that may be gone. HTTP tells the end of a message itself.
_GOODBYE = 1.0


# -- the client --------------------------------------------------------------------------------------------


class HvConnector(aiohttp.BaseConnector):
    """Connects an :class:`aiohttp.ClientSession` to virtual machines: ``http://vm/path``.

    With one address, every URL leads there, whatever its host says; with a mapping or a resolver the host says which
    machine, and one session talks to many. Connections are kept and reused for each host and port by themselves.

    A request that fails raises aiohttp's own errors: :exc:`aiohttp.ClientConnectorError`, whose ``os_error`` is this
    package's and names both addresses; :exc:`aiohttp.ClientConnectorDNSError`, one of these, for a host that is not
    known; :exc:`aiohttp.ConnectionTimeoutError`; and those for TLS. Cancelling a request leaves no descriptor behind.

    Args:
        address: whom to dial: an address, as a value or as text; an async callable without arguments that is asked for
            it before each attempt, such as :func:`aiohvsock.hyperv.machine_address`; a mapping of hosts to either,
            in which the case of the names is of no matter; or a :data:`Resolver`, called with host and port.
            The mapping may change at any time: it is looked at for each request, and a connection to where a host was
            before is not used again. A callable is asked for each new connection only.
        ssl: how ``https`` and ``wss`` check the server, unless the request says: True with the system's certificates, a
            context, an :class:`aiohttp.Fingerprint`, or False for not at all. The name in the certificate is the URL's host,
            or the request's ``server_hostname``.
        keepalive_timeout: seconds that an idle connection is kept for the next request; None is no limit.
        force_close: close each connection after its request; ``keepalive_timeout`` is None then.
        limit: connections at once; more requests wait. 0 is no limit.
        limit_per_host: the same for each host and port.
        connect_timeout: seconds for one attempt, as in :func:`~aiohvsock.create_hv_connection`. The whole, with TLS and
            ``retry``, takes as long as the session's ``ClientTimeout(sock_connect=...)`` says, 30 s by default.
        retry: how to keep trying while the machine boots; None tries once.
        buffer_size, connected_suspend, socket_options: as in :func:`~aiohvsock.create_hv_connection`.

    Raises:
        HvAddressError: the address is malformed.
    """

    def __init__(
        self,
        address: Target | Mapping[str, Target] | Resolver,
        *,
        ssl: _ssl.SSLContext | aiohttp.Fingerprint | bool = True,
        keepalive_timeout: float | None = 15.0,
        force_close: bool = False,
        limit: int = 100,
        limit_per_host: int = 0,
        connect_timeout: float | None = 30.0,
        retry: Retry | None = None,
        buffer_size: int | None = None,
        connected_suspend: bool = False,
        socket_options: Iterable[SocketOption] = (),
    ) -> None:
        self._hosts = Hosts(address)
        self._ssl = ssl
        self._dialled: WeakKeyDictionary[ResponseHandler, Target] = WeakKeyDictionary()
        self._fresh: WeakSet[ResponseHandler] = WeakSet()  # not in the pool yet
        self._dial = partial(
            create_hv_connection,
            connect_timeout=connect_timeout,
            retry=retry,
            buffer_size=buffer_size,
            connected_suspend=connected_suspend,
            socket_options=tuple(socket_options),
        )
        super().__init__(
            keepalive_timeout=None if force_close else keepalive_timeout,
            force_close=force_close,
            limit=limit,
            limit_per_host=limit_per_host,
        )

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        """Get a connection from the pool, or a new one; the session calls it."""
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            if self._hosts.table is None or protocol is None:
                return connection
            fresh = protocol in self._fresh
            self._fresh.discard(protocol)
            if fresh or self._dialled[protocol] == self._hosts.look_up(*_host_and_port(req)):
                return connection
            connection.close()

    # Underscored, and yet the hook of the base class, which each of aiohttp's own connectors implements, with
    # `_factory`: nothing public makes a connection of another family.
    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> ResponseHandler:
        context = self._context(req)
        tls: ConnectOptions = {}
        if context is not None:
            name = (req.server_hostname or _host_and_port(req)[0]).rstrip(".")
            tls = {"ssl": context, "server_hostname": name, "ssl_shutdown_timeout": _GOODBYE}
        try:
            async with asyncio.timeout(timeout.sock_connect or None):
                target = await self._resolve(req)
                transport, protocol = await self._dial(self._factory, target, **tls)
        except _ssl.CertificateError as error:
            raise aiohttp.ClientConnectorCertificateError(req.connection_key, error) from error
        except _ssl.SSLError as error:
            raise aiohttp.ClientConnectorSSLError(req.connection_key, error) from error
        except (TimeoutError, aiohttp.ClientError):
            # Of a timeout, HvTimeout among them, the session makes its own error, and this its cause.
            raise
        except OSError as error:
            raise aiohttp.ClientConnectorError(req.connection_key, error) from error
        except HvAddressError as error:
            failure = HvConnectError(errno.EADDRNOTAVAIL, "connect", remote=target, detail=str(error))
            raise aiohttp.ClientConnectorError(req.connection_key, failure) from error
        self._check_fingerprint(req, transport)
        self._dialled[protocol] = target
        self._fresh.add(protocol)
        return protocol

    async def _resolve(self, req: aiohttp.ClientRequest) -> Target:
        try:
            return await self._hosts.find(*_host_and_port(req))
        except TimeoutError:
            raise
        except OSError as error:
            raise aiohttp.ClientConnectorDNSError(req.connection_key, error) from error

    # What TCPConnector does, in its words.

    def _context(self, req: aiohttp.ClientRequest) -> _ssl.SSLContext | None:
        if not req.is_ssl():
            return None
        choice = self._ssl if req.ssl is True else req.ssl
        return choice if isinstance(choice, _ssl.SSLContext) else _default_context(choice is True)

    def _check_fingerprint(self, req: aiohttp.ClientRequest, transport: asyncio.Transport) -> None:
        if not req.is_ssl():
            return
        for each in (req.ssl, self._ssl):
            if isinstance(each, aiohttp.Fingerprint):
                try:
                    each.check(transport)
                except aiohttp.ServerFingerprintMismatch as error:
                    transport.abort()
                    # Its host and port are the start of a peername that is no pair of these.
                    host, port = _host_and_port(req)
                    raise aiohttp.ServerFingerprintMismatch(error.expected, error.got, host, port) from None
                break


def _host_and_port(req: aiohttp.ClientRequest) -> tuple[str, int]:
    host, port = req.url.host, req.url.port
    assert host is not None and port is not None  # or the session has raised InvalidURL
    return host, port


@cache
def _default_context(verified: bool) -> _ssl.SSLContext:
    context = _ssl.create_default_context()
    if not verified:
        context.check_hostname = False
        context.verify_mode = _ssl.CERT_NONE
    context.set_alpn_protocols(("http/1.1",))
    return context


# -- the server --------------------------------------------------------------------------------------------


class _PeerNames(asyncio.Transport):
    """What aiohttp's server needs to find besides in a transport of ours."""

    __slots__ = ()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "peername":
            # Which becomes request.remote. The socket of a monitor has an empty one.
            peer = super().get_extra_info("hv_peer")
            if isinstance(peer, HybridAddress):
                return peer.path
        return super().get_extra_info(name, default)

    @property
    def _sendfile_compatible(self) -> NoReturn:
        # asyncio's loop.sendfile() asks for it (base_events.py), and would raise RuntimeError, which web.FileResponse
        # takes for a failure. On this it sends the file itself, as on uvloop, which raises the same.
        raise NotImplementedError


class _HttpSelectorTransport(_PeerNames, SelectorTransport):
    __slots__ = ()


class _HttpProactorTransport(_PeerNames, ProactorTransport):
    __slots__ = ()


class _HttpServer(HvServer):
    def __init__(self, loop: asyncio.AbstractEventLoop, *args: Any, **options: Any) -> None:
        super().__init__(loop, *args, **options)
        proactor = issubclass(self._transport_class, ProactorTransport)
        self._transport_class = _HttpProactorTransport if proactor else _HttpSelectorTransport


class HvSite(web.BaseSite):
    """Serves an aiohttp application on VM sockets, as :class:`aiohttp.web.UnixSite` does on Unix sockets.

    In a handler, ``request.remote`` names the machine that asks: the CID, the VM id, or for hybrid vsock the path of the
    monitor's socket, always as text: what ``allow=`` takes, too. ``request.transport.get_extra_info("hv_peer")``
    is its whole address, a value.

    Args:
        runner: which has been set up, and closes the site. On Windows it needs ``tcp_keepalive=False``:
            ``AppRunner(app, tcp_keepalive=False)``, because AF_HYPERV has no such option.
        address: where to listen, as in :func:`~aiohvsock.create_hv_server`: a value or its text, an async callable, or
            several of these.
        ssl_context: for TLS; None for none.
        backlog, allow, max_connections, buffer_size, connected_suspend, socket_options: as in
            :func:`~aiohvsock.create_hv_server`.

    Raises:
        HvAddressError: an address is malformed.
        RuntimeError: the runner has not been set up.
    """

    __slots__ = ("_addresses", "_options")

    def __init__(
        self,
        runner: web.BaseRunner,
        address: ListenOn,
        *,
        ssl_context: _ssl.SSLContext | None = None,
        backlog: int = 128,
        allow: Allow | None = None,
        max_connections: int | None = None,
        buffer_size: int | None = None,
        connected_suspend: bool = False,
        socket_options: Iterable[SocketOption] = (),
    ) -> None:
        super().__init__(runner, ssl_context=ssl_context, backlog=backlog)
        several: Iterable[AddressLike | AddressSource]
        if callable(address) or isinstance(address, (str, VsockAddress, HypervAddress, HybridAddress)):
            several = [address]
        else:
            several = address
        self._addresses = [each if callable(each) else to_address(each) for each in several]
        self._options = {
            "allow": allow,
            "max_connections": max_connections,
            "buffer_size": buffer_size,
            "connected_suspend": connected_suspend,
            "socket_options": socket_options,
        }

    @property
    def server(self) -> HvServer | None:
        """The server, which knows where it listens, and when its last connection is gone; None before :meth:`start`."""
        return cast("HvServer | None", self._server)

    @property
    def name(self) -> str:
        """The text of the addresses: where it listens, or before :meth:`start` and while a machine is away, will."""
        found = self.server.addresses if self.server is not None else ()
        return ", ".join(str(each) for each in found or self._addresses)

    # Here are attributes of the base class that it has for the sites of aiohttp alone: `_runner`, `_server`,
    # which stop() and the runner close, `_backlog` and `_ssl_context`. SockSite wants a host and a port.
    async def start(self) -> None:
        """Listen.

        Raises:
            HvError: as :func:`~aiohvsock.create_hv_server` does.
        """
        await super().start()
        assert self._runner.server is not None
        self._server = await open_server(
            partial(_HttpServer, protocol_factory=self._runner.server),
            self._addresses,
            ssl=self._ssl_context,
            backlog=self._backlog,
            **self._options,  # type: ignore[arg-type]
        )


def run_app(
    app: web.Application | Awaitable[web.Application],
    address: ListenOn,
    *,
    shutdown_timeout: float = 60.0,
    keepalive_timeout: float = 75.0,
    ssl_context: _ssl.SSLContext | None = None,
    print: Callable[..., None] | None = print,
    backlog: int = 128,
    access_log_class: type[AbstractAccessLogger] = AccessLogger,
    access_log_format: str = AccessLogger.LOG_FORMAT,
    access_log: logging.Logger | None = access_logger,
    handle_signals: bool = True,
    handler_cancellation: bool = False,
    loop: asyncio.AbstractEventLoop | None = None,
    allow: Allow | None = None,
    max_connections: int | None = None,
    buffer_size: int | None = None,
    connected_suspend: bool = False,
    **options: Any,
) -> None:
    """Serve an application on VM sockets until SIGINT or SIGTERM; the twin of :func:`aiohttp.web.run_app`.

    It then stops listening, gives the requests under way ``shutdown_timeout`` to end, and cleans up; a second signal
    ends it at once. On Windows Ctrl-C does the same, and there is no SIGTERM.

    Args:
        app: the application, or a coroutine that makes it.
        address: where to listen; see :class:`HvSite`.
        shutdown_timeout, keepalive_timeout, print, access_log_class, access_log_format, access_log, handle_signals,
            handler_cancellation: as in :func:`aiohttp.web.run_app`, with its defaults.
        loop: the loop to run on, which is closed at the end; None makes one.
        ssl_context, backlog, allow, max_connections, buffer_size, connected_suspend: see :class:`HvSite`.
        options: further ones of :class:`aiohttp.web.AppRunner`. ``tcp_keepalive`` is False unless given.

    Raises:
        HvError: an address is malformed, or cannot be listened on; the application was cleaned up.
    """

    async def serve() -> None:
        if access_log is access_logger and asyncio.get_running_loop().get_debug():  # as web.run_app() does
            if access_log.level == logging.NOTSET:
                access_log.setLevel(logging.DEBUG)
            if not access_log.hasHandlers():
                access_log.addHandler(logging.StreamHandler())
        made = app if isinstance(app, web.Application) else await app
        runner = web.AppRunner(
            made,
            handle_signals=handle_signals,
            shutdown_timeout=shutdown_timeout,
            keepalive_timeout=keepalive_timeout,
            access_log_class=access_log_class,
            access_log_format=access_log_format,
            access_log=access_log,
            handler_cancellation=handler_cancellation,
            **{"tcp_keepalive": False} | options,
        )
        await runner.setup()
        site = None
        try:
            site = HvSite(
                runner,
                address,
                ssl_context=ssl_context,
                backlog=backlog,
                allow=allow,
                max_connections=max_connections,
                buffer_size=buffer_size,
                connected_suspend=connected_suspend,
            )
            await site.start()
            if print is not None:
                print(f"======== Running on {site.name} ========\n(Press CTRL+C to quit)")
            await asyncio.get_running_loop().create_future()  # until cancelled
        finally:
            await runner.cleanup()
            if site is not None and site.server is not None:
                await _see_off(site.server)

    async def join(task: asyncio.Task[None]) -> None:
        await task

    factory = None if loop is None else lambda: loop
    # A signal raises GracefulExit out of the loop, wherever it is. A second one does so again, while cleaning up.
    with (
        contextlib.suppress(web.GracefulExit, KeyboardInterrupt),
        asyncio.Runner(loop_factory=factory) as runner,
    ):
        serving = runner.get_loop().create_task(serve())
        try:
            runner.run(join(serving))
        finally:
            # Before the runner, which would cancel every request along with it.
            serving.cancel()
            runner.run(_ended(serving))


async def _see_off(server: HvServer) -> None:
    """Wait for connections that aiohttp has closed: what was written last is still leaving."""
    # Not asyncio.timeout(): in a task that is cancelled, Python 3.11.2's raises CancelledError when it is over.
    gone = asyncio.ensure_future(server.wait_closed())
    await asyncio.wait([gone], timeout=_GOODBYE)
    server.abort_clients()
    await gone


async def _ended(task: asyncio.Task[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await task
