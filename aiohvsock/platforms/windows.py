"""AF_HYPERV on Windows: the host, its guests, containers and WSL.

Sources: hvsocket.h of the Windows SDK; Modules/socketmodule.c of CPython; what other programs that live on these
sockets found out about error numbers (hcsshim, go-winio, WSL, OpenVMM).
"""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import sys
import uuid
from collections.abc import Generator
from typing import Any

from ..addresses import Address, HybridAddress, HypervAddress, to_hyperv
from ..exceptions import (
    HvAddressError,
    HvConnectError,
    HvConnectionRefused,
    HvError,
    HvPermissionError,
    HvTimeout,
    HvUnsupportedError,
)
from . import base, registry
from .base import WRITABLE, Listener, Names, Options, Readiness, Verdict, set_options

__all__ = [
    "HVSOCKET_CONTAINER_PASSTHRU",
    "HVSOCKET_HIGH_VTL",
    "HV_PROTOCOL_RAW",
    "dial",
    "failure",
    "listen",
    "listener_of",
    "local",
    "names",
    "native",
    "open_socket",
    "winsock_code",
]

# hvsocket.h; CPython has some of these, on Windows only.
HV_PROTOCOL_RAW = 1
HVSOCKET_CONNECT_TIMEOUT = 1
HVSOCKET_CONTAINER_PASSTHRU = 2
HVSOCKET_CONNECTED_SUSPEND = 4
HVSOCKET_HIGH_VTL = 8
_CONNECT_TIMEOUT_MAX = 300_000  # milliseconds

# winerror.h
_EACCES = 10013
_EINVAL = 10022
_EPROTONOSUPPORT = 10043
_EAFNOSUPPORT = 10047
_EADDRINUSE = 10048
_EADDRNOTAVAIL = 10049
_ENETDOWN = 10050
_ENETUNREACH = 10051
_ECONNABORTED = 10053
_ECONNRESET = 10054
_ENOTCONN = 10057
_ETIMEDOUT = 10060
_ECONNREFUSED = 10061
_EHOSTUNREACH = 10065

# What overlapped operations and SO_ERROR say instead: Windows' own numbers (RtlNtStatusToDosError), and C's.
_OTHER_FACES = {
    5: _EACCES,
    64: _ECONNRESET,
    121: _ETIMEDOUT,
    995: _ECONNABORTED,
    1225: _ECONNREFUSED,
    1231: _ENETUNREACH,
    1232: _EHOSTUNREACH,
    1236: _ECONNABORTED,
    errno.EACCES: _EACCES,
    errno.EINVAL: _EINVAL,
    errno.ECONNREFUSED: _ECONNREFUSED,
    errno.ETIMEDOUT: _ETIMEDOUT,
}

_RIGHTS = (
    "on the host, the service must be registered (aiohvsock.hyperv.register_service()), and the caller an "
    "administrator or in the group 'Hyper-V Administrators'; a VM that another user started, as with WSL, is not "
    "reached at all"
)
_WILDCARDS = (
    "any, children and broadcast are for listening only, parent is for a guest that dials its host, "
    "and a VM id is that of a VM that is running: it changes"
)

_CONNECT = {
    _EACCES: (denied := Verdict(HvPermissionError, _RIGHTS)),
    _EINVAL: Verdict(HvConnectError, "the service is disabled for that VM, or an option has a bad value"),
    _EADDRNOTAVAIL: Verdict(HvConnectError, _WILDCARDS),
    _ENETDOWN: Verdict(
        HvConnectError, "Hyper-V is not running, or the VM is just starting again", transient=True
    ),
    _ENETUNREACH: (unreachable := Verdict(HvConnectError, "the VM is not running", transient=True)),
    _EHOSTUNREACH: unreachable,
    1201: unreachable,  # ERROR_CONNECTION_UNAVAIL
    _ETIMEDOUT: Verdict(
        HvTimeout,
        "the VM is booting, paused or has no driver; in a Linux guest nobody listens on that port, "
        "which has the same effect",
        transient=True,
    ),
    _ECONNREFUSED: Verdict(
        HvConnectionRefused,
        "nobody listens on that service there, or only on 'any', and the VM allows no wildcards",
        transient=True,
    ),
    _ECONNRESET: (gone := Verdict(HvConnectError, "the VM was stopped or paused", transient=True)),
    _ECONNABORTED: gone,
}
_LISTEN = {
    _EACCES: denied,
    _EINVAL: Verdict(HvConnectError, "the service is disabled for that VM, or an option has a bad value"),
    _EADDRINUSE: Verdict(HvConnectError, "another program listens on that service"),
    _EADDRNOTAVAIL: Verdict(
        HvConnectError,
        "there is no VM with that id now: it changes when a VM, and above all WSL, starts again; parent is the host as "
        "a guest dials it: to hear guests, listen on any or children",
    ),
    _ENETDOWN: Verdict(HvConnectError, "Hyper-V is not running"),
}


