"""The Host Compute Service, which knows every virtual machine that runs: WSL's, Hyper-V's, containers' and others'.

Source: virtualization/api/hcs of MicrosoftDocs/Virtualization-Documentation. It is in Windows 10 1809,
Windows Server 2019 and newer.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

from ._asking import NoAnswer

__all__ = ["enumerate_systems", "library"]

_HRESULT = ctypes.c_int32
_HCS_E_HYPERV_NOT_INSTALLED = 0x80370102
_HCS_E_SERVICE_NOT_AVAILABLE = 0x80370114
_HCS_E_OPERATION_TIMEOUT = 0x80370118
_HCS_E_ACCESS_DENIED = 0x8037011B
_E_ACCESSDENIED = 0x80070005

# Milliseconds: so that no thread waits for good on a service that hangs.
_LONGEST = 60_000

_LOAD_LIBRARY_SEARCH_SYSTEM32 = 0x800


@functools.cache
def library(name: str = "computecore.dll") -> tuple[Any, Callable[[int | None], object]]:
    """Return the library, and ``LocalFree``, which frees what its functions return.

    Raises:
        NoAnswer: this system has none.
    """
    if sys.platform != "win32":
        raise NoAnswer("the Host Compute Service is a part of Windows", absent=True)
    try:
        computecore = ctypes.WinDLL(name, winmode=_LOAD_LIBRARY_SEARCH_SYSTEM32)
    except OSError as error:
        raise NoAnswer(f"{name}: {error}", absent=True) from error
    local_free = ctypes.WinDLL("kernel32").LocalFree
    local_free.argtypes = [ctypes.c_void_p]
    local_free.restype = ctypes.c_void_p
    return computecore, local_free


def enumerate_systems() -> str:
    """Return what is running, as JSON. Blocks until the service has answered.

    Raises:
        NoAnswer: there is no such service, it refuses, or it fails.
    """
    computecore, local_free = library()
    computecore.HcsCreateOperation.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    computecore.HcsCreateOperation.restype = ctypes.c_void_p
    computecore.HcsEnumerateComputeSystems.argtypes = [ctypes.c_wchar_p, ctypes.c_void_p]
    computecore.HcsEnumerateComputeSystems.restype = _HRESULT
    computecore.HcsWaitForOperationResult.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.POINTER(ctypes.c_void_p),
    ]
    computecore.HcsWaitForOperationResult.restype = _HRESULT
    computecore.HcsCloseOperation.argtypes = [ctypes.c_void_p]
    computecore.HcsCloseOperation.restype = None

    operation = computecore.HcsCreateOperation(None, None)
    if not operation:
        raise NoAnswer("HcsCreateOperation: out of memory")
    try:
        _check("HcsEnumerateComputeSystems", computecore.HcsEnumerateComputeSystems(None, operation))
        document = ctypes.c_void_p()
        code = computecore.HcsWaitForOperationResult(operation, _LONGEST, ctypes.byref(document))
        try:
            # A failure has a document too, or none.
            text = ctypes.wstring_at(document.value) if document.value else ""
        finally:
            local_free(document.value)
        _check("HcsWaitForOperationResult", code)
        return text
    finally:
        computecore.HcsCloseOperation(operation)


def _check(function: str, code: int) -> None:
    if code >= 0:
        return
    code &= 0xFFFFFFFF
    if code in (_HCS_E_ACCESS_DENIED, _E_ACCESSDENIED):
        raise NoAnswer("access is denied", denied=True)
    if code in (_HCS_E_SERVICE_NOT_AVAILABLE, _HCS_E_HYPERV_NOT_INSTALLED):
        raise NoAnswer("Windows' virtual machine platform is not installed", absent=True)
    if code == _HCS_E_OPERATION_TIMEOUT:
        raise NoAnswer(f"no answer within {_LONGEST // 1000} s")
    raise NoAnswer(f"{function}: 0x{code:08x}")
