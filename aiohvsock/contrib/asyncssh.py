"""SSH over VM sockets with asyncssh: ``connect()`` and ``listen()``, with an address in the place of a host and a port.

They stand where :func:`asyncssh.connect` and :func:`asyncssh.listen` stand for TCP, and their reverse twins likewise; all
the rest of asyncssh is as it is everywhere. They come with ``pip install aiohvsock[asyncssh]``.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Generator, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeVar

import asyncssh

from ..addresses import Address, AddressLike, HybridAddress, HypervAddress, to_address
from ..dialling import Retry, dial
from ..endpoints import SocketOption, checked_options, open_server
from ..listening import AddressSource, ListenOn
from ..platforms import platform_for
from ..server import Allow, HvServer
from ..transports import transport_class
from ..transports.proactor import ProactorTransport
from ..transports.selector import SelectorTransport

__all__ = ["connect", "connect_reverse", "listen", "listen_reverse"]

_T = TypeVar("_T", bound=asyncio.BaseProtocol)
_T_co = TypeVar("_T_co", covariant=True)

# Seconds for one attempt to connect, as everywhere in this package.
_ATTEMPT = 30.0

# With which asyncssh looks for a host in known_hosts by its name alone.
_DEFAULT_PORT = 22


class _Opening(Protocol[_T_co]):
    """What asyncssh's functions return: to be awaited, or for ``async with``."""

    def __await__(self) -> Generator[Any, None, _T_co]: ...

    async def __aenter__(self) -> _T_co: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None: ...


# -- the names ---------------------------------------------------------------------------------------------


def _name(address: Address) -> str:
    """Return the name of a machine to SSH, as systemd-ssh-proxy has it, and thus ``ssh vsock/3`` and its known_hosts."""
    if isinstance(address, HybridAddress):
        return f"vsock-mux/{address.path.lstrip('/')}"
    if isinstance(address, HypervAddress):
        return f"hvsock/{address.vm_id}"
    return f"vsock/{address.cid}"


class _WithoutIP(asyncio.Transport):
    """What asyncssh needs to find besides in a transport of ours."""

    __slots__ = ()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        match name:
            case "peername" | "sockname":
                # What is there asyncssh takes for an IP address, to look for in known_hosts and in `from=`: CID 3 for
                # 0.0.0.3, while a VM id is none at all, and fails. Without one it goes by the name of the host.
                return default
            case "remote_peername" if (peer := super().get_extra_info("hv_peer")) is not None:
                # Where asyncssh then looks for a host that it was not given.
                return _name(peer), _DEFAULT_PORT
            case "socket" if sys.platform == "win32":
                # It sets SO_KEEPALIVE, whatever tcp_keepalive= says; AF_HYPERV has no such option.
                return default
        return super().get_extra_info(name, default)


class _SelectorTransport(_WithoutIP, SelectorTransport):
    __slots__ = ()


class _ProactorTransport(_WithoutIP, ProactorTransport):
    __slots__ = ()


def _transport_class(loop: asyncio.AbstractEventLoop) -> type[SelectorTransport]:
    proactor = issubclass(transport_class(loop), ProactorTransport)
    return _ProactorTransport if proactor else _SelectorTransport


# -- the tunnels -------------------------------------------------------------------------------------------

# A `tunnel=` of asyncssh is anything with create_connection() or create_server(); it is meant for transports of one's own
# (https://github.com/ronf/asyncssh/issues/625). A `sock=` would be carried by the loop's, with its names, and by none on
# Windows when it listens.


