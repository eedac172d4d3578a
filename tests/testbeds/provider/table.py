"""Which machines there are, who listens where, who is connected: in a directory, for all processes that take part.

``machines/``     an empty file for each virtual machine; the name says what it is.
``listeners/``    an empty file for each bound address, and one with the TCP port behind its name once it listens. The system
                  deletes them when they are closed, so those of a process that was killed go, too.
``connections``   a record for each TCP port on the dialling side, shared in memory.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import winreg
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args
from uuid import UUID

if sys.platform != "win32":
    raise ImportError("the registry of services is on Windows")

from . import winsock
from .winsock import Address, WinsockError

__all__ = ["HOST", "Claim", "Connection", "Kind", "Machine", "Machines", "Route", "Table", "is_registered"]

HOST = UUID(int=0)
"""The partition of the machine itself; the others have the ids of the virtual machines."""

Kind = Literal["windows", "linux", "wsl", "off"]

SERVICES = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices"

_RECORD = struct.Struct("<HBx16s16s")
_END = 2
_PORTS = 2**16

# A wildcard stands for whom the listener takes; the exact id is preferred.
_FROM_LOOPBACK = (winsock.GUID_LOOPBACK, winsock.GUID_ZERO)
_FROM_PARENT = (winsock.GUID_PARENT, winsock.GUID_ZERO)
_FROM_CHILDREN = (winsock.GUID_CHILDREN, winsock.GUID_ZERO)

_BOUND_ANYWHERE = {
    winsock.GUID_ZERO,
    winsock.GUID_CHILDREN,
    winsock.GUID_BROADCAST,
    winsock.GUID_SILOHOST,
    winsock.GUID_LOOPBACK,
}


class Machine(NamedTuple):
    vm_id: UUID
    kind: Kind
    error: int = 0
    """With what connects to a machine that is off fail."""


class Connection:
    """A connection, as both of its ends find it: by the TCP port on the side that dialled."""

    def __init__(self, records: mmap.mmap, port: int, record: bytes) -> None:
        self._records = records
        self._start = port * _RECORD.size
        self._record = record
        self._reset_record = record[:_END] + b"\1" + record[_END + 1 :]

    @classmethod
    def to(cls, records: mmap.mmap, port: int, listener: int, name: Address) -> Connection:
        """Write down who dials, before TCP connects."""
        record = _RECORD.pack(listener, 0, name.vm_id.bytes_le, name.service_id.bytes_le)
        records[port * _RECORD.size : (port + 1) * _RECORD.size] = record
        return cls(records, port, record)

    @classmethod
    def of(cls, records: mmap.mmap, port: int) -> Connection:
        """Find who dialled from a TCP port."""
        return cls(records, port, records[port * _RECORD.size : (port + 1) * _RECORD.size])

    @property
    def listener(self) -> int:
        """The TCP port that was dialled."""
        listener: int = _RECORD.unpack(self._record)[0]
        return listener

    @property
    def dialler(self) -> Address:
        """The name of who dialled, as the listener knows it."""
        _, _, vm_id, service_id = _RECORD.unpack(self._record)
        return Address(UUID(bytes_le=vm_id), UUID(bytes_le=service_id))

    @property
    def was_reset(self) -> bool:
        return (
            not self._records.closed
            and self._records[self._start : self._start + _RECORD.size] == self._reset_record
        )

    def reset(self) -> None:
        # Once this end is closed, the port can be another connection's.
        if self._records[self._start : self._start + _RECORD.size] == self._record:
            self._records[self._start + _END] = 1


@dataclass(frozen=True, slots=True)
class Route:
    """Where a connect ends."""

    port: int = 0
    """The TCP port of who listens; 0 if the connect fails."""
    error: int = 0
    waits: bool = False
    """It fails only when the time is up."""
    vm_id: UUID | None = None
    """The machine that the connection comes from or goes to; None on loopback."""
    source: UUID = winsock.GUID_LOOPBACK
    """The VM id under which the listener knows who dials."""
    linux: bool = False
    """The side that dials is Linux, and has ports for service ids."""


class Claim:
    """A bound address. It lasts until it is released, or the process ends."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._files = [_create(path)]

    def listen(self, port: int) -> None:
        if len(self._files) == 1:
            self._files.append(_create(f"{self._path}_{port}"))

    def release(self) -> None:
        while self._files:
            os.close(self._files.pop())


def _create(path: str) -> int:
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_TEMPORARY)


