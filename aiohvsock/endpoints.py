"""Connect to a VM socket or listen on one, with a protocol factory: asyncio's grammar, an address in the path's place."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl as _ssl
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeAlias, TypedDict, TypeVar, Unpack

from .addresses import Address, AddressLike, to_address
from .dialling import Retry, dial
from .exceptions import HvConnectError, HvTimeout
from .listening import AddressSource, FollowedListener, ListenOn, bind_all
from .platforms import Names, Options, listener_of, names_of, platform_for
from .server import Allow, HvServer, allow_predicate
from .transports import transport_class
from .transports.tls import TLS, app_transport

__all__ = [
    "ConnectOptions",
    "ListenOptions",
    "checked_options",
    "create_hv_connection",
    "create_hv_server",
    "open_server",
]

SocketOption: TypeAlias = tuple[int, int, int | bytes]

_P = TypeVar("_P", bound=asyncio.BaseProtocol)
_S = TypeVar("_S", bound=HvServer)


class ConnectOptions(TypedDict, total=False):
    """The keywords of :func:`create_hv_connection`, for the functions that hand them on."""

    sock: socket.socket | None
    ssl: _ssl.SSLContext | bool | None
    server_hostname: str | None
    ssl_handshake_timeout: float | None
    ssl_shutdown_timeout: float | None
    connect_timeout: float | None
    retry: Retry | None
    buffer_size: int | None
    connected_suspend: bool
    socket_options: Iterable[SocketOption]


class ListenOptions(TypedDict, total=False):
    """The keywords of :func:`create_hv_server`, for the functions that hand them on."""

    sock: socket.socket | None
    backlog: int
    ssl: _ssl.SSLContext | None
    ssl_handshake_timeout: float | None
    ssl_shutdown_timeout: float | None
    start_serving: bool
    allow: Allow | None
    max_connections: int | None
    buffer_size: int | None
    connected_suspend: bool
    socket_options: Iterable[SocketOption]


async def create_hv_connection(
    protocol_factory: Callable[[], _P],
    address: AddressLike | AddressSource | None = None,
    *,
    sock: socket.socket | None = None,
    ssl: _ssl.SSLContext | bool | None = None,
    server_hostname: str | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    connect_timeout: float | None = 30.0,
    retry: Retry | None = None,
    buffer_size: int | None = None,
    connected_suspend: bool = False,
    socket_options: Iterable[SocketOption] = (),
) -> tuple[asyncio.Transport, _P]:
    """Connect to a VM socket; the twin of :meth:`asyncio.loop.create_unix_connection`.

    Cancelling it, at any moment, leaves no descriptor behind.

    Args:
        protocol_factory: called without arguments once the socket is connected; returns the protocol.
        address: whom to dial, as a value or as text; or an async callable that is asked for it before each attempt,
            such as :func:`aiohvsock.hyperv.machine_address`.
        sock: instead of ``address``, a connected stream socket of any family. It is owned by the transport
            from here on, and closed if this fails. Its options are yours to set.
        ssl: a context, or True for asyncio's default one; None for no TLS.
        server_hostname: the name in the server's certificate, required with ``ssl``; ``""`` checks none.
        ssl_handshake_timeout: seconds; None is asyncio's default, 60.
        ssl_shutdown_timeout: seconds; None is asyncio's default, 30.
        connect_timeout: seconds for one attempt, the handshake of hybrid vsock included, that of TLS and the asking of
            a callable not. It
            also takes the place of the kernel's own limit, which is 2 s. None waits as long as it takes.
        retry: how to keep trying while the machine boots; None tries once.
        buffer_size: bytes the kernel buffers each way; None is its default, 256 KiB on AF_VSOCK. On virtio the
            smaller one of both sides counts.
        connected_suspend: stay connected while the VM is paused; AF_HYPERV only, no effect elsewhere.
        socket_options: further ones, each as ``setsockopt()`` takes it: ``(level, option, value)``; they are set
            before the socket connects. Those of AF_HYPERV are in :mod:`aiohvsock.hyperv`.

    Returns:
        The transport and the protocol. ``get_extra_info()`` knows ``peername``, ``sockname``, ``socket``, and
        ``hv_peer`` and ``hv_local``, the typed addresses, for the transport's whole life; and
        ``hv_write_error``, the error that ended writing, while what the peer sent before is still being read.

    Raises:
        ValueError: arguments that exclude or need each other.
        HvAddressError: the address is malformed or has no counterpart here.
        HvUnsupportedError: this system, Python or loop cannot.
        HvConnectionRefused: nobody listens there.
        HvTimeout: no answer within ``connect_timeout``.
        HvConnectError: connecting failed in another way.
        ssl.SSLError: the TLS handshake failed.
    """
    tls = _client_tls(ssl, server_hostname, ssl_handshake_timeout, ssl_shutdown_timeout)
    _check_sock(address, sock)
    options = checked_options(connect_timeout, buffer_size, connected_suspend, socket_options)
    loop = asyncio.get_running_loop()
    if sock is None:
        assert address is not None
        target = address if callable(address) else to_address(address)
        sock, names = await dial(loop, target, options, retry)
    else:
        names = _adopt(sock)
    try:
        protocol = protocol_factory()
        app_protocol: asyncio.BaseProtocol = protocol
        if tls is not None:
            handshake = loop.create_future()
            app_protocol = ssl_protocol = tls.protocol(loop, protocol, handshake, server_side=False)
        transport = transport_class(loop)(loop, sock, app_protocol, names)
    except BaseException:
        sock.close()
        raise
    try:
        transport.start()
        if tls is None:
            return transport, protocol
        await handshake
        return app_transport(ssl_protocol), protocol
    except ConnectionError as error:
        transport.abort()
        # asyncio has no error of its own for a handshake that takes too long (sslproto.py).
        late = isinstance(error, ConnectionAbortedError)
        raise (HvTimeout if late else HvConnectError)(
            errno.ETIMEDOUT if late else error.errno or errno.ECONNRESET,
            "connect",
            remote=names.peer,
            local=names.local,
            detail=f"the TLS handshake was not finished: {error or 'the connection was lost'}",
            hint="does the service speak TLS, and is it still there?",
            transient=True,
        ) from error
    except BaseException:
        transport.abort()
        raise


async def create_hv_server(
    protocol_factory: Callable[[], asyncio.BaseProtocol],
    address: ListenOn | None = None,
    *,
    sock: socket.socket | None = None,
    backlog: int = 128,
    ssl: _ssl.SSLContext | None = None,
    ssl_handshake_timeout: float | None = None,
    ssl_shutdown_timeout: float | None = None,
    start_serving: bool = True,
    allow: Allow | None = None,
    max_connections: int | None = None,
    buffer_size: int | None = None,
    connected_suspend: bool = False,
    socket_options: Iterable[SocketOption] = (),
) -> HvServer:
    """Listen on a VM socket; the twin of :meth:`asyncio.loop.create_unix_server`.

    A connection that fails, an ``accept`` that fails and a factory that raises concern that connection alone.

    Args:
        protocol_factory: called without arguments for each connection; returns its protocol.
        address: where to listen, as a value or as text. The port ``any`` lets the system choose one. Of several,
            those that this machine has nothing for are left out: one server serves a VM of every make. An async
            callable, such as :func:`aiohvsock.hyperv.machine_address`, is asked every minute, and what it gives
            is followed: connections that are open stay open, the other addresses are not touched.
        sock: instead of ``address``, a bound stream socket. It is owned by the server from here on. Its options are
            yours to set: ``buffer_size``, ``connected_suspend`` and ``socket_options`` are for ``address``.
        backlog: connections that may wait to be accepted. A peer beyond them is refused.
        ssl: a context for TLS; None for none.
        ssl_handshake_timeout: seconds; None is asyncio's default, 60.
        ssl_shutdown_timeout: seconds; None is asyncio's default, 30.
        start_serving: False waits for :meth:`HvServer.start_serving`.
        allow: who may connect: a predicate on the peer's address, or a collection of CIDs, VM ids and, for
            hybrid vsock, socket paths. Another peer is closed before the factory is called, and logged once.
            None allows everybody.
        max_connections: how many connections are open at once; more wait in the backlog. None is no limit.
        buffer_size: bytes the kernel buffers each way, for each connection; None is its default.
        connected_suspend: stay connected while the VM is paused; AF_HYPERV only, no effect elsewhere.
        socket_options: further ones, each as ``setsockopt()`` takes it: ``(level, option, value)``; they are set on
            the listening socket before it is bound.

    Raises:
        ValueError: arguments that exclude or need each other.
        HvAddressError: the address, or a member of ``allow``, is malformed or has no counterpart here.
        HvUnsupportedError: this system, Python or loop cannot; of several addresses, none of them.
        HvPermissionError: a right is missing.
        HvConnectError: the address cannot be bound.
    """
    return await open_server(
        partial(HvServer, protocol_factory=protocol_factory),
        address,
        sock=sock,
        backlog=backlog,
        ssl=ssl,
        ssl_handshake_timeout=ssl_handshake_timeout,
        ssl_shutdown_timeout=ssl_shutdown_timeout,
        start_serving=start_serving,
        allow=allow,
        max_connections=max_connections,
        buffer_size=buffer_size,
        connected_suspend=connected_suspend,
        socket_options=socket_options,
    )


async def open_server(
    make: Callable[..., _S],
    address: ListenOn | None,
    **options: Unpack[ListenOptions],
) -> _S:
    """Do what :func:`create_hv_server` does, with a server class of one's own.

    Args:
        make: called with what :class:`HvServer` takes, but for the protocol factory.
        address: as there.
        options: as there, with its defaults and errors.
    """
    sock = options.get("sock")
    max_connections = options.get("max_connections")
    tls = _server_tls(
        options.get("ssl"), options.get("ssl_handshake_timeout"), options.get("ssl_shutdown_timeout")
    )
    _check_sock(address, sock)
    if max_connections is not None and not (isinstance(max_connections, int) and max_connections >= 1):
        raise ValueError(f"max_connections must be an int of at least 1, or None, not {max_connections!r}")
    predicate = allow_predicate(options.get("allow"))
    socket_options = checked_options(
        None,
        options.get("buffer_size"),
        options.get("connected_suspend", False),
        options.get("socket_options", ()),
    )
    loop = asyncio.get_running_loop()
    if sock is None:
        assert address is not None
        bound = await bind_all(address, socket_options)
    else:
        sock.setblocking(False)
        try:
            brought = listener_of(sock)
        except OSError as error:
            sock.close()
            raise _not_bound(error, None) from error
        if brought.address is None and predicate is not None:
            raise ValueError("allow= needs peers with an address of ours: address=, or an AF_VSOCK sock=")
        bound = [brought]
    followed = [each for each in bound if isinstance(each, FollowedListener)]
    listeners = [each.listener if isinstance(each, FollowedListener) else each for each in bound]
    server = make(
        loop,
        [listener for listener in listeners if listener is not None],
        backlog=options.get("backlog", 128),
        tls=tls,
        allow=predicate,
        max_connections=max_connections,
    )
    for each in followed:
        server.run(each.follow(server))
    if options.get("start_serving", True):
        try:
            await server.start_serving()
        except OSError as error:
            server.close()
            if sock is None and server.address is not None:
                platform = platform_for(server.address)
                raise platform.failure(error, "listen", remote=None, local=server.address) from error
            raise _not_bound(error, server.address) from error
        except BaseException:
            server.close()
            raise
    return server


def _not_bound(error: OSError, local: Address | None) -> HvConnectError:
    return HvConnectError(error.errno or errno.EINVAL, "listen", local=local, hint="a sock= must be bound")


def _adopt(sock: socket.socket) -> Names:
    """Check a socket the caller brought, and return its names."""
    given = repr(sock)
    try:
        sock.setblocking(False)
        # asyncio takes an unconnected socket, and then nothing ever happens on it.
        return names_of(sock)
    except OSError as error:
        sock.close()
        raise HvConnectError(
            error.errno or errno.ENOTCONN, "connect", hint=f"sock must be connected, and is {given}"
        ) from error


def _check_sock(address: object, sock: socket.socket | None) -> None:
    if address is None and sock is None:
        raise ValueError("no address and sock were specified")
    if sock is not None:
        if address is not None:
            raise ValueError("address and sock can not be specified at the same time")
        if sock.type != socket.SOCK_STREAM:
            raise ValueError(f"A Stream Socket was expected, got {sock!r}")


def checked_options(
    connect_timeout: float | None,
    buffer_size: int | None,
    connected_suspend: bool,
    socket_options: Iterable[SocketOption],
) -> Options:
    """Return what a user asks of a socket.

    Raises:
        ValueError: an argument makes no sense.
    """
    if connect_timeout is not None and not connect_timeout > 0:
        raise ValueError(f"connect_timeout must be positive, or None, not {connect_timeout!r}")
    if buffer_size is not None and not 1 <= buffer_size < 2**31:
        raise ValueError(f"buffer_size must be positive and below 2**31, or None, not {buffer_size!r}")
    further = tuple(socket_options)
    for each in further:
        if not (isinstance(each, tuple) and len(each) == 3):
            raise ValueError(f"socket_options must be of (level, option, value), not {each!r}")
    return Options(connect_timeout, buffer_size, connected_suspend, further)


def _client_tls(
    ssl: _ssl.SSLContext | bool | None,
    server_hostname: str | None,
    handshake_timeout: float | None,
    shutdown_timeout: float | None,
) -> TLS | None:
    if ssl:
        if server_hostname is None:
            raise ValueError("you have to pass server_hostname when using ssl")
        return TLS(None if ssl is True else ssl, server_hostname, handshake_timeout, shutdown_timeout)
    if server_hostname is not None:
        raise ValueError("server_hostname is only meaningful with ssl")
    _no_tls_timeouts(handshake_timeout, shutdown_timeout)
    return None


def _server_tls(
    ssl: _ssl.SSLContext | None, handshake_timeout: float | None, shutdown_timeout: float | None
) -> TLS | None:
    if ssl is not None:
        if not isinstance(ssl, _ssl.SSLContext):
            raise TypeError("ssl argument must be an SSLContext or None")
        return TLS(ssl, None, handshake_timeout, shutdown_timeout)
    _no_tls_timeouts(handshake_timeout, shutdown_timeout)
    return None


def _no_tls_timeouts(handshake_timeout: float | None, shutdown_timeout: float | None) -> None:
    if handshake_timeout is not None:
        raise ValueError("ssl_handshake_timeout is only meaningful with ssl")
    if shutdown_timeout is not None:
        raise ValueError("ssl_shutdown_timeout is only meaningful with ssl")
