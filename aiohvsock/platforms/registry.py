"""The registry of services on Windows, as far as it is read: what the name in an address stands for.

Each service has a key, named by its GUID without braces, below :data:`KEY` on the host; its value ElementName
is the name. Hyper-V goes by the key alone: podman's have no name, and work.

Sources: "Make your own integration services" of MicrosoftDocs/Virtualization-Documentation;
pkg/machine/hyperv/vsock of podman.
"""

from __future__ import annotations

import contextlib
import errno
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from ..addresses import HypervAddress, service_port
from ..exceptions import HvAddressError, HvPermissionError, HvUnsupportedError

__all__ = [
    "KEY",
    "NAME",
    "OURS",
    "TOOL",
    "VOLATILE",
    "Service",
    "find",
    "full_key",
    "look_up",
    "read",
    "refuse",
    "resolve",
    "rights",
    "same_name",
    "services",
]

KEY = r"SOFTWARE\Microsoft\Windows NT\CurrentVersion\Virtualization\GuestCommunicationServices"
"""Below HKEY_LOCAL_MACHINE. A 32-bit Python has to ask for the 64-bit view."""
NAME = "ElementName"
TOOL = "ToolName"
"""Podman's word for the program that made the key."""
OURS = "aiohvsock"
VOLATILE = "Volatile"
"""A value of our own: Windows does not tell whether a key is volatile."""

_ERROR_KEY_DELETED = 1018
_ERROR_NO_MORE_ITEMS = 259


@dataclass(frozen=True, slots=True)
class Service:
    """A service that is registered in this machine's registry.

    Source of the values' names: Microsoft's documentation, and podman's for ToolName.
    """

    service_id: uuid.UUID
    name: str | None = None
    """What people call it; None for keys without ElementName, as podman's."""
    tool: str | None = None
    """The program that made it, if the key says so: ``"aiohvsock"``, ``"podman"``."""
    volatile: bool = False
    """Gone when the machine restarts. Known of our own only; False for others."""

    @property
    def port(self) -> int | None:
        """The vsock port a Linux guest knows it by, or None if the service id is not made from one."""
        return service_port(self.service_id)

    @property
    def made_here(self) -> bool:
        """Whether :func:`~aiohvsock.hyperv.register_service` made it, in this process or another."""
        return self.tool == OURS

    def __str__(self) -> str:
        port = "" if self.port is None else f", port {self.port}"
        return f"{'' if self.name is None else f'{self.name!r} '}({self.service_id}{port})"


def full_key(service_id: uuid.UUID) -> str:
    """Return the path of a service's key below HKEY_LOCAL_MACHINE."""
    return f"{KEY}\\{service_id}"


def same_name(one: str | None, other: str | None) -> bool:
    """Tell whether two names are one: case does not matter, as in the rest of Windows."""
    return one is not None and other is not None and one.casefold() == other.casefold()


def services() -> list[Service]:
    """Return the registered services, by name; those without a name come last.

    Raises:
        HvUnsupportedError: this is not Windows.
        HvPermissionError: the registry may not be read.
    """
    found = {service_id: read(service_id) for service_id in _service_ids()}
    return sorted(
        # What was removed meanwhile is not there.
        (service for service in found.values() if service is not None),
        key=lambda service: (service.name is None, (service.name or "").casefold(), service.service_id),
    )


def _service_ids() -> list[uuid.UUID]:
    if sys.platform != "win32":
        refuse()
    import winreg

    with _reading():
        try:
            key = winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, KEY, 0, winreg.KEY_READ | winreg.KEY_WOW64_64KEY)
        except FileNotFoundError:
            return []
        with key:
            while True:
                # Keys are enumerated by number, and a removed one moves the rest: until nothing has changed.
                state = winreg.QueryInfoKey(key)
                try:
                    names = [winreg.EnumKey(key, number) for number in range(state[0])]
                except OSError as error:
                    if error.winerror != _ERROR_NO_MORE_ITEMS:
                        raise
                    continue
                if winreg.QueryInfoKey(key) == state:
                    return [service_id for name in names if (service_id := _guid(name)) is not None]


def _guid(name: str) -> uuid.UUID | None:
    """Return the GUID that a key is named by; what it is in another form, as in braces, read() will not find."""
    try:
        return uuid.UUID(name)
    except ValueError:
        return None


