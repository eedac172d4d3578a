from __future__ import annotations

import builtins
import copy
import errno
import inspect
import os
import pickle
import re
import sys
import textwrap

import pytest

import aiohvsock
from aiohvsock import exceptions
from aiohvsock.addresses import HybridAddress, VsockAddress
from aiohvsock.exceptions import (
    ConnectionClosed,
    ConnectionClosedOK,
    ConnectionLost,
    FrameTooLarge,
    FramingError,
    HvAddressError,
    HvConnectError,
    HvConnectionRefused,
    HvError,
    HvPermissionError,
    HvTimeout,
    HvUnsupportedError,
    IncompleteFrame,
    LocalProtocolError,
    ProtocolError,
)

BRANCH = re.compile(r"^(?P<stem>[│ ├└─]*)(?P<name>\w+)(?: \((?P<other>\w+)\))?(?:  .*)?$")

CONNECT_ERRORS = [HvConnectError, HvConnectionRefused, HvTimeout, HvPermissionError]


def printed_tree() -> dict[str, list[str]]:
    """Return each class the module's docstring draws, with the bases drawn for it."""
    assert exceptions.__doc__ is not None
    drawing = textwrap.dedent(exceptions.__doc__.split("::\n\n", 1)[1].split("\n\n", 1)[0])
    found: dict[str, list[str]] = {}
    above: list[str] = []
    for line in drawing.splitlines():
        branch = BRANCH.match(line)
        assert branch is not None, line
        depth = len(branch["stem"]) // 4
        del above[depth:]
        found[branch["name"]] = [*above[-1:], *([branch["other"]] if branch["other"] else [])]
        above.append(branch["name"])
    return found


# -- the tree ----------------------------------------------------------------------------------------------


def test_the_printed_tree_has_every_class() -> None:
    assert sorted(printed_tree()) == exceptions.__all__


@pytest.mark.parametrize("name", exceptions.__all__)
def test_the_bases_are_those_printed(name: str) -> None:
    bases = [base.__name__ for base in getattr(exceptions, name).__bases__]

    assert bases == (printed_tree()[name] or ["Exception"])


@pytest.mark.parametrize("name", exceptions.__all__)
def test_every_class_is_public_and_says_what_it_is(name: str) -> None:
    error = getattr(exceptions, name)

    assert getattr(aiohvsock, name) is error
    assert name in aiohvsock.__all__
    assert inspect.getdoc(error)
    assert issubclass(error, HvError)
    assert not hasattr(builtins, name)


@pytest.mark.parametrize(
    ("error", "standard"),
    [
        (HvAddressError("x"), ValueError),
        (HvUnsupportedError(errno.EAFNOSUPPORT, "x"), OSError),
        (HvConnectError(errno.ENODEV, "connect"), OSError),
        (HvConnectionRefused(errno.ECONNRESET, "connect"), ConnectionRefusedError),
        (HvConnectionRefused(errno.ECONNRESET, "connect"), ConnectionError),
        (HvTimeout(errno.ETIMEDOUT, "connect"), TimeoutError),
        (HvPermissionError(errno.EACCES, "listen"), PermissionError),
    ],
)
def test_an_except_clause_written_for_other_sockets_goes_on_working(
    error: HvError, standard: type[Exception]
) -> None:
    with pytest.raises(standard) as caught:
        raise error

    assert caught.value is error
    assert isinstance(error, HvError)


@pytest.mark.parametrize("other", [HvTimeout, HvPermissionError, HvConnectError])
def test_the_kinds_are_told_apart(other: type[HvConnectError]) -> None:
    # OSError picks a subclass by the number when it is called itself; ours must not.
    assert type(other(errno.ECONNREFUSED, "connect")) is other
    assert not isinstance(other(errno.ECONNREFUSED, "connect"), ConnectionRefusedError)


# -- errors of connecting ----------------------------------------------------------------------------------


def strerror(code: int) -> str:
    if sys.platform == "win32" and code >= 10000:
        # os.strerror() knows C's errors only.
        import ctypes

        return ctypes.FormatError(code)
    return os.strerror(code)


def system(code: int) -> str:
    """Return the system's text and name of an error; Windows' names begin with WSA."""
    return f"{strerror(code)} ({errno.errorcode[code]})"


@pytest.mark.parametrize("kind", CONNECT_ERRORS)
def test_the_message_names_everything(kind: type[HvConnectError]) -> None:
    error = kind(
        errno.ECONNRESET,
        "connect",
        remote=VsockAddress(3, 2761),
        local=VsockAddress(2, 1024),
        hint="nobody listens there",
        transient=True,
    )

    assert error.strerror == (
        "connect to vsock://3:2761 from vsock://2:1024 failed: "
        f"{system(errno.ECONNRESET)}; nobody listens there"
    )
    assert str(error) == f"[Errno {errno.ECONNRESET}] {error.strerror}"
    assert error.errno == errno.ECONNRESET
    assert error.args == (error.errno, error.strerror)
    assert error.operation == "connect"
    assert error.remote == VsockAddress(3, 2761)
    assert error.local == VsockAddress(2, 1024)
    assert error.hint == "nobody listens there"
    assert error.transient is True