class _ConnectTunnel:
    """Gives asyncssh a connection."""

    def __init__(
        self,
        target: Address | AddressSource,
        connect_timeout: float | None,
        retry: Retry | None,
        buffer_size: int | None,
        connected_suspend: bool,
        socket_options: Iterable[SocketOption],
    ) -> None:
        self._target = target
        self._retry = retry
        self._options = checked_options(
            connect_timeout or _ATTEMPT, buffer_size, connected_suspend, socket_options
        )

    async def create_connection(
        self, factory: Callable[[], _T], host: str, port: int
    ) -> tuple[asyncio.Transport, _T]:
        loop = asyncio.get_running_loop()
        sock, names = await dial(loop, self._target, self._options, self._retry)
        try:
            connection = factory()
            transport = _transport_class(loop)(loop, sock, connection, names)
        except BaseException:
            sock.close()
            raise
        try:
            transport.start()
        except BaseException:
            transport.abort()
            raise
        return transport, connection


class _ListenTunnel:
    """Gives asyncssh a listener."""

    def __init__(self, address: ListenOn, **options: Any) -> None:
        self._address = address
        self._options = options

    async def create_server(
        self, factory: Callable[[str, int], asyncio.BaseProtocol], host: str, port: int
    ) -> HvServer:
        make = partial(_Server, protocol_factory=partial(factory, "", 0))
        return await open_server(make, self._address, **self._options)


class _Server(HvServer):
    def __init__(self, loop: asyncio.AbstractEventLoop, *args: Any, **options: Any) -> None:
        super().__init__(loop, *args, **options)
        self._transport_class = _transport_class(loop)


# -- the functions -----------------------------------------------------------------------------------------


def connect(
    address: AddressLike | AddressSource,
    host: str = "",
    *,
    connect_timeout: float | None = None,
    retry: Retry | None = None,
    buffer_size: int | None = None,
    connected_suspend: bool = False,
    socket_options: Iterable[SocketOption] = (),
    **options: Any,
) -> _Opening[asyncssh.SSHClientConnection]:
    """Log in over a VM socket; the twin of :func:`asyncssh.connect`.

    ``connection = await connect(...)``, or ``async with connect(...) as connection:``. Cancelling it leaves no
    descriptor behind. The server's key is checked as everywhere: against known_hosts, or ``known_hosts=``.

    ``connection.get_extra_info("hv_peer")`` is the machine's whole address, a value, and ``"hv_local"`` our own; there is
    no ``"peername"``, for asyncssh would take it for an IP address.

    Args:
        address: whom to dial, as a value or as text; or an async callable that is asked for it before each attempt.
        host: the name whose key is looked for in known_hosts, and which ``Host`` in a configuration means; without a
            ``port=`` the name alone. By default it names the machine: ``vsock/3``, ``hvsock/`` and the VM id,
            ``vsock-mux/`` and the path of the monitor's socket. A configuration does not know that of a callable.
        connect_timeout: seconds for it all: connecting, with ``retry``, and logging in, as in asyncssh. None is no
            limit, and 30 s for one attempt to connect.
        retry: how to keep trying while the machine boots; None tries once.
        buffer_size, connected_suspend, socket_options: as in :func:`~aiohvsock.create_hv_connection`.
        options: those of :func:`asyncssh.connect`, but for ``tunnel``, ``sock`` and what only TCP has.

    Raises:
        HvAddressError: the address is malformed or has no counterpart here.
        HvError: connecting failed, as in :func:`~aiohvsock.create_hv_connection`.
        TimeoutError: it was not done within ``connect_timeout``.
        asyncssh.HostKeyNotVerifiable: the server's key is not the one that is known, or none is.
        asyncssh.Error: logging in failed in another way.
    """
    target = address if callable(address) else to_address(address)
    if not host and not callable(target):
        host = _name(platform_for(target).native(target))
    tunnel = _ConnectTunnel(target, connect_timeout, retry, buffer_size, connected_suspend, socket_options)
    if connect_timeout is not None:
        options["connect_timeout"] = connect_timeout
    return asyncssh.connect(host, tunnel=tunnel, sock=None, **options)


