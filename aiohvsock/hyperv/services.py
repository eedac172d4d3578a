"""Registering services with the Hyper-V host.

Between a host and its virtual machines Hyper-V carries only the services in the host's registry. Writing there
takes an administrator, once; listening and connecting do not after that. Loopback, WSL 2 and hybrid vsock need
no registration, nor does anything inside a guest.

Sources: as :mod:`aiohvsock.platforms.registry`.
"""

from __future__ import annotations

import re
import sys
import uuid

from ..addresses import to_service
from ..exceptions import HvAddressError
from ..platforms import registry
from ..platforms.registry import Service

__all__ = ["Service", "find_service", "list_services", "register_service", "unregister_service"]

# A Linux guest neither dials nor listens above (net/vmw_vsock/hyperv_transport.c).
_LAST_PORT = 0x7FFFFFFF
_REG_OPTION_VOLATILE = 1


def list_services() -> list[Service]:
    """Return the services registered on this host, by name; those without a name come last.

    Raises:
        HvUnsupportedError: this is not Windows.
        HvPermissionError: the registry may not be read; any user may, by default.
    """
    return registry.services()


def find_service(service: uuid.UUID | str | int) -> Service:
    """Return a registered service.

    Args:
        service: its name, in any case; its GUID, or the text of one; or its port.

    Raises:
        HvAddressError: it is not registered, the name is that of several, or it is no name at all.
        others: as :func:`list_services`.
    """
    return registry.find(to_service(service))


def register_service(
    name: str, service: uuid.UUID | str | int, *, force: bool = False, volatile: bool = False
) -> Service:
    """Register a service on this host, as an administrator. Registering it again changes nothing, and needs no right.

    What another program has registered is used as it is if the name is the same, and otherwise left alone.
    What this function has made gets the new name.

    Args:
        name: what addresses and Hyper-V's tools call it; as in :func:`~aiohvsock.addresses.to_service`.
        service: its GUID, the text of one, or a port below 2**31, which Linux guests know it by.
        force: give another program's service this name. The service stays theirs.
        volatile: forget it when the machine restarts. What another program has registered is kept as it is.

    Returns:
        What is in the registry now.

    Raises:
        HvAddressError: the name or service is malformed, another service has the name already, or another
            program has registered the service under another name.
        HvUnsupportedError: this is not Windows.
        HvPermissionError: this is not an administrator; the text ends with the command for one.
    """
    wanted = Service(_check_service(service), _check_name(name), registry.OURS, volatile)
    found = registry.read(wanted.service_id)
    if found is not None and found.made_here:
        if found == wanted:
            return found
    elif found is not None:
        if found.name == name or (not force and registry.same_name(found.name, name)):
            return found
        if not force:
            raise HvAddressError(
                f"service {found} was registered by {_maker(found)}, "
                f"and not as {name!r}; force=True names it so all the same"
            )
    for other in registry.services():
        if registry.same_name(other.name, name) and other.service_id != wanted.service_id:
            raise HvAddressError(
                f"{name!r} is the name of another service already, {other}, and addresses could not tell them "
                "apart; choose another, or take that one out with unregister_service()"
            )
    anew = found is not None and found.made_here and found.volatile != volatile
    command = f"{_delete_command(wanted)} && {_add_command(wanted)}" if anew else _add_command(wanted)
    note = " (for good, since reg makes no volatile keys)" if volatile and (anew or found is None) else ""
    with registry.rights(f"register service {wanted}", command, note):
        if anew:
            _delete(wanted)
        _write(wanted, made_here=found is None or found.made_here)
    return registry.read(wanted.service_id) or wanted


def unregister_service(service: Service | uuid.UUID | str | int, *, force: bool = False) -> bool:
    """Take a service out of this host's registry, as an administrator.

    Args:
        service: as in :func:`find_service`, or what that returned.
        force: also if :func:`register_service` did not make it.

    Returns:
        Whether there was such a service.

    Raises:
        HvAddressError: another program has registered it, the name is that of several, or it is no name at all.
        HvUnsupportedError: this is not Windows.
        HvPermissionError: this is not an administrator; the text ends with the command for one.
    """
    wanted = service.service_id if isinstance(service, Service) else to_service(service)
    found = registry.look_up(wanted)
    if found is None:
        return False
    if not found.made_here and not force:
        raise HvAddressError(
            f"service {found} was registered by {_maker(found)}; force=True takes it out all the same"
        )
    with registry.rights(f"unregister service {found}", _delete_command(found)):
        return _delete(found)


