from __future__ import annotations

import gc
import sys
import weakref
from pickle import PickleBuffer
from typing import Any

import pytest

from aiohvsock._compiled import speedups
from aiohvsock.framing import room as module
from aiohvsock.framing.room import Room

# In C a room gives its bytes away, and there is none to keep.
of_python = pytest.mark.skipif(
    speedups is not None, reason="is about the room in Python: AIOHVSOCK_PURE=1 runs it"
)


@pytest.fixture(autouse=True)
def no_spare() -> None:
    module._spare.clear()


def test_what_is_written_to_it_is_taken_out() -> None:
    room = Room(5)
    view = room.getbuffer()
    assert (len(view), view.readonly, view.nbytes) == (5, False, 5)
    view[:] = b"hello"

    assert room.take(view) == b"hello"
    with pytest.raises(ValueError):
        view[0] = 1


@pytest.mark.parametrize("hold", [lambda view: view[1:], lambda view: memoryview(view), bytes])
def test_nobody_can_change_what_was_taken_out(hold: Any) -> None:
    room = Room(3)
    view = room.getbuffer()
    view[:] = b"abc"
    held = hold(view)

    payload = room.take(view)

    if isinstance(held, memoryview):
        held[:] = bytes(len(held))
    assert payload == b"abc"


def test_a_view_that_is_exported_is_no_obstacle() -> None:
    # As uvloop holds the buffer it reads into while the protocol is told of the read.
    room = Room(3)
    view = room.getbuffer()

    view[:] = b"abc"
    held = PickleBuffer(view)
    with pytest.raises(BufferError):
        view.release()
    assert room.take(view) == b"abc"
    held.release()


def filled(size: int, with_byte: bytes) -> tuple[Room, memoryview]:
    room = Room(size)
    view = room.getbuffer()
    view[:] = with_byte * size
    return room, view


@of_python
def test_the_next_payload_is_received_where_the_last_one_was() -> None:
    room, view = filled(1000, b"a")
    used = id(view.obj)
    first = room.take(view)

    room, view = filled(10, b"b")
    assert id(view.obj) == used
    assert (room.take(view), first) == (b"b" * 10, b"a" * 1000)

    room, view = filled(1001, b"c")
    assert id(view.obj) != used
    assert room.take(view) == b"c" * 1001


@of_python
def test_two_at_once_are_apart() -> None:
    room, view = filled(100, b"x")
    room.take(view)

    first, first_view = filled(100, b"a")
    second, second_view = filled(100, b"b")
    assert second.take(second_view) == b"b" * 100
    assert first.take(first_view) == b"a" * 100
    assert len(module._spare) == 1


def test_room_that_somebody_has_a_view_of_is_not_used_again() -> None:
    for hold in (lambda view: view[1:], memoryview, PickleBuffer):
        room, view = filled(3, b"a")
        held = hold(view)
        room.take(view)

        room, view = filled(3, b"b")
        with memoryview(held) as other:
            other[:] = b"x" * len(other)
        assert room.take(view) == b"bbb"
        module._spare.clear()


@of_python
def test_a_very_large_one_is_not_kept() -> None:
    room, view = filled(module._LARGEST_SPARE + 1, b"a")
    room.take(view)
    assert module._spare == []


def test_garbage_is_collected_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    # As a connection is that was lost inside a large frame, with the traceback of its error. With a BytesIO in
    # its place, Python 3.12.1 crashes here, and 3.13.0 complains.
    complaints: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)
    gone = []
    for _ in range(20):
        room = Room(1000)
        cycle: list[Any] = [room, room.getbuffer()]
        cycle.append(cycle)
        gone.append(weakref.ref(cycle[1]))
    del room, cycle
    gc.collect()

    assert [each() for each in gone] == [None] * 20
    assert complaints == []
