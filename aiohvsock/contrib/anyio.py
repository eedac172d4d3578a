"""VM sockets as anyio's byte streams: on asyncio, uvloop and trio alike.

:func:`connect_hv` and :func:`create_hv_listener` give what anyio's own ``connect_unix()`` and
``create_unix_listener()`` give, and :class:`HvConnectable` goes where anyio takes a connectable: TLS is anyio's own,
around any of them. :class:`MessageStream` is the message layer, over any byte stream of anyio's.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import anyio
from anyio.abc import ByteStream, ByteStreamConnectable, Listener, SocketAttribute, TaskGroup
from anyio.lowlevel import cancel_shielded_checkpoint, checkpoint, checkpoint_if_cancelled

from .._log import logger
from ..addresses import Address, AddressLike, to_address
from ..dialling import Retry, opened, retrying
from ..endpoints import SocketOption, checked_options
from ..listening import AddressSource, bind_all
from ..platforms import Listener as BoundSocket
from ..platforms import Names, listener_of, names_of, platform_for
from ..transports.readiness import ACCEPT_DELAY, PEER_GONE
from ._anyio_messages import MessageStream
from ._anyio_waiting import Waiting

__all__ = [
    "HvAttribute",
    "HvConnectable",
    "HvListener",
    "HvStream",
    "MessageStream",
    "connect_hv",
    "create_hv_listener",
]

T = TypeVar("T")


class HvAttribute(anyio.TypedAttributeSet):
    """What a stream or a listener tells beyond :class:`anyio.abc.SocketAttribute`.

    A socket of a foreign family, given to ``from_socket()``, has neither of them.
    """

    local_address: Address = anyio.typed_attribute()
    """Our own address, as far as the system tells it."""
    peer_address: Address = anyio.typed_attribute()
    """The peer's address; a listener has none."""


class _SocketResource:
    """A non-blocking socket: what a stream and a listener have in common."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._waiting = Waiting(sock)
        self._closed = False

    async def aclose(self) -> None:
        """Close the socket at once. What another task is doing with it ends in :exc:`~anyio.ClosedResourceError`.

        What was sent is still delivered. It is closed even if this is cancelled; a second call does nothing.
        """
        if not self._closed:
            self._closed = True
            self._waiting.closing()
            self._close()
        await checkpoint()

    def _close(self) -> None:
        self._sock.close()

    def _check_open(self) -> None:
        if self._closed:
            raise anyio.ClosedResourceError

    async def _when_ready(self, wait: Callable[[], Awaitable[None]], operation: Callable[[], T]) -> T:
        """Do a non-blocking operation as soon as it can be done. Cancelled, it was not done.

        Raises:
            ClosedResourceError: this side closed the socket.
            OSError: the operation's.
        """
        await checkpoint_if_cancelled()
        waited = False
        try:
            while True:
                self._check_open()
                try:
                    return operation()
                except (BlockingIOError, InterruptedError):
                    waited = True
                    await wait()
        finally:
            # What can be done at once gives the others their turn too, and by now must not be cancelled.
            if not waited:
                await cancel_shielded_checkpoint()


class HvStream(_SocketResource, ByteStream):
    """A connected VM socket, as :func:`connect_hv` and :class:`HvListener` make it.

    It behaves as anyio's own socket streams do. One task may receive and one may send;
    a second one gets a :exc:`~anyio.BusyResourceError`. Its attributes are those of
    :class:`anyio.abc.SocketAttribute` (``family``, ``local_address``, ``remote_address`` and ``raw_socket``) and of
    :class:`HvAttribute`; they are known for its whole life.
    """

    def __init__(self, sock: socket.socket, names: Names) -> None:
        super().__init__(sock)
        self._family = sock.family
        self._names = names
        self._eof_sent = False
        self._receive_guard = anyio.ResourceGuard("reading from")
        self._send_guard = anyio.ResourceGuard("writing to")

    @classmethod
    async def from_socket(cls, sock: socket.socket) -> Self:
        """Make a stream of a connected stream socket, which it then owns; if this fails, the socket stays yours.

        Raises:
            ValueError: it is not a stream socket, or not connected.
        """
        _check_type(sock)
        try:
            names = names_of(sock)
        except OSError as error:
            raise ValueError("the socket must be connected") from error
        sock.setblocking(False)
        return cls(sock, names)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return the next bytes, one at least. If it is cancelled nothing is lost.

        Args:
            max_bytes: how many at most.

        Raises:
            EndOfStream: the peer has ended its direction, or crashed: these sockets do not tell which.
            BrokenResourceError: the connection failed; the system's error is its ``__cause__``.
            ClosedResourceError: this side closed the stream.
            BusyResourceError: another task is receiving.
            ValueError: ``max_bytes`` is less than 1.
        """
        if max_bytes < 1:
            raise ValueError("max_bytes must be a positive integer")
        with self._receive_guard:
            try:
                data = await self._when_ready(self._waiting.readable, lambda: self._sock.recv(max_bytes))
            except OSError as error:
                raise anyio.BrokenResourceError from error
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        """Send bytes, all of them; wait while the peer is slow.

        If it is cancelled a part may have been sent: :class:`MessageStream` sends whole messages or none.

        Raises:
            BrokenResourceError: the connection failed, but what the peer has sent can still be received.
            ClosedResourceError: this side closed the stream, or called :meth:`send_eof`.
            BusyResourceError: another task is sending.
        """
        with self._send_guard:
            rest = memoryview(item)
            while True:
                sent = await self._send_some(rest)
                rest = rest[sent:]
                if not rest:
                    return

    async def _send_some(self, data: memoryview) -> int:
        def send() -> int:
            if self._eof_sent:
                raise anyio.ClosedResourceError
            return self._sock.send(data) if data else 0

        try:
            return await self._when_ready(self._waiting.writable, send)
        except OSError as error:
            raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        """End our direction; the peer's goes on. A second call does nothing.

        Some monitors lose it: Firecracker, for one.

        Raises:
            BrokenResourceError: the connection failed.
            ClosedResourceError: this side closed the stream.
            BusyResourceError: another task is sending.
        """
        with self._send_guard:
            await checkpoint()
            self._check_open()
            if not self._eof_sent:
                try:
                    self._sock.shutdown(socket.SHUT_WR)
                except OSError as error:
                    raise anyio.BrokenResourceError from error
                self._eof_sent = True

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        names = self._names
        found: dict[Any, Callable[[], Any]] = {
            SocketAttribute.family: lambda: self._family,
            SocketAttribute.local_address: lambda: names.sockname,
            SocketAttribute.remote_address: lambda: names.peername,
            SocketAttribute.raw_socket: lambda: self._sock,
        }
        if names.local is not None:
            found[HvAttribute.local_address] = lambda: names.local
        if names.peer is not None:
            found[HvAttribute.peer_address] = lambda: names.peer
        return found


