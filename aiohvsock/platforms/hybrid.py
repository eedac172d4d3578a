"""Hybrid vsock: a virtual machine monitor's Unix socket, with a one-line handshake.

To reach the guest, connect to the monitor's socket, send ``CONNECT <port>\\n`` and wait for ``OK <anything>\\n``.
What the guest dials, the monitor delivers to ``<path>_<port>``, without a handshake.

Sources: docs/vsock.md of Firecracker and of Cloud Hypervisor, support/hybrid_vsock of OpenVMM.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
from collections.abc import Generator

from ..addresses import PORT_ANY, Address, HybridAddress
from ..exceptions import (
    HvAddressError,
    HvConnectError,
    HvConnectionRefused,
    HvError,
    HvPermissionError,
    HvTimeout,
)
from . import base
from .base import READABLE, Listener, Names, Options, Readiness, Verdict, set_options

__all__ = ["dial", "failure", "listen", "local", "names", "native", "open_socket", "socket_path"]

# sizeof(sockaddr_un.sun_path) less the closing NUL: 108 on Linux, 104 on the BSDs and macOS.
_LONGEST_PATH = 107 if sys.platform == "linux" else 103

# "OK " and a GUID are 40 bytes with the newline; no monitor sends more.
_LONGEST_REPLY = 64

_CONNECT = {
    errno.ECONNREFUSED: (
        refused := Verdict(
            HvConnectionRefused,
            "nobody listens on that port in the guest, or the monitor is gone",
            transient=True,
        )
    ),
    errno.ECONNRESET: refused,
    errno.EPIPE: refused,
    errno.EAGAIN: Verdict(HvConnectionRefused, "the backlog of the monitor's socket is full", transient=True),
    errno.ETIMEDOUT: Verdict(
        HvTimeout,
        "the monitor took the call but gave no answer: the guest is booting, paused or hung",
        transient=True,
    ),
    errno.ENOENT: Verdict(
        HvConnectError, "there is no such socket: the monitor is not running yet", transient=True
    ),
    errno.EACCES: (
        denied := Verdict(HvPermissionError, "check the rights of the socket and of its directories")
    ),
    errno.EPERM: denied,
    errno.EPROTO: Verdict(HvConnectError, "that socket does not speak hybrid vsock"),
    errno.EPROTOTYPE: Verdict(HvConnectError, "that is not a stream socket"),
    errno.ENOTSOCK: Verdict(HvConnectError, "there is a file, but not a socket"),
}
_LISTEN = {
    errno.EADDRINUSE: Verdict(HvConnectError, "another program listens there"),
    errno.EEXIST: Verdict(HvConnectError, "a file that is not a socket stands there, and was left alone"),
    errno.ENOENT: Verdict(HvConnectError, "its directory does not exist: create it first"),
    errno.ENOTDIR: Verdict(HvConnectError, "a part of its path is not a directory"),
    errno.EACCES: denied,
    errno.EPERM: denied,
    errno.EROFS: denied,
}


def native(address: Address) -> HybridAddress:
    if not isinstance(address, HybridAddress):
        raise HvAddressError(f"{address} is not a hybrid vsock address")
    if address.port == PORT_ANY:
        raise HvAddressError(f"{address} has no port: with hybrid vsock nobody chooses one")
    _fit(address.path)
    return address


def socket_path(address: HybridAddress) -> str:
    """Return the path that a listener on this address binds.

    Raises:
        HvAddressError: it is too long for a Unix socket.
    """
    return _fit(f"{address.path}_{address.port}")


def _fit(path: str) -> str:
    size = len(os.fsencode(path))
    if size > _LONGEST_PATH:
        raise HvAddressError(
            f"path {path!r} is {size} bytes long; a Unix socket's is at most {_LONGEST_PATH}"
        )
    return path


def open_socket(options: Options) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if options.buffer_size is not None:
            # Linux counts what is in flight against the sender's buffer alone (net/unix/af_unix.c).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, options.buffer_size)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, options.buffer_size)
        set_options(sock, options)
    except BaseException:
        sock.close()
        raise
    return sock


def dial(sock: socket.socket, address: Address) -> Generator[Readiness]:
    address = native(address)
    # A Unix socket connects at once or not at all: EAGAIN is a full backlog, not a connect under way, which
    # is what asyncio takes it for.
    try:
        sock.connect(address.path)
    except ConnectionRefusedError:
        if not _is_socket(address.path):  # Linux says "refused" for any file
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK)) from None
        raise
    # In one piece (Firecracker drops a request whose first ten bytes come in two), and with nothing after
    # it (vhost-device-vsock swallows what comes with it).
    request = b"CONNECT %s\n" % str(address.port).encode()
    if sock.send(request) != len(request):
        raise OSError(errno.EPROTO, "the request did not fit into a fresh socket")
    reply = b""
    while not reply.endswith(b"\n"):
        yield READABLE
        try:
            ahead = sock.recv(_LONGEST_REPLY - len(reply), socket.MSG_PEEK)
        except BlockingIOError:
            continue
        if not ahead:
            raise ConnectionRefusedError(
                errno.ECONNREFUSED, "the monitor closed the connection without an OK"
            )
        # Only up to the end of the line: a guest that speaks first has its bytes right behind it.
        reply += sock.recv(ahead.find(b"\n") + 1 or len(ahead))
        if len(reply) >= _LONGEST_REPLY:
            break
    if not (reply.startswith(b"OK ") and reply.endswith(b"\n")):
        raise OSError(errno.EPROTO, f"the answer to CONNECT was {reply!r} instead of OK")


def _is_socket(path: str) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISSOCK(os.stat(path).st_mode)
    return True  # it is not there any more


def names(sock: socket.socket, address: Address) -> Names:
    address = native(address)
    return Names(sock.getsockname(), sock.getpeername(), HybridAddress(address.path, PORT_ANY), address)


def local(sock: socket.socket) -> Address | None:
    return None


def listen(address: Address, options: Options) -> Listener:
    address = native(address)
    path = socket_path(address)
    sock = open_socket(options)
    try:
        _remove_dead(path)
        sock.bind(path)
        return _UnixListener(sock, address, path)
    except OSError as error:
        sock.close()
        raise failure(error, "listen", remote=None, local=address) from error
    except BaseException:
        sock.close()
        raise


def _remove_dead(path: str) -> None:
    """Remove the socket a dead process left behind; leave alone whatever else is there.

    Raises:
        OSError: ``EADDRINUSE``, somebody listens there; ``EEXIST``, it is no socket.
    """
    try:
        before = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(before.st_mode):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    if _is_bound(path):
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    # Of another network namespace the list says nothing.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            pass
        except BlockingIOError:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None
        except FileNotFoundError:
            return
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    _unlink_if_same(path, before)


def _is_bound(path: str) -> bool:
    """Tell whether a socket that is open is bound to a path, also one that does not listen yet (Linux, proc(5))."""
    try:
        with open("/proc/net/unix", "rb") as sockets:
            return any(line.rstrip(b"\n").endswith(b" " + os.fsencode(path)) for line in sockets)
    except OSError:
        return False


def _unlink_if_same(path: str, before: os.stat_result) -> None:
    try:
        if os.path.samestat(os.lstat(path), before):
            os.unlink(path)
    except FileNotFoundError:
        pass


class _UnixListener(Listener):
    def __init__(self, sock: socket.socket, address: HybridAddress, path: str) -> None:
        super().__init__(sock, address)
        self._peer = HybridAddress(address.path, PORT_ANY)
        self._path = path
        self._file = os.lstat(path)
        self._owner = os.getpid()

    def names(self, sock: socket.socket) -> Names:
        return Names(sock.getsockname(), sock.getpeername(), self.address, self._peer)

    def close(self) -> None:
        super().close()
        # Another server may have put its own there meanwhile.
        if os.getpid() == self._owner:  # not in a fork
            _unlink_if_same(self._path, self._file)


def failure(error: OSError, operation: str, *, remote: Address | None, local: Address | None) -> HvError:
    verdicts = _CONNECT if operation == "connect" else _LISTEN
    return base.failure(verdicts, error, operation, remote=remote, local=local)
