"""VM sockets as plain ``socket.socket`` objects, for any library with a ``sock=`` parameter.

On Linux an AF_VSOCK socket goes by the name of AF_UNIX here. It is the same kernel socket, and most libraries ask no
more of a socket than that its family is one they know: uvloop refuses AF_VSOCK (MagicStack/uvloop loop.pyx, where
``create_connection`` looks at the family), others take its address for a host and a port. Its names are those of
AF_VSOCK: a CID and a port.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Iterable

from ..addresses import AddressLike, to_address
from ..dialling import Retry, dial
from ..endpoints import SocketOption, checked_options
from ..listening import AddressSource
from ..platforms import platform_for

__all__ = ["connected_socket", "listening_socket"]


async def connected_socket(
    address: AddressLike | AddressSource,
    *,
    connect_timeout: float | None = 30.0,
    retry: Retry | None = None,
    buffer_size: int | None = None,
    connected_suspend: bool = False,
    socket_options: Iterable[SocketOption] = (),
) -> socket.socket:
    """Return a connected, non-blocking socket, with the handshake of hybrid vsock behind it. It is the caller's to close.

    Cancelling it, at any moment, leaves no descriptor behind.

    Args:
        address: as :func:`aiohvsock.create_hv_connection` has it; likewise the others.
        connect_timeout: seconds for one attempt; None waits as long as it takes.
        retry: how to keep trying while the machine boots; None tries once.
        buffer_size: bytes the kernel buffers each way; None is its default.
        connected_suspend: stay connected while the VM is paused; AF_HYPERV only.
        socket_options: further ones, as ``setsockopt()`` takes them.

    Raises:
        HvAddressError: the address is malformed or has no counterpart here.
        HvUnsupportedError: this system, Python or loop cannot.
        HvConnectError: connecting failed; :exc:`HvConnectionRefused` and :exc:`HvTimeout` are two of these.
    """
    options = checked_options(connect_timeout, buffer_size, connected_suspend, socket_options)
    target = address if callable(address) else to_address(address)
    sock, _ = await dial(asyncio.get_running_loop(), target, options, retry)
    return _labelled(sock)


def listening_socket(
    address: AddressLike,
    *,
    backlog: int = 128,
    buffer_size: int | None = None,
    connected_suspend: bool = False,
    socket_options: Iterable[SocketOption] = (),
) -> socket.socket:
    """Return a listening, non-blocking socket. It is the caller's to close.

    The file of hybrid vsock stays behind when it is closed, as asyncio leaves those of a ``sock=``; the next one to
    listen there removes it.

    Args:
        address: where to listen.
        backlog: connections that may wait to be accepted.
        buffer_size: bytes the kernel buffers each way, for each connection; None is its default.
        connected_suspend: stay connected while the VM is paused; AF_HYPERV only.
        socket_options: further ones, as ``setsockopt()`` takes them; set before the socket is bound.

    Raises:
        HvAddressError: the address is malformed or has no counterpart here.
        HvUnsupportedError: this system or this Python cannot.
        HvPermissionError: a right is missing.
        HvConnectError: the address cannot be bound.
    """
    options = checked_options(None, buffer_size, connected_suspend, socket_options)
    where = to_address(address)
    platform = platform_for(where)
    listener = platform.listen(where, options)
    try:
        listener.sock.listen(backlog)
    except OSError as error:
        listener.close()
        raise platform.failure(error, "listen", remote=None, local=listener.address) from error
    except BaseException:
        listener.close()
        raise
    return _labelled(listener.sock)


def _labelled(sock: socket.socket) -> socket.socket:
    if sys.platform == "linux" and sock.family == socket.AF_VSOCK:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=sock.detach())
        sock.setblocking(False)  # which Python keeps with the object
    return sock