class HvListener(_SocketResource, Listener[HvStream]):
    """A listening VM socket, as :func:`create_hv_listener` makes it.

    Its attributes are ``family``, ``local_address`` and ``raw_socket`` of :class:`anyio.abc.SocketAttribute`, and
    :attr:`HvAttribute.local_address`.
    """

    def __init__(self, listener: BoundSocket) -> None:
        super().__init__(listener.sock)
        self._listener = listener
        self._family = listener.sock.family
        self._sockname = listener.sock.getsockname()
        self._guard = anyio.ResourceGuard("accepting connections from")

    @classmethod
    async def from_socket(cls, sock: socket.socket) -> Self:
        """Make a listener of a listening stream socket, which it then owns; if this fails, the socket stays yours.

        Raises:
            ValueError: it is not a stream socket, or not bound.
        """
        _check_type(sock)
        try:
            listener = listener_of(sock)
        except OSError as error:
            raise ValueError("the socket must be bound to a local address") from error
        sock.setblocking(False)
        return cls(listener)

    def _close(self) -> None:
        self._listener.close()

    async def accept(self) -> HvStream:
        """Return the next connection. Cancelled, it has accepted none.

        Raises:
            ClosedResourceError: this side closed the listener.
            BusyResourceError: another task is accepting.
            OSError: the process has no descriptor left, ...
        """
        with self._guard:
            return await self._when_ready(self._waiting.readable, self._accept)

    def _accept(self) -> HvStream:
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError as error:
                if error.errno in PEER_GONE:
                    continue
                raise
            try:
                sock.setblocking(False)
                return HvStream(sock, self._listener.names(sock))
            except OSError:  # it has gone since
                sock.close()
            except BaseException:
                sock.close()
                raise

    async def serve(self, handler: Callable[[HvStream], Any], task_group: TaskGroup | None = None) -> None:
        """Accept connections, and start a task for each, until it is cancelled.

        Args:
            handler: an async callable that takes the stream, and closes it: begin with ``async with stream:``.
            task_group: where the tasks run; None makes one, which ends with this call.

        Raises:
            ClosedResourceError: this side closed the listener.
            BusyResourceError: another task is accepting.
        """
        async with AsyncExitStack() as stack:
            if task_group is None:
                task_group = await stack.enter_async_context(anyio.create_task_group())
            while True:
                try:
                    stream = await self.accept()
                except OSError as error:
                    if self._sock.fileno() < 0:  # closed by somebody else
                        raise
                    # The listener stays readable, so asking at once would spin.
                    logger.error("accept failed; the listener goes on in %g s", ACCEPT_DELAY, exc_info=error)
                    await anyio.sleep(ACCEPT_DELAY)
                    continue
                task_group.start_soon(handler, stream)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        found: dict[Any, Callable[[], Any]] = {
            SocketAttribute.family: lambda: self._family,
            SocketAttribute.local_address: lambda: self._sockname,
            SocketAttribute.raw_socket: lambda: self._sock,
        }
        address = self._listener.address
        if address is not None:
            found[HvAttribute.local_address] = lambda: address
        return found


