"""For tests of programs that use this package: an address that works on every machine, without a hypervisor.

As a pytest fixture: put ``pytest_plugins = ["aiohvsock.testing"]`` into ``conftest.py``, and a test that takes
``hv_address`` gets one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import random
import re
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial

from .addresses import CID_LOCAL, PORT_ANY, Address, HybridAddress, HypervAddress, VsockAddress
from .exceptions import HvConnectError
from .platforms import Options, linux, windows
from .streams import open_hv_connection, start_hv_server

__all__ = ["hybrid_monitor", "local_address"]

_PORT = 2761
_CONNECT = re.compile(rb"CONNECT ([0-9a-f-]+)\n", re.IGNORECASE)

# Firecracker numbers the ports of the host's connections from 2**30.
_FIRST_HOST_PORT = 2**30

# Seconds a request may wait for a full backlog, as long as Firecracker's.
_PATIENCE = 2.0

_CHUNK = 256 * 1024

# A Unix socket's path has 103 bytes on macOS, less "/aiohvsock-abcdefgh/vm.sock_4294967295".
_LONGEST_PLACE = 103 - 38


@contextlib.contextmanager
def local_address() -> Iterator[Address]:
    """Give an address that one program can listen on and another, on this machine, can dial.

    It is AF_HYPERV loopback on Windows, and AF_VSOCK loopback where a Linux machine has it; else hybrid vsock in a
    temporary directory (in ``/tmp`` if ``TMPDIR`` is too long for a Unix socket), with :func:`hybrid_monitor` for the
    virtual machine's monitor. Other processes can use it too, as long as the block lasts.

    Raises:
        HvUnsupportedError: none of them is to be had on this system; the text has the cure.
    """
    if sys.platform == "win32":
        windows.open_socket(Options()).close()
        # Any service id does: on loopback none has to be registered.
        yield HypervAddress("loopback", random.randrange(1, 2**31))
        return
    if linux.has_loopback():
        yield VsockAddress(CID_LOCAL, _free_port())
        return
    with _temporary_monitor() as path:
        yield HybridAddress(path, _PORT)


def _free_port() -> int:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
        probe.bind((CID_LOCAL, PORT_ANY))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _temporary_monitor() -> Iterator[str]:
    """Give the path of a :func:`hybrid_monitor` in a temporary directory, with room for any port after it."""
    place = "/tmp" if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_PLACE else None
    with tempfile.TemporaryDirectory(prefix="aiohvsock-", dir=place) as directory:
        path = f"{directory}/vm.sock"
        with hybrid_monitor(path):
            yield path


@contextlib.contextmanager
def hybrid_monitor(path: str) -> Iterator[None]:
    """Stand in for a virtual machine's monitor on a Unix socket, as long as the block lasts.

    It answers ``CONNECT <port>`` on ``path`` and passes the bytes on to ``<path>_<port>``, where a server on
    ``HybridAddress(path, port)`` listens: so the same address can be listened on and dialled. An end of either
    direction is passed on. It runs in a thread of its own, on an event loop of its own.

    Raises:
        HvConnectError: the socket cannot be bound.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
    except OSError as error:
        listener.close()
        # Python itself refuses a path that is too long, without a number.
        raise HvConnectError(error.errno or errno.ENAMETOOLONG, f"listen on {path}") from error
    try:
        started: Future[Callable[[], object]] = Future()
        thread = threading.Thread(
            target=_run_monitor, args=(path, listener, started), name="hybrid monitor", daemon=True
        )
        thread.start()
        stop = started.result()
        try:
            yield
        finally:
            stop()
            thread.join()
    finally:
        listener.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def _run_monitor(path: str, listener: socket.socket, started: Future[Callable[[], object]]) -> None:
    try:
        asyncio.run(_monitor(path, listener, started))
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)


async def _monitor(path: str, listener: socket.socket, started: Future[Callable[[], object]]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    host_ports = itertools.count(_FIRST_HOST_PORT)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = [writer]
        try:
            request = _CONNECT.fullmatch(await reader.readline())
            if request is None:
                return
            sock = await _connect_unix(f"{path}_{request[1].decode().lower()}")
            guest_reader, guest_writer = await open_hv_connection(sock=sock)
            writers.append(guest_writer)
            writer.write(b"OK %d\n" % next(host_ports))
            await asyncio.gather(_copy(reader, guest_writer), _copy(guest_reader, writer))
        except (OSError, ValueError):  # a line that never ends is a ValueError
            for each in writers:
                each.transport.abort()
        finally:
            for each in writers:
                each.close()

    server = await start_hv_server(relay, sock=listener, backlog=1024)
    started.set_result(partial(loop.call_soon_threadsafe, stopped.set))
    await stopped.wait()
    server.close()
    server.abort_clients()


async def _connect_unix(path: str) -> socket.socket:
    """Return a socket connected to a path, as the monitor would: waiting while the backlog is full."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        async with asyncio.timeout(_PATIENCE):
            while True:
                try:
                    sock.connect(path)
                    return sock
                except BlockingIOError:
                    await asyncio.sleep(0.001)
    except BaseException:
        sock.close()
        raise


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


try:
    import pytest
except ImportError:
    pass
else:

    @pytest.fixture
    def hv_address() -> Iterator[Address]:
        """An address that the test can listen on and dial, as :func:`local_address` gives it."""
        with local_address() as address:
            yield address
