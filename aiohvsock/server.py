"""The server object: the API of :class:`asyncio.Server` as of Python 3.13, on every loop and version."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import socket
import warnings
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID

from ._log import logger
from .addresses import (
    CID_ANY,
    VM_ID_ANY,
    VM_ID_BROADCAST,
    VM_ID_CHILDREN,
    Address,
    HybridAddress,
    HypervAddress,
    VsockAddress,
    to_hyperv,
    to_vsock,
)
from .exceptions import HvAddressError
from .platforms import Listener
from .transports import transport_class
from .transports.readiness import Acceptor
from .transports.selector import SelectorTransport
from .transports.tls import TLS

__all__ = ["Allow", "HvServer", "allow_predicate"]

Allow: TypeAlias = Callable[[Address], bool] | Collection[int | UUID | str]
"""Who may connect: a predicate on the peer's address, or a collection of CIDs, VM ids (a UUID or its text)
and, for hybrid vsock, paths of the monitor's socket."""

# A peer refused for the first time is worth a warning; one that keeps trying is not worth a full disk.
_REFUSALS_REMEMBERED = 256

_NO_PARTITION = (CID_ANY, VM_ID_ANY, VM_ID_BROADCAST, VM_ID_CHILDREN)


class HvServer(asyncio.AbstractServer):
    """A listening server, as :func:`~aiohvsock.create_hv_server` and its siblings return it.

    ``async with`` closes it at the end of the block and waits until its connections are gone. It has every
    method of :class:`asyncio.Server` in Python 3.13, on every loop and Python version.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listeners: Sequence[Listener],
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        *,
        backlog: int,
        tls: TLS | None,
        allow: Callable[[Address], bool] | None,
        max_connections: int | None,
    ) -> None:
        self._loop = loop
        self._listeners = list(listeners)
        self._acceptors: dict[Listener, Acceptor] = {}
        self._serving = False
        self._running: set[asyncio.Task[None]] = set()
        self._protocol_factory = protocol_factory
        self._backlog = backlog
        self._tls = tls
        self._allow = allow
        self._refused: set[object] = set()
        self._max_connections = max_connections
        self._transport_class = transport_class(loop)
        self._transports: set[SelectorTransport] = set()
        self._closed = False
        self._gone: asyncio.Event = asyncio.Event()  # closed, and no connection left
        self._serving_forever: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else "serving" if self._serving else "not serving"
        where = ", ".join(str(listener.address or listener.sock) for listener in self._listeners)
        return f"<{type(self).__name__} {where} {state}, {len(self._transports)} connections>"

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            warnings.warn(f"unclosed server {self!r}", ResourceWarning, source=self, stacklevel=1)
            for listener in self._listeners:
                listener.close()

    # -- what it is ----------------------------------------------------------------------------------------

    @property
    def address(self) -> Address | None:
        """The address it listens on, with the port the system chose; None for a foreign ``sock=``.

        Of several, the first; None while a machine that it follows is not there.
        """
        return self._listeners[0].address if self._listeners else None

    @property
    def addresses(self) -> tuple[Address | None, ...]:
        """All the addresses it listens on."""
        return tuple(listener.address for listener in self._listeners)

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The listening sockets; none once it is closed."""
        return () if self._closed else tuple(listener.sock for listener in self._listeners)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_serving(self) -> bool:
        return self._serving

    @property
    def is_open(self) -> bool:
        """True until it is closed; connections may be open after that."""
        return not self._closed

    # -- serving -------------------------------------------------------------------------------------------

    async def start_serving(self) -> None:
        """Start accepting connections; does nothing if it does already.

        Raises:
            RuntimeError: the server is closed.
        """
        self._start_serving()
        # asyncio's own does so too: what waits for a connection gets its turn.
        await asyncio.sleep(0)

    def _start_serving(self) -> None:
        if self._closed:
            raise RuntimeError(f"server {self!r} is closed")
        if self._serving:
            return
        self._serving = True
        for listener in self._listeners:
            self._listen(listener)

    def _listen(self, listener: Listener) -> None:
        listener.sock.listen(self._backlog)
        acceptor = Acceptor(self._loop, listener.sock, self._backlog, partial(self._accepted, listener))
        self._acceptors[listener] = acceptor
        if self._max_connections is None or len(self._transports) < self._max_connections:
            acceptor.start()

    def replace_listener(self, old: Listener | None, new: Listener | None) -> None:
        """Listen on another socket in an old one's place; connections that are open stay open.

        Both become the server's, which closes the old one at once; either can be None.

        Raises:
            OSError: the new one cannot listen; it is closed.
        """
        if old is not None and old in self._listeners:
            acceptor = self._acceptors.pop(old, None)
            if acceptor is not None:
                acceptor.stop()
            self._listeners.remove(old)
            old.close()
        if new is None:
            return
        try:
            if self._closed:
                raise RuntimeError(f"server {self!r} is closed")
            if self._serving:
                self._listen(new)
        except BaseException:
            new.close()
            raise
        self._listeners.append(new)

    def run(self, coroutine: Coroutine[object, object, None]) -> None:
        """Run something for as long as the server is open."""
        task = self._loop.create_task(coroutine)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def serve_forever(self) -> None:
        """Start accepting connections and go on until cancelled, which closes the server and its connections.

        Raises:
            RuntimeError: the server is closed, or another task is in this call.
        """
        if self._serving_forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        self._start_serving()
        self._serving_forever = self._loop.create_future()
        try:
            await self._serving_forever
        except asyncio.CancelledError:
            try:
                self.close()
                # Or an idle client would keep it waiting (https://github.com/python/cpython/issues/123720).
                self.close_clients()
                await self.wait_closed()
            finally:
                raise
        finally:
            self._serving_forever = None

    def _accepted(self, listener: Listener, sock: socket.socket) -> None:
        """Take charge of an accepted socket. Whatever goes wrong concerns this connection alone."""
        try:
            names = listener.names(sock)
        except OSError as error:
            logger.debug("%s: a peer was gone before it was accepted: %s", listener.address, error)
            sock.close()
            return
        try:
            if self._allow is not None and not (names.peer is not None and self._allow(names.peer)):
                self._log_refusal(listener, names.peer)
                sock.close()
                return
            protocol = self._protocol_factory()
            if self._closed:  # by one of them
                sock.close()
                return
            if self._tls is not None:
                handshake: asyncio.Future[Any] = self._loop.create_future()
                handshake.add_done_callback(lambda done: self._handshake_done(listener, names.peer, done))
                protocol = self._tls.protocol(self._loop, protocol, handshake, server_side=True)
        except (SystemExit, KeyboardInterrupt):
            sock.close()
            raise
        except BaseException as error:
            self._report(
                error, sock, "a connection could not be served: protocol_factory() or allow() failed"
            )
            sock.close()
            return
        transport = self._transport_class(self._loop, sock, protocol, names, on_lost=self._lost)
        self._transports.add(transport)
        if len(self._transports) == self._max_connections:
            for acceptor in self._acceptors.values():
                acceptor.stop()
        try:
            transport.start()
        except (SystemExit, KeyboardInterrupt):
            transport.abort()
            raise
        except BaseException as error:
            self._report(error, transport, "protocol.connection_made() failed")
            transport.abort()

    def _report(self, error: BaseException, what: object, message: str) -> None:
        key = "socket" if isinstance(what, socket.socket) else "transport"
        self._loop.call_exception_handler({"message": message, "exception": error, key: what})

    def _log_refusal(self, listener: Listener, peer: Address | None) -> None:
        who = _partition(peer)
        known = who in self._refused
        if not known and len(self._refused) < _REFUSALS_REMEMBERED:
            self._refused.add(who)
        log = logger.debug if known else logger.warning
        log("%s: refused a connection from %s, which is not allowed", listener.address, peer)

    def _handshake_done(
        self, listener: Listener, peer: Address | None, handshake: asyncio.Future[Any]
    ) -> None:
        if not handshake.cancelled() and (error := handshake.exception()) is not None:
            logger.info("%s: the TLS handshake with %s failed: %r", listener.address, peer, error)

    def _lost(self, transport: SelectorTransport) -> None:
        self._transports.discard(transport)
        if self._closed:
            if not self._transports:
                self._gone.set()
        else:
            for acceptor in self._acceptors.values():
                acceptor.start()

    # -- the end -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop listening. Connections that are open stay open; see :meth:`close_clients`."""
        if self._closed:
            return
        for task in self._running:
            task.cancel()
        for acceptor in self._acceptors.values():
            acceptor.stop()
        self._acceptors.clear()
        self._serving = False
        self._closed = True
        for listener in self._listeners:
            listener.close()
        if self._serving_forever is not None:
            self._serving_forever.cancel()
        if not self._transports:
            self._gone.set()

    def close_clients(self) -> None:
        """Close every open connection, each after what is queued for it has been sent."""
        for transport in self._transports.copy():
            transport.close()

    def abort_clients(self) -> None:
        """Close every open connection at once; what is queued for it is lost."""
        for transport in self._transports.copy():
            transport.abort()

    async def wait_closed(self) -> None:
        """Wait until the server is closed and its last connection is gone. Cancelling it changes nothing."""
        await self._gone.wait()


