"""AF_HYPERV on Windows: the sockets, this user's rights, and the registered services. Nothing is written."""

from __future__ import annotations

import sys

from ...addresses import Address, HypervAddress
from ...exceptions import HvPermissionError, HvUnsupportedError
from ...hyperv import list_services
from ...hyperv._rights import HYPERV_ADMINISTRATORS, how_to_get_it
from ...platforms import Options, windows
from .connecting import random_port
from .findings import Finding, Findings

__all__ = ["family", "loopback_address", "rights", "services"]

_GROUPS = {"Administrators": "S-1-5-32-544", "Hyper-V Administrators": HYPERV_ADMINISTRATORS}

# Their names would fill the page, and few are of interest.
_MOST_NAMES = 20


def family() -> Findings:
    """Find whether Python and Windows have AF_HYPERV."""
    try:
        windows.open_socket(Options()).close()
    except HvUnsupportedError as error:
        return [Finding("fail", "AF_HYPERV", "no socket can be made", error.strerror or "")]
    return [Finding("ok", "AF_HYPERV", "a socket can be made")]


def rights() -> Findings:
    """Find whether this user may listen on a host, and dial its guests. Loopback, and guests, need no right."""
    groups = [name for name, sid in _GROUPS.items() if _is_member(sid)]
    if groups:
        return [Finding("ok", "rights", f"this process is in {' and '.join(groups)}")]
    return [
        Finding(
            "warn",
            "rights",
            "this process is not in Administrators, nor in Hyper-V Administrators",
            "loopback, your own WSL 2, and guests need no right; on a host, to talk to other guests: "
            + how_to_get_it(),
        )
    ]


def _is_member(sid: str) -> bool:
    """Tell whether a group counts for this process: that of administrators does not until it is elevated."""
    if sys.platform != "win32":
        raise AssertionError("not Windows")
    import ctypes
    from ctypes import wintypes

    advapi = ctypes.WinDLL("advapi32", use_last_error=True)
    advapi.ConvertStringSidToSidW.argtypes = [wintypes.LPCWSTR, ctypes.POINTER(ctypes.c_void_p)]
    advapi.CheckTokenMembership.argtypes = [
        wintypes.HANDLE,
        ctypes.c_void_p,
        ctypes.POINTER(wintypes.BOOL),
    ]
    local_free = ctypes.WinDLL("kernel32").LocalFree
    local_free.argtypes = [ctypes.c_void_p]
    local_free.restype = ctypes.c_void_p

    group, answer = ctypes.c_void_p(), wintypes.BOOL()
    if not advapi.ConvertStringSidToSidW(sid, ctypes.byref(group)):
        raise ctypes.WinError(ctypes.get_last_error())
    try:
        if not advapi.CheckTokenMembership(None, group, ctypes.byref(answer)):
            raise ctypes.WinError(ctypes.get_last_error())
    finally:
        local_free(group)
    return bool(answer)


def services() -> Findings:
    """Find the services in the registry, which those between a host and its Hyper-V machines must be in."""
    try:
        found = list_services()
    except HvPermissionError as error:
        return [Finding("fail", "services", str(error))]
    names = [str(service) for service in found[:_MOST_NAMES]]
    if len(found) > _MOST_NAMES:
        names.append("...")
    return [Finding("ok", "services", f"{len(found)} registered{': ' if names else ''}{', '.join(names)}")]


def loopback_address() -> Address:
    return HypervAddress("loopback", random_port())
