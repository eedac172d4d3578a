from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import gc
import random
import select
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from aiohvsock import HypervAddress
from aiohvsock.transports import watching
from aiohvsock.transports.watching import SelectThread, is_proactor, watcher_of

from ..conftest import Pair, random_port
from ..helpers import fill, new_socket, sockaddr
from ..messages.peers import catch, until

# Seconds after which what has not come will not.
PATIENCE = 10.0


@pytest.fixture
async def thread(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SelectThread]:
    # Who is woken too late is late for the test.
    monkeypatch.setattr(watching, "_LOOK", 3600)
    thread = SelectThread(asyncio.get_running_loop())
    yield thread
    thread.close()
    joined(thread)


@pytest.fixture
def always_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every loop is taken for one that knows no readiness."""
    monkeypatch.setattr(watching, "is_proactor", lambda loop: True)


def joined(thread: SelectThread) -> None:
    thread._thread.join(PATIENCE)
    assert not thread._thread.is_alive()
    assert thread.ended


class Reading:
    """A callback that reads what has come."""

    def __init__(self, sock: socket.socket) -> None:
        self.data = bytearray()
        self.calls = 0
        self._sock = sock
        self._more = asyncio.Event()

    def __call__(self) -> None:
        self.calls += 1
        self.data += self._sock.recv(65536)
        self._more.set()

    async def received(self, count: int) -> bytes:
        while len(self.data) < count:
            self._more.clear()
            await self._more.wait()
        return bytes(self.data)


class Passes:
    """Sees each select() of the thread, and can hold back an answer that somebody is ready."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._changed = threading.Condition()
        self._begun = 0
        self._hold = False
        self._held = False
        monkeypatch.setattr(watching, "select", SimpleNamespace(select=self._select))

    def _select(self, readers: list[int], *arguments: Any) -> Any:
        with self._changed:
            self._begun += 1
            self._changed.notify_all()
        answer = select.select(readers, *arguments)
        with self._changed:
            self._held = self._hold and answer[0] != readers[:1]  # which wakes it
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: not (self._held and self._hold), PATIENCE)
            self._held = False
        return answer

    def another(self, thread: SelectThread, count: int = 1) -> None:
        """Wait, and do not let the loop run, until the thread has come round."""
        for _ in range(count):
            begun = self._begun
            thread._wake()
            with self._changed:
                while self._begun == begun:
                    assert self._changed.wait(PATIENCE)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let the thread stand between the system's next answer and what it does about it."""
        with self._changed:
            self._hold = True
        yield
        with self._changed:
            self._hold = False
            self._changed.notify_all()

    def answered(self) -> None:
        """Wait until the thread stands there."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._held, PATIENCE)


async def rounds(thread: SelectThread, pair: Pair, count: int = 3) -> None:
    """Let the thread and the loop come round: what was ready before has been told by then."""
    a, b = pair()
    for _ in range(count):
        reading = Reading(a)
        b.send(b"x")
        thread.add_reader(a.fileno(), reading)
        await reading.received(1)
        thread.remove_reader(a.fileno())


# -- ready -------------------------------------------------------------------------------------------------


async def test_ready_to_read(thread: SelectThread, pair: Pair) -> None:
    a, b = pair()
    reading = Reading(a)
    thread.add_reader(a.fileno(), reading)
    await rounds(thread, pair)
    assert reading.calls == 0
    for number in range(1, 4):
        b.send(b"x")
        await reading.received(number)
    assert reading.calls == 3
    b.close()
    await until(lambda: reading.calls > 3)  # an end is something to read, too
    assert thread.remove_reader(a.fileno())


async def test_ready_to_write(thread: SelectThread, pair: Pair) -> None:
    reports = catch()
    a, b = pair()
    size = await fill(a)
    enough = asyncio.Event()

    def write() -> None:
        nonlocal size
        size += a.send(bytes(65536))  # and raises, if there is no room
        if size > 2**21:
            thread.remove_writer(a.fileno())
            enough.set()

    thread.add_writer(a.fileno(), write)
    reading = Reading(b)
    thread.add_reader(b.fileno(), reading)
    await enough.wait()
    await reading.received(size)
    assert thread.remove_reader(b.fileno())
    assert not reports


async def test_both_at_once(thread: SelectThread, pair: Pair) -> None:
    a, b = pair()
    writable, reading = asyncio.Event(), Reading(a)
    thread.add_writer(a.fileno(), writable.set)
    thread.add_reader(a.fileno(), reading)
    await writable.wait()
    assert thread.remove_writer(a.fileno())
    assert not thread.remove_writer(a.fileno())
    b.send(b"x")
    await reading.received(1)
    assert thread.remove_reader(a.fileno())


async def test_a_failed_connect_is_ready_to_write(thread: SelectThread) -> None:
    """Winsock has it among the exceptions only."""
    ready = asyncio.Event()
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        if sys.platform == "win32":
            sock, name = new_socket("hyperv"), sockaddr(HypervAddress("loopback", random_port()))
        else:
            sock, name = socket.socket(), deaf.getsockname()
        sock.setblocking(False)
        sock.connect_ex(name)
        thread.add_writer(sock.fileno(), ready.set)
        await ready.wait()
        assert thread.remove_writer(sock.fileno())
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        sock.close()


async def test_the_arguments_and_the_context_are_those_of_the_call(thread: SelectThread, pair: Pair) -> None:
    variable = contextvars.ContextVar("variable", default="none")
    a, b = pair()
    found: asyncio.Future[tuple[object, ...]] = asyncio.get_running_loop().create_future()

    def callback(*arguments: object) -> None:
        thread.remove_reader(a.fileno())
        found.set_result((*arguments, variable.get(), threading.current_thread()))

    variable.set("at the call")
    thread.add_reader(a.fileno(), callback, 1, "two")
    variable.set("later")
    b.send(b"x")
    assert await found == (1, "two", "at the call", threading.current_thread())


async def test_a_callback_that_raises_costs_nothing(thread: SelectThread, pair: Pair) -> None:
    reports = catch()
    a, b = pair()
    thread.add_reader(a.fileno(), lambda: 1 / 0)
    b.send(b"x")
    await until(lambda: len(reports) == 2)  # it is ready still
    assert isinstance(reports[0]["exception"], ZeroDivisionError)
    thread.add_reader(a.fileno(), reading := Reading(a))
    await reading.received(1)
    assert thread.remove_reader(a.fileno())


# -- what is told late -------------------------------------------------------------------------------------


async def test_told_once_until_the_loop_has_looked(
    thread: SelectThread, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that is busy does not find a thousand callbacks when it is done."""
    passes = Passes(monkeypatch)
    a, b = pair()
    b.send(b"x")
    calls: list[int] = []
    thread.add_reader(a.fileno(), calls.append, 1)
    passes.another(thread, 20)
    await until(lambda: calls)
    assert len(calls) == 1
    await until(lambda: len(calls) == 3)  # for nobody has read it
    assert thread.remove_reader(a.fileno())


