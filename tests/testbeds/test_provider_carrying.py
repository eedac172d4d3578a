"""Bytes over the emulated AF_HYPERV, on the stock Proactor loop, too, and between processes; and how connections end."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

if sys.platform != "win32":
    pytest.skip("needs Windows' CPython: make test-windows runs it under Wine", allow_module_level=True)

import _overlapped
import _winapi

from . import provider
from .provider.testing import Made, error_of, making, outcome, service
from .provider.winsock import (
    ERROR_BROKEN_PIPE,
    ERROR_NETNAME_DELETED,
    ERROR_OPERATION_ABORTED,
    WSAEAFNOSUPPORT,
    WSAECONNREFUSED,
    WSAECONNRESET,
    WSAESHUTDOWN,
)

PARENT = socket.HV_GUID_PARENT.lower()
LOOPBACK = socket.HV_GUID_LOOPBACK.lower()

MEBIBYTE = bytes(range(256)) * 4096

# How an overlapped operation learns of a reset, or of one that came while it was under way.
RESETS = (ERROR_NETNAME_DELETED, ERROR_OPERATION_ABORTED, WSAECONNRESET)


@pytest.fixture
def made() -> Iterator[Made]:
    with making() as made:
        yield made


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=asyncio.ProactorEventLoop) as runner:
        runner.run(asyncio.wait_for(coroutine, 15))


# -- blocking ----------------------------------------------------------------------------------------------------


def test_both_ways_and_half_closed(made: Made) -> None:
    client, accepted = made.pair()
    client.sendall(b"question")
    client.shutdown(socket.SHUT_WR)

    assert accepted.recv(100) == b"question"
    assert accepted.recv(100) == b""
    accepted.sendall(b"answer")
    assert client.recv(100) == b"answer"
    assert error_of(client.send, b"x") == WSAESHUTDOWN
    client.settimeout(None)
    client.shutdown(socket.SHUT_RD)
    assert error_of(client.recv, 100) == WSAESHUTDOWN


def test_small_pieces_are_not_held_back(made: Made) -> None:
    client, accepted = made.pair()
    # With Nagle's algorithm and delayed acknowledgements each takes 40 ms.
    start = time.monotonic()
    for _ in range(50):
        client.sendall(b"a")
        client.sendall(b"b")
        assert accepted.recv(2, socket.MSG_WAITALL) == b"ab"
        accepted.sendall(b"c")
        assert client.recv(1) == b"c"
    assert time.monotonic() - start < 1


def test_no_more_is_taken_than_a_ring_holds(made: Made) -> None:
    for sock in made.pair():
        sock.setblocking(False)
        taken = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                taken += sock.send(MEBIBYTE)
        assert taken < 2**20


@pytest.mark.parametrize(
    "close", [socket.socket.close, lambda sock: ctypes.WinDLL("ws2_32").closesocket(sock.detach())]
)
def test_a_closed_handle_is_forgotten(made: Made, close: Callable[[socket.socket], None]) -> None:
    # Winloop closes what it is given with a Winsock of its own.
    client, _ = made.pair()
    number = client.fileno()
    close(client)
    reused = [made.keep(socket.socket()) for _ in range(50)]

    for sock in reused:
        if sock.fileno() == number:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with pytest.raises(KeyError):
                provider.options_of(sock)
            return
    raise AssertionError("the number was not used again")


# -- how it ends -------------------------------------------------------------------------------------------------


def test_a_broken_pipe_for_an_end(made: Made) -> None:
    client, accepted = made.pair()
    provider.break_pipe(client)
    accepted.sendall(b"last words")
    accepted.close()

    assert client.recv(100) == b"last words"
    assert error_of(client.recv, 100) == ERROR_BROKEN_PIPE


def test_a_reset_of_all(made: Made) -> None:
    client, accepted = made.pair()
    accepted.sendall(b"lost")
    provider.reset()

    for sock in (client, accepted):
        assert error_of(sock.recv, 100) == WSAECONNRESET
        assert error_of(sock.send, b"x") == WSAECONNRESET
        assert error_of(sock.recv, 100) == WSAECONNRESET
    # It is about those that there were.
    client, accepted = made.pair()
    client.sendall(b"x")
    assert accepted.recv(1) == b"x"


@pytest.mark.parametrize("blocking", [True, False])
def test_names_outlive_a_reset(made: Made, blocking: bool) -> None:
    listener = made.listener()
    client = made.unconnected()
    if blocking:
        client.settimeout(None)
        client.connect(listener.getsockname())
    else:
        assert outcome(client, listener.getsockname()) == 0
    accepted = made.accepted(listener)
    provider.reset()

    assert client.getpeername() == listener.getsockname()
    assert accepted.getpeername() == (LOOPBACK, client.getsockname()[1])


def test_a_reset_of_one_machine(made: Made) -> None:
    registered = made.registered()
    loopback = made.pair()[0]
    pairs = {}
    for vm_id in (made.vm(), made.vm()):
        with provider.inside(vm_id):
            listener = made.listener(PARENT, registered)
        client = made.connected((vm_id, registered))
        pairs[vm_id] = (client, made.accepted(listener))
    first, second = pairs
    provider.reset(first)

    for sock in pairs[first]:
        assert error_of(sock.recv, 1) == WSAECONNRESET
    for sock in (*pairs[second], loopback):
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)


@pytest.mark.parametrize("end", [0, 1])
def test_a_reset_wakes_who_reads(made: Made, end: int) -> None:
    sock = made.pair()[end]
    sock.settimeout(None)
    reading = threading.Event()
    errors: list[int] = []

    def read() -> None:
        reading.set()
        errors.append(error_of(sock.recv, 1))

    thread = threading.Thread(target=read)
    thread.start()
    assert reading.wait(10)
    provider.reset()
    thread.join(10)

    assert errors == [WSAECONNRESET]


def test_a_reset_wakes_who_selects(made: Made) -> None:
    for sock in made.pair():
        provider.reset()
        assert select.select([sock], [], [], 10)[0] == [sock]


# -- the stock loop ----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def streams(
    sock: socket.socket, *, accepted: bool = False
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    if accepted:
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock)
    else:
        transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    try:
        yield reader, writer
    finally:
        transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def test_the_stock_loop_carries_a_mebibyte_both_ways(made: Made) -> None:
    client, accepted = made.pair()
    names = client.getsockname(), client.getpeername(), accepted.getpeername()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def talk() -> None:
        async with streams(client) as (reader, writer), streams(accepted, accepted=True) as theirs:
            assert (writer.get_extra_info("sockname"), writer.get_extra_info("peername")) == names[:2]
            assert theirs[1].get_extra_info("peername") == names[2]
            echoing = asyncio.create_task(echo(*theirs))
            writer.write(MEBIBYTE)
            writer.write_eof()
            assert await reader.read() == MEBIBYTE
            await echoing

    run(talk())


def test_socket_coroutines(made: Made) -> None:
    client, accepted = made.pair()

    async def talk() -> None:
        loop = asyncio.get_running_loop()
        for sock in (client, accepted):
            sock.setblocking(False)
        reading = asyncio.create_task(loop.sock_recv(accepted, 100))
        await asyncio.sleep(0)
        await loop.sock_sendall(client, b"x")
        assert await reading == b"x"
        buffer = bytearray(10)
        client.shutdown(socket.SHUT_WR)
        assert await loop.sock_recv_into(accepted, buffer) == 0

    run(talk())


def test_the_stock_loop_can_neither_connect_nor_accept(made: Made) -> None:
    listener = made.listener()
    address = listener.getsockname()
    client = made.unconnected()

    async def connect() -> None:
        client.setblocking(False)
        # BindLocal() knows two families, and says so in other words in each version.
        with pytest.raises(ValueError):
            await asyncio.get_running_loop().sock_connect(client, address)

    async def accept() -> None:
        listener.setblocking(False)
        reports: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, report: reports.put_nowait(report))
        server = await loop.create_server(asyncio.Protocol, sock=listener)
        # It has closed the listener, and does not know it.
        assert (await reports.get())["message"] == "Accept failed on a socket"
        assert server.is_serving()
        assert listener.fileno() == -1
        server.close()

    run(connect())
    run(accept())


@pytest.mark.parametrize("end", [0, 1])
def test_a_reset_fails_what_the_stock_loop_has_under_way(made: Made, end: int) -> None:
    sock = made.pair()[end]
    sock.setblocking(False)

    async def read() -> None:
        loop = asyncio.get_running_loop()
        reading = asyncio.create_task(loop.sock_recv(sock, 1))
        await asyncio.sleep(0.05)
        provider.reset()
        with pytest.raises(ConnectionResetError) as raised:
            await reading
        assert raised.value.winerror in RESETS
        with pytest.raises(ConnectionResetError):
            await loop.sock_recv(sock, 1)
        with pytest.raises(ConnectionResetError):
            await loop.sock_sendall(sock, b"x")

    run(read())


def test_a_reset_fails_a_write_that_waits(made: Made) -> None:
    sock, _ = made.pair()
    sock.setblocking(False)

    async def write() -> None:
        writing = asyncio.create_task(asyncio.get_running_loop().sock_sendall(sock, MEBIBYTE * 64))
        await asyncio.sleep(0.2)
        assert not writing.done()
        provider.reset()
        with pytest.raises(ConnectionResetError):
            await writing

    run(write())


def test_overlapped_operations_read_a_broken_pipe_as_an_end(made: Made) -> None:
    client, accepted = made.pair()
    provider.break_pipe(client)

    overlapped = _overlapped.Overlapped()
    overlapped.WSARecv(client.fileno(), 100)
    accepted.close()
    _winapi.WaitForSingleObject(overlapped.event, 10_000)

    assert overlapped.getresult() == b""
    assert overlapped.error == ERROR_BROKEN_PIPE


# -- processes ---------------------------------------------------------------------------------------------------

GUEST = """
import socket, sys
from tests.testbeds import provider
assert provider.install_from_environment()
sock = socket.socket(socket.AF_HYPERV, socket.SOCK_STREAM, socket.HV_PROTOCOL_RAW)
how, vm_id, service_id = sys.argv[1:]
if how != "connect":
    sock.bind((vm_id, service_id))
    sock.listen()
    print("ready", flush=True)
    sock, peer = sock.accept()
