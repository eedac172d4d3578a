"""Every test runs on every loop; every test that takes an address or a pair of sockets, on every kind of socket.

AF_VSOCK is used only where CID 1 is this machine itself: in a testbed, or with vsock_loopback. The environment
variable AIOHVSOCK_KIND (``hybrid``, ``vsock`` or, on Windows, ``hyperv``) narrows the run to one kind, and then that
kind must be there; so does AIOHVSOCK_LOOPS with the loops (``proactor,selector``).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import select
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from aiohvsock import (
    CID_LOCAL,
    PORT_ANY,
    Address,
    HybridAddress,
    HypervAddress,
    VsockAddress,
)
from aiohvsock.platforms import linux
from aiohvsock.testing import hybrid_monitor, local_address

from .descriptors import open_sockets
from .helpers import new_socket, sockaddr
from .timeouts import pytest_timeout_set_timer

Pair = Callable[[], tuple[socket.socket, socket.socket]]


def _ticking(factory: Callable[[], asyncio.AbstractEventLoop]) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return loops that look up now and then: while they wait in C, the signal of a test's timeout is not seen."""

    def make() -> asyncio.AbstractEventLoop:
        loop = factory()

        def tick() -> None:
            loop.call_later(1.0, tick)

        tick()
        return loop

    return make


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]]
if sys.platform == "win32":
    LOOPS = {
        "proactor": _ticking(asyncio.ProactorEventLoop),
        "selector": _ticking(asyncio.SelectorEventLoop),
    }
    with contextlib.suppress(ImportError):
        import winloop

        LOOPS["winloop"] = _ticking(winloop.new_event_loop)
else:
    LOOPS = {"asyncio": asyncio.new_event_loop}
    with contextlib.suppress(ImportError):
        import uvloop

        LOOPS["uvloop"] = _ticking(uvloop.new_event_loop)

if wanted_loops := os.environ.get("AIOHVSOCK_LOOPS"):
    if missing := set(wanted_loops.split(",")) - set(LOOPS):
        raise pytest.UsageError(
            f"AIOHVSOCK_LOOPS: {', '.join(sorted(missing))} is none of {', '.join(LOOPS)}"
        )
    LOOPS = {name: LOOPS[name] for name in wanted_loops.split(",")}

# What is all about another system's sockets, files or processes.
collect_ignore = ["platforms/test_linux.py", "platforms/test_hybrid.py"] if sys.platform == "win32" else []

CURES = {
    "hyperv": "needs AF_HYPERV: Windows with Hyper-V, or make test-windows on Linux",
    "vsock": "needs AF_VSOCK loopback: make test runs it in User Mode Linux",
    "linux": "needs what Windows does not have: make test runs it on Linux",
}


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return LOOPS


def _has_hyperv() -> bool:
    if sys.platform != "win32":
        return False
    try:
        new_socket("hyperv").close()
    except (AttributeError, OSError):
        return False
    return True


def _kinds() -> list[str]:
    usual = "hyperv" if sys.platform == "win32" else "hybrid"
    wanted = os.environ.get("AIOHVSOCK_KIND")
    if wanted is None:
        return [usual, "vsock"] if linux.has_loopback() else [usual]
    if wanted == "vsock" and not linux.has_loopback():
        raise pytest.UsageError("AIOHVSOCK_KIND=vsock, but CID 1 cannot be bound: modprobe vsock_loopback")
    if wanted == "hyperv" and not _has_hyperv():
        raise pytest.UsageError(f"AIOHVSOCK_KIND=hyperv {CURES['hyperv']}")
    return [wanted]


KINDS = _kinds()


def _refuse_strangers(event: str, arguments: tuple[object, ...]) -> None:
    """Keep tests from dialling AF_VSOCK where every CID is a machine that is not theirs, by mistake or a regression."""
    if event == "socket.connect" and getattr(arguments[0], "family", None) == getattr(socket, "AF_VSOCK", -1):
        raise AssertionError(f"a test dialled AF_VSOCK {arguments[1]} outside of a testbed")


if "vsock" not in KINDS and "AIOHVSOCK_TESTBED" not in os.environ:
    sys.addaudithook(_refuse_strangers)


def pytest_report_header() -> str:
    return f"aiohvsock: loops {', '.join(LOOPS)}; sockets {', '.join(KINDS)}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = []
    if "vsock" not in KINDS:
        missing.append("vsock")
    if sys.platform == "win32":
        missing.append("linux")
    for item in items:
        for name in missing:
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=CURES[name]))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """``hybrid``, ``vsock`` or ``hyperv``."""
    param: str = request.param
    if param == "hyperv" and not _has_hyperv():
        pytest.skip(CURES["hyperv"])
    return param


@pytest.fixture
def address(kind: str, tmp_path: Path) -> Iterator[Address]:
    """An address that can be listened on and dialled; nobody listens yet."""
    if kind == "vsock":
        with local_address() as found:
            yield found
        return
    if kind == "hyperv":
        yield HypervAddress("loopback", random_port())
        return
    # Not tmp_path: its name can be too long for a Unix socket.
    with short_directory() as directory, hybrid_monitor(f"{directory}/vm.sock"):
        yield HybridAddress(f"{directory}/vm.sock", 2761)


def random_port() -> int:
    """Return one that nobody has: AF_HYPERV gives away none itself, and Linux guests know no larger ones."""
    return random.randrange(1, 2**31)


@contextlib.contextmanager
def short_directory() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="hv-") as directory:
        yield directory


@pytest.fixture
def directory() -> Iterator[str]:
    """A directory whose name is short enough for Unix sockets."""
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip(CURES["linux"])
    with short_directory() as name:
        yield name


@pytest.fixture
def pair(kind: str) -> Iterator[Pair]:
    """Makes pairs of connected, non-blocking sockets; for hybrid, what is left of it after the handshake."""
    made: list[socket.socket] = []

    def make() -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair() if kind == "hybrid" else _connected_pair(kind)
        for sock in (ours, theirs):
            sock.setblocking(False)
            made.append(sock)
        return ours, theirs

    yield make
    for sock in made:
        sock.close()


def _connected_pair(kind: str) -> tuple[socket.socket, socket.socket]:
    address = (
        VsockAddress(CID_LOCAL, PORT_ANY) if kind == "vsock" else HypervAddress("loopback", random_port())
    )
    with new_socket(kind) as listener:
        listener.bind(sockaddr(address))
        listener.listen()
        client = new_socket(kind)
        # It may take the accept() to be connected.
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            client.connect(listener.getsockname())
        server = listener.accept()[0]
        select.select([], [client], [])
        return client, server


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    """Every test gives back the descriptors it took: what is cancelled or refused leaks nothing."""
    before = open_sockets()
    yield
    if after := open_sockets() - before:
        # Sockets in cycles, which the test's own frames keep: give the collector its turn.
        gc.collect()
        after = open_sockets() - before
    assert not after, f"left open: {sorted(after)}"


__all__ = ["KINDS", "LOOPS", "Pair", "pytest_timeout_set_timer"]