def read(service_id: uuid.UUID) -> Service | None:
    """Return what is registered for a service id, or None.

    Raises: as :func:`services`.
    """
    if sys.platform != "win32":
        refuse()
    import winreg

    values: dict[str, object] = {}
    with _reading():
        try:
            with winreg.OpenKey(
                winreg.HKEY_LOCAL_MACHINE,
                full_key(service_id),
                0,
                winreg.KEY_READ | winreg.KEY_WOW64_64KEY,
            ) as key:
                for value in (NAME, TOOL, VOLATILE):
                    with contextlib.suppress(FileNotFoundError):
                        values[value] = winreg.QueryValueEx(key, value)[0]
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.winerror != _ERROR_KEY_DELETED:
                raise
            return None
    name, tool = values.get(NAME), values.get(TOOL)
    return Service(
        service_id,
        name if isinstance(name, str) and name else None,
        tool if isinstance(tool, str) and tool else None,
        values.get(VOLATILE) == 1,
    )


def look_up(service: uuid.UUID | str) -> Service | None:
    """Return the registered service that has this id, or this name in any case; None if there is none.

    Raises:
        HvAddressError: the name is that of several.
        others: as :func:`services`.
    """
    if isinstance(service, uuid.UUID):
        return read(service)
    found = [each for each in services() if same_name(each.name, service)]
    if len(found) > 1:
        raise HvAddressError(
            f"{service!r} is the name of {len(found)} services: {', '.join(map(str, found))}; "
            "write the GUID of the one that is meant"
        )
    return found[0] if found else None


def find(service: uuid.UUID | str) -> Service:
    """Return the registered service that has this id, or this name in any case.

    Raises:
        HvAddressError: there is none, or the name is that of several.
        others: as :func:`services`.
    """
    found = look_up(service)
    if found is not None:
        return found
    if isinstance(service, uuid.UUID):
        raise HvAddressError(
            f"no service {Service(service)} is registered on this machine; "
            "aiohvsock.hyperv.register_service() does it, on the host and as administrator"
        )
    raise HvAddressError(
        f"no service is named {service!r} in this machine's registry{_similar(service)}; "
        "aiohvsock.hyperv.register_service() names one, on the host and as administrator; "
        "a guest does not see the host's names: there, write the port or the GUID"
    )


def _similar(name: str) -> str:
    """Return the names that may have been meant, in words."""
    import difflib

    names = {each.name.casefold(): each.name for each in services() if each.name is not None}
    name = name.casefold()
    within = [each for each in names if name in each or each in name]
    close = difflib.get_close_matches(name, names, n=5)
    similar = list(dict.fromkeys([*close, *within]))[:5]
    return f" (similar: {', '.join(repr(names[each]) for each in similar)})" if similar else ""


def resolve(address: HypervAddress) -> HypervAddress:
    """Return the address with the name of its service looked up; one without a name is returned as it is.

    Raises:
        HvAddressError: no service has that name, or several.
        others: as :func:`services`.
    """
    if isinstance(address.service_id, uuid.UUID):
        return address
    try:
        service = find(address.service_id)
    except HvAddressError as error:
        raise HvAddressError(f"{address}: {error}") from None
    return HypervAddress(address.vm_id, service.service_id)


def refuse() -> NoReturn:
    """Raise the error for systems that are not Windows."""
    raise HvUnsupportedError(
        errno.ENOSYS,
        f"services are registered in the registry of the Windows host, and {sys.platform} has none; "
        "a Linux guest needs the port only: vsock://host:PORT",
    )


def _reading() -> contextlib.AbstractContextManager[None]:
    return rights("read the registered services", f'reg query "HKLM\\{KEY}" /s /reg:64')


@contextlib.contextmanager
def rights(operation: str, command: str, note: str = "") -> Iterator[None]:
    """Turn a missing right into the error that has the command for an administrator at its end."""
    try:
        yield
    except PermissionError as error:
        raise HvPermissionError(
            error.errno or errno.EACCES,
            operation,
            hint=f"in a Command Prompt that is run as administrator{note}: {command}",
            detail=error.strerror or "",
        ) from error