else:
    sock.connect((vm_id, service_id))
    peer = sock.getsockname()
print(*peer, flush=True)
try:
    if how in ("recv", "send"):
        input()
    if how == "recv":
        print(sock.recv(9), flush=True)
    if how == "send":
        print(sock.send(b"x"), flush=True)
    while data := sock.recv(65536):
        sock.sendall(data)
    print("end", flush=True)
except OSError as error:
    print(error.winerror, flush=True)
"""


@contextlib.contextmanager
def guest(partition: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", GUEST, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "AIOHVSOCK_PARTITION": partition},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def echoed(sock: socket.socket) -> None:
    sending = threading.Thread(target=sock.sendall, args=[MEBIBYTE])
    sending.start()
    with sock.makefile("rb") as file:
        assert file.read(len(MEBIBYTE)) == MEBIBYTE
    sending.join()


def test_a_guest_dials_its_host(made: Made) -> None:
    vm_id, registered = made.vm("linux"), made.registered()
    listener = made.listener(socket.HV_GUID_WILDCARD, registered)

    with guest(vm_id, "connect", PARENT, registered) as process:
        accepted = made.accepted(listener)
        line(process)
        peer = accepted.getpeername()
        assert peer[0] == vm_id
        assert peer[1].endswith("-facb-11e6-bd58-64006a7986d3")
        echoed(accepted)
        accepted.close()
        assert line(process) == ["end"]


def test_a_host_dials_its_guest_and_the_guest_is_reset(made: Made) -> None:
    vm_id, registered = made.vm(), made.registered()

    with guest(vm_id, "listen", PARENT, registered) as process:
        assert line(process) == ["ready"]
        client = made.connected((vm_id, registered))
        assert line(process) == [PARENT, client.getsockname()[1]]
        echoed(client)
        provider.reset(vm_id)
        assert error_of(client.recv, 1) == WSAECONNRESET
        assert line(process) == [str(WSAECONNRESET)]


@pytest.mark.parametrize("how", ["recv", "send"])
def test_a_reset_is_seen_at_once_in_another_process(made: Made, how: str) -> None:
    vm_id, registered = made.vm(), made.registered()

    with guest(vm_id, how, PARENT, registered) as process:
        assert line(process) == ["ready"]
        made.connected((vm_id, registered)).sendall(b"lost")
        assert line(process)[0] == PARENT
        provider.reset(vm_id)
        assert process.stdin is not None
        print(file=process.stdin, flush=True)
        assert line(process) == [str(WSAECONNRESET)]


def test_what_a_killed_process_listened_on_is_free_again(made: Made) -> None:
    address = LOOPBACK, service()
    with guest("host", "listen", *address) as process:
        assert line(process) == ["ready"]
        assert error_of(made.unconnected().bind, address) != 0
    assert error_of(made.unconnected().connect, address) == WSAECONNREFUSED
    made.listener(*address)


PROGRAM = """
import socket
from tests.testbeds import provider
assert provider.install_from_environment()
arguments = socket.AF_HYPERV, socket.SOCK_STREAM, socket.HV_PROTOCOL_RAW
left = socket.socket(*arguments)
left.bind((socket.HV_GUID_LOOPBACK, "{service_id}"))
left.listen()
"""

UNINSTALL = """
provider.uninstall()
assert not provider.installed()
try:
    socket.socket(*arguments)
except OSError as error:
    print(error.winerror)
left.close()
"""


def end_of(program: str) -> str:
    """What a process prints that then ends well."""
    result = subprocess.run(
        [sys.executable, "-c", program.format(service_id=service())],
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.strip()


def test_without_the_provider_the_family_is_unknown_again(made: Made) -> None:
    assert end_of(PROGRAM + UNINSTALL) == str(WSAEAFNOSUPPORT)


def test_sockets_can_be_left_to_the_end_of_the_process(made: Made) -> None:
    # They are closed when there is no Python left to ask.
    assert end_of(PROGRAM + "import sys; sys.kept = left") == ""
