"""Many messages at once: received as a run of one size, and framed for one large write."""

from __future__ import annotations

import pytest

from aiohvsock.exceptions import FrameTooLarge, LocalProtocolError
from aiohvsock.framing import LengthPrefixed
from aiohvsock.protocol import BareProtocol, Closed, Failed, Frame, Hello, NativeProtocol

from .reference_protocol import frame
from .test_protocol import CLOSE, DATA, PING, Clock, clock, control, events, opened

__all__ = ["clock"]  # a fixture


def numbered(count: int, size: int) -> list[bytes]:
    return [b"%08d" % number + bytes(size - 8) for number in range(count)]


def stream(messages: list[bytes]) -> bytes:
    return b"".join(frame(DATA, message) for message in messages)


@pytest.mark.parametrize("size", [8, 100, 256, 4000])
@pytest.mark.parametrize("count", [15, 16, 17, 300])
@pytest.mark.parametrize("rest", [0, 1, 8, 50])
def test_a_run(size: int, count: int, rest: int, clock: Clock) -> None:
    protocol = opened(clock)
    messages = numbered(count + 1, size)
    data = stream(messages)
    cut = len(data) - size - 8 + min(rest, size + 7)
    assert protocol.receive(data[:cut]) == messages[:-1]
    assert protocol.receive(data[cut:]) == messages[-1:]


def test_empty_messages(clock: Clock) -> None:
    assert opened(clock).receive(frame(DATA, b"") * 1000) == [b""] * 1000


@pytest.mark.parametrize("at", [0, 1, 2, 20, 99])
@pytest.mark.parametrize("odd", [frame(DATA, bytes(99)), frame(DATA, bytes(101)), frame(PING, b"alive?")])
def test_a_run_with_something_else_in_it(at: int, odd: bytes, clock: Clock) -> None:
    protocol = opened(clock)
    messages = numbered(100, 100)
    expected = messages[:at] + ([odd[8:]] if odd[0] == DATA else []) + messages[at:]
    assert protocol.receive(stream(messages[:at]) + odd + stream(messages[at:])) == expected
    assert control(protocol) == ([] if odd[0] == DATA else [(2, b"alive?")])


def test_a_run_whose_ends_agree_and_whose_middle_does_not(clock: Clock) -> None:
    # 92 + 108 is twice 100: the headers that are looked at first are where a run would have them.
    messages = [bytes(100)] * 40 + [bytes(92), bytes(108)] + [bytes(100)] * 40
    assert opened(clock).receive(stream(messages)) == messages


def test_a_run_over_the_limit(clock: Clock) -> None:
    protocol = opened(clock, max_size=99)
    assert protocol.receive(stream(numbered(100, 100))) == []
    assert isinstance(events(protocol)[0], Failed)


def test_a_run_up_to_a_close(clock: Clock) -> None:
    protocol = opened(clock)
    messages = numbered(50, 100)
    assert protocol.receive(stream(messages) + frame(CLOSE, b"\0") + stream(messages)) == messages
    assert events(protocol) == [Closed(0, "")]


def test_a_run_after_our_close_is_not_delivered(clock: Clock) -> None:
    protocol = opened(clock)
    protocol.close()
    assert protocol.receive(stream(numbered(100, 100))) == []


def sides(clock: Clock) -> list[NativeProtocol | BareProtocol[bytes]]:
    return [opened(clock, Hello(100_000)), BareProtocol(clock, LengthPrefixed(max_size=100_000))]


@pytest.mark.parametrize("side", [0, 1])
def test_frames_for_one_write(side: int, clock: Clock) -> None:
    protocol = sides(clock)[side]
    messages = iter(numbered(100, 100))
    frames: list[Frame] = []
    assert not protocol.add_frames(frames, messages, 1000)
    assert frames == [protocol.frame(message) for message in numbered(100, 100)[: len(frames)]]
    assert 1000 <= sum(map(len, frames)) < 1108
    rest: list[Frame] = []
    assert protocol.add_frames(rest, messages, 100_000)
    assert len(frames) + len(rest) == 100
    assert protocol.add_frames(rest, iter([]), 1000)


@pytest.mark.parametrize("side", [0, 1])
def test_a_large_one_ends_it(side: int, clock: Clock) -> None:
    protocol = sides(clock)[side]
    messages = iter([b"small", bytes(50_000), b"next"])
    frames: list[Frame] = []
    assert not protocol.add_frames(frames, messages, 2**20)
    assert frames[0] == protocol.frame(b"small")
    assert isinstance(frames[1], tuple)
    assert b"".join(frames[1])[-50_000:] == bytes(50_000)
    assert list(messages) == [b"next"]


@pytest.mark.parametrize("side", [0, 1])
def test_other_buffers(side: int, clock: Clock) -> None:
    protocol = sides(clock)[side]
    frames: list[Frame] = []
    assert protocol.add_frames(frames, iter([bytearray(b"one"), memoryview(b"two")]), 1000)  # type: ignore[list-item]
    assert frames == [protocol.frame(b"one"), protocol.frame(b"two")]


@pytest.mark.parametrize("side", [0, 1])
def test_those_before_a_mistake_are_there(side: int, clock: Clock) -> None:
    protocol = sides(clock)[side]
    frames: list[Frame] = []
    with pytest.raises(FrameTooLarge):
        protocol.add_frames(frames, iter([b"one", bytes(100_001), b"two"]), 1000)
    assert frames == [protocol.frame(b"one")]
    protocol.stop_sending()
    with pytest.raises(LocalProtocolError):
        protocol.add_frames(frames, iter([b"three"]), 1000)
    assert len(frames) == 1