def test_a_listener_has_no_peer() -> None:
    error = HvConnectError(errno.EADDRINUSE, "listen", local=VsockAddress(2, 80))

    assert error.strerror == f"listen on vsock://2:80 failed: {system(errno.EADDRINUSE)}"
    assert error.remote is None
    assert error.hint == ""
    assert error.transient is False


def test_a_dial_that_got_no_local_address() -> None:
    error = HvConnectError(errno.ENOENT, "connect", remote=HybridAddress("/v", 1))

    assert error.strerror == f"connect to vsock+unix:///v:1 failed: {system(errno.ENOENT)}"
    assert error.local is None


def test_an_operation_without_addresses() -> None:
    error = HvPermissionError(errno.EACCES, "read the local CID", hint="chmod")

    assert error.strerror == f"read the local CID failed: {system(errno.EACCES)}; chmod"


def test_the_reason_in_words_stands_in_for_the_systems_text() -> None:
    error = HvTimeout(errno.ETIMEDOUT, "connect", detail="no answer within 3 s")

    assert error.strerror == f"connect failed: no answer within 3 s ({errno.errorcode[errno.ETIMEDOUT]})"


def test_a_number_the_system_has_no_name_for() -> None:
    assert 99999 not in errno.errorcode
    assert "(99999)" in str(HvConnectError(99999, "connect"))


def test_the_systems_own_error_can_be_chained() -> None:
    system = ConnectionResetError(errno.ECONNRESET, "reset")
    try:
        raise HvConnectionRefused(errno.ECONNRESET, "connect") from system
    except ConnectionRefusedError as error:
        assert error.__cause__ is system
        assert error.errno == errno.ECONNRESET


def test_asyncios_timeout_is_told_apart_by_its_errno() -> None:
    assert TimeoutError().errno is None
    assert HvTimeout(errno.ETIMEDOUT, "connect").errno == errno.ETIMEDOUT


# -- the others --------------------------------------------------------------------------------------------


def test_an_unsupported_error_is_a_sentence_and_a_number() -> None:
    error = HvUnsupportedError(errno.EAFNOSUPPORT, "needs Python 3.12 or newer on Windows")

    assert error.errno == errno.EAFNOSUPPORT
    assert error.strerror == "needs Python 3.12 or newer on Windows"
    assert "needs Python 3.12 or newer on Windows" in str(error)


def test_a_frame_too_large_tells_both_figures_and_the_cure() -> None:
    error = FrameTooLarge(2000, 1000)

    assert (error.size, error.max_size) == (2000, 1000)
    assert "2000" in str(error)
    assert "1000" in str(error)
    assert "max_size" in str(error)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (IncompleteFrame(7, 10), "the stream ended inside a frame, after 7 of 10 bytes"),
        (IncompleteFrame(2), "the stream ended inside a frame, after 2 of an unknown length"),
    ],
)
def test_an_incomplete_frame_tells_how_far_it_came(error: IncompleteFrame, text: str) -> None:
    assert str(error) == text


@pytest.mark.parametrize(
    "error",
    [
        HvError("x"),
        HvAddressError("x"),
        HvUnsupportedError(errno.EAFNOSUPPORT, "x"),
        *(
            kind(
                errno.ECONNRESET,
                "connect",
                remote=VsockAddress(3, 2761),
                local=HybridAddress("/v", 1),
                hint="hint",
                detail="detail",
                transient=True,
            )
            for kind in CONNECT_ERRORS
        ),
        HvConnectError(errno.EADDRINUSE, "listen"),
        FramingError("x"),
        FrameTooLarge(2000, 1000),
        IncompleteFrame(7, 10),
        IncompleteFrame(2),
        ProtocolError("x"),
        LocalProtocolError("x"),
        ConnectionClosed("x"),
        ConnectionClosedOK("x"),
        ConnectionLost("x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_error_can_be_copied_and_pickled(error: HvError) -> None:
    # As multiprocessing and concurrent.futures do.
    twins = [copy.copy(error), copy.deepcopy(error)]
    twins += [pickle.loads(pickle.dumps(error, n)) for n in range(pickle.HIGHEST_PROTOCOL + 1)]
    for twin in twins:
        assert twin is not error
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert twin.args == error.args
        assert vars(twin) == vars(error)
        assert getattr(twin, "errno", None) == getattr(error, "errno", None)
        assert getattr(twin, "strerror", None) == getattr(error, "strerror", None)
