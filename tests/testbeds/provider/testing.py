"""What tests of Hyper-V sockets make, and forget again: sockets, virtual machines, registered services."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator

import pytest

if sys.platform != "win32":
    raise ImportError("the provider is for Wine: make test-windows runs what needs it")

import winreg

from . import declare_vm, directory, install_from_environment, remove_vm, uninstall
from .table import SERVICES, Kind
from .winsock import HV_PROTOCOL_RAW, WSAEWOULDBLOCK

__all__ = ["Made", "error_of", "making", "outcome", "service"]

# Seconds after which what never comes has failed; less than a test may take.
_PATIENCE = 10

LOOPBACK = socket.HV_GUID_LOOPBACK.lower()


def service() -> str:
    """A service id that nobody else has."""
    return str(uuid.uuid4())


def error_of(call: Callable[..., object], *arguments: object) -> int:
    """The number that a call on a socket fails with."""
    try:
        call(*arguments)
    except OSError as error:
        assert error.winerror is not None, error
        return error.winerror
    raise AssertionError(f"{call.__name__} did not fail")


def outcome(sock: socket.socket, address: tuple[str, str]) -> int:
    """Connect without blocking, as a selecting loop does it, and return how it ended."""
    sock.setblocking(False)
    result = sock.connect_ex(address)
    if result != WSAEWOULDBLOCK:
        return result
    _, writable, failed = select.select([], [sock], [sock], _PATIENCE)
    assert writable or failed, "neither connected nor failed"
    code: int = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    assert bool(failed) == bool(code)
    return code


@contextlib.contextmanager
def making() -> Iterator[Made]:
    """Make things for the time of a test, and install the provider if nobody has."""
    if os.environ.get("AIOHVSOCK_TESTBED") != "wine":
        pytest.skip(
            "its AF_HYPERV would stand before the real one: make test-windows on Linux runs it under Wine"
        )
    with contextlib.ExitStack() as stack:
        if not install_from_environment():
            os.environ["AIOHVSOCK_PROVIDER"] = stack.enter_context(
                tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            )
            install_from_environment()
            stack.callback(os.environ.pop, "AIOHVSOCK_PROVIDER")
            stack.callback(uninstall)
        yield Made(stack)


class Made:
    """What was made; it goes with the stack."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack

    def keep(self, sock: socket.socket) -> socket.socket:
        sock.settimeout(_PATIENCE)
        return self._stack.enter_context(sock)

    def unconnected(self) -> socket.socket:
        return self.keep(socket.socket(socket.AF_HYPERV, socket.SOCK_STREAM, HV_PROTOCOL_RAW))

    def listener(self, vm_id: str = LOOPBACK, service_id: str | None = None) -> socket.socket:
        sock = self.unconnected()
        sock.bind((vm_id, service_id or service()))
        sock.listen()
        return sock

    def connected(self, address: tuple[str, str]) -> socket.socket:
        sock = self.unconnected()
        sock.connect(address)
        return sock

    def accepted(self, listener: socket.socket) -> socket.socket:
        return self.keep(listener.accept()[0])

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Two ends of a connection on loopback: of who dialled, and of who listened."""
        listener = self.listener()
        client = self.connected(listener.getsockname())
        return client, self.accepted(listener)

    def vm(self, kind: Kind = "windows", **options: int) -> str:
        """The id of a new virtual machine."""
        vm_id = str(uuid.uuid4())
        declare_vm(directory(), vm_id, kind, **options)
        self._stack.callback(remove_vm, directory(), vm_id)
        return vm_id

    def registered(self) -> str:
        """A service that the registry has."""
        service_id = service()
        key = rf"{SERVICES}\{service_id}"
        access = winreg.KEY_WRITE | winreg.KEY_WOW64_64KEY
        winreg.CreateKeyEx(winreg.HKEY_LOCAL_MACHINE, key, access=access).Close()
        self._stack.callback(winreg.DeleteKeyEx, winreg.HKEY_LOCAL_MACHINE, key)
        return service_id
