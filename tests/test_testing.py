from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from aiohvsock import (
    CID_LOCAL,
    Address,
    HvConnectError,
    HvConnectionRefused,
    HybridAddress,
    VsockAddress,
    open_hv_connection,
    parse_address,
    start_hv_server,
    testing,
)
from aiohvsock.platforms import linux
from aiohvsock.testing import _temporary_monitor, hybrid_monitor, local_address

GUID = "0123abcd-4567-89ab-cdef-0123456789ab"


def connected(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.connect(path)
    return sock


def listening(path: str, backlog: int = 5) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(10)
    sock.bind(path)
    sock.listen(backlog)
    return sock


def accepted(listener: socket.socket) -> socket.socket:
    sock, _ = listener.accept()
    sock.settimeout(10)
    return sock


def line(sock: socket.socket) -> bytes:
    """Read up to the end of a line, and nothing after it."""
    got = b""
    while not got.endswith(b"\n"):
        byte = sock.recv(1)
        assert byte, f"ended after {got!r}"
        got += byte
    return got


def everything(sock: socket.socket) -> bytes:
    got = b""
    while piece := sock.recv(2**16):
        got += piece
    return got


def end(sock: socket.socket) -> bytes:
    """Return what comes until the connection is closed; on a Unix socket, with data unread, that is a reset."""
    try:
        return everything(sock)
    except ConnectionResetError:
        return b""


@pytest.fixture
def monitor(directory: str) -> Iterator[str]:
    path = f"{directory}/vm.sock"
    with hybrid_monitor(path):
        yield path


@pytest.fixture
def relayed(monitor: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The host's and the guest's end of a connection through the monitor."""
    with listening(f"{monitor}_5000") as listener, connected(monitor) as host:
        host.sendall(b"CONNECT 5000\n")
        with accepted(listener) as guest:
            assert line(host).startswith(b"OK ")
            yield host, guest


# -- local_address -----------------------------------------------------------------------------------------


async def test_a_local_address_can_be_listened_on_and_dialled() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        writer.close()

    with local_address() as address:
        async with await start_hv_server(echo, address):
            reader, writer = await open_hv_connection(address)
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"hello"
            writer.close()
            await writer.wait_closed()


async def test_another_process_can_dial_a_local_address() -> None:
    client = (
        "import asyncio, sys, aiohvsock\n"
        "async def main():\n"
        "    reader, writer = await aiohvsock.open_hv_connection(sys.argv[1])\n"
        "    print((await reader.read()).decode())\n"
        "    writer.close()\n"
        "asyncio.run(main())\n"
    )

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello from the other process")
        writer.close()

    with local_address() as address:
        async with await start_hv_server(greet, address):
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-W", "error", "-c", client, str(address)],
                capture_output=True,
                text=True,
                check=False,
            )

    assert (done.returncode, done.stdout, done.stderr) == (0, "hello from the other process\n", "")


@pytest.mark.linux
def test_without_loopback_it_is_hybrid_vsock_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "has_loopback", lambda: False)
    with local_address() as address:
        assert isinstance(address, HybridAddress)
        directory = Path(address.path).parent
        assert stat.S_ISSOCK(os.stat(address.path).st_mode)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700  # nobody else's business
    assert not directory.exists()


def test_two_local_addresses_differ() -> None:
    with local_address() as one, local_address() as two:
        assert one != two


@pytest.mark.linux
def test_with_loopback_it_is_cid_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "has_loopback", lambda: True)
    monkeypatch.setattr(testing, "_free_port", lambda: 5000)
    with local_address() as address:
        assert address == VsockAddress(CID_LOCAL, 5000)


@pytest.mark.vsock
def test_with_loopback_it_is_a_free_port() -> None:
    with local_address() as address:
        assert isinstance(address, VsockAddress)
        assert address.cid == CID_LOCAL
        assert address.port > 1023


# -- hybrid_monitor ----------------------------------------------------------------------------------------


def test_the_answer_is_ok_and_a_host_port(monitor: str) -> None:
    # As Firecracker numbers them.
    with listening(f"{monitor}_5000") as listener:
        for number in range(3):
            with connected(monitor) as host:
                host.sendall(b"CONNECT 5000\n")
                accepted(listener).close()
                assert line(host) == b"OK %d\n" % (2**30 + number)
                assert host.recv(1) == b""


@pytest.mark.parametrize(
    ("request_line", "suffix"),
    [
        (b"CONNECT 0\n", "0"),
        (b"connect 4294967295\n", "4294967295"),
        (b"Connect 2761\n", "2761"),
        (f"CONNECT {GUID}\n".encode(), GUID),
        (f"CONNECT {GUID.upper()}\n".encode(), GUID),
    ],
)
def test_the_port_names_the_guests_socket(monitor: str, request_line: bytes, suffix: str) -> None:
    with listening(f"{monitor}_{suffix}") as listener, connected(monitor) as host:
        host.sendall(request_line)
        with accepted(listener) as guest:
            assert line(host).startswith(b"OK ")
            guest.sendall(b"hello")
            assert host.recv(5) == b"hello"


def test_a_request_may_come_in_pieces_and_a_guest_may_speak_first(monitor: str) -> None:
    with listening(f"{monitor}_22") as listener, connected(monitor) as host:
        for each in b"CONNECT 22\n":
            host.sendall(bytes([each]))
        with accepted(listener) as guest:
            guest.sendall(b"SSH-2.0")
            assert line(host) == b"OK 1073741824\n"
            assert host.recv(7) == b"SSH-2.0"


def test_what_comes_with_the_request_is_passed_on(monitor: str) -> None:
    with listening(f"{monitor}_1") as listener, connected(monitor) as host:
        host.sendall(b"CONNECT 1\nhello")
        with accepted(listener) as guest:
            assert guest.recv(100) == b"hello"


def test_bytes_go_both_ways(relayed: tuple[socket.socket, socket.socket]) -> None:
    host, guest = relayed
    up, down = os.urandom(2**20), os.urandom(2**20)

    def send(sock: socket.socket, data: bytes) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    with ThreadPoolExecutor(4) as pool:
        sending = [pool.submit(send, host, up), pool.submit(send, guest, down)]
        receiving = [pool.submit(everything, host), pool.submit(everything, guest)]
        assert [each.result() for each in receiving] == [down, up]
        assert [each.result() for each in sending] == [None, None]


@pytest.mark.parametrize("first", ["host", "guest"])
def test_an_end_of_one_direction_leaves_the_other_open(
    relayed: tuple[socket.socket, socket.socket], first: str
) -> None:
    host, guest = relayed
    ends, goes_on = (host, guest) if first == "host" else (guest, host)

    ends.sendall(b"question")
    ends.shutdown(socket.SHUT_WR)
    assert everything(goes_on) == b"question"
    for each in (b"an", b"swer"):
        goes_on.sendall(each)
        assert ends.recv(100) == each
    goes_on.shutdown(socket.SHUT_WR)
    assert ends.recv(1) == b""


@pytest.mark.parametrize("first", ["host", "guest"])
@pytest.mark.parametrize("unread", [False, True])
def test_a_side_that_dies_ends_the_other(
    relayed: tuple[socket.socket, socket.socket], first: str, unread: bool
) -> None:
    host, guest = relayed
    dies, stays = (host, guest) if first == "host" else (guest, host)
    if unread:
        # With data unread, closing is a reset.
        stays.sendall(b"x" * 1000)
        dies.recv(1)
    dies.close()

    # It is gone for good: writing comes to fail, too.
    assert end(stays) == b""
    with pytest.raises(OSError, match="Broken pipe|reset"):
        while True:
            stays.sendall(b"x" * 1000)


@pytest.mark.parametrize(
    "request_line",
    [
        b"\n",
        b"HELLO\n",
        b"CONNECT\n",
        b"CONNECT \n",
        b"CONNECT 5000",
        b"CONNECT 5000\r\n",
        b"CONNECT  5000\n",
        b"CONNECT 5000 \n",
        b"CONNECT 50/00\n",
        b"CONNECT ../x\n",
        b"CONNECT -\n",
        b"XCONNECT 5000\n",
        b"CONNECT 5000\0\n",
        b"\xff\xfe\n",
        b"",
        b"x" * 200_000,
        b"CONNECT " + b"1" * 200_000 + b"\n",
    ],
    ids=lambda request_line: repr(request_line[:20]),
)
def test_a_request_that_is_none_is_answered_by_closing(monitor: str, request_line: bytes) -> None:
    with listening(f"{monitor}_5000") as listener, connected(monitor) as host:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it does not read on for ever
            host.sendall(request_line)
            host.shutdown(socket.SHUT_WR)
        assert end(host) == b""
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_port_where_nobody_listens_is_closed_without_an_ok(monitor: str) -> None:
    with connected(monitor) as host:
        host.sendall(b"CONNECT 5000\n")
        assert end(host) == b""
    # What a dead listener leaves behind is no listener.
    listening(f"{monitor}_5000").close()
    with connected(monitor) as host:
        host.sendall(b"CONNECT 5000\n")
        assert end(host) == b""


def test_a_path_too_long_is_closed_without_an_ok(directory: str) -> None:
    path = f"{directory}/".ljust(100, "v")
    with hybrid_monitor(path), connected(path) as host:
        host.sendall(b"CONNECT 4294967295\n")
        assert end(host) == b""


async def test_our_own_dial_is_refused_where_nobody_listens(monitor: str) -> None:
    with pytest.raises(HvConnectionRefused):
        await open_hv_connection(HybridAddress(monitor, 5000))


def test_a_bad_request_costs_the_others_nothing(
    monitor: str, relayed: tuple[socket.socket, socket.socket]
) -> None:
    host, guest = relayed
    with connected(monitor) as bad:
        bad.sendall(b"HELLO\n")
        assert end(bad) == b""

    host.sendall(b"still here")
    assert guest.recv(100) == b"still here"


def test_a_request_waits_while_the_guests_backlog_is_full(monitor: str) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening(f"{monitor}_1", backlog=0))
        stack.enter_context(connected(f"{monitor}_1"))
        host = stack.enter_context(connected(monitor))
        host.sendall(b"CONNECT 1\n")
        # A second request, to a port that is free, shows that the first has come and waits.
        with listening(f"{monitor}_2") as other, connected(monitor) as second:
            second.sendall(b"CONNECT 2\n")
            stack.enter_context(accepted(other))
            assert line(second).startswith(b"OK ")
        host.setblocking(False)
        with pytest.raises(BlockingIOError):
            host.recv(1)
        host.settimeout(10)
        stack.enter_context(accepted(listener))
        stack.enter_context(accepted(listener))
        assert line(host).startswith(b"OK ")


def test_a_request_does_not_wait_for_ever(monitor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "_PATIENCE", 0.05)
    with listening(f"{monitor}_1", backlog=0), connected(f"{monitor}_1"), connected(monitor) as host:
        host.sendall(b"CONNECT 1\n")
        assert end(host) == b""


def test_many_at_once(monitor: str) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening(f"{monitor}_1", backlog=100))
        hosts = [stack.enter_context(connected(monitor)) for _ in range(50)]
        for number, host in enumerate(hosts):
            host.sendall(b"CONNECT 1\n%d\n" % number)
        for _ in hosts:
            guest = stack.enter_context(accepted(listener))
            guest.sendall(b"to " + line(guest))
        assert len({line(host) for host in hosts}) == 50
        assert [line(host) for host in hosts] == [b"to %d\n" % number for number in range(50)]


def monitors() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "hybrid monitor"]


def test_at_the_end_nothing_is_left(directory: str) -> None:
    path = f"{directory}/vm.sock"
    before = len(monitors())
    with listening(f"{path}_1") as listener:
        with hybrid_monitor(path):
            assert len(monitors()) == before + 1
            idle = connected(path)
            busy = connected(path)
            busy.sendall(b"CONNECT 1\n")
            guest = accepted(listener)
            assert line(busy).startswith(b"OK ")

        assert len(monitors()) == before
        assert os.listdir(directory) == ["vm.sock_1"]
        for sock in (idle, busy, guest):
            assert end(sock) == b""
            sock.close()
    with hybrid_monitor(path):
        assert os.path.exists(path)
    assert not os.path.exists(path)


def test_at_the_end_it_waits_for_nobody(directory: str) -> None:
    path = f"{directory}/vm.sock"
    with contextlib.ExitStack() as stack:
        with hybrid_monitor(path):
            listener = stack.enter_context(listening(f"{path}_1"))
            host = stack.enter_context(connected(path))
            host.sendall(b"CONNECT 1\n")
            guest = stack.enter_context(accepted(listener))
            assert line(host).startswith(b"OK ")
            # The host does not read: the monitor is left with what the guest sends, more than it passes on.
            guest.settimeout(0.1)
            with pytest.raises(TimeoutError):
                while True:
                    guest.sendall(bytes(2**16))
        assert path not in os.listdir(directory)
        with pytest.raises(BrokenPipeError):
            guest.sendall(b"x")


def test_an_exception_in_the_block_ends_it_too(directory: str) -> None:
    path = f"{directory}/vm.sock"
    before = len(monitors())
    with pytest.raises(ZeroDivisionError), hybrid_monitor(path):
        _ = 1 / 0

    assert len(monitors()) == before
    assert os.listdir(directory) == []


def test_a_socket_file_removed_meanwhile_is_no_error(directory: str) -> None:
    path = f"{directory}/vm.sock"
    with hybrid_monitor(path):
        os.unlink(path)

    assert os.listdir(directory) == []


def test_a_path_that_is_taken_is_left_to_who_has_it(monitor: str) -> None:
    before = len(monitors())
    with pytest.raises(HvConnectError, match="vm.sock"), hybrid_monitor(monitor):
        pytest.fail("it started")

    assert len(monitors()) == before
    with listening(f"{monitor}_1") as listener, connected(monitor) as host:
        host.sendall(b"CONNECT 1\n")
        accepted(listener).close()
        assert line(host).startswith(b"OK ")


def test_a_directory_that_does_not_exist(directory: str) -> None:
    with (
        pytest.raises(HvConnectError, match="missing/vm.sock"),
        hybrid_monitor(f"{directory}/missing/vm.sock"),
    ):
        pytest.fail("it started")


# -- the fixture -------------------------------------------------------------------------------------------


def test_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["aiohvsock.testing"]\n')
    (tmp_path / "test_it.py").write_text(
        """
import asyncio
import pathlib

import aiohvsock


def test_it(hv_address: aiohvsock.Address) -> None:
    async def handler(connection: aiohvsock.MessageConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async def main() -> None:
        async with await aiohvsock.serve(handler, hv_address):
            async with aiohvsock.connect(hv_address) as connection:
                await connection.send(b"hello")
                assert await connection.recv() == b"hello"

    asyncio.run(main())
    pathlib.Path("address").write_text(str(hv_address))
"""
    )

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:asyncio",
            "-W",
            "error",
            "--rootdir",
            ".",
            "test_it.py",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    address: Address = parse_address((tmp_path / "address").read_text())
    if isinstance(address, HybridAddress):
        assert not Path(address.path).parent.exists()


def test_it_can_be_used_without_pytest() -> None:
    script = (
        "import sys; sys.modules['pytest'] = None\n"
        "import aiohvsock.testing\n"
        "with aiohvsock.testing.local_address() as address: print(address)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "vsock" in done.stdout


def test_a_monitor_that_cannot_start_says_so(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: object, **options: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(testing, "start_hv_server", fail)
    with pytest.raises(OSError, match="Too many open files"), hybrid_monitor(f"{directory}/vm.sock"):
        raise AssertionError("it has not started")
    assert os.listdir(directory) == []


@pytest.mark.linux
def test_a_long_name_of_the_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / ("x" * 100)
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))

    with _temporary_monitor() as path:
        HybridAddress(path, 2**32 - 2)  # or it has no room for the port
        assert Path(path).is_socket()

    with pytest.raises(HvConnectError, match="too long") as caught, hybrid_monitor(f"{place}/vm.sock"):
        pass
    assert caught.value.errno == errno.ENAMETOOLONG
