"""Every test runs on every loop; every test that takes an address or a pair of sockets, on every kind of socket.

AF_VSOCK is used only where CID 1 is this machine itself: in a testbed, or with vsock_loopback. The environment
variable AIOHVSOCK_KIND (``hybrid`` or ``vsock``) narrows the run to one kind, and then that kind must be there.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from aiohvsock import CID_LOCAL, PORT_ANY, Address, HybridAddress, VsockAddress
from aiohvsock.platforms import linux
from aiohvsock.testing import hybrid_monitor, local_address

Pair = Callable[[], tuple[socket.socket, socket.socket]]

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
with contextlib.suppress(ImportError):
    import uvloop

    def _ticking_uvloop() -> asyncio.AbstractEventLoop:
        """Return a uvloop that looks up now and then: while it waits in C, the signal of a test's timeout is not seen."""
        loop = uvloop.new_event_loop()

        def tick() -> None:
            loop.call_later(1.0, tick)

        tick()
        return loop

    LOOPS["uvloop"] = _ticking_uvloop


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return LOOPS


def _kinds() -> list[str]:
    wanted = os.environ.get("AIOHVSOCK_KIND")
    if wanted is None:
        return ["hybrid", "vsock"] if linux.has_loopback() else ["hybrid"]
    if wanted == "vsock" and not linux.has_loopback():
        raise pytest.UsageError("AIOHVSOCK_KIND=vsock, but CID 1 cannot be bound: modprobe vsock_loopback")
    return [wanted]


KINDS = _kinds()


def _refuse_strangers(event: str, arguments: tuple[object, ...]) -> None:
    """Keep tests from dialling AF_VSOCK where every CID is a machine that is not theirs, by mistake or by a regression."""
    if event == "socket.connect" and getattr(arguments[0], "family", None) == getattr(socket, "AF_VSOCK", -1):
        raise AssertionError(f"a test dialled AF_VSOCK {arguments[1]} outside of a testbed")


if "vsock" not in KINDS and "AIOHVSOCK_TESTBED" not in os.environ:
    sys.addaudithook(_refuse_strangers)


def pytest_report_header() -> str:
    return f"aiohvsock: loops {', '.join(LOOPS)}; sockets {', '.join(KINDS)}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "vsock" in KINDS:
        return
    skip = pytest.mark.skip(reason="needs AF_VSOCK loopback: make test runs it in User Mode Linux")
    for item in items:
        if item.get_closest_marker("vsock"):
            item.add_marker(skip)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """``hybrid`` or ``vsock``."""
    param: str = request.param
    return param


@pytest.fixture
def address(kind: str, tmp_path: Path) -> Iterator[Address]:
    """An address that can be listened on and dialled; nobody listens yet."""
    if kind == "vsock":
        with local_address() as found:
            yield found
        return
    # Not tmp_path: its name can be too long for a Unix socket.
    with short_directory() as directory, hybrid_monitor(f"{directory}/vm.sock"):
        yield HybridAddress(f"{directory}/vm.sock", 2761)


@contextlib.contextmanager
def short_directory() -> Iterator[str]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="hv-") as directory:
        yield directory


@pytest.fixture
def directory() -> Iterator[str]:
    """A directory whose name is short enough for Unix sockets."""
    with short_directory() as name:
        yield name


@pytest.fixture
def pair(kind: str) -> Iterator[Pair]:
    """Makes pairs of connected, non-blocking sockets; for hybrid, what is left of it after the handshake."""
    made: list[socket.socket] = []

    def make() -> tuple[socket.socket, socket.socket]:
        ours, theirs = _vsock_pair() if kind == "vsock" else socket.socketpair()
        for sock in (ours, theirs):
            sock.setblocking(False)
            made.append(sock)
        return ours, theirs

    yield make
    for sock in made:
        sock.close()


def _vsock_pair() -> tuple[socket.socket, socket.socket]:
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listener:
        listener.bind((CID_LOCAL, PORT_ANY))
        listener.listen()
        client = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        client.connect(listener.getsockname())
        return client, listener.accept()[0]


@pytest.fixture(autouse=True)
def no_descriptor_left() -> Iterator[None]:
    """Every test gives back the descriptors it took: what is cancelled or refused leaks nothing."""
    before = _descriptors()
    yield
    if after := _descriptors() - before:
        # Sockets in cycles, which the test's own frames keep: give the collector its turn.
        gc.collect()
        after = _descriptors() - before
    assert not after, f"left open: {sorted(after)}"


def _descriptors() -> set[str]:
    """Return the sockets this process has open."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    # Pipes and the like are the loops' own: libuv keeps one for signals for the life of the process.
    return {name for name in found if name.startswith("socket:")}


__all__ = ["KINDS", "LOOPS", "Pair", "VsockAddress"]
