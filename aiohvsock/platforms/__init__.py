"""The one seam that knows the operating system.

Each module here offers the same few functions, those of :class:`Platform`. Nothing in them waits: a
function that has to wait for the peer is a generator that yields what to wait for, and the transports,
which know the event loop, drive it.
"""

from __future__ import annotations

import socket
import sys

from ..addresses import Address, HybridAddress
from . import hybrid, linux, unsupported, windows
from .base import READABLE, WRITABLE, Listener, Names, Options, Platform, Readiness

__all__ = [
    "READABLE",
    "WRITABLE",
    "Listener",
    "Names",
    "Options",
    "Platform",
    "Readiness",
    "listener_of",
    "names_of",
    "platform_for",
]


def platform_for(address: Address) -> Platform:
    """Return the platform that carries this kind of address on this system."""
    if isinstance(address, HybridAddress):
        return hybrid if hasattr(socket, "AF_UNIX") else unsupported
    match sys.platform:
        case "linux":
            return linux
        case "win32":
            return windows
    return unsupported


def listener_of(sock: socket.socket) -> Listener:
    """Return the listener for a bound socket that the caller brought along."""
    if _is_vsock(sock):
        return linux.listener_of(sock)
    if _is_hyperv(sock):
        return windows.listener_of(sock)
    return Listener(sock, None)


def names_of(sock: socket.socket) -> Names:
    """Return the names of a connected socket that the caller brought along.

    Raises:
        OSError: ``ENOTCONN``, the socket is not connected.
    """
    if _is_vsock(sock):
        return linux.names(sock)
    if _is_hyperv(sock):
        return windows.names(sock)
    peername = sock.getpeername()  # first: on Windows a socket without a name is another error
    return Names(sock.getsockname(), peername)


def _is_vsock(sock: socket.socket) -> bool:
    return sys.platform == "linux" and sock.family == getattr(socket, "AF_VSOCK", None)


def _is_hyperv(sock: socket.socket) -> bool:
    return sys.platform == "win32" and sock.family == getattr(socket, "AF_HYPERV", None)
