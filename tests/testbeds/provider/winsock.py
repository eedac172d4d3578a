"""What of Winsock the emulated provider speaks: its functions, its errors, SOCKADDR_HV."""

from __future__ import annotations

import ctypes
import struct
import sys
import traceback
from collections.abc import Callable
from ctypes import c_int, c_size_t, c_ulong, c_void_p, wintypes
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

if sys.platform != "win32":
    raise ImportError("there is no Winsock here")

AF_INET = 2
AF_HYPERV = 34
SOCK_STREAM = 1
IPPROTO_TCP = 6
TCP_NODELAY = 1
HV_PROTOCOL_RAW = 1
FIONBIO = 0x8004667E
SD_BOTH = 2

INVALID_SOCKET = 2**64 - 1
SOCKET_ERROR = -1

WSAEINTR = 10004
WSAEACCES = 10013
WSAEFAULT = 10014
WSAEINVAL = 10022
WSAEWOULDBLOCK = 10035
WSAEALREADY = 10037
WSAENOPROTOOPT = 10042
WSAEPROTONOSUPPORT = 10043
WSAESOCKTNOSUPPORT = 10044
WSAEOPNOTSUPP = 10045
WSAEAFNOSUPPORT = 10047
WSAEADDRINUSE = 10048
WSAEADDRNOTAVAIL = 10049
WSAENETUNREACH = 10051
WSAECONNABORTED = 10053
WSAECONNRESET = 10054
WSAEISCONN = 10056
WSAENOTCONN = 10057
WSAESHUTDOWN = 10058
WSAETIMEDOUT = 10060
WSAECONNREFUSED = 10061
ERROR_NETNAME_DELETED = 64
ERROR_BROKEN_PIPE = 109
ERROR_OPERATION_ABORTED = 995
ERROR_IO_INCOMPLETE = 996

SOL_SOCKET = 0xFFFF
SO_SNDBUF = 0x1001
SO_RCVBUF = 0x1002
SO_ERROR = 0x1007
SO_PROTOCOL_INFOA = 0x2004
SO_PROTOCOL_INFOW = 0x2005
PROTOCOL_INFOS = (SO_PROTOCOL_INFOA, SO_PROTOCOL_INFOW)

# In both, after five flags, a GUID, an id and a chain of eight, and the version.
_INFO_FAMILY = 5 * 4 + 16 + 4 + 8 * 4 + 4
_INFO_PROTOCOL = _INFO_FAMILY + 4 * 4

# Of hvsocket.h. CPython's own are in capitals, and it lacks the silo host.
GUID_ZERO = UUID("00000000-0000-0000-0000-000000000000")
GUID_BROADCAST = UUID("ffffffff-ffff-ffff-ffff-ffffffffffff")
GUID_CHILDREN = UUID("90db8b89-0d35-4f79-8ce9-49ea0ac8b7cd")
GUID_LOOPBACK = UUID("e0e16197-dd56-4a10-9195-5ee7a155a838")
GUID_PARENT = UUID("a42e7cda-d03f-480c-9cc2-a4de20abb878")
GUID_SILOHOST = UUID("36bd0c5c-7276-4223-88ba-7d03b654c568")

SOCKADDR_HV = struct.Struct("<HH16s16s")
SOCKADDR_IN_SIZE = 16


class Address(NamedTuple):
    vm_id: UUID
    service_id: UUID


