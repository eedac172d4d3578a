from __future__ import annotations

import builtins
import errno
import io
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from aiohvsock import (
    CID_ANY,
    CID_LOCAL,
    PORT_ANY,
    HvAddressError,
    HvConnectError,
    HvConnectionRefused,
    HvPermissionError,
    HvTimeout,
    HvUnsupportedError,
    HybridAddress,
    HypervAddress,
    VsockAddress,
)
from aiohvsock.platforms import Options, linux, names_of, platform_for

HERE = VsockAddress(CID_LOCAL, PORT_ANY)


def connect_timeout(sock: socket.socket) -> float:
    """Return what the kernel will wait for a connect, in seconds."""
    with linux._as_unix(sock) as twin:
        seconds, microseconds = struct.unpack("@ll", twin.getsockopt(40, 6, 16))
    return float(seconds + microseconds / 1e6)


@pytest.fixture
def needs_module() -> Iterator[None]:
    """For tests that need AF_VSOCK sockets, but send nothing."""
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except OSError:
        pytest.skip("the kernel has no AF_VSOCK: make test runs this in User Mode Linux")
    yield


def test_platform_for() -> None:
    assert platform_for(VsockAddress(2, 5)) is linux
    assert platform_for(HypervAddress("parent", 5)) is linux


def test_native() -> None:
    assert linux.native(HypervAddress("parent", 5)) == VsockAddress(2, 5)
    with pytest.raises(HvAddressError, match="AF_VSOCK"):
        linux.native(HybridAddress("/x", 5))


@pytest.mark.usefixtures("needs_module")
@pytest.mark.parametrize(
    ("asked", "set_to"),
    [(30.0, 30.0), (0.25, 0.25), (1e-9, 1e-6), (None, 31_536_000.0), (1e12, 31_536_000.0)],
)
def test_connect_timeout_reaches_the_kernel(asked: float | None, set_to: float) -> None:
    with linux.open_socket(Options(connect_timeout=asked)) as sock:
        # The kernel counts in jiffies of up to 10 ms, rounding up.
        assert set_to <= connect_timeout(sock) + 1e-6 <= set_to + 0.011


@pytest.mark.usefixtures("needs_module")
def test_buffer_size_reaches_the_kernel() -> None:
    with linux.open_socket(Options(buffer_size=4 * 2**20)) as sock:
        assert sock.getsockopt(40, 0) == 4 * 2**20
        assert sock.getblocking() is False
    with linux.open_socket(Options()) as sock:
        assert sock.getsockopt(40, 0) == 256 * 1024


def test_a_failing_option_leaves_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(linux, "_set_connect_timeout", fail)
    with pytest.raises(OSError, match="no|AF_VSOCK"):
        linux.open_socket(Options())


def test_python_without_af_vsock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_VSOCK")
    with pytest.raises(HvUnsupportedError, match="built without AF_VSOCK; use the distribution's own"):
        linux.open_socket(Options())
    assert not linux.has_loopback()


def test_kernel_without_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(HvUnsupportedError, match="modprobe") as caught:
        linux.open_socket(Options())
    assert caught.value.errno == errno.EAFNOSUPPORT
    assert not linux.has_loopback()


def test_the_probe_says_when_it_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(linux, "open_socket", fail)
    with pytest.raises(OSError, match="Too many open files"):
        linux.has_loopback()


def test_the_probe_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule zero: a connect to CID 1 on a machine without loopback would reach a stranger."""

    def forbidden(*args: object) -> None:
        raise AssertionError("the probe must not connect or listen")

    calls: list[Any] = []

    class Probe(socket.socket):
        connect = connect_ex = listen = forbidden  # type: ignore[assignment]

        def bind(self, address: Any) -> None:
            calls.append(address)
            raise OSError(errno.EADDRNOTAVAIL, "no loopback")

    monkeypatch.setattr(linux, "open_socket", lambda options: Probe(socket.AF_UNIX, socket.SOCK_STREAM))
    assert not linux.has_loopback()
    assert calls == [(CID_LOCAL, PORT_ANY)]


@pytest.mark.parametrize(
    ("code", "kind", "hint", "transient"),
    [
        (errno.ECONNRESET, HvConnectionRefused, "nobody listens", True),
        (errno.ECONNREFUSED, HvConnectionRefused, "nobody listens", True),
        (errno.ETIMEDOUT, HvTimeout, "booting", True),
        (errno.ENODEV, HvConnectError, "no running VM has that CID", True),
        (errno.EHOSTUNREACH, HvConnectError, "not running", True),
        (errno.ENETUNREACH, HvConnectError, "CID 2 only", False),
        (errno.EACCES, HvPermissionError, "CAP_NET_BIND_SERVICE", False),
        (errno.EMFILE, HvConnectError, "", False),
    ],
)
def test_what_a_connect_error_means(
    code: int, kind: type[HvConnectError], hint: str, transient: bool
) -> None:
    error = linux.failure(
        OSError(code, os.strerror(code)),
        "connect",
        remote=VsockAddress(3, 5),
        local=VsockAddress(CID_ANY, 1025),
    )
    assert type(error) is kind
    assert isinstance(error, HvConnectError)
    assert error.errno == code
    assert error.transient is transient
    assert hint in error.hint
    assert "connect to vsock://3:5 from vsock://any:1025 failed" in str(error)
    assert errno.errorcode[code] in str(error)


def test_local_cid_is_read_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ioctl itself runs in the testbeds; here, what is made of its answers."""
    import fcntl

    real_open = builtins.open

    def device(error: type[OSError] | None) -> None:
        def fake(path: Any, *args: Any, **options: Any) -> Any:
            if path != "/dev/vsock":
                return real_open(path, *args, **options)
            if error is not None:
                raise error(errno.ENOENT, "x")
            return io.BytesIO()

        monkeypatch.setattr(builtins, "open", fake)

    device(FileNotFoundError)
    with pytest.raises(HvUnsupportedError, match="/dev/vsock"):
        linux.local_cid()
    device(PermissionError)
    with pytest.raises(HvPermissionError, match="not readable"):
        linux.local_cid()
    device(None)
    for answer, expected in ((7, 7), (CID_ANY, None)):
        monkeypatch.setattr(fcntl, "ioctl", lambda *args, answer=answer: struct.pack("@I", answer))
        assert linux.local_cid() == expected


