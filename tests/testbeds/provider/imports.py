"""The import table of a loaded module: which function each of its imports calls, and how to change that."""

from __future__ import annotations

import ctypes
import sys
from ctypes import wintypes
from typing import Any

if sys.platform != "win32":
    raise ImportError("there are import tables on Windows only")

__all__ = ["Patches"]

_PAGE_READWRITE = 0x04

# Of the PE format (64-bit): winnt.h has the structures.
_OFFSET_OF_PE_HEADER = 0x3C
_IMPORT_DIRECTORY = 24 + 112 + 8  # signature and file header, up to the data directories, the second of them
_DESCRIPTOR_SIZE = 20
_BY_ORDINAL = 1 << 63

_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_kernel32.GetModuleHandleW.restype = ctypes.c_void_p
_kernel32.GetModuleHandleW.argtypes = [wintypes.LPCWSTR]
_kernel32.VirtualProtect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, wintypes.DWORD, wintypes.LPDWORD]


# A thread can be in one of them when it is taken out.
_in_use: list[Any] = []


class Patches:
    """The imports that call something else for the time being."""

    def __init__(self) -> None:
        self._before: list[tuple[int, int]] = []

    def replace(self, path: str, library: str, name: str | int, function: Any) -> None:
        """Make a module call a function of ctypes instead of the one that it imported, by name or ordinal."""
        slot = _import_slots(path, library)[name]
        address = ctypes.cast(function, ctypes.c_void_p).value
        assert address is not None
        _in_use.append(function)
        self._before.append((slot, _set_slot(slot, address)))

    def undo(self) -> None:
        while self._before:
            _set_slot(*self._before.pop())


def _import_slots(path: str, library: str) -> dict[str | int, int]:
    """Find where a module keeps the functions that it imports from a library.

    Args:
        path: of the module, which must be loaded.
        library: as the module names it, in any case, with its extension.

    Returns:
        The addresses of the slots, by name, or by ordinal where that is how it was linked.
    """
    base = _kernel32.GetModuleHandleW(path)
    if base is None:
        raise ctypes.WinError(ctypes.get_last_error(), f"{path} is not loaded")
    header = base + _uint32(base + _OFFSET_OF_PE_HEADER)
    descriptor = base + _uint32(header + _IMPORT_DIRECTORY)
    while name := _uint32(descriptor + 12):
        if _string(base + name).lower() == library.lower():
            return _slots(base, base + _uint32(descriptor), base + _uint32(descriptor + 16))
        descriptor += _DESCRIPTOR_SIZE
    raise LookupError(f"{path} imports nothing from {library}")


def _slots(base: int, lookup: int, slot: int) -> dict[str | int, int]:
    found: dict[str | int, int] = {}
    while entry := ctypes.c_uint64.from_address(lookup).value:
        # By name it is a hint of two bytes, then the name.
        found[entry & 0xFFFF if entry & _BY_ORDINAL else _string(base + entry + 2)] = slot
        lookup += 8
        slot += 8
    return found


def _set_slot(slot: int, function: int) -> int:
    """Make an import call another function, given by its address; return the address of the one before."""
    protection = wintypes.DWORD()
    if not _kernel32.VirtualProtect(slot, 8, _PAGE_READWRITE, protection):
        raise ctypes.WinError(ctypes.get_last_error(), "the import table cannot be written")
    value = ctypes.c_uint64.from_address(slot)
    before = value.value
    value.value = function
    _kernel32.VirtualProtect(slot, 8, protection, protection)
    return before


def _uint32(address: int) -> int:
    return ctypes.c_uint32.from_address(address).value


def _string(address: int) -> str:
    return ctypes.string_at(address).decode("ascii")
