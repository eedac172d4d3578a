from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aiohvsock.transports.queue import PIECES, SMALL_WRITE, SendQueue

_SIZES = st.sampled_from([0, 1, 7, 100, 4095, 4096, 5000, 40_000])
_KINDS = st.sampled_from([bytes, bytearray, lambda data: memoryview(bytearray(data))])


@given(st.lists(st.tuples(_SIZES, _KINDS, st.integers(0, 60_000))))
def test_what_goes_in_comes_out_in_order(steps: list[tuple[int, type[bytes], int]]) -> None:
    """Against the obvious queue, one bytearray; the kernel takes any part of what it is offered."""
    queue, model = SendQueue(), bytearray()
    for number, (size, kind, taken) in enumerate(steps):
        data = kind(bytes([number % 256]) * size)
        queue.add(data)
        model += data
        if isinstance(data, bytearray):
            data[:] = bytes(size)  # the caller's to change
        offered = b"".join(queue.head())
        assert model.startswith(offered)
        taken = min(taken, len(offered))
        queue.sent(taken)
        del model[:taken]
        assert queue.size == len(model)
    while queue.size:
        offered = b"".join(queue.head())
        assert offered
        assert model.startswith(offered)
        queue.sent(len(offered))
        del model[: len(offered)]
    assert not model


def test_large_bytes_are_kept_without_a_copy() -> None:
    data = bytes(100_000)
    queue = SendQueue()
    queue.add(data, 10)
    (piece,) = queue.head()
    assert isinstance(piece, memoryview)
    assert piece.obj is data
    assert len(piece) == 99_990


def test_tiny_pieces_take_little_room() -> None:
    queue = SendQueue()
    for _ in range(100_000):
        queue.add(b"x")
    assert queue.size == 100_000
    assert len(queue.head()) <= 100_000 // SMALL_WRITE + 1


def test_clear_and_the_most_pieces_at_once() -> None:
    queue = SendQueue()
    for _ in range(PIECES + 10):
        queue.add(bytes(5000))
    assert len(queue.head()) == PIECES
    queue.clear()
    assert queue.size == 0
    assert not queue.head()
