"""Carrying bytes: left to TCP, but for how it ends.

Wine reads a reset as a plain end. So the calls that read and write are looked at; what they carry is not.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from uuid import UUID

if sys.platform != "win32":
    raise ImportError("there is no Winsock here")

from . import winsock
from .sockets import Socket, Sockets
from .winsock import SOCKET_ERROR, WinsockError, real

__all__ = ["Carrying"]


class Carrying:
    """The calls that read and write.

    Args:
        sockets: those of the family.
    """

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self.of_sockets: dict[str, Callable[..., int]] = {"recv": self._recv, "send": self._send}
        self.of_overlapped: dict[str, Callable[..., int]] = {
            "GetOverlappedResult": self._get_overlapped_result,
            "WSARecv": self._wsa_recv,
            "WSASend": self._wsa_send,
        }

    def reset(self, vm_id: UUID | None) -> None:
        """End the connections of a machine, or all of them, with 10054."""
        ends = {
            handle: sock
            for handle, sock in list(self._sockets.items())
            if sock.connection is not None and vm_id in (None, sock.vm_id)
        }
        # All are marked before the first is woken.
        for sock in ends.values():
            assert sock.connection is not None
            sock.connection.reset()
        for handle, sock in ends.items():
            _wake(handle, sock)

    # -- the calls ---------------------------------------------------------------------------------------------

    def _recv(self, handle: int, data: int, size: int, flags: int) -> int:
        sock = self._sockets.get(handle)
        if sock is None:
            return real("recv", handle, data, size, flags)
        _check(handle, sock)
        result = real("recv", handle, data, size, flags)
        if result == SOCKET_ERROR:
            _check(handle, sock)
        elif result == 0 and size:
            _check(handle, sock)
            if sock.breaks_pipe:
                raise WinsockError(winsock.ERROR_BROKEN_PIPE)
        return result

    def _send(self, handle: int, data: int, size: int, flags: int) -> int:
        sock = self._sockets.get(handle)
        if sock is None:
            return real("send", handle, data, size, flags)
        _check(handle, sock)
        result = real("send", handle, data, size, flags)
        if result == SOCKET_ERROR:
            _check(handle, sock)
        return result

    def _wsa_recv(self, handle: int, *arguments: int) -> int:
        sock = self._sockets.get(handle)
        if sock is not None:
            sock.overlapped = True
            _check(handle, sock)
        return real("WSARecv", handle, *arguments)

    def _wsa_send(self, handle: int, *arguments: int) -> int:
        sock = self._sockets.get(handle)
        if sock is not None:
            sock.overlapped = True
            _check(handle, sock)
        return real("WSASend", handle, *arguments)

    def _get_overlapped_result(self, handle: int, overlapped: int, transferred: int, wait: int) -> int:
        result = real("GetOverlappedResult", handle, overlapped, transferred, wait)
        sock = self._sockets.get(handle)
        if sock is None or (result and ctypes.c_ulong.from_address(transferred).value):
            return result
        error = 0 if result else ctypes.get_last_error()
        # One that is cancelled for good is waited for, and may fail with nothing else.
        if error == winsock.ERROR_IO_INCOMPLETE or (error == winsock.ERROR_OPERATION_ABORTED and wait):
            return result
        if sock.was_reset:
            _wake(handle, sock)
            raise WinsockError(winsock.ERROR_NETNAME_DELETED)
        if result and sock.breaks_pipe:
            raise WinsockError(winsock.ERROR_BROKEN_PIPE)
        return result


def _check(handle: int, sock: Socket) -> None:
    """Raise what a connection that was reset fails with."""
    if sock.was_reset:
        _wake(handle, sock)
        raise WinsockError(winsock.WSAECONNRESET)


def _wake(handle: int, sock: Socket) -> None:
    """End what waits at the other end, and what is under way at this one."""
    real("shutdown", handle, winsock.SD_BOTH)
    if sock.overlapped:
        real("CancelIoEx", handle, None)
