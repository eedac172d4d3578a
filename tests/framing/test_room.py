from __future__ import annotations

import gc
import sys
import weakref
from pickle import PickleBuffer
from typing import Any

import pytest

from aiohvsock.framing.room import Room


def test_what_is_written_to_it_is_taken_out() -> None:
    room = Room(5)
    view = room.getbuffer()
    assert (len(view), view.readonly, bytes(view)) == (5, False, bytes(5))
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
