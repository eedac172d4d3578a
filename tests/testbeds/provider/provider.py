"""An AF_HYPERV provider: what Windows answers to the Winsock calls of ``_socket.pyd``, over TCP on 127.0.0.1.

A socket of the family is a TCP socket whose names, errors and options are Hyper-V's. What arrives at a call for any other
socket goes on to Winsock as it came, and so does all that only moves bytes or waits.
"""

from __future__ import annotations

import _overlapped
import _socket
import ctypes
import random
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from uuid import UUID, uuid4

if sys.platform != "win32":
    raise ImportError("the provider is for Wine: make test-windows runs what needs it")

from . import winsock
from .carrying import Carrying
from .imports import Patches
from .sockets import Socket, Sockets
from .table import Table
from .winsock import FUNCTIONS, INVALID_SOCKET, SOCKET_ERROR, Address, WinsockError, real

__all__ = ["Provider"]

# Below those that Linux gives to others. One that it gave would be lost with the first connect that fails.
_TCP_PORTS = range(20_000, 32_768)

# Each way, about what the rings of a VM hold.
_BUFFER_SIZE = 64 * 1024

# What a Linux guest's sockets can have for a service id.
_VSOCK_PORTS = range(2**31)
_TEMPLATE = UUID("00000000-facb-11e6-bd58-64006a7986d3")


