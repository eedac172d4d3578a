"""What the platforms have in common: their interface, and how a system's error becomes one of ours."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from ..addresses import Address
from ..exceptions import HvConnectError, HvError

__all__ = [
    "READABLE",
    "WRITABLE",
    "Listener",
    "Names",
    "Options",
    "Platform",
    "Readiness",
    "Verdict",
    "failure",
    "set_options",
]

Readiness: TypeAlias = Literal["readable", "writable"]
READABLE: Readiness = "readable"
WRITABLE: Readiness = "writable"


class Names(NamedTuple):
    """The names of a connected socket, read once: after a local shutdown() the kernel no longer tells them."""

    sockname: Any
    """What ``getsockname()`` said."""
    peername: Any
    """What ``getpeername()`` said."""
    local: Address | None = None
    """Our own address, typed; None for a socket of a foreign family."""
    peer: Address | None = None
    """The peer's address, typed; None for a socket of a foreign family."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a user can ask of a socket; None leaves the system's default."""

    connect_timeout: float | None = None
    """Seconds for one attempt to connect; None waits as long as the system can."""
    buffer_size: int | None = None
    """Bytes the kernel buffers each way."""
    connected_suspend: bool = False
    """Stay connected while the VM is paused. AF_HYPERV only; the others do so anyway or cannot."""
    socket_options: tuple[tuple[int, int, int | bytes], ...] = ()
    """Further ones, as ``setsockopt()`` takes them: level, option, value."""


def set_options(sock: socket.socket, options: Options) -> None:
    """Set the further options of a user.

    Raises:
        OSError: the system does not take one of them.
    """
    for level, option, value in options.socket_options:
        try:
            sock.setsockopt(level, option, value)
        except OSError as error:
            error.strerror = f"{error.strerror} (socket option {option} of level {level})"
            raise


class Listener:
    """A bound socket and what is left behind when it closes."""

    def __init__(self, sock: socket.socket, address: Address | None) -> None:
        self.sock = sock
        self.address = address

    def close(self) -> None:
        self.sock.close()

    def names(self, sock: socket.socket) -> Names:
        """Return the names of a socket this listener accepted."""
        return Names(sock.getsockname(), sock.getpeername())


class Platform(Protocol):
    """What a module of this package offers."""

    def native(self, address: Address) -> Address:
        """Return the address in this platform's own kind.

        Raises:
            HvAddressError: it has no counterpart here.
        """

    def open_socket(self, options: Options) -> socket.socket:
        """Return a new, non-blocking socket.

        Raises:
            HvUnsupportedError: this system or this Python cannot; the text has the cure.
            OSError: the process has no descriptor left, ...
        """

    def dial(self, sock: socket.socket, address: Address) -> Generator[Readiness]:
        """Connect a fresh socket, yielding what to wait for; it is connected when the generator ends.

        A socket whose dial failed is spent: the next attempt needs a new one.

        Raises:
            OSError: the system's own error, to be given to :meth:`failure`.
        """

    def names(self, sock: socket.socket, address: Address) -> Names:
        """Return the names of a socket that was dialled to ``address``."""

    def local(self, sock: socket.socket) -> Address | None:
        """Return our own address of a socket whose dial failed, as far as it is known."""

    def listen(self, address: Address, options: Options) -> Listener:
        """Bind a socket, which does not listen yet.

        Raises:
            HvError: it cannot be bound, or this system cannot listen at all.
        """

    def failure(
        self, error: OSError, operation: str, *, remote: Address | None, local: Address | None
    ) -> HvError:
        """Return the error of ours that says what the system's error means here."""


class Verdict(NamedTuple):
    """What an error number means on a platform."""

    error: type[HvConnectError]
    hint: str = ""
    transient: bool = False


def failure(
    verdicts: Mapping[int, Verdict],
    error: OSError,
    operation: str,
    *,
    remote: Address | None,
    local: Address | None,
    meaning: int | None = None,
) -> HvError:
    """Return the error of ours for a system's error, by its number, or by what that number means."""
    code = error.errno or 0
    kind, hint, transient = verdicts.get(code if meaning is None else meaning, Verdict(HvConnectError))
    text = error.strerror or str(error)
    return kind(
        code,
        operation,
        remote=remote,
        local=local,
        hint=hint,
        detail="" if text == os.strerror(code) else text,
        transient=transient,
    )