async def test_removed_after_it_was_told(
    thread: SelectThread, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = Passes(monkeypatch)
    a, b = pair()
    b.send(b"x")
    reading = Reading(a)
    thread.add_reader(a.fileno(), reading)
    passes.another(thread, 3)
    assert thread.remove_reader(a.fileno())
    assert not thread.remove_reader(a.fileno())
    await rounds(thread, pair)
    assert reading.calls == 0


async def test_another_socket_has_got_the_number(
    thread: SelectThread, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not told what was meant for the one before."""
    passes = Passes(monkeypatch)
    a, b = pair()
    b.send(b"x")
    before, after = Reading(a), Reading(a)
    thread.add_reader(a.fileno(), before)
    passes.another(thread, 3)
    thread.remove_reader(a.fileno())
    a.recv(1)  # the same number, and nothing to read
    thread.add_reader(a.fileno(), after)
    await rounds(thread, pair)
    assert before.calls == after.calls == 0
    b.send(b"x")
    await after.received(1)
    assert before.calls == 0
    assert thread.remove_reader(a.fileno())


async def test_another_socket_has_got_the_number_meanwhile(
    thread: SelectThread, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's answer is about the sockets it was asked for; a connect would take it for its own."""
    passes = Passes(monkeypatch)
    a, b = pair()
    reading = Reading(a)
    thread.add_reader(a.fileno(), Reading(a))
    with passes.held():
        b.send(b"x")
        passes.answered()
        thread.remove_reader(a.fileno())
        a.recv(1)
        thread.add_reader(a.fileno(), reading)
    await rounds(thread, pair)
    assert reading.calls == 0
    assert thread.remove_reader(a.fileno())


# -- sockets that go ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["reader", "writer"])
async def test_closed_while_it_is_watched(thread: SelectThread, pair: Pair, way: str) -> None:
    """Whose it is hears of it; nobody else suffers, and the thread does not spin."""
    a, _b = pair()
    c, d = pair()
    idle = pair()
    if way == "writer":
        await fill(a)
    told: list[str] = []
    getattr(thread, f"add_{way}")(a.fileno(), told.append, "closed")
    reading = Reading(c)
    thread.add_reader(c.fileno(), reading)
    a.close()
    for number in range(1, 21):
        d.send(b"x")
        await reading.received(number)
    await rounds(thread, lambda: idle, 20)
    # For Linux, it is ready once before it is bad.
    assert 1 <= len(told) <= 2
    assert thread.remove_reader(c.fileno())


async def test_more_than_one_select_takes(thread: SelectThread, pair: Pair) -> None:
    a, b = pair()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(700)]
        for sock in idle:
            thread.add_reader(sock.fileno(), pytest.fail, "nothing has come")
        thread.add_reader(a.fileno(), reading := Reading(a))
        b.send(b"x")
        await reading.received(1)
        # Who watches it already gets this, too, though there is room in front of it.
        assert thread.remove_reader(idle[0].fileno())
        written = asyncio.Event()
        thread.add_writer(a.fileno(), written.set)
        await asyncio.wait_for(written.wait(), PATIENCE)
        assert thread.remove_writer(a.fileno())
        assert thread.remove_reader(a.fileno())
        thread.add_reader(a.fileno(), again := Reading(a))
        b.send(b"y")
        await again.received(1)
        for sock in (a, *idle[1:]):
            assert thread.remove_reader(sock.fileno())
        assert not thread.remove_reader(a.fileno())
        threads = [thread, *thread._others]
        assert len(threads) == 2
        thread.close()
        for each in threads:
            joined(each)
            assert each.ended


async def test_a_storm_of_changes(thread: SelectThread, pair: Pair) -> None:
    reports = catch()
    chance = random.Random(2761)
    ends = [pair() for _ in range(12)]
    watched: set[int] = set()

    class Checked(Reading):
        def __call__(self) -> None:
            assert self._sock.fileno() in watched
            super().__call__()  # and raises, if nothing has come

    readings = [Checked(a) for a, _ in ends]
    sent = [0] * len(ends)
    for _ in range(1000):
        number = chance.randrange(len(ends))
        (a, b), reading = ends[number], readings[number]
        match chance.randrange(5):
            case 0:
                b.send(b"x")
                sent[number] += 1
            case 1:
                thread.add_reader(a.fileno(), reading)
                watched.add(a.fileno())
            case 2:
                assert thread.remove_reader(a.fileno()) is (a.fileno() in watched)
                watched.discard(a.fileno())
            case 3:
                thread.add_writer(a.fileno(), thread.remove_writer, a.fileno())
            case 4:
                await asyncio.sleep(0)
    for (a, _), reading, size in zip(ends, readings, sent, strict=True):
        thread.add_reader(a.fileno(), reading)
        watched.add(a.fileno())
        assert len(await reading.received(size)) == size
        assert thread.remove_reader(a.fileno())
        thread.remove_writer(a.fileno())
    assert not reports


async def test_the_collector_may_come_at_any_point(thread: SelectThread, pair: Pair) -> None:
    """What it frees can have a server to close, in whichever thread it runs."""

    class Cycle:
        def __init__(self, fd: int) -> None:
            self._self = self
            self._fd = fd

        def __del__(self) -> None:
            thread.remove_reader(self._fd)

    threshold = gc.get_threshold()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(20)]
        try:
            for number in range(5000):
                gc.set_threshold(2 + number % 23)
                fd = idle[number % len(idle)].fileno()
                Cycle(fd)
                thread.add_reader(fd, pytest.fail)
                if not number % 50:
                    await asyncio.sleep(0)
        finally:
            gc.set_threshold(*threshold)
            gc.collect()
        await rounds(thread, pair)
        for sock in idle:
            thread.remove_reader(sock.fileno())


