"""The sockets that this process has open, asked from the system and not from Python."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator

__all__ = ["open_sockets"]

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    _NtQuerySystemInformation = ctypes.WinDLL("ntdll").NtQuerySystemInformation
    _NtQuerySystemInformation.argtypes = [ctypes.c_int, ctypes.c_void_p, wintypes.ULONG, wintypes.LPDWORD]
    _NtQuerySystemInformation.restype = wintypes.LONG
    _getsockopt = ctypes.WinDLL("ws2_32").getsockopt
    _getsockopt.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_int, wintypes.LPDWORD, wintypes.LPINT]

    # winsock2.h
    _SOL_SOCKET = 0xFFFF
    _SO_TYPE = 0x1008

    # winternl.h, as phnt documents it: everybody's handles, with 64 bits for what used to have 16. To ask the kernel once
    # is much faster than to try each number, above all under Wine. (Its GetProcessHandleCount() does not count.)
    _EXTENDED_HANDLES = 64
    _TOO_SHORT = 0xC0000004

    class _Handle(ctypes.Structure):
        _fields_ = (
            ("object", ctypes.c_void_p),
            ("pid", ctypes.c_size_t),
            ("value", ctypes.c_size_t),
            ("access", wintypes.ULONG),
            ("trace", wintypes.USHORT),
            ("type", wintypes.USHORT),
            ("attributes", wintypes.ULONG),
            ("reserved", wintypes.ULONG),
        )

    _buffer = ctypes.create_string_buffer(2**16)

    def _handles() -> Iterator[tuple[int, int]]:
        """Yield the handles of this process, each with the number of its type."""
        global _buffer
        wanted = wintypes.ULONG()
        while status := _NtQuerySystemInformation(
            _EXTENDED_HANDLES, _buffer, len(_buffer), ctypes.byref(wanted)
        ):
            if status & 0xFFFFFFFF != _TOO_SHORT:
                raise OSError(f"NtQuerySystemInformation: {status & 0xFFFFFFFF:#x}")
            _buffer = ctypes.create_string_buffer(max(2 * len(_buffer), 2 * wanted.value))
        count = ctypes.c_size_t.from_buffer(_buffer).value
        pid = os.getpid()
        for handle in (_Handle * count).from_buffer(_buffer, 2 * ctypes.sizeof(ctypes.c_size_t)):
            if handle.pid == pid:
                yield handle.value, handle.type

    def _is_socket(handle: int) -> bool:
        kind = wintypes.DWORD()
        size = wintypes.INT(ctypes.sizeof(kind))
        return not _getsockopt(handle, _SOL_SOCKET, _SO_TYPE, ctypes.byref(kind), ctypes.byref(size))

    def _type_of_sockets() -> int:
        with socket.socket() as sock:
            return dict(_handles())[sock.fileno()]

    _TYPE = _type_of_sockets()

    def open_sockets() -> set[str]:
        """Return the handles of the sockets that this process has open."""
        return {f"socket {handle}" for handle, kind in _handles() if kind == _TYPE and _is_socket(handle)}

else:

    def open_sockets() -> set[str]:
        """Return the names of the sockets that this process has open."""
        found = set()
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/self/fd/{fd}"))
        # Pipes and the like are the loops' own: libuv keeps one for signals for the life of the process.
        return {name for name in found if name.startswith("socket:")}