def native(address: Address) -> HypervAddress:
    if isinstance(address, HybridAddress):
        raise HvAddressError(f"{address} is not an AF_HYPERV address")
    return registry.resolve(to_hyperv(address))


def _sockaddr(address: Address) -> tuple[str, str]:
    address = native(address)
    # CPython takes text only, in this form.
    return str(address.vm_id), str(address.service_id)


def open_socket(options: Options) -> socket.socket:
    if not hasattr(socket, "AF_HYPERV"):
        raise HvUnsupportedError(
            errno.EAFNOSUPPORT,
            f"VM sockets need Python 3.12 or newer on Windows, and this is {sys.version.split()[0]} ({sys.executable})",
        )
    try:
        sock = socket.socket(socket.AF_HYPERV, socket.SOCK_STREAM, HV_PROTOCOL_RAW)
    except OSError as error:
        if winsock_code(error) not in (_EAFNOSUPPORT, _ENETDOWN, _EPROTONOSUPPORT):
            raise
        raise HvUnsupportedError(
            error.errno or errno.EAFNOSUPPORT,
            "this Windows has no Hyper-V sockets: turn on the feature 'Hyper-V' or 'Virtual Machine Platform' "
            f"(optionalfeatures.exe) and restart ({error.strerror})",
        ) from error
    try:
        sock.setblocking(False)
        _set(sock, HVSOCKET_CONNECT_TIMEOUT, _milliseconds(options.connect_timeout))
        if options.connected_suspend:
            _set(sock, HVSOCKET_CONNECTED_SUSPEND, 1)
        if options.buffer_size is not None:
            for name in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                # A hint for the rings of the channel, which not every version of Windows takes.
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, name, options.buffer_size)
        set_options(sock, options)
    except BaseException:
        sock.close()
        raise
    return sock


def _set(sock: socket.socket, option: int, value: int) -> None:
    sock.setsockopt(HV_PROTOCOL_RAW, option, value)


def _milliseconds(timeout: float | None) -> int:
    """Return Windows' own limit for a connect, which is 2 s unless told."""
    if timeout is None or timeout * 1000 >= _CONNECT_TIMEOUT_MAX:
        return _CONNECT_TIMEOUT_MAX
    return max(1, math.ceil(timeout * 1000))


def dial(sock: socket.socket, address: Address) -> Generator[Readiness]:
    try:
        sock.connect(_sockaddr(address))
    except BlockingIOError:
        yield WRITABLE
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise _system_error(code) from None
    try:
        sock.getpeername()
    except OSError as error:
        if winsock_code(error) != _ENOTCONN:
            raise
        # The listener closed with this connection in its backlog.
        raise _system_error(_ECONNREFUSED) from error


def _system_error(code: int) -> OSError:
    """Return the error that a blocking call would have raised."""
    if sys.platform == "win32":
        import ctypes

        return ctypes.WinError(code)
    return OSError(code, f"Winsock error {code}")


def names(sock: socket.socket, address: Address | None = None) -> Names:
    peername = sock.getpeername()  # first: a socket without a name of its own is another error
    sockname = sock.getsockname()
    return Names(sockname, peername, _typed(sockname), _typed(peername))


def local(sock: socket.socket) -> Address | None:
    # One that was never bound has no name, and says so with an error.
    with contextlib.suppress(OSError):
        return _typed(sock.getsockname())
    return None


def _typed(sockaddr: tuple[Any, ...]) -> HypervAddress:
    return HypervAddress(uuid.UUID(sockaddr[0]), uuid.UUID(sockaddr[1]))


def listen(address: Address, options: Options) -> Listener:
    address = native(address)
    sock = open_socket(options)
    try:
        sock.bind(_sockaddr(address))
    except OSError as error:
        sock.close()
        raise failure(error, "listen", remote=None, local=address) from error
    except BaseException:
        sock.close()
        raise
    return _HypervListener(sock, address, options)


def listener_of(sock: socket.socket) -> Listener:
    return _HypervListener(sock, _typed(sock.getsockname()), Options())


class _HypervListener(Listener):
    def __init__(self, sock: socket.socket, address: HypervAddress, options: Options) -> None:
        super().__init__(sock, address)
        self._options = options
        self._sockname = str(address.vm_id), str(address.service_id)

    def names(self, sock: socket.socket) -> Names:
        if self._options.connected_suspend:
            _set(sock, HVSOCKET_CONNECTED_SUSPEND, 1)  # not inherited, as WSL has it
        peername = sock.getpeername()
        # Its own name is an arbitrary one (go-winio, TestHvSockAddresses).
        return Names(self._sockname, peername, self.address, _typed(peername))


def winsock_code(error: OSError) -> int:
    """Return the Winsock number of an error, whichever of its faces it shows."""
    code = getattr(error, "winerror", None) or error.errno or 0
    return _OTHER_FACES.get(code, code)


def failure(error: OSError, operation: str, *, remote: Address | None, local: Address | None) -> HvError:
    verdicts = _CONNECT if operation == "connect" else _LISTEN
    return base.failure(verdicts, error, operation, remote=remote, local=local, meaning=winsock_code(error))
