"""Systems without these sockets: each function says so in a sentence."""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Generator
from typing import NoReturn

from ..addresses import Address
from ..exceptions import HvError, HvUnsupportedError
from .base import Listener, Names, Options, Readiness

__all__ = ["dial", "failure", "listen", "local", "names", "native", "open_socket"]


def _refuse() -> NoReturn:
    if sys.platform == "win32":
        reason = "Python has no Unix sockets on Windows: vsock+unix:// needs Linux, or another system that has them"
    else:
        reason = (
            f"there are no VM sockets on {sys.platform}: this needs Linux or Windows, "
            "or any system with Unix sockets for vsock+unix:// addresses"
        )
    raise HvUnsupportedError(errno.EAFNOSUPPORT, reason)


def native(address: Address) -> Address:
    _refuse()


def open_socket(options: Options) -> socket.socket:
    _refuse()


def dial(sock: socket.socket, address: Address) -> Generator[Readiness]:
    _refuse()


def names(sock: socket.socket, address: Address) -> Names:
    _refuse()


def local(sock: socket.socket) -> Address | None:
    _refuse()


def listen(address: Address, options: Options) -> Listener:
    _refuse()


def failure(error: OSError, operation: str, *, remote: Address | None, local: Address | None) -> HvError:
    _refuse()