class WinsockError(Exception):
    """What the call under way fails with."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def read_address(pointer: int | None, length: int) -> Address:
    """The SOCKADDR_HV that a caller gave, or what Windows says to another one."""
    if pointer is None or length < SOCKADDR_HV.size:
        raise WinsockError(WSAEFAULT)
    family, _, vm_id, service_id = SOCKADDR_HV.unpack(ctypes.string_at(pointer, SOCKADDR_HV.size))
    if family != AF_HYPERV:
        raise WinsockError(WSAEAFNOSUPPORT)
    return Address(UUID(bytes_le=vm_id), UUID(bytes_le=service_id))


def write_address(address: Address, pointer: int | None, length: int | None) -> None:
    """Fill in the name that a caller has room for."""
    if pointer is None or length is None:
        raise WinsockError(WSAEFAULT)
    room = c_int.from_address(length)
    if room.value < SOCKADDR_HV.size:
        raise WinsockError(WSAEFAULT)
    data = SOCKADDR_HV.pack(AF_HYPERV, 0, address.vm_id.bytes_le, address.service_id.bytes_le)
    ctypes.memmove(pointer, data, len(data))
    room.value = len(data)


def write_option(data: bytes, pointer: int | None, length: int | None) -> None:
    """Fill in the value of an option."""
    if pointer is None or length is None or c_int.from_address(length).value < len(data):
        raise WinsockError(WSAEFAULT)
    ctypes.memmove(pointer, data, len(data))
    c_int.from_address(length).value = len(data)


def write_protocol(info: int) -> None:
    """Make a WSAPROTOCOL_INFO name this family."""
    for offset, value in ((_INFO_FAMILY, AF_HYPERV), (_INFO_PROTOCOL, HV_PROTOCOL_RAW)):
        c_int.from_address(info + offset).value = value


def loopback(port: int) -> bytes:
    """The SOCKADDR_IN of a port on 127.0.0.1."""
    return AF_INET.to_bytes(2, "little") + port.to_bytes(2, "big") + bytes([127, 0, 0, 1]) + bytes(8)


@dataclass(frozen=True, slots=True)
class Function:
    """A function of Winsock, and how a module imports it."""

    name: str
    ordinal: int | None
    result: type
    arguments: tuple[type, ...]
    library: str = "ws2_32.dll"
    failure: int = SOCKET_ERROR

    @property
    def imported_as(self) -> str | int:
        return self.name if self.ordinal is None else self.ordinal

    def callback(self, function: Callable[..., int]) -> Any:
        """What C can call. An error goes where C expects it."""

        def call(*arguments: Any) -> int:
            try:
                return function(*arguments)
            except WinsockError as error:
                ctypes.set_last_error(error.code)
            except BaseException:
                # Nobody above could catch it.
                traceback.print_exc()
                ctypes.set_last_error(WSAEFAULT)
            return self.failure

        return self._prototype(call)

    def real(self) -> Callable[..., int]:
        """The function itself. Its error is left for :func:`ctypes.get_last_error`."""
        real: Callable[..., int] = self._prototype((self.name, ctypes.WinDLL(self.library)))
        return real

    @property
    def _prototype(self) -> Any:
        return ctypes.WINFUNCTYPE(self.result, *self.arguments, use_last_error=True)


_name_out = (c_size_t, c_void_p, c_void_p)
_overlapped = (c_size_t, c_void_p, c_ulong, c_void_p, c_void_p, c_void_p, c_void_p)

FUNCTIONS = {
    function.name: function
    for function in (
        Function("accept", 1, c_size_t, _name_out, failure=INVALID_SOCKET),
        Function("bind", 2, c_int, (c_size_t, c_void_p, c_int)),
        Function("closesocket", 3, c_int, (c_size_t,)),
        Function("connect", 4, c_int, (c_size_t, c_void_p, c_int)),
        Function("getpeername", 5, c_int, _name_out),
        Function("getsockname", 6, c_int, _name_out),
        Function("getsockopt", 7, c_int, (c_size_t, c_int, c_int, c_void_p, c_void_p)),
        Function("ioctlsocket", 10, c_int, (c_size_t, c_int, c_void_p)),
        Function("listen", 13, c_int, (c_size_t, c_int)),
        Function("recv", 16, c_int, (c_size_t, c_void_p, c_int, c_int)),
        Function("send", 19, c_int, (c_size_t, c_void_p, c_int, c_int)),
        Function("setsockopt", 21, c_int, (c_size_t, c_int, c_int, c_void_p, c_int)),
        Function("shutdown", 22, c_int, (c_size_t, c_int)),
        Function("WSADuplicateSocketW", None, c_int, (c_size_t, c_ulong, c_void_p)),
        Function("WSARecv", None, c_int, _overlapped),
        Function(
            "WSASend", None, c_int, (c_size_t, c_void_p, c_ulong, c_void_p, c_ulong, c_void_p, c_void_p)
        ),
        Function(
            "WSASocketW",
            None,
            c_size_t,
            (c_int, c_int, c_int, c_void_p, c_ulong, c_ulong),
            failure=INVALID_SOCKET,
        ),
        Function(
            "GetOverlappedResult",
            None,
            wintypes.BOOL,
            (c_size_t, c_void_p, c_void_p, wintypes.BOOL),
            library="kernel32.dll",
            failure=0,
        ),
        Function("CancelIoEx", None, wintypes.BOOL, (c_size_t, c_void_p), library="kernel32.dll", failure=0),
    )
}

_real = {name: function.real() for name, function in FUNCTIONS.items()}


def real(name: str, *arguments: Any) -> int:
    """Call the function itself, whoever has taken its place elsewhere."""
    return _real[name](*arguments)


def tcp_port(handle: int) -> int:
    """The port that a TCP socket is bound to; 0 if it isn't."""
    return _tcp_port("getsockname", handle)


def tcp_peer_port(handle: int) -> int:
    """The port that a TCP socket is connected to; 0 if it isn't."""
    return _tcp_port("getpeername", handle)


def _tcp_port(function: str, handle: int) -> int:
    name = ctypes.create_string_buffer(SOCKADDR_IN_SIZE)
    length = c_int(len(name))
    if real(function, handle, ctypes.addressof(name), ctypes.addressof(length)):
        return 0
    return int.from_bytes(name.raw[2:4], "big")
