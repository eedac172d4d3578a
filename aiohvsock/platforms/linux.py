"""AF_VSOCK on Linux: virtio, vhost, VMCI, Hyper-V guests and the loopback transport.

Sources: net/vmw_vsock/af_vsock.c and include/uapi/linux/vm_sockets.h of Linux, vsock(7).
"""

from __future__ import annotations

import errno
import math
import os
import socket
import struct
import sys
from collections.abc import Generator
from typing import Any

from ..addresses import CID_ANY, CID_LOCAL, PORT_ANY, Address, HybridAddress, VsockAddress, to_vsock
from ..exceptions import (
    HvAddressError,
    HvConnectError,
    HvConnectionRefused,
    HvError,
    HvPermissionError,
    HvTimeout,
    HvUnsupportedError,
)
from . import base
from .base import WRITABLE, Listener, Names, Options, Readiness, Verdict, set_options

__all__ = [
    "dial",
    "failure",
    "has_loopback",
    "listen",
    "listener_of",
    "local",
    "local_cid",
    "names",
    "native",
    "open_socket",
]

# include/uapi/linux/vm_sockets.h; CPython has none of AF_VSOCK's in some builds, and never the timeout.
_AF_VSOCK = 40
_SO_VM_SOCKETS_BUFFER_SIZE = 0
_SO_VM_SOCKETS_BUFFER_MAX_SIZE = 2
_SO_VM_SOCKETS_CONNECT_TIMEOUT = 6
_IOCTL_GET_LOCAL_CID = 0x7B9

# Where None is to mean "no limit": 0 would bring back the kernel's default of 2 s, and a year is enough.
_LONGEST_TIMEOUT = 365 * 24 * 3600.0

_LOAD = (
    "load the transport's module: vmw_vsock_virtio_transport (in a KVM guest), hv_sock (in a Hyper-V guest), "
    "vhost_vsock (on a KVM host), vsock_loopback (for CID 1), with modprobe"
)
_RIGHTS = "ports below 1024 need CAP_NET_BIND_SERVICE in the initial user namespace"

_CONNECT = {
    errno.ECONNRESET: (
        refused := Verdict(
            HvConnectionRefused,
            "nobody listens on that port there, or its backlog is full (AF_VSOCK says ECONNRESET for both)",
            transient=True,
        )
    ),
    errno.ECONNREFUSED: refused,
    errno.ETIMEDOUT: Verdict(
        HvTimeout,
        "the machine is booting, paused or without a vsock driver; "
        "on Hyper-V nobody listens there, or the host has not registered the service",
        transient=True,
    ),
    errno.ENODEV: Verdict(
        HvConnectError, f"no running VM has that CID; if it should, {_LOAD}", transient=True
    ),
    errno.EHOSTUNREACH: Verdict(
        HvConnectError, "the VM is not running, or its driver is not up", transient=True
    ),
    errno.ENETUNREACH: Verdict(
        HvConnectError, "no transport here reaches that CID; a Hyper-V guest reaches CID 2 only"
    ),
    errno.EADDRNOTAVAIL: Verdict(HvConnectError, "any is for listening only"),
    errno.EACCES: (denied := Verdict(HvPermissionError, _RIGHTS)),
    errno.EPERM: denied,
}
_LISTEN = {
    errno.EADDRINUSE: Verdict(
        HvConnectError, "that port is taken; ss --vsock --listening --processes shows by whom"
    ),
    errno.EADDRNOTAVAIL: Verdict(
        HvConnectError, f"that CID is not one of this machine's: listen on 'any'; for CID 1, {_LOAD}"
    ),
    errno.EACCES: denied,
    errno.EPERM: denied,
}


def native(address: Address) -> VsockAddress:
    if isinstance(address, HybridAddress):
        raise HvAddressError(f"{address} is not an AF_VSOCK address")
    return to_vsock(address)


def _sockaddr(address: Address) -> tuple[int, int]:
    address = native(address)
    return address.cid, address.port


def open_socket(options: Options) -> socket.socket:
    if not hasattr(socket, "AF_VSOCK"):
        raise HvUnsupportedError(
            errno.EAFNOSUPPORT,
            f"this Python ({sys.executable}) was built without AF_VSOCK; use the distribution's own, "
            "or a python-build-standalone (uv) build of 2026-06-02 or newer",
        )
    try:
        sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        raise HvUnsupportedError(error.errno, f"the kernel has no AF_VSOCK: {_LOAD}") from error
    try:
        if options.buffer_size is not None:
            _set_buffer_size(sock, options.buffer_size)
        _set_connect_timeout(sock, options.connect_timeout)
        set_options(sock, options)
    except BaseException:
        sock.close()
        raise
    return sock