def _check_type(sock: socket.socket) -> None:
    if sock.type != socket.SOCK_STREAM:
        raise ValueError(f"a stream socket was expected, got {sock!r}")


async def connect_hv(
    address: AddressLike | AddressSource,
    *,
    connect_timeout: float | None = 30.0,
    retry: Retry | None = None,
    buffer_size: int | None = None,
    connected_suspend: bool = False,
    socket_options: Iterable[SocketOption] = (),
) -> HvStream:
    """Connect to a VM socket.

    Cancelling it, at any moment, leaves no descriptor behind.

    Args:
        address: whom to dial, as a value or as text; or an async callable that is asked for it before each attempt,
            such as :func:`aiohvsock.hyperv.machine_address`, which itself needs asyncio.
        connect_timeout: seconds for one attempt, the handshake of hybrid vsock included. It also takes the place of
            the kernel's own limit, which is 2 s. None waits as long as it takes.
        retry: how to keep trying while the machine boots; None tries once. :func:`anyio.fail_after` bounds it.
        buffer_size: bytes the kernel buffers each way; None is its default.
        connected_suspend: stay connected while the VM is paused; AF_HYPERV only, no effect elsewhere.
        socket_options: further ones, each as ``setsockopt()`` takes it: ``(level, option, value)``.

    Raises:
        ValueError: a figure makes no sense.
        HvAddressError: the address is malformed or has no counterpart here.
        HvUnsupportedError: this system or Python cannot.
        HvConnectionRefused: nobody listens there.
        HvTimeout: no answer within ``connect_timeout``.
        HvConnectError: connecting failed in another way.
    """
    options = checked_options(connect_timeout, buffer_size, connected_suspend, socket_options)
    target = address if callable(address) else to_address(address)

    async def attempt(address: Address) -> HvStream:
        await checkpoint()
        with opened(address, options) as (platform, native, sock):
            waiting = Waiting(sock)
            with anyio.fail_after(options.connect_timeout):
                for wanted in platform.dial(sock, native):
                    await waiting.ready(wanted)
            return HvStream(sock, platform.names(sock, native))

    return await retrying(attempt, target, retry, anyio.sleep)


async def create_hv_listener(
    address: AddressLike,
    *,
    backlog: int = 128,
    buffer_size: int | None = None,
    connected_suspend: bool = False,
    socket_options: Iterable[SocketOption] = (),
) -> HvListener:
    """Listen on a VM socket.

    Anybody who reaches this machine may connect: who it is, is :attr:`HvAttribute.peer_address` of the stream.
    :class:`anyio.streams.stapled.MultiListener` makes one of several.

    Args:
        address: where to listen, as a value or as text. The port ``any`` lets the system choose one.
        backlog: connections that may wait to be accepted. A peer beyond them is refused.
        buffer_size: bytes the kernel buffers each way, for each connection; None is its default.
        connected_suspend: stay connected while the VM is paused; AF_HYPERV only, no effect elsewhere.
        socket_options: further ones, each as ``setsockopt()`` takes it: ``(level, option, value)``; they are set on
            the listening socket before it is bound.

    Raises:
        ValueError: a figure makes no sense.
        HvAddressError: the address is malformed or has no counterpart here.
        HvUnsupportedError: this system or Python cannot.
        HvPermissionError: a right is missing.
        HvConnectError: the address cannot be bound.
    """
    options = checked_options(None, buffer_size, connected_suspend, socket_options)
    await checkpoint()
    (bound,) = await bind_all(to_address(address), options)
    assert isinstance(bound, BoundSocket)
    try:
        bound.sock.listen(backlog)
        return HvListener(bound)
    except OSError as error:
        bound.close()
        assert bound.address is not None
        raise platform_for(bound.address).failure(
            error, "listen", remote=None, local=bound.address
        ) from error
    except BaseException:
        bound.close()
        raise


@dataclass
class HvConnectable(ByteStreamConnectable):
    """Dials a VM socket, wherever anyio takes a connectable: its ``TLSConnectable``, for one.

    Args:
        address: whom to dial, as :func:`connect_hv` has it.
        connect_timeout: as :func:`connect_hv` has it.
        retry: as :func:`connect_hv` has it.
    """

    address: AddressLike | AddressSource
    connect_timeout: float | None = 30.0
    retry: Retry | None = None

    async def connect(self) -> HvStream:
        """Connect.

        Raises:
            ConnectionFailed: it failed; the error of :func:`connect_hv` is its ``__cause__``, and its ``errno`` the same.
            HvAddressError: the address is malformed or has no counterpart here.
        """
        try:
            return await connect_hv(self.address, connect_timeout=self.connect_timeout, retry=self.retry)
        except OSError as error:
            raise anyio.ConnectionFailed(error.errno, error.strerror) from error
