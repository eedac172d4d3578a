"""Protocols that record what happens to them, and peers that misbehave on purpose."""

from __future__ import annotations

import asyncio
import socket
import sys
import uuid
from collections.abc import Callable
from typing import Any

from aiohvsock import Address, HybridAddress, HypervAddress, VsockAddress
from aiohvsock.platforms import names_of
from aiohvsock.transports import transport_class
from aiohvsock.transports.selector import SelectorTransport
from aiohvsock.transports.watching import watcher_of

# What writing to a peer that has gone raises.
GONE: tuple[type[OSError], ...] = (
    (ConnectionResetError, ConnectionAbortedError) if sys.platform == "win32" else (BrokenPipeError,)
)


class Recorder(asyncio.Protocol):
    """Records the calls of a transport, and lets a test wait for them."""

    def __init__(self, *, keep_open: bool = False) -> None:
        self.calls: list[str] = []
        self.data = bytearray()
        self.transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()
        self._keep_open = keep_open

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition holds that only the calls recorded here can change."""
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def received(self, count: int) -> bytes:
        await self.until(lambda: len(self.data) >= count)
        return bytes(self.data)

    async def called(self, call: str) -> None:
        await self.until(lambda: call in self.calls)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._note("connection_made")

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self.data += data
        self._note("data_received")

    def eof_received(self) -> bool:
        self._note("eof_received")
        return self._keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        self._note("connection_lost")
        self.lost.set_result(exc)

    def pause_writing(self) -> None:
        self._note("pause_writing")

    def resume_writing(self) -> None:
        self._note("resume_writing")


class BufferedRecorder(Recorder, asyncio.BufferedProtocol):
    """The same by way of get_buffer() and buffer_updated()."""

    def __init__(self, *, size: int = 65536, keep_open: bool = False) -> None:
        super().__init__(keep_open=keep_open)
        self.buffer = bytearray(size)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.buffer[:nbytes]
        self._note("buffer_updated")


def start(sock: socket.socket, protocol: asyncio.BaseProtocol, **options: Any) -> SelectorTransport:
    """Put a transport on a connected socket, which it then owns."""
    loop = asyncio.get_running_loop()
    sock = own(sock)
    sock.setblocking(False)
    transport = transport_class(loop)(loop, sock, protocol, names_of(sock), **options)
    transport.start()
    return transport


def no_counterpart(number: int) -> Address:
    """Return one of the addresses that mean nothing on this system."""
    if sys.platform == "win32":
        return VsockAddress(1000 + number, 2761)
    return HypervAddress("parent", uuid.UUID(int=number))


def kind_of(address: Address) -> str:
    """Return the kind of socket that an address is for, as the fixture has it."""
    kinds = {HybridAddress: "hybrid", HypervAddress: "hyperv", VsockAddress: "vsock"}
    return kinds[type(address)]


def new_socket(kind: str) -> socket.socket:
    """Return a blocking stream socket of a kind, without this package's options."""
    if kind == "hyperv":
        return socket.socket(socket.AF_HYPERV, socket.SOCK_STREAM, socket.HV_PROTOCOL_RAW)  # type: ignore[attr-defined,unused-ignore]
    return socket.socket(socket.AF_VSOCK if kind == "vsock" else socket.AF_UNIX, socket.SOCK_STREAM)


def sockaddr(address: Address) -> Any:
    """Return what a server on this address is bound to, as the socket module has it."""
    if isinstance(address, HybridAddress):
        return f"{address.path}_{address.port}"
    if isinstance(address, HypervAddress):
        return str(address.vm_id), str(address.service_id)
    return address.cid, address.port


def own(sock: socket.socket) -> socket.socket:
    """Take a socket away from the fixture that made it, and would close it."""
    return socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())


async def fill(sock: socket.socket) -> int:
    """Write to a non-blocking socket until its peer takes no more, and return how much that was."""
    size = 0
    with_nothing_left = False
    while not with_nothing_left:
        try:
            size += sock.send(bytes(65536))
        except BlockingIOError:
            with_nothing_left = True
    return size


async def read_to_end(sock: socket.socket) -> bytes:
    """Read a non-blocking socket to its end, on any loop."""
    loop = asyncio.get_running_loop()
    data = bytearray()
    while True:
        try:
            piece = sock.recv(2**20)
        except BlockingIOError:
            await readable(loop, sock)
            continue
        if not piece:
            return bytes(data)
        data += piece


async def readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    """Wait until a socket is readable."""
    ready = asyncio.Event()
    watcher = watcher_of(loop)
    watcher.add_reader(sock.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        watcher.remove_reader(sock.fileno())