def connect_reverse(
    address: AddressLike | AddressSource,
    *,
    connect_timeout: float | None = None,
    retry: Retry | None = None,
    buffer_size: int | None = None,
    connected_suspend: bool = False,
    socket_options: Iterable[SocketOption] = (),
    **options: Any,
) -> _Opening[asyncssh.SSHServerConnection]:
    """Dial a peer that then logs in here; the twin of :func:`asyncssh.connect_reverse`.

    Args:
        address: whom to dial, as in :func:`connect`.
        connect_timeout, retry, buffer_size, connected_suspend, socket_options: as in :func:`connect`.
        options: those of :func:`asyncssh.connect_reverse`, but for ``tunnel``, ``sock`` and what only TCP has.

    Raises:
        HvError: as in :func:`connect`.
        TimeoutError: it was not done within ``connect_timeout``.
        asyncssh.Error: the peer did not log in.
    """
    target = address if callable(address) else to_address(address)
    tunnel = _ConnectTunnel(target, connect_timeout, retry, buffer_size, connected_suspend, socket_options)
    if connect_timeout is not None:
        options["connect_timeout"] = connect_timeout
    return asyncssh.connect_reverse(tunnel=tunnel, sock=None, **options)


def listen(
    address: ListenOn,
    *,
    backlog: int = 128,
    allow: Allow | None = None,
    max_connections: int | None = None,
    buffer_size: int | None = None,
    connected_suspend: bool = False,
    socket_options: Iterable[SocketOption] = (),
    **options: Any,
) -> _Opening[asyncssh.SSHAcceptor]:
    """Serve SSH on VM sockets; the twin of :func:`asyncssh.listen`.

    What it returns has the attributes of an :class:`~aiohvsock.HvServer` besides: ``address``, ``close_clients()``, ...
    Like that one, and the servers of asyncio, it does not close its connections, and ``wait_closed()`` waits for them.

    A connection's ``get_extra_info("hv_peer")`` is who logs in, a value; there is no ``"peername"``.

    Args:
        address: where to listen, as in :func:`~aiohvsock.create_hv_server`: a value or its text, an async callable, or
            several of these.
        backlog, allow, max_connections, buffer_size, connected_suspend, socket_options: as there.
        options: those of :func:`asyncssh.listen`, but for ``tunnel``, ``sock`` and what only TCP has.

    Raises:
        HvError: an address is malformed, or cannot be listened on.
    """
    tunnel = _ListenTunnel(
        address,
        backlog=backlog,
        allow=allow,
        max_connections=max_connections,
        buffer_size=buffer_size,
        connected_suspend=connected_suspend,
        socket_options=socket_options,
    )
    return asyncssh.listen(tunnel=tunnel, sock=None, **options)


def listen_reverse(
    address: ListenOn,
    host: str = "",
    *,
    backlog: int = 128,
    allow: Allow | None = None,
    max_connections: int | None = None,
    buffer_size: int | None = None,
    connected_suspend: bool = False,
    socket_options: Iterable[SocketOption] = (),
    **options: Any,
) -> _Opening[asyncssh.SSHAcceptor]:
    """Listen on VM sockets, and log in at each peer that comes; the twin of :func:`asyncssh.listen_reverse`.

    Args:
        address: where to listen, as in :func:`listen`.
        host: the name whose key is looked for in known_hosts, for each peer that comes. By default it names its machine,
            as in :func:`connect`.
        backlog, allow, max_connections, buffer_size, connected_suspend, socket_options: as in
            :func:`~aiohvsock.create_hv_server`.
        options: those of :func:`asyncssh.listen_reverse`, but for ``tunnel``, ``sock`` and what only TCP has.

    Raises:
        HvError: an address is malformed, or cannot be listened on.
    """
    tunnel = _ListenTunnel(
        address,
        backlog=backlog,
        allow=allow,
        max_connections=max_connections,
        buffer_size=buffer_size,
        connected_suspend=connected_suspend,
        socket_options=socket_options,
    )
    return asyncssh.listen_reverse(host, tunnel=tunnel, sock=None, **options)
