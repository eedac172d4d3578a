from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable

import pytest

from aiohvsock.transports import watching
from aiohvsock.transports.watching import SelectThread, watcher_of

from ..conftest import LOOPS
from .test_watching import PATIENCE, always_threads, joined

__all__ = ["always_threads"]


@pytest.fixture(params=LOOPS)
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes loops that the test runs, and ends, by itself."""
    return LOOPS[request.param]


def test_ends_with_asyncio_run(
    new_loop: Callable[[], asyncio.AbstractEventLoop], always_threads: None
) -> None:
    ours: list[SelectThread] = []

    async def main() -> None:
        thread = watcher_of(asyncio.get_running_loop())
        assert isinstance(thread, SelectThread)
        ours.append(thread)
        assert thread._thread in threading.enumerate()
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            thread.add_reader(sock.fileno(), pytest.fail)

    for _ in range(2):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(main())
        assert ours[-1]._thread not in threading.enumerate()
        assert ours[-1].ended
    assert ours[0] is not ours[1]


def test_ends_with_a_loop_that_is_just_closed(
    new_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch, always_threads: None
) -> None:
    """Without shutdown_asyncgens(), as old programs do."""
    monkeypatch.setattr(watching, "_LOOK", 0.01)
    loop = new_loop()

    async def main() -> SelectThread:
        thread = watcher_of(asyncio.get_running_loop())
        assert isinstance(thread, SelectThread)
        return thread

    thread = loop.run_until_complete(main())
    assert not thread.ended
    loop.close()
    joined(thread)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(main()) is not thread


def test_a_closed_loop_is_forgotten(
    new_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch, always_threads: None
) -> None:
    monkeypatch.setattr(watching, "_LOOK", 0.01)
    gone = []

    async def main() -> SelectThread:
        gone.append(weakref.ref(asyncio.get_running_loop()))
        thread = watcher_of(asyncio.get_running_loop())
        assert isinstance(thread, SelectThread)
        return thread

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    del runner
    loop = new_loop()
    joining = loop.run_until_complete(main())._thread
    loop.close()
    joining.join(PATIENCE)
    del loop, joining
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


LEFT_RUNNING = """
import asyncio, socket
from aiohvsock import HypervAddress
from aiohvsock.transports import watching

watching.is_proactor = lambda loop: True
watching._LOOK = 1000

async def main():
    watching.watcher_of(asyncio.get_running_loop()).add_reader(sock.fileno(), print)

with socket.socket(type=socket.SOCK_DGRAM) as sock:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
"""


def test_does_not_keep_the_program_from_ending() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", LEFT_RUNNING],
        stdin=subprocess.PIPE,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