class Interrupting:
    """The end that a thread is woken by, where something comes in between."""

    def __init__(self, sock: socket.socket, comes: Callable[[], object]) -> None:
        self._sock = sock
        self._comes = comes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def recv(self, size: int) -> bytes:
        self._comes()
        try:
            return self._sock.recv(size)
        finally:
            self._comes()


async def test_the_collector_comes_while_the_thread_wakes(thread: SelectThread, pair: Pair) -> None:
    await rounds(thread, pair)
    theirs = thread._theirs
    thread._theirs = Interrupting(theirs, thread._wake)  # type: ignore[assignment]
    await rounds(thread, pair, 20)
    thread._theirs = theirs
    await rounds(thread, pair)


# -- the end -----------------------------------------------------------------------------------------------


async def test_closed_while_the_thread_wakes(thread: SelectThread, pair: Pair) -> None:
    await rounds(thread, pair)
    thread._theirs = Interrupting(thread._theirs, thread.close)  # type: ignore[assignment]
    thread._wake()
    joined(thread)


async def test_closed(thread: SelectThread, pair: Pair) -> None:
    a, b = pair()
    thread.add_reader(a.fileno(), pytest.fail)
    assert not thread.ended
    thread.close()
    assert thread.ended
    joined(thread)
    b.send(b"x")
    with pytest.raises(RuntimeError, match="the event loop is being closed"):
        thread.add_reader(a.fileno(), pytest.fail)
    assert not thread.remove_reader(a.fileno())
    thread.close()
    await asyncio.sleep(0)


async def test_closed_in_a_callback(thread: SelectThread, pair: Pair) -> None:
    a, b = pair()
    thread.add_reader(a.fileno(), thread.close)
    b.send(b"x")
    await until(lambda: thread.ended)
    joined(thread)


async def test_who_tells(always_threads: None) -> None:
    loop = asyncio.get_running_loop()
    first = watcher_of(loop)
    assert isinstance(first, SelectThread)
    assert watcher_of(loop) is first
    first.close()
    second = watcher_of(loop)
    assert isinstance(second, SelectThread)
    assert second is not first
    second.close()
    joined(first)
    joined(second)


async def test_a_loop_that_can_does_it_itself() -> None:
    loop = asyncio.get_running_loop()
    threads = threading.enumerate()
    assert is_proactor(loop) is (type(loop).__name__ == "ProactorEventLoop")
    if not is_proactor(loop):
        assert watcher_of(loop) is loop
        assert threading.enumerate() == threads
