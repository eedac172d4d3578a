"""The one seam that knows the operating system.

Each module here offers the same few functions, those of :class:`Platform`. Nothing in them waits: a
function that has to wait for the peer is a generator that yields what to wait for, and the transports,
which know the event loop, drive it.
"""

from __future__ import annotations

import socket
import sys

from ..addresses import Address, HybridAddress
from . import hybrid, linux, unsupported
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
    return linux if sys.platform == "linux" else unsupported


def listener_of(sock: socket.socket) -> Listener:
    """Return the listener for a bound socket that the caller brought along."""
    if sys.platform == "linux" and sock.family == getattr(socket, "AF_VSOCK", None):
        return linux.listener_of(sock)
    return Listener(sock, None)


def names_of(sock: socket.socket) -> Names:
    """Return the names of a connected socket that the caller brought along.

    Raises:
        OSError: ``ENOTCONN``, the socket is not connected.
    """
    if sys.platform == "linux" and sock.family == getattr(socket, "AF_VSOCK", None):
        return linux.names(sock)
    return Names(sock.getsockname(), sock.getpeername())