def _partition(address: Address | None) -> object:
    """Return what names the partition in an address, without the port."""
    match address:
        case VsockAddress():
            return address.cid
        case HypervAddress():
            return address.vm_id
        case HybridAddress():
            return address.path
    return None


def allow_predicate(allow: Allow | None) -> Callable[[Address], bool] | None:
    """Return the predicate that an ``allow=`` stands for.

    Raises:
        HvAddressError: a member of the collection names no partition.
        TypeError: it is neither a predicate nor a collection.
    """
    if inspect.iscoroutinefunction(allow):
        # Its coroutine would be true, and let everybody in.
        raise TypeError(f"allow must be a plain function, not the coroutine function {allow!r}")
    if allow is None or callable(allow):
        return allow
    if isinstance(allow, (str, bytes)) or not isinstance(allow, Collection):
        raise TypeError(f"allow must be a predicate or a collection of CIDs and VM ids, not {allow!r}")
    allowed = frozenset(name for member in allow for name in _names(member))
    return lambda peer: _partition(peer) in allowed


def _names(member: int | UUID | str) -> set[object]:
    """Return all that can stand for a partition in a peer's address."""
    if isinstance(member, str) and member.startswith("/"):
        return {member}
    address = VsockAddress(member, 0) if isinstance(member, int) else HypervAddress(member, 0)
    if _partition(address) in _NO_PARTITION:
        raise HvAddressError(f"{member!r} in allow= is nobody's name; None allows everybody")
    with contextlib.suppress(HvAddressError):
        return {_partition(address), to_vsock(address).cid, to_hyperv(address).vm_id}
    return {_partition(address)}