class Provider:
    """The provider of this process.

    Args:
        table: shared with the other processes.
        partition: that of the process, HOST or a virtual machine.
    """

    def __init__(self, table: Table, partition: UUID) -> None:
        self._table = table
        self.partition: ContextVar[UUID] = ContextVar("partition", default=partition)
        """In which the next socket is made."""
        self._sockets: Sockets = {}
        # The collector may close a socket at any point.
        self._lock = threading.RLock()
        self._patches = Patches()
        self._carrying = Carrying(self._sockets)
        self._random = random.Random()  # not that of the tests, which may seed it
        # A port that stays bound, and on which nobody listens: to connect to it is refused.
        self._nobody = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
        self._nobody.bind(("127.0.0.1", 0))
        self._refusing = winsock.loopback(self._nobody.getsockname()[1])

    def install(self) -> None:
        """Take the place of Winsock in CPython."""
        self._replace(
            _socket.__file__,
            {
                "WSADuplicateSocketW": self._duplicate,
                "WSASocketW": self._socket,
                "accept": self._accept,
                "bind": self._bind,
                "closesocket": self._closesocket,
                "connect": self._connect,
                "getpeername": self._getpeername,
                "getsockname": self._getsockname,
                "getsockopt": self._getsockopt,
                "ioctlsocket": self._ioctlsocket,
                "listen": self._listen,
                "setsockopt": self._setsockopt,
                **self._carrying.of_sockets,
            },
        )
        self._replace(_overlapped.__file__, self._carrying.of_overlapped)

    def _replace(self, module: str, replacements: dict[str, Callable[..., int]]) -> None:
        for name, replacement in replacements.items():
            function = FUNCTIONS[name]
            self._patches.replace(
                module, function.library, function.imported_as, function.callback(replacement)
            )

    def uninstall(self) -> None:
        """Give Winsock its place back. Sockets of the family that are left are TCP sockets from now on."""
        self._patches.undo()
        with self._lock:
            for sock in self._sockets.values():
                sock.release()
            self._sockets.clear()
        self._nobody.close()
        self._table.close()

    # -- for tests ---------------------------------------------------------------------------------------------

    def options(self, handle: int) -> dict[tuple[int, int], int | bytes]:
        """What was set on a socket."""
        return dict(self._sockets[handle].options.given)

    def break_pipe(self, handle: int) -> None:
        """Let the next end that this socket reads be ERROR_BROKEN_PIPE."""
        self._sockets[handle].breaks_pipe = True

    def reset(self, vm_id: UUID | None) -> None:
        """End the connections of a machine, or all of them, with 10054."""
        self._carrying.reset(vm_id)

    # -- the calls ---------------------------------------------------------------------------------------------

    def _socket(self, family: int, kind: int, protocol: int, info: int | None, group: int, flags: int) -> int:
        if family != winsock.AF_HYPERV:
            return self._fresh(real("WSASocketW", family, kind, protocol, info, group, flags))
        if kind != winsock.SOCK_STREAM:
            raise WinsockError(winsock.WSAESOCKTNOSUPPORT)
        if protocol != winsock.HV_PROTOCOL_RAW:
            raise WinsockError(winsock.WSAEPROTONOSUPPORT)
        handle = self._fresh(
            real("WSASocketW", winsock.AF_INET, kind, winsock.IPPROTO_TCP, None, group, flags)
        )
        if handle != INVALID_SOCKET:
            # TCP would hold small pieces back for 40 ms, and take megabytes. Accepted sockets inherit these.
            for level, option, value in (
                (winsock.IPPROTO_TCP, winsock.TCP_NODELAY, 1),
                (winsock.SOL_SOCKET, winsock.SO_SNDBUF, _BUFFER_SIZE),
                (winsock.SOL_SOCKET, winsock.SO_RCVBUF, _BUFFER_SIZE),
            ):
                data = value.to_bytes(4, "little")
                real("setsockopt", handle, level, option, data, len(data))
            self._sockets[handle] = Socket(self.partition.get())
        return handle

    def _duplicate(self, handle: int, process: int, info: int) -> int:
        if handle in self._sockets:
            # TCP would reach whoever gets it.
            raise WinsockError(winsock.WSAEOPNOTSUPP)
        return real("WSADuplicateSocketW", handle, process, info)

    def _bind(self, handle: int, name: int | None, length: int) -> int:
        sock = self._sockets.get(handle)
        if sock is None:
            return real("bind", handle, name, length)
        address = winsock.read_address(name, length)
        if sock.local is not None:
            raise WinsockError(winsock.WSAEINVAL)
        if address.service_id == winsock.GUID_ZERO:
            # Any: what ConnectEx asks for before it connects.
            address = Address(address.vm_id, uuid4())
        sock.claim = self._table.claim(sock.partition, address)
        sock.local = address
        self._bind_tcp(handle)
        return 0

    def _bind_tcp(self, handle: int) -> None:
        while True:
            name = winsock.loopback(self._random.choice(_TCP_PORTS))
            if not real("bind", handle, name, len(name)):
                return
            if ctypes.get_last_error() != winsock.WSAEADDRINUSE:
                raise WinsockError(ctypes.get_last_error())

    def _listen(self, handle: int, backlog: int) -> int:
        sock = self._sockets.get(handle)
        if sock is None:
            return real("listen", handle, backlog)
        if self._is_connected(handle, sock):
            raise WinsockError(winsock.WSAEISCONN)
        if sock.claim is None:
            raise WinsockError(winsock.WSAEINVAL)
        if real("listen", handle, backlog):
            return SOCKET_ERROR
        sock.claim.listen(winsock.tcp_port(handle))
        return 0

    def _accept(self, handle: int, name: int | None, length: int | None) -> int:
        sock = self._sockets.get(handle)
        if sock is None:
            return self._fresh(real("accept", handle, name, length))
        while True:
            accepted = self._fresh(real("accept", handle, None, None))
            if accepted == INVALID_SOCKET:
                return INVALID_SOCKET
            connection = self._table.connection(winsock.tcp_peer_port(accepted))
            if connection.listener == winsock.tcp_port(accepted):
                break
            # A stranger on this machine's TCP.
            real("closesocket", accepted)
        end = Socket(sock.partition)
        end.blocking = sock.blocking
        end.connected = True
        end.connection = connection
        end.peer = connection.dialler
        # Arbitrary: neither who accepts nor where it listens can be read from it.
        end.local = Address(uuid4(), uuid4())
        end.vm_id = self._table.machine_behind(sock.partition, end.peer)
        self._sockets[accepted] = end
        if name is not None:
            winsock.write_address(end.peer, name, length)
        return accepted

    def _connect(self, handle: int, name: int | None, length: int) -> int:
        sock = self._sockets.get(handle)
        if sock is None:
            return real("connect", handle, name, length)
        address = winsock.read_address(name, length)
        if sock.waiting is not None:
            raise WinsockError(winsock.WSAEALREADY)
        if self._is_connected(handle, sock):
            raise WinsockError(winsock.WSAEISCONN)
        route = self._table.route(sock.partition, address)

        if not winsock.tcp_port(handle):
            self._bind_tcp(handle)
        if sock.local is None:
            sock.local = Address(winsock.GUID_CHILDREN, uuid4())
        sock.peer = address
        sock.vm_id = route.vm_id
        sock.error = route.error
        sock.connection = None
        if route.waits:
            return self._wait(handle, sock)
        if route.port:
            service_id = sock.local.service_id
            if route.linux:
                service_id = UUID(fields=(self._random.choice(_VSOCK_PORTS), *_TEMPLATE.fields[1:]))
            sock.connection = self._table.connecting(
                winsock.tcp_port(handle), route.port, Address(route.source, service_id)
            )
        tcp = winsock.loopback(route.port) if route.port else self._refusing
        result = real("connect", handle, tcp, len(tcp))
        if result and ctypes.get_last_error() == winsock.WSAECONNABORTED:
            # Linux' word for a connect that has failed before; with it that one is forgotten.
            result = real("connect", handle, tcp, len(tcp))
        if result and ctypes.get_last_error() == winsock.WSAECONNREFUSED:
            raise WinsockError(sock.error or winsock.WSAECONNREFUSED)
        sock.connected = result == 0
        return result

    def _wait(self, handle: int, sock: Socket) -> int:
        """Let a connect take all of its time, and fail."""
        seconds = sock.options.connect_timeout
        if sock.blocking:
            raise WinsockError(winsock.WSAEINTR if sock.closed.wait(seconds) else sock.error)

        def time_is_up() -> None:
            with self._lock:
                if self._sockets.get(handle) is sock and sock.waiting is timer:
                    sock.waiting = None
                    real("connect", handle, self._refusing, len(self._refusing))

        timer = sock.waiting = threading.Timer(seconds, time_is_up)
        timer.name = "AF_HYPERV connect"
        timer.daemon = True
        timer.start()
        raise WinsockError(winsock.WSAEWOULDBLOCK)

    def _is_connected(self, handle: int, sock: Socket) -> bool:
        # TCP forgets after a reset; Windows keeps the names.
        sock.connected = sock.connected or winsock.tcp_peer_port(handle) != 0
        return sock.connected

    def _getpeername(self, handle: int, name: int | None, length: int | None) -> int:
        sock = self._sockets.get(handle)
        if sock is None:
            return real("getpeername", handle, name, length)
        if sock.peer is None or not self._is_connected(handle, sock):
            raise WinsockError(winsock.WSAENOTCONN)
        winsock.write_address(sock.peer, name, length)
        return 0

    def _getsockname(self, handle: int, name: int | None, length: int | None) -> int:
        sock = self._sockets.get(handle)
        if sock is None:
            return real("getsockname", handle, name, length)
        if sock.local is None:
            raise WinsockError(winsock.WSAEINVAL)
        winsock.write_address(sock.local, name, length)
        return 0

    def _ioctlsocket(self, handle: int, command: int, argument: int | None) -> int:
        result = real("ioctlsocket", handle, command, argument)
        sock = self._sockets.get(handle)
        if (
            sock is not None
            and not result
            and command & 0xFFFFFFFF == winsock.FIONBIO
            and argument is not None
        ):
            sock.blocking = not ctypes.c_ulong.from_address(argument).value
        return result

    def _setsockopt(self, handle: int, level: int, option: int, value: int | None, length: int) -> int:
        sock = self._sockets.get(handle)
        if sock is not None:
            data = b"" if value is None else ctypes.string_at(value, max(length, 0))
            if not sock.options.set(level, option, data, dialled=sock.peer is not None):
                return 0
        return real("setsockopt", handle, level, option, value, length)

    def _getsockopt(self, handle: int, level: int, option: int, value: int | None, length: int | None) -> int:
        sock = self._sockets.get(handle)
        if sock is None:
            return real("getsockopt", handle, level, option, value, length)
        data = sock.options.get(level, option)
        if data is not None:
            winsock.write_option(data, value, length)
            return 0
        result = real("getsockopt", handle, level, option, value, length)
        if not result and level == winsock.SOL_SOCKET and value is not None:
            if option == winsock.SO_ERROR:
                error = ctypes.c_int.from_address(value)
                if error.value == winsock.WSAECONNREFUSED and sock.error:
                    error.value = sock.error
                elif not error.value and sock.connection is not None:
                    # Who asks was told that it is writable.
                    sock.connected = True
            elif option in winsock.PROTOCOL_INFOS:
                winsock.write_protocol(value)
        return result

    def _closesocket(self, handle: int) -> int:
        # First, for the number can be another socket's at once.
        return real("closesocket", self._fresh(handle))

    def _fresh(self, handle: int) -> int:
        """Forget who had a handle: a loop such as winloop closes what it was given with a Winsock of its own."""
        with self._lock:
            sock = self._sockets.pop(handle, None)
            if sock is not None:
                sock.release()
        return handle
