from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from aiohvsock import (
    PORT_ANY,
    HvAddressError,
    HvConnectError,
    HvConnectionRefused,
    HvPermissionError,
    HvTimeout,
    HybridAddress,
    VsockAddress,
)
from aiohvsock.platforms import READABLE, Options, hybrid, platform_for

GUID = "999e53d4-3d5c-4c3e-8779-bed06ec056e1"


@pytest.fixture
def monitor(directory: str) -> Iterator[socket.socket]:
    """A listening socket that a test answers by hand."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(f"{directory}/vm.sock")
        sock.listen(1)
        yield sock


def address_of(monitor: socket.socket, port: int | str = 52) -> HybridAddress:
    return HybridAddress(monitor.getsockname(), port)


def dial(address: HybridAddress) -> tuple[socket.socket, Iterator[str]]:
    sock = hybrid.open_socket(Options())
    return sock, hybrid.dial(sock, address)


def test_platform_for() -> None:
    assert platform_for(HybridAddress("/x", 5)) is hybrid
    with pytest.raises(HvAddressError, match="hybrid"):
        hybrid.native(VsockAddress(2, 5))


# -- dialling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "request_line"),
    [(52, b"CONNECT 52\n"), (PORT_ANY - 1, b"CONNECT 4294967294\n"), (GUID, b"CONNECT %s\n" % GUID.encode())],
)
@pytest.mark.parametrize("answer", [b"OK 1073741824\n", b"OK 52\n", b"OK %s\n" % GUID.encode(), b"OK \n"])
def test_the_handshake_is_byte_exact(
    monitor: socket.socket, port: int | str, request_line: bytes, answer: bytes
) -> None:
    sock, steps = dial(address_of(monitor, port))
    with sock:
        assert next(steps) == READABLE
        peer, _ = monitor.accept()
        with peer:
            # In one piece, and nothing after it.
            assert peer.recv(100) == request_line
            # A guest that speaks first: its banner comes in the same segment as the OK.
            peer.sendall(answer + b"SSH-2.0-banner")
            assert next(steps, None) is None
            assert sock.recv(100) == b"SSH-2.0-banner"


def test_a_reply_in_pieces(monitor: socket.socket) -> None:
    sock, steps = dial(address_of(monitor))
    with sock:
        next(steps)
        peer, _ = monitor.accept()
        with peer:
            for byte in b"OK 123":
                peer.send(bytes([byte]))
                assert next(steps) == READABLE
            assert next(steps) == READABLE  # woken for nothing
            peer.send(b"\nafter")
            assert next(steps, None) is None
            assert sock.recv(100) == b"after"


@pytest.mark.parametrize("before", [b"", b"OK", b"OK 12"])
def test_an_end_before_ok_is_refused(monitor: socket.socket, before: bytes) -> None:
    sock, steps = dial(address_of(monitor))
    with sock:
        next(steps)
        with monitor.accept()[0] as peer:
            peer.recv(100)
            peer.sendall(before)
        with pytest.raises(ConnectionRefusedError, match="without an OK"):
            list(steps)


@pytest.mark.parametrize(
    "answer", [b"KO 52\n", b"\n", b"HTTP/1.1 400 Bad Request\r\n", b"x" * 1000, b"OK52\n"]
)
def test_another_answer_is_no_hybrid_vsock(monitor: socket.socket, answer: bytes) -> None:
    sock, steps = dial(address_of(monitor))
    with sock:
        next(steps)
        with monitor.accept()[0] as peer:
            peer.recv(100)
            peer.sendall(answer)
            with pytest.raises(OSError, match="instead of OK") as caught:
                list(steps)
    error = hybrid.failure(caught.value, "connect", remote=address_of(monitor), local=None)
    assert "does not speak hybrid vsock" in str(error)


def test_a_full_backlog_is_not_ready(monitor: socket.socket) -> None:
    """asyncio takes EAGAIN for a connect under way, and then reports a connection that does not exist."""
    waiting = []
    with pytest.raises(BlockingIOError) as caught:
        for _ in range(10):
            sock, steps = dial(address_of(monitor))
            waiting.append(sock)
            next(steps)
    assert 1 < len(waiting) < 10
    for sock in waiting:
        sock.close()
    error = hybrid.failure(caught.value, "connect", remote=address_of(monitor), local=None)
    assert isinstance(error, HvConnectionRefused)
    assert error.errno == errno.EAGAIN
    assert error.transient


@pytest.mark.parametrize(
    ("code", "kind", "transient"),
    [
        (errno.ENOENT, HvConnectError, True),
        (errno.ECONNREFUSED, HvConnectionRefused, True),
        (errno.ECONNRESET, HvConnectionRefused, True),
        (errno.EPIPE, HvConnectionRefused, True),
        (errno.ETIMEDOUT, HvTimeout, True),
        (errno.EACCES, HvPermissionError, False),
        (errno.EPROTO, HvConnectError, False),
    ],
)
def test_what_a_connect_error_means(code: int, kind: type[HvConnectError], transient: bool) -> None:
    address = HybridAddress("/run/vm.sock", 52)
    error = hybrid.failure(OSError(code, os.strerror(code)), "connect", remote=address, local=None)
    assert type(error) is kind
    assert isinstance(error, HvConnectError)
    assert error.transient is transient
    assert error.hint
    assert f"connect to {address} failed" in str(error)


# -- paths -------------------------------------------------------------------------------------------------


def test_a_path_that_is_too_long() -> None:
    longest = "/" + "x" * 106
    assert hybrid.native(HybridAddress(longest, 5)).path == longest
    with pytest.raises(HvAddressError, match="108 bytes long; a Unix socket's is at most 107"):
        hybrid.native(HybridAddress(longest + "x", 5))
    # Listening adds the port to it; bytes count, not characters.
    assert hybrid.socket_path(HybridAddress("/" + "x" * 104, 5)) == "/" + "x" * 104 + "_5"
    with pytest.raises(HvAddressError, match="108 bytes"):
        hybrid.listen(HybridAddress("/" + "x" * 105, 5), Options())
    with pytest.raises(HvAddressError, match="at most 107"):
        hybrid.native(HybridAddress("/" + "ü" * 54, 5))


# -- listening ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [52, GUID])
def test_listen_binds_path_port_and_cleans_up(directory: str, port: int | str) -> None:
    address = HybridAddress(f"{directory}/vm.sock", port)
    listener = hybrid.listen(address, Options())
    assert os.listdir(directory) == [f"vm.sock_{port}"]
    assert listener.address == address
    listener.sock.listen()
    with socket.socket(socket.AF_UNIX) as guest:
        guest.connect(f"{directory}/vm.sock_{port}")
        with listener.sock.accept()[0] if listener.sock.getblocking() else accept(listener.sock) as accepted:
            names = listener.names(accepted)
    assert names.local == address
    assert names.peer == HybridAddress(address.path, PORT_ANY)
    listener.close()
    assert os.listdir(directory) == []


def accept(sock: socket.socket) -> socket.socket:
    sock.setblocking(True)
    return sock.accept()[0]


def test_a_dead_socket_is_replaced(directory: str) -> None:
    path = f"{directory}/vm.sock_52"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()
    assert os.path.exists(path)
    listener = hybrid.listen(HybridAddress(f"{directory}/vm.sock", 52), Options())
    listener.close()
    assert not os.path.exists(path)


@pytest.mark.parametrize("full", [False, True])
def test_a_live_socket_is_left_alone(directory: str, full: bool) -> None:
    path = f"{directory}/vm.sock_52"
    with socket.socket(socket.AF_UNIX) as alive, socket.socket(socket.AF_UNIX) as waiting:
        alive.bind(path)
        alive.listen(0)
        if full:
            waiting.connect(path)
        with pytest.raises(HvConnectError, match="another program listens there") as caught:
            hybrid.listen(HybridAddress(f"{directory}/vm.sock", 52), Options())
        assert caught.value.errno == errno.EADDRINUSE
        assert "listen on vsock+unix://" in str(caught.value)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            assert probe.connect_ex(path) in (0, errno.EAGAIN)


@pytest.mark.parametrize("kind", ["file", "directory", "link", "dangling link"])
def test_what_is_no_socket_is_left_alone(directory: str, kind: str) -> None:
    path = f"{directory}/vm.sock_52"
    match kind:
        case "file":
            with open(path, "w") as file:
                file.write("precious")
        case "directory":
            os.mkdir(path)
        case "link":
            os.symlink("/etc/hostname", path)
        case "dangling link":
            os.symlink("/nonexistent", path)
    before = os.lstat(path)
    with pytest.raises(HvConnectError, match="not a socket") as caught:
        hybrid.listen(HybridAddress(f"{directory}/vm.sock", 52), Options())
    assert caught.value.errno == errno.EEXIST
    assert os.path.samestat(os.lstat(path), before)


def test_a_socket_that_does_not_listen_yet_is_left_alone(directory: str) -> None:
    """start_serving=False: it is bound, and refuses like a dead one."""
    address = HybridAddress(f"{directory}/vm.sock", 52)
    first = hybrid.listen(address, Options())
    with pytest.raises(HvConnectError, match="another program listens there"):
        hybrid.listen(address, Options())
    assert os.listdir(directory) == ["vm.sock_52"]
    first.close()


def test_a_fork_leaves_the_listeners_file(directory: str) -> None:
    listener = hybrid.listen(HybridAddress(f"{directory}/vm.sock", 52), Options())
    child = os.fork()
    if not child:
        listener.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert os.listdir(directory) == ["vm.sock_52"]
    listener.close()


def test_a_hybrid_address_needs_a_port(directory: str) -> None:
    address = HybridAddress(f"{directory}/vm.sock", PORT_ANY)
    with pytest.raises(HvAddressError, match="has no port"):
        hybrid.listen(address, Options())
    sock, steps = dial(address)
    with sock, pytest.raises(HvAddressError, match="has no port"):
        next(steps)


def test_dialling_what_is_no_socket(directory: str) -> None:
    """Linux says "refused", which would be worth another try."""
    with open(f"{directory}/vm.sock", "w"):
        pass
    sock, steps = dial(HybridAddress(f"{directory}/vm.sock", 5))
    with sock, pytest.raises(OSError, match="non-socket") as caught:
        next(steps)
    error = hybrid.failure(caught.value, "connect", remote=None, local=None)
    assert isinstance(error, HvConnectError)
    assert "not a socket" in error.hint
    assert not error.transient


def test_another_servers_socket_survives_our_close(directory: str) -> None:
    address = HybridAddress(f"{directory}/vm.sock", 52)
    first = hybrid.listen(address, Options())
    os.unlink(f"{directory}/vm.sock_52")
    second = hybrid.listen(address, Options())
    first.close()
    assert os.listdir(directory) == ["vm.sock_52"]
    second.close()
    second.close()
    assert os.listdir(directory) == []


def test_a_missing_directory(directory: str) -> None:
    with pytest.raises(HvConnectError, match="directory does not exist: create it first") as caught:
        hybrid.listen(HybridAddress(f"{directory}/none/vm.sock", 52), Options())
    assert caught.value.errno == errno.ENOENT
    with open(f"{directory}/file", "w"):
        pass
    with pytest.raises(HvConnectError, match="not a directory"):
        hybrid.listen(HybridAddress(f"{directory}/file/vm.sock", 52), Options())


@pytest.mark.skipif(os.geteuid() != 0, reason="drops the rights of root: run as root")
def test_a_directory_without_rights(directory: str) -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(HvPermissionError, match="rights"):
            hybrid.listen(HybridAddress(f"{directory}/vm.sock", 52), Options())
    finally:
        os.seteuid(0)


def test_buffer_size() -> None:
    with hybrid.open_socket(Options(buffer_size=100_000)) as sock:
        # Linux doubles it for its own bookkeeping (socket(7)).
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 200_000
