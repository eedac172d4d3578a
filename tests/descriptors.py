"""The sockets that this process has open, asked from the system and not from Python."""

from __future__ import annotations

import contextlib
import os
import sys

__all__ = ["open_sockets"]

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    _kernel32 = ctypes.WinDLL("kernel32")
    _kernel32.GetHandleInformation.argtypes = [wintypes.HANDLE, wintypes.LPDWORD]
    _getsockopt = ctypes.WinDLL("ws2_32").getsockopt
    _getsockopt.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_int, wintypes.LPDWORD, wintypes.LPINT]

    # winsock2.h
    _SOL_SOCKET = 0xFFFF
    _SO_TYPE = 0x1008

    # Handles are multiples of it. (Wine's GetProcessHandleCount() does not count.)
    _STEP = 4

    # So many in a row that never were in use are beyond the last one.
    _UNUSED = 64

    _highest = 0

    def open_sockets() -> set[str]:
        """Return the handles of the sockets that this process has open."""
        global _highest
        found = set()
        flags, kind = wintypes.DWORD(), wintypes.DWORD()
        handle = _STEP
        while handle <= _highest + _UNUSED * _STEP:
            if _kernel32.GetHandleInformation(handle, ctypes.byref(flags)):
                _highest = max(_highest, handle)
                size = wintypes.INT(ctypes.sizeof(kind))
                if not _getsockopt(handle, _SOL_SOCKET, _SO_TYPE, ctypes.byref(kind), ctypes.byref(size)):
                    found.add(f"socket {handle}")
            handle += _STEP
        return found

else:

    def open_sockets() -> set[str]:
        """Return the names of the sockets that this process has open."""
        found = set()
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                found.add(os.readlink(f"/proc/self/fd/{fd}"))
        # Pipes and the like are the loops' own: libuv keeps one for signals for the life of the process.
        return {name for name in found if name.startswith("socket:")}