class Machines:
    """The virtual machines that were declared in a directory, which is made if there is none."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "machines"
        self._directory.mkdir(parents=True, exist_ok=True)

    def declare(self, machine: Machine) -> None:
        if machine.kind not in get_args(Kind):
            raise ValueError(f"a machine is one of {', '.join(get_args(Kind))}, not {machine.kind!r}")
        # In the name, so that nobody reads half of it.
        name = f"{machine.vm_id.hex}_{machine.kind}_{machine.error}"
        before = set(self._names(machine.vm_id)) - {name}
        (self._directory / name).touch()
        for other in before:
            (self._directory / other).unlink(missing_ok=True)

    def remove(self, vm_id: UUID) -> None:
        for name in self._names(vm_id):
            (self._directory / name).unlink(missing_ok=True)

    def get(self, vm_id: UUID) -> Machine | None:
        for name in self._names(vm_id):
            _, kind, error = name.split("_")
            return Machine(vm_id, cast(Kind, kind), int(error))
        return None

    def _names(self, vm_id: UUID) -> list[str]:
        return [name for name in os.listdir(self._directory) if name.startswith(vm_id.hex)]


class Table:
    """The table in a directory, which is made if there is none.

    A partition is HOST or the id of a virtual machine.
    """

    def __init__(self, directory: Path) -> None:
        self._machines = Machines(directory)
        self._listeners = directory / "listeners"
        self._listeners.mkdir(exist_ok=True)
        with open(directory / "connections", "a+b") as file:
            self._records = mmap.mmap(file.fileno(), _PORTS * _RECORD.size)

    # -- listeners ---------------------------------------------------------------------------------------------

    def claim(self, partition: UUID, address: Address) -> Claim:
        """Bind an address.

        Raises:
            WinsockError: it is bound, there is no such machine, or the service is not registered.
        """
        machine = self._bindable(partition, address.vm_id)
        # A wildcard takes loopback, too, which asks for no registration.
        if partition == HOST and (machine is not None or address.vm_id == winsock.GUID_CHILDREN):
            self._check_registration(machine, address.service_id)
        try:
            return Claim(str(self._listeners / self._key(partition, address)))
        except FileExistsError:
            raise WinsockError(winsock.WSAEADDRINUSE) from None

    def _bindable(self, partition: UUID, vm_id: UUID) -> Machine | None:
        if vm_id in _BOUND_ANYWHERE or (vm_id == winsock.GUID_PARENT and partition != HOST):
            return None
        machine = self._machines.get(vm_id) if partition == HOST else None
        if machine is None:
            raise WinsockError(winsock.WSAEADDRNOTAVAIL)
        return machine

    def _check_registration(self, machine: Machine | None, service_id: UUID) -> None:
        # WSL's own security descriptor grants access to whoever started it; nothing is registered.
        if (machine is None or machine.kind != "wsl") and not is_registered(service_id):
            raise WinsockError(winsock.WSAEACCES)

    @staticmethod
    def _key(partition: UUID, address: Address) -> str:
        return f"{partition.hex}_{address.vm_id.hex}_{address.service_id.hex}"

    def _listener(self, partition: UUID, vm_ids: tuple[UUID, ...], service_id: UUID) -> int:
        """The TCP port of who listens there; 0 if nobody does."""
        names = os.listdir(self._listeners)
        for vm_id in vm_ids:
            key = self._key(partition, Address(vm_id, service_id)) + "_"
            for name in names:
                if name.startswith(key):
                    return int(name.removeprefix(key))
        return 0

    # -- connections -------------------------------------------------------------------------------------------

    def route(self, partition: UUID, address: Address) -> Route:
        """Where dialling an address from a partition leads.

        Raises:
            WinsockError: it cannot be dialled.
        """
        vm_id, service_id = address
        if vm_id == winsock.GUID_LOOPBACK:
            return _to(self._listener(partition, _FROM_LOOPBACK, service_id))
        if partition == HOST:
            return self._to_guest(self._machines.get(vm_id), service_id)
        if vm_id == winsock.GUID_PARENT:
            return self._to_host(self._machines.get(partition), service_id)
        # One guest does not reach another, and nobody a wildcard.
        raise WinsockError(winsock.WSAEADDRNOTAVAIL)

    def _to_guest(self, machine: Machine | None, service_id: UUID) -> Route:
        if machine is None:
            raise WinsockError(winsock.WSAEADDRNOTAVAIL)
        self._check_registration(machine, service_id)
        if machine.kind == "off":
            return Route(error=machine.error, waits=machine.error == winsock.WSAETIMEDOUT)
        port = self._listener(machine.vm_id, _FROM_PARENT, service_id)
        return _to(port, machine, source=winsock.GUID_PARENT)

    def _to_host(self, machine: Machine | None, service_id: UUID) -> Route:
        if machine is None or machine.kind == "off":
            raise WinsockError(winsock.WSAENETUNREACH)  # whoever dials was declared to be none
        self._check_registration(machine, service_id)
        wildcards = () if machine.kind == "wsl" else _FROM_CHILDREN
        port = self._listener(HOST, (machine.vm_id, *wildcards), service_id)
        return _to(port, machine, source=machine.vm_id, linux=machine.kind in ("linux", "wsl"))

    @staticmethod
    def machine_behind(partition: UUID, name: Address) -> UUID | None:
        """The machine that a connection which a partition accepted from there belongs to; None on loopback."""
        if name.vm_id == winsock.GUID_LOOPBACK:
            return None
        return partition if name.vm_id == winsock.GUID_PARENT else name.vm_id

    def connecting(self, port: int, listener: int, name: Address) -> Connection:
        """Write down who dials from a TCP port, before TCP connects."""
        return Connection.to(self._records, port, listener, name)

    def connection(self, port: int) -> Connection:
        """Find who dialled from a TCP port."""
        return Connection.of(self._records, port)

    def close(self) -> None:
        self._records.close()


def _to(
    port: int, machine: Machine | None = None, source: UUID = winsock.GUID_LOOPBACK, linux: bool = False
) -> Route:
    vm_id = None if machine is None else machine.vm_id
    if port:
        return Route(port, vm_id=vm_id, source=source, linux=linux)
    # A Linux guest ignores an offer that nobody waits for; to the others it is refused at once. Linux itself is not
    # told of the host's refusal either.
    if machine is not None and machine.kind in ("linux", "wsl"):
        return Route(error=winsock.WSAETIMEDOUT, waits=True)
    return Route(error=winsock.WSAECONNREFUSED)


def is_registered(service_id: UUID) -> bool:
    """Tell whether the registry of this machine has the service."""
    try:
        access = winreg.KEY_READ | winreg.KEY_WOW64_64KEY
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, rf"{SERVICES}\{service_id}", access=access):
            return True
    except FileNotFoundError:
        return False