def _check_name(name: str) -> str:
    if not isinstance(name, str):
        raise HvAddressError(f"the name of a service must be text, not {name!r}")
    if not isinstance(to_service(name), str):
        raise HvAddressError(f"{name!r} cannot be the name of a service: it is a GUID")
    return name


def _check_service(service: uuid.UUID | str | int) -> uuid.UUID:
    service_id = to_service(service)
    if not isinstance(service_id, uuid.UUID):
        raise HvAddressError(f"{service!r} is not a service id (a GUID, or a port)")
    if isinstance(service, int) and service > _LAST_PORT:
        raise HvAddressError(
            f"port {service} is outside 0 ... 2**31-1, the ports a Linux guest on Hyper-V has"
        )
    return service_id


def _maker(service: Service) -> str:
    return "another program" if service.tool is None else repr(service.tool)


def _write(service: Service, *, made_here: bool) -> None:
    if sys.platform != "win32":
        registry.refuse()
    import winreg

    access = winreg.KEY_WRITE | winreg.KEY_WOW64_64KEY
    if service.volatile and made_here:
        _create_volatile(service)
    with winreg.CreateKeyEx(
        winreg.HKEY_LOCAL_MACHINE, registry.full_key(service.service_id), 0, access
    ) as key:
        if made_here:
            # First, so that what is left of an interrupted call is known as ours.
            winreg.SetValueEx(key, registry.TOOL, 0, winreg.REG_SZ, registry.OURS)
            if service.volatile:
                winreg.SetValueEx(key, registry.VOLATILE, 0, winreg.REG_DWORD, 1)
        winreg.SetValueEx(key, registry.NAME, 0, winreg.REG_SZ, service.name)


def _create_volatile(service: Service) -> None:
    """Create the key, empty; winreg makes none that is volatile."""
    if sys.platform != "win32":
        registry.refuse()
    import ctypes
    import winreg
    from ctypes import wintypes

    create = ctypes.WinDLL("advapi32").RegCreateKeyExW
    create.argtypes = [
        wintypes.HKEY,
        wintypes.LPCWSTR,
        wintypes.DWORD,
        wintypes.LPCWSTR,
        wintypes.DWORD,
        wintypes.DWORD,
        wintypes.LPVOID,
        ctypes.POINTER(wintypes.HKEY),
        wintypes.LPDWORD,
    ]
    create.restype = wintypes.LONG
    access = winreg.KEY_WRITE | winreg.KEY_WOW64_64KEY
    handle = wintypes.HKEY()
    # What is below a volatile key is volatile too, so the ones above are made first, to stay.
    with winreg.CreateKeyEx(winreg.HKEY_LOCAL_MACHINE, registry.KEY, 0, access) as above:
        code = create(
            int(above),
            str(service.service_id),
            0,
            None,
            _REG_OPTION_VOLATILE,
            access,
            None,
            ctypes.byref(handle),
            None,
        )
    if code:
        raise ctypes.WinError(code)
    winreg.CloseKey(handle.value or 0)


def _delete(service: Service) -> bool:
    """Remove the key; return whether it was there."""
    if sys.platform != "win32":
        registry.refuse()
    import winreg

    try:
        winreg.DeleteKeyEx(
            winreg.HKEY_LOCAL_MACHINE, registry.full_key(service.service_id), winreg.KEY_WOW64_64KEY
        )
    except FileNotFoundError:
        return False
    return True


def _add_command(service: Service) -> str:
    assert service.name is not None
    name = _quote(service.name)
    return f'reg add "HKLM\\{registry.full_key(service.service_id)}" /v {registry.NAME} /t REG_SZ /d {name} /f /reg:64'


def _delete_command(service: Service) -> str:
    return f'reg delete "HKLM\\{registry.full_key(service.service_id)}" /f /reg:64'


def _quote(text: str) -> str:
    """Return a text as one argument in a Command Prompt.

    Two programs read it: the prompt, and reg, by the rules of the C runtime.
    """
    escaped = re.sub(r'(\\+)(?="|$)', r"\1\1", text).replace('"', '\\"')
    quoted = f'"{escaped}"'
    if not set(text) & set('"%'):
        return quoted
    # The prompt knows no escaped quotation mark, and expands %NAME% within quotation marks too.
    return re.sub(r'(["%^&|<>()!])', r"^\1", quoted)
