from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from aiohvsock.exceptions import FrameTooLarge, FramingError, IncompleteFrame, LocalProtocolError
from aiohvsock.framing import TTRPC, OversizedFrame, TTRPCCodec, TTRPCFlag, TTRPCFrame, TTRPCType

from .reference import check, decode

SKIP = TTRPC.replace(max_size=4, oversize="skip")


# Of the figure and the tables in PROTOCOL.md.
@pytest.mark.parametrize(
    ("frame", "wire"),
    [
        (
            TTRPC.frame(stream_id=1, type=TTRPCType.REQUEST, payload=b"\n\x05hello"),
            b"\0\0\0\x07\0\0\0\x01\x01\0\n\x05hello",
        ),
        (
            TTRPC.frame(3, TTRPCType.REQUEST, TTRPCFlag.REMOTE_OPEN, b"x"),
            b"\0\0\0\x01\0\0\0\x03\x01\x02x",
        ),
        (TTRPC.frame(0x01020304, TTRPCType.RESPONSE), b"\0\0\0\0\x01\x02\x03\x04\x02\0"),
        (
            TTRPC.frame(2**32 - 1, TTRPCType.DATA, TTRPCFlag.REMOTE_CLOSED | TTRPCFlag.NO_DATA),
            b"\0\0\0\0\xff\xff\xff\xff\x03\x05",
        ),
        (TTRPC.frame(0, 255, 255), b"\0\0\0\0\0\0\0\0\xff\xff"),
    ],
)
def test_wire(frame: TTRPCFrame, wire: bytes) -> None:
    assert b"".join(TTRPC.encode(frame)) == wire
    assert TTRPC.decoder().feed(wire * 2) == [frame] * 2
    check(TTRPC, wire * 2, [3] * 2 * len(wire))


def test_the_payload_is_not_copied() -> None:
    payload = bytes(1000)

    *_, last = TTRPC.encode(TTRPC.frame(1, 1, 0, payload))

    assert last is payload


def test_a_received_frame_is_of_plain_numbers() -> None:
    (frame,) = TTRPC.decoder().feed(b"\0\0\0\0\0\0\0\x01\x01\x02")

    assert repr(frame) == "TTRPCFrame(stream_id=1, type=1, flags=2, payload=b'')"
    assert frame.type == TTRPCType.REQUEST
    assert TTRPCFlag(frame.flags) is TTRPCFlag.REMOTE_OPEN


def test_the_limit_is_four_mebibytes_of_payload() -> None:
    assert TTRPC.max_size == 4 << 20
    decoder = TTRPC.decoder()
    assert decoder.feed(b"\0\x40\0\0" + bytes(6)) == []
    with pytest.raises(FrameTooLarge) as caught:
        TTRPC.decoder().feed(b"\0\x40\0\x01" + bytes(6))
    assert (caught.value.size, caught.value.max_size) == (2**22 + 1, 2**22)


def test_a_header_is_not_judged_before_it_is_whole() -> None:
    decoder = TTRPC.decoder()

    assert decoder.feed(b"\xff" * 9) == []
    with pytest.raises(IncompleteFrame):
        decoder.eof()
    with pytest.raises(FrameTooLarge):
        decoder.feed(b"\xff")


# -- frames over the limit ---------------------------------------------------------------------------------


def test_a_frame_over_the_limit_can_be_skipped() -> None:
    before, after = TTRPC.frame(1, 1, 0, b"abcd"), TTRPC.frame(5, 1)
    long = TTRPC.frame(3, 1, 2, b"abcde")
    wire = b"".join(b"".join(TTRPC.encode(frame)) for frame in (before, long, after))

    for number in range(1, 2 * len(wire) + 2):
        got = decode(SKIP, wire, [number] * 100 if number > 1 else [])
        assert got == [before, OversizedFrame(3, 1, 2, size=5), after]
    for end in range(len(wire)):
        check(SKIP, wire[:end], [2] * end)
        check(SKIP, wire[:end], [end, end])


def test_what_stands_for_it_is_a_frame_with_a_size() -> None:
    (frame,) = SKIP.decoder().feed(b"\0\0\0\x05\0\0\0\x03\x01\x02abcde")

    assert isinstance(frame, OversizedFrame)
    assert (frame.stream_id, frame.type, frame.flags, frame.payload, frame.size) == (3, 1, 2, b"", 5)
    assert frame != TTRPC.frame(3, 1, 2)
    assert hash(frame) == hash(OversizedFrame(3, 1, 2, size=5))
    with pytest.raises(LocalProtocolError, match="OversizedFrame has no payload to send"):
        SKIP.encode(frame)


def test_the_limit_on_what_is_sent_stays() -> None:
    with pytest.raises(FrameTooLarge):
        SKIP.encode(TTRPC.frame(1, 1, 0, b"abcde"))


def test_the_default_is_an_error() -> None:
    assert TTRPC.oversize == "error"
    with pytest.raises(FrameTooLarge):
        TTRPC.replace(max_size=4).decoder().feed(b"\0\0\0\x05\0\0\0\x03\x01\x02abcde")


# -- values ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "fault"),
    [
        ({"stream_id": -1}, ValueError, "stream_id is outside 0 ... 2**32-1: -1"),
        ({"stream_id": 2**32}, ValueError, "stream_id is outside 0 ... 2**32-1: 4294967296"),
        ({"stream_id": "1"}, TypeError, "stream_id must be an int, not '1'"),
        ({"type": -1}, ValueError, "type is outside 0 ... 2**8-1: -1"),
        ({"type": 256}, ValueError, "type is outside 0 ... 2**8-1: 256"),
        ({"type": 1.0}, TypeError, "type must be an int, not 1.0"),
        ({"flags": -1}, ValueError, "flags is outside 0 ... 2**8-1: -1"),
        ({"flags": 256}, ValueError, "flags is outside 0 ... 2**8-1: 256"),
        ({"payload": "text"}, TypeError, "payload must be bytes, not str"),
        ({"payload": bytearray()}, TypeError, "payload must be bytes, not bytearray"),
    ],
)
def test_fields_that_do_not_fit(arguments: dict[str, Any], error: type[Exception], fault: str) -> None:
    for make in (TTRPC.frame, TTRPCFrame):
        with pytest.raises(error) as caught:
            make(**{"stream_id": 1, "type": 1, **arguments})
        assert str(caught.value) == fault


def test_a_frame_is_a_frozen_value() -> None:
    frame = TTRPC.frame(1, 2, 3, b"abc")

    assert frame == TTRPCFrame(stream_id=1, type=2, flags=3, payload=b"abc")
    assert pickle.loads(pickle.dumps(frame)) == frame
    assert {frame: "found"}[TTRPCFrame(1, 2, 3, b"abc")] == "found"
    assert not hasattr(frame, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        frame.flags = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"max_size": -1}, "max_size -1 is outside 0 ... 4294967295"),
        ({"max_size": 2**32}, "max_size 4294967296 is outside 0 ... 4294967295"),
        ({"oversize": "close"}, "oversize must be 'error' or 'skip', not 'close'"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], fault: str) -> None:
    for make in (TTRPC.replace, TTRPCCodec):
        with pytest.raises(ValueError) as caught:
            make(**arguments)
        assert str(caught.value) == fault


def test_no_stream_is_broken_where_all_can_be_skipped() -> None:
    try:
        check(SKIP, b"\0\0\xff\xff" + bytes(70_000) + b"\xff" * 100, [20_000] * 10)
    except FramingError as error:
        raise AssertionError(error) from None
