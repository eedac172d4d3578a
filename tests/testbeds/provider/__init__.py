"""An AF_HYPERV provider for Wine, which has none: the unmodified CPython and library on that family, over 127.0.0.1.

    provider.install(directory)                      this process is on the host
    provider.install(directory, partition=vm_id)     ... or in that virtual machine
    provider.declare_vm(directory, vm_id, kind="linux")

Processes with the same directory reach each other. It is set in the environment, for those that this one starts, whose
``sitecustomize`` calls :func:`install_from_environment`.

It is no help with what calls Winsock past CPython's modules: ConnectEx, AcceptEx and WSAEventSelect by ctypes, or the sockets of
another loop written in C. Nor does it know security descriptors, containers, or the size of the pieces that a VM's ring gives.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

if sys.platform != "win32":
    raise ImportError("the provider is for Wine: make test-windows runs what needs it")

from .provider import Provider
from .table import HOST, Kind, Machine, Machines, Table
from .winsock import WSAENETUNREACH

__all__ = [
    "Kind",
    "break_pipe",
    "declare_vm",
    "directory",
    "inside",
    "install",
    "install_from_environment",
    "installed",
    "options_of",
    "remove_vm",
    "reset",
    "uninstall",
]

DIRECTORY = "AIOHVSOCK_PROVIDER"
PARTITION = "AIOHVSOCK_PARTITION"

_provider: Provider | None = None


def install(directory: str | os.PathLike[str], partition: str | UUID = "host") -> None:
    """Provide AF_HYPERV to this process, until it ends or :func:`uninstall` is called.

    Args:
        directory: shared by all processes that reach each other; made if there is none.
        partition: ``"host"``, or the id of a declared virtual machine.
    """
    global _provider
    if _provider is not None:
        raise RuntimeError("the provider is installed")
    provider = Provider(Table(Path(directory).absolute()), _partition(partition))
    provider.install()
    _provider = provider
    os.environ[DIRECTORY] = str(Path(directory).absolute())
    os.environ[PARTITION] = str(partition)
    # Sockets are closed after the last moment at which Python can be called.
    atexit.register(uninstall)


def install_from_environment() -> bool:
    """Install what the variables AIOHVSOCK_PROVIDER and AIOHVSOCK_PARTITION say, if they say anything and it isn't yet.

    Returns:
        Whether this process has the provider.
    """
    if _provider is None and DIRECTORY in os.environ:
        install(os.environ[DIRECTORY], os.environ.get(PARTITION, "host"))
    return installed()


def installed() -> bool:
    """Tell whether this process has the provider."""
    return _provider is not None


def uninstall() -> None:
    """Take the provider away again; it may not be there."""
    global _provider
    provider, _provider = _provider, None
    if provider is not None:
        provider.uninstall()
        atexit.unregister(uninstall)


def directory() -> str:
    """The directory of the provider of this process."""
    return os.environ[DIRECTORY]


@contextlib.contextmanager
def inside(partition: str | UUID) -> Iterator[None]:
    """Make sockets as if this process were in another partition, ``"host"`` or a virtual machine."""
    variable = _installed().partition
    token = variable.set(_partition(partition))
    try:
        yield
    finally:
        variable.reset(token)


def declare_vm(
    directory: str | os.PathLike[str],
    vm_id: str | UUID,
    kind: Kind = "windows",
    *,
    error: int = WSAENETUNREACH,
) -> None:
    """Say that there is a virtual machine, or that it has become another one.

    Args:
        directory: of the provider.
        vm_id: of the machine.
        kind: ``"windows"``, ``"linux"``, ``"wsl"`` (Linux that no wildcard takes, and for which nothing is registered) or ``"off"``.
        error: what dialling it gives while it is off, 10051 or 10060.
    """
    machine = Machine(UUID(str(vm_id)), kind, error if kind == "off" else 0)
    Machines(Path(directory)).declare(machine)


def remove_vm(directory: str | os.PathLike[str], vm_id: str | UUID) -> None:
    """Say that there is no such virtual machine any more."""
    Machines(Path(directory)).remove(UUID(str(vm_id)))


def options_of(sock: socket.socket | int) -> dict[tuple[int, int], int | bytes]:
    """What was set on a socket, accepted ones included: values of four bytes are numbers.

    Args:
        sock: of this process, or its handle.
    """
    return _installed().options(_handle(sock))


def break_pipe(sock: socket.socket | int) -> None:
    """Let the next end that a socket of this process reads be ERROR_BROKEN_PIPE, as when its peer closes without SHUT_WR."""
    _installed().break_pipe(_handle(sock))


def reset(vm_id: str | UUID | None = None) -> None:
    """End connections with 10054, as when a virtual machine stops.

    Both ends see it, in whichever processes they are; but one of them must be in this one.

    Args:
        vm_id: of the machine; None for all connections of this process, loopback included.
    """
    _installed().reset(None if vm_id is None else UUID(str(vm_id)))


def _handle(sock: socket.socket | int) -> int:
    return sock if isinstance(sock, int) else sock.fileno()


def _installed() -> Provider:
    if _provider is None:
        raise RuntimeError("the provider is not installed")
    return _provider


def _partition(name: str | UUID) -> UUID:
    return HOST if name == "host" else UUID(str(name))
