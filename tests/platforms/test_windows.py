from __future__ import annotations

import errno
import math
import socket
import sys
from typing import Any

import pytest

from aiohvsock import (
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
from aiohvsock.hyperv import HV_PROTOCOL_RAW
from aiohvsock.platforms import Options, windows
from aiohvsock.platforms.windows import failure, winsock_code

REMOTE = HypervAddress("parent", 2761)
LOCAL = HypervAddress("children", "b0a8f6cf-9a8a-4a4c-8b6e-0cbb1a1f0c5d")

if sys.platform == "win32":
    import ctypes


class WindowsError_(OSError):
    """What Windows' errors look like, where they cannot be made."""

    winerror: int


def system_error(code: int) -> OSError:
    """Return the error that CPython on Windows raises for a number of Windows'."""
    if sys.platform == "win32":
        return ctypes.WinError(code)
    c_number = {5: errno.EACCES, 10013: errno.EACCES, 10022: errno.EINVAL}.get(code)
    # PC/errmap.h: Winsock's stay as they are, what has no counterpart is EINVAL.
    error = WindowsError_(c_number or (code if code >= 10000 else errno.EINVAL), f"Windows' words for {code}")
    error.winerror = code
    return error


# -- what the numbers mean ---------------------------------------------------------------------------------

REFUSED = (HvConnectionRefused, True, "nobody listens on that service")
TIMED_OUT = (HvTimeout, True, "in a Linux guest nobody listens")
DENIED = (
    HvPermissionError,
    False,
    "registered (aiohvsock.hyperv.register_service()), and the caller an administrator",
)
DISABLED = (HvConnectError, False, "the service is disabled for that VM, or an option has a bad value")
NOT_RUNNING = (HvConnectError, True, "the VM is not running")
STOPPED = (HvConnectError, True, "the VM was stopped or paused")
UNKNOWN = (HvConnectError, False, "")

CONNECT = {
    10013: DENIED,
    10022: DISABLED,
    10049: (
        HvConnectError,
        False,
        "any, children and broadcast are for listening only, parent is for a guest",
    ),
    10050: (HvConnectError, True, "Hyper-V is not running, or the VM is just starting"),
    10051: NOT_RUNNING,
    10065: NOT_RUNNING,
    1201: NOT_RUNNING,
    10053: STOPPED,
    10054: STOPPED,
    10060: TIMED_OUT,
    10061: REFUSED,
    10024: UNKNOWN,
    10058: UNKNOWN,
    # Windows' own numbers, as an overlapped operation has them.
    5: DENIED,
    64: STOPPED,
    121: TIMED_OUT,
    122: UNKNOWN,
    995: STOPPED,
    1225: REFUSED,
    1231: NOT_RUNNING,
    1232: NOT_RUNNING,
    1236: STOPPED,
}

LISTEN = {
    10013: DENIED,
    10022: DISABLED,
    10048: (HvConnectError, False, "another program listens on that service"),
    10049: (
        HvConnectError,
        False,
        "there is no VM with that id now: it changes when a VM, and above all WSL, starts",
    ),
    10050: (HvConnectError, False, "Hyper-V is not running"),
    10061: UNKNOWN,
}


@pytest.mark.parametrize(("code", "verdict"), CONNECT.items())
def test_what_a_connect_error_means(code: int, verdict: tuple[type[HvConnectError], bool, str]) -> None:
    kind, transient, hint = verdict
    cause = system_error(code)
    error = failure(cause, "connect", remote=REMOTE, local=LOCAL)
    assert type(error) is kind
    assert isinstance(error, HvConnectError)
    assert error.errno == cause.errno
    assert error.transient is transient
    assert hint in error.hint
    assert bool(hint) is bool(error.hint)
    text = str(error)
    assert f"connect to {REMOTE} from {LOCAL} failed: " in text
    assert error.hint in text
    assert error.remote == REMOTE
    # The words that Windows has for it, not those of C for another error.
    assert str(cause.strerror).rstrip(". ") in text


@pytest.mark.parametrize(("code", "verdict"), LISTEN.items())
def test_what_a_listen_error_means(code: int, verdict: tuple[type[HvConnectError], bool, str]) -> None:
    kind, transient, hint = verdict
    error = failure(system_error(code), "listen", remote=None, local=LOCAL)
    assert type(error) is kind
    assert isinstance(error, HvConnectError)
    assert error.transient is transient
    assert hint in error.hint
    assert f"listen on {LOCAL} failed: " in str(error)


def test_three_reasons_for_a_missing_right() -> None:
    """The number tells which of them as little as the three are alike."""
    hint = str(failure(system_error(10013), "connect", remote=REMOTE, local=None))
    for reason in ("registered", "administrator", "another user"):
        assert reason in hint


@pytest.mark.parametrize(("number", "code"), [
    # As a selecting loop has them, from SO_ERROR: without a winerror.
    (10013, 10013), (10060, 10060), (10061, 10061), (10051, 10051),
    (errno.EACCES, 10013), (errno.EINVAL, 10022), (errno.ECONNREFUSED, 10061), (errno.ETIMEDOUT, 10060),
    (errno.EMFILE, errno.EMFILE),
])  # fmt: skip
def test_a_number_without_a_winerror(number: int, code: int) -> None:
    assert winsock_code(OSError(number, "x")) == code


@pytest.mark.parametrize(("face", "code"), [
    (5, 10013), (64, 10054), (121, 10060), (995, 10053), (1225, 10061), (1231, 10051), (1232, 10065), (1236, 10053),
    (122, 122), (109, 109), (10013, 10013), (10043, 10043), (10047, 10047), (10048, 10048), (10057, 10057),
])  # fmt: skip
def test_a_winerror(face: int, code: int) -> None:
    assert winsock_code(system_error(face)) == code


def test_an_error_without_any_number() -> None:
    assert winsock_code(OSError("x")) == 0
    assert isinstance(failure(OSError("x"), "connect", remote=REMOTE, local=None), HvConnectError)


@pytest.mark.parametrize(("seconds", "milliseconds"), [
    (30.0, 30_000), (1, 1000), (0.25, 250), (0.0011, 2), (1e-9, 1), (299.9999, 300_000),
    (300, 300_000), (301, 300_000), (1e300, 300_000), (math.inf, 300_000), (None, 300_000),
])  # fmt: skip
def test_the_time_to_connect_in_milliseconds(seconds: float | None, milliseconds: int) -> None:
    assert windows._milliseconds(seconds) == milliseconds


# -- Windows without -----------------------------------------------------------------------------------------


def test_a_python_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_HYPERV", raising=False)
    for call in (lambda: windows.open_socket(Options()), lambda: windows.listen(REMOTE, Options())):
        with pytest.raises(
            HvUnsupportedError, match=r"need Python 3\.12 or newer on Windows, and this is 3\."
        ) as caught:
            call()
        assert caught.value.errno == errno.EAFNOSUPPORT
        assert sys.executable in str(caught.value)


@pytest.mark.parametrize("code", [10043, 10047, 10050])
def test_a_windows_without(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cause = system_error(code)

    def refuse(*arguments: object) -> None:
        assert arguments == (34, socket.SOCK_STREAM, HV_PROTOCOL_RAW)
        raise cause

    monkeypatch.setattr(socket, "AF_HYPERV", 34, raising=False)
    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(
        HvUnsupportedError, match=r"'Virtual Machine Platform' \(optionalfeatures\.exe\)"
    ) as caught:
        windows.open_socket(Options())
    assert caught.value.__cause__ is cause
    assert caught.value.errno == cause.errno
    assert str(cause.strerror) in str(caught.value)


def test_a_process_without_a_socket_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise system_error(10024)

    monkeypatch.setattr(socket, "AF_HYPERV", 34, raising=False)
    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(OSError) as caught:
        windows.open_socket(Options())
    assert not isinstance(caught.value, HvUnsupportedError)


def test_native() -> None:
    assert windows.native(REMOTE) == REMOTE
    assert windows.native(VsockAddress(2, 2761)) == REMOTE
    with pytest.raises(HvAddressError, match="no counterpart on Windows"):
        windows.native(VsockAddress(7, 2761))
    with pytest.raises(HvAddressError, match="not an AF_HYPERV address"):
        windows.native(HybridAddress("/vm.sock", 2761))


# -- a connect, step by step -----------------------------------------------------------------------------------


class Dialled:
    """Stands for a socket that is connecting."""

    def __init__(self, *, so_error: int = 0, peer: int = 0) -> None:
        self.so_error = so_error
        self.peer = peer

    def connect(self, name: object) -> None:
        assert name == (str(REMOTE.vm_id), str(REMOTE.service_id))  # CPython takes text only
        raise BlockingIOError

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        return self.so_error

    def getpeername(self) -> tuple[str, str]:
        if self.peer:
            raise system_error(self.peer)
        return str(REMOTE.vm_id), str(REMOTE.service_id)


def dial(sock: Any) -> HvConnectError | None:
    steps = windows.dial(sock, REMOTE)
    assert next(steps) == "writable"
    try:
        assert list(steps) == []
    except OSError as error:
        result = failure(error, "connect", remote=REMOTE, local=None)
        assert isinstance(result, HvConnectError)
        return result
    return None


def test_dialling() -> None:
    assert dial(Dialled()) is None
    assert isinstance(dial(Dialled(so_error=10013)), HvPermissionError)
    assert isinstance(dial(Dialled(so_error=10060)), HvTimeout)
    assert isinstance(dial(Dialled(so_error=10061)), HvConnectionRefused)
    # Connected, and its listener closed before it was accepted: as on Linux.
    error = dial(Dialled(peer=10057))
    assert isinstance(error, HvConnectionRefused)
    assert error.transient
    assert type(dial(Dialled(peer=10054))) is HvConnectError
