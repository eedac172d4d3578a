from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from aiohvsock.exceptions import FrameTooLarge, FramingError
from aiohvsock.framing import GCS, GCSCodec, GCSFrame

from .reference import check


# Of HdrOffType, HdrOffSize, HdrOffID and the constants of prot/protocol.go.
@pytest.mark.parametrize(
    ("frame", "wire"),
    [
        # RPCCreate, a request.
        (
            GCS.frame(type=0x10000000 | 0x00100000 | 1 << 8 | 1, id=1, payload=b"{}\n"),
            b"\x01\x01\x10\x10\x13\0\0\0\x01\0\0\0\0\0\0\0{}\n",
        ),
        # NotifyContainer.
        (
            GCS.frame(0x30000000 | 0x00100000 | 1 << 8 | 1, 0),
            b"\x01\x01\x10\x30\x10\0\0\0\0\0\0\0\0\0\0\0",
        ),
        (
            GCS.frame(0x01020304, 0x0102030405060708, b"x"),
            b"\x04\x03\x02\x01\x11\0\0\0\x08\x07\x06\x05\x04\x03\x02\x01x",
        ),
        (GCS.frame(2**32 - 1, 2**64 - 1), b"\xff\xff\xff\xff\x10\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"),
    ],
)
def test_wire(frame: GCSFrame, wire: bytes) -> None:
    assert b"".join(GCS.encode(frame)) == wire
    assert GCS.decoder().feed(wire * 2) == [frame] * 2
    check(GCS, wire * 2, [3] * 2 * len(wire))


def test_the_payload_is_not_copied() -> None:
    payload = bytes(1000)

    *_, last = GCS.encode(GCS.frame(1, 1, payload))

    assert last is payload


def test_the_limit_is_64_kib_with_the_header() -> None:
    longest = GCS.frame(1, 1, bytes(0x10000 - 16))

    assert GCS.max_size == len(longest.payload)
    wire = b"".join(GCS.encode(longest))
    assert len(wire) == 0x10000
    assert GCS.decoder().feed(wire) == [longest]
    with pytest.raises(FrameTooLarge) as sending:
        GCS.encode(GCS.frame(1, 1, bytes(0x10000 - 15)))
    with pytest.raises(FrameTooLarge) as receiving:
        GCS.decoder().feed(b"\x01\0\0\0\x01\0\x01\0\0\0\0\0\0\0\0\0")
    for caught in (sending, receiving):
        assert (caught.value.size, caught.value.max_size) == (0x10000 - 15, 0x10000 - 16)


@pytest.mark.parametrize("size", [0, 1, 15])
def test_a_length_below_that_of_the_header(size: int) -> None:
    wire = b"\x01\0\0\0" + bytes([size]) + bytes(11)
    with pytest.raises(FramingError, match=f"says it is {size} bytes long, less than its header") as caught:
        GCS.decoder().feed(wire)
    assert type(caught.value) is FramingError
    check(GCS, b"".join(GCS.encode(GCS.frame(1, 1, b"x"))) + wire, [2] * 40)


@pytest.mark.parametrize(
    ("arguments", "error", "fault"),
    [
        ({"type": -1}, ValueError, "type is outside 0 ... 2**32-1: -1"),
        ({"type": 2**32}, ValueError, "type is outside 0 ... 2**32-1: 4294967296"),
        ({"type": "1"}, TypeError, "type must be an int, not '1'"),
        ({"id": -1}, ValueError, "id is outside 0 ... 2**64-1: -1"),
        ({"id": 2**64}, ValueError, "id is outside 0 ... 2**64-1: 18446744073709551616"),
        ({"payload": "{}"}, TypeError, "payload must be bytes, not str"),
    ],
)
def test_fields_that_do_not_fit(arguments: dict[str, Any], error: type[Exception], fault: str) -> None:
    for make in (GCS.frame, GCSFrame):
        with pytest.raises(error) as caught:
            make(**{"type": 1, "id": 1, **arguments})
        assert str(caught.value) == fault


def test_a_frame_is_a_frozen_value() -> None:
    frame = GCS.frame(1, 2, b"abc")

    assert frame == GCSFrame(type=1, id=2, payload=b"abc")
    assert repr(frame) == "GCSFrame(type=1, id=2, payload=b'abc')"
    assert pickle.loads(pickle.dumps(frame)) == frame
    assert {frame: "found"}[GCSFrame(1, 2, b"abc")] == "found"
    with pytest.raises(dataclasses.FrozenInstanceError):
        frame.id = 1  # type: ignore[misc]


@pytest.mark.parametrize("max_size", [-1, 2**32 - 16])
def test_limits_that_make_no_sense(max_size: int) -> None:
    for make in (GCS.replace, GCSCodec):
        with pytest.raises(ValueError, match="max_size"):
            make(max_size=max_size)
    assert GCS.replace(max_size=2**32 - 17).max_size == 2**32 - 17