# -- on real AF_VSOCK --------------------------------------------------------------------------------------


@pytest.mark.vsock
def test_loopback_is_found() -> None:
    assert linux.has_loopback()
    assert linux.local_cid() == CID_LOCAL


def test_any_is_not_dialled() -> None:
    # Something may be on the other side of the transport: whatever it is, it is not meant.
    sock, other = socket.socketpair()
    with sock, other, pytest.raises(OSError, match="not available|assign") as caught:
        next(linux.dial(sock, VsockAddress(CID_ANY, 2761)))
    error = linux.failure(caught.value, "connect", remote=VsockAddress(CID_ANY, 2761), local=None)
    assert "any is for listening only" in str(error)
    assert not getattr(error, "transient", False)


@pytest.mark.vsock
def test_listen_names_and_errors() -> None:
    listener = linux.listen(HERE, Options())
    try:
        bound = listener.address
        assert isinstance(bound, VsockAddress)
        assert bound.cid == CID_LOCAL
        assert bound.port != PORT_ANY
        # CID any and a CID of this machine's conflict.
        for taken in (bound, VsockAddress(CID_ANY, bound.port)):
            with pytest.raises(HvConnectError, match="that port is taken") as caught:
                linux.listen(taken, Options())
            assert caught.value.errno == errno.EADDRINUSE
            assert str(taken) in str(caught.value)
    finally:
        listener.close()
    with pytest.raises(HvConnectError, match="not one of this machine's") as caught:
        linux.listen(VsockAddress(77, 5000), Options())
    assert caught.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.vsock
def test_names_of_both_ends() -> None:
    listener = linux.listen(HERE, Options())
    listener.sock.listen()
    assert isinstance(listener.address, VsockAddress)
    client = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    client.connect((CID_LOCAL, listener.address.port))
    listener.sock.setblocking(True)
    accepted, _ = listener.sock.accept()
    try:
        theirs = names_of(client)
        ours = listener.names(accepted)
        assert theirs.peer == listener.address == ours.local
        assert isinstance(theirs.local, VsockAddress)
        assert theirs.local.cid == CID_ANY  # a client's own CID is not known, and not made up
        assert ours.peer == VsockAddress(CID_LOCAL, theirs.local.port)
        assert ours.sockname == (CID_LOCAL, listener.address.port)
    finally:
        for sock in (client, accepted):
            sock.close()
        listener.close()


@pytest.mark.vsock
def test_accepted_sockets_inherit_the_buffer_size() -> None:
    listener = linux.listen(HERE, Options(buffer_size=2**20))
    listener.sock.listen()
    assert isinstance(listener.address, VsockAddress)
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as client:
        client.connect((CID_LOCAL, listener.address.port))
        listener.sock.setblocking(True)
        with listener.sock.accept()[0] as accepted:
            assert accepted.getsockopt(40, 0) == 2**20
    listener.close()


@pytest.mark.vsock
@pytest.mark.skipif(os.geteuid() != 0, reason="drops the rights of root: run as root")
def test_a_privileged_port() -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(HvPermissionError, match="CAP_NET_BIND_SERVICE"):
            linux.listen(VsockAddress(CID_LOCAL, 22), Options())
    finally:
        os.seteuid(0)


@pytest.mark.vsock
def test_port_0_is_an_ordinary_port() -> None:
    listener = linux.listen(VsockAddress(CID_LOCAL, 0), Options())
    assert listener.address == VsockAddress(CID_LOCAL, 0)
    listener.close()