def _set_buffer_size(sock: socket.socket, size: int) -> None:
    # The size is clamped to the maximum, so that goes first; accepted sockets inherit both.
    sock.setsockopt(_AF_VSOCK, _SO_VM_SOCKETS_BUFFER_MAX_SIZE, size)
    sock.setsockopt(_AF_VSOCK, _SO_VM_SOCKETS_BUFFER_SIZE, size)
    # In a Hyper-V guest these are hints for the rings of the channel, and the only ones (hyperv_transport.c).
    with _as_unix(sock) as twin:
        twin.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        twin.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def _set_connect_timeout(sock: socket.socket, seconds: float | None) -> None:
    seconds = _LONGEST_TIMEOUT if seconds is None else min(seconds, _LONGEST_TIMEOUT)
    microseconds = max(1, math.ceil(seconds * 1e6))
    with _as_unix(sock) as twin:
        twin.setsockopt(
            _AF_VSOCK,
            _SO_VM_SOCKETS_CONNECT_TIMEOUT,
            struct.pack("@ll", microseconds // 1_000_000, microseconds % 1_000_000),
        )


def _as_unix(sock: socket.socket) -> socket.socket:
    """Return a second object for the same socket, declared AF_UNIX.

    On an AF_VSOCK object CPython packs every option as one 64-bit int (sock_setsockopt in socketmodule.c),
    and so can set neither a timeval nor an ordinary 32-bit option.
    """
    fd = os.dup(sock.fileno())
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
    except BaseException:
        os.close(fd)
        raise


def dial(sock: socket.socket, address: Address) -> Generator[Readiness]:
    if native(address).cid == CID_ANY:
        # The kernel would ask whatever is on the other side of its transport, and wait.
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    try:
        sock.connect(_sockaddr(address))
    except BlockingIOError:
        yield WRITABLE
        with _as_unix(sock) as twin:
            code = twin.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code)) from None
    # An unconnected AF_VSOCK socket polls writable too: "writable" alone proves nothing.
    sock.getpeername()


def names(sock: socket.socket, address: Address | None = None) -> Names:
    sockname, peername = sock.getsockname(), sock.getpeername()
    return Names(sockname, peername, _typed(sockname), _typed(peername))


def local(sock: socket.socket) -> Address | None:
    return _typed(sock.getsockname())


def _typed(sockaddr: tuple[Any, ...]) -> VsockAddress:
    # A client's own CID comes back as CID_ANY, and is left so: it is not known.
    return VsockAddress(sockaddr[0], sockaddr[1])


def listen(address: Address, options: Options) -> Listener:
    sock = open_socket(options)
    try:
        sock.bind(_sockaddr(address))
        bound = _typed(sock.getsockname())
    except OSError as error:
        sock.close()
        raise failure(error, "listen", remote=None, local=address) from error
    return _VsockListener(sock, bound)


def listener_of(sock: socket.socket) -> Listener:
    return _VsockListener(sock, _typed(sock.getsockname()))


class _VsockListener(Listener):
    def names(self, sock: socket.socket) -> Names:
        return names(sock)


def failure(error: OSError, operation: str, *, remote: Address | None, local: Address | None) -> HvError:
    verdicts = _CONNECT if operation == "connect" else _LISTEN
    return base.failure(verdicts, error, operation, remote=remote, local=local)


def has_loopback() -> bool:
    """Tell whether CID 1 is this machine itself. Sends nothing.

    Without the vsock_loopback module a connect to CID 1 would leave for the host, a stranger: so this asks
    whether CID 1 can be bound. Opening the first AF_VSOCK socket can make the kernel load its modules.

    Raises:
        OSError: it cannot be found out: no descriptor is left, ...
    """
    try:
        with open_socket(Options()) as sock:
            sock.bind((CID_LOCAL, PORT_ANY))
    except HvUnsupportedError:
        return False
    except OSError as error:
        if error.errno != errno.EADDRNOTAVAIL:
            raise
        return False
    return True


def local_cid() -> int | None:
    """Return the CID by which others know this machine; None if it has none that it knows of.

    A guest gets its own, a host without one 2. It can change when a VM is restored or migrated, and is
    not known in Hyper-V guests.

    Raises:
        HvUnsupportedError: there is no /dev/vsock: the module is not loaded.
        HvPermissionError: /dev/vsock is not readable for this user.
    """
    import fcntl

    try:
        with open("/dev/vsock", "rb") as device:
            (cid,) = struct.unpack("@I", fcntl.ioctl(device, _IOCTL_GET_LOCAL_CID, bytes(4)))
    except FileNotFoundError as error:
        raise HvUnsupportedError(errno.ENODEV, f"there is no /dev/vsock: {_LOAD}") from error
    except PermissionError as error:
        raise HvPermissionError(
            errno.EACCES,
            "read the local CID",
            hint="/dev/vsock is not readable for this user; chmod 0666 is usual",
        ) from error
    return None if cid == CID_ANY else int(cid)
