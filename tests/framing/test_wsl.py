from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from aiohvsock.exceptions import FrameTooLarge, FramingError
from aiohvsock.framing import WSL, WSLCodec, WSLFrame

from .reference import check


# Of struct MESSAGE_HEADER in lxinitshared.h: MessageType, MessageSize, TransactionId, TransactionStep.
@pytest.mark.parametrize(
    ("frame", "wire"),
    [
        # A request (TRANSACTION_STEP::REQUEST) with one more field, unsigned int Port = 50001.
        (
            WSL.frame(type=7, transaction_id=1, transaction_step=1, payload=b"\x51\xc3\0\0"),
            b"\x07\0\0\0\x14\0\0\0\x01\0\0\0\x01\0\0\0\x51\xc3\0\0",
        ),
        (WSL.frame(0, 0, 0), b"\0\0\0\0\x10\0\0\0\0\0\0\0\0\0\0\0"),
        (
            WSL.frame(0x01020304, 0x05060708, 0x090A0B0C, b"x"),
            b"\x04\x03\x02\x01\x11\0\0\0\x08\x07\x06\x05\x0c\x0b\x0a\x09x",
        ),
        (WSL.frame(2**32 - 1, 2**32 - 1, 2**32 - 1), b"\xff\xff\xff\xff\x10\0\0\0" + b"\xff" * 8),
    ],
)
def test_wire(frame: WSLFrame, wire: bytes) -> None:
    assert b"".join(WSL.encode(frame)) == wire
    assert WSL.decoder().feed(wire * 2) == [frame] * 2
    check(WSL, wire * 2, [3] * 2 * len(wire))


def test_the_payload_is_not_copied() -> None:
    payload = bytes(1000)

    *_, last = WSL.encode(WSL.frame(1, 1, 0, payload))

    assert last is payload


def test_the_limit_is_16_mib_with_the_header() -> None:
    assert WSL.max_size == 2**24 - 16
    assert WSL.decoder().feed(b"\x01\0\0\0\0\0\0\x01" + bytes(8)) == []
    with pytest.raises(FrameTooLarge) as caught:
        WSL.decoder().feed(b"\x01\0\0\0\x01\0\0\x01" + bytes(8))
    assert (caught.value.size, caught.value.max_size) == (2**24 - 15, 2**24 - 16)


@pytest.mark.parametrize("size", [0, 1, 15])
def test_a_length_below_that_of_the_header(size: int) -> None:
    wire = b"\x01\0\0\0" + bytes([size]) + bytes(11)
    with pytest.raises(FramingError, match=f"says it is {size} bytes long, less than its header") as caught:
        WSL.decoder().feed(wire)
    assert type(caught.value) is FramingError
    check(WSL, b"".join(WSL.encode(WSL.frame(1, 1, 1, b"x"))) + wire, [2] * 40)


@pytest.mark.parametrize("field", ["type", "transaction_id", "transaction_step"])
@pytest.mark.parametrize(
    ("value", "error", "fault"),
    [
        (-1, ValueError, "is outside 0 ... 2**32-1: -1"),
        (2**32, ValueError, "is outside 0 ... 2**32-1: 4294967296"),
        ("1", TypeError, "must be an int, not '1'"),
    ],
)
def test_numbers_that_do_not_fit(field: str, value: Any, error: type[Exception], fault: str) -> None:
    for make in (WSL.frame, WSLFrame):
        with pytest.raises(error) as caught:
            make(**{"type": 1, "transaction_id": 1, "transaction_step": 1, field: value})
        assert str(caught.value) == f"{field} {fault}"


def test_a_payload_is_bytes() -> None:
    with pytest.raises(TypeError, match="payload must be bytes, not str"):
        WSL.frame(1, 1, 1, "text")  # type: ignore[arg-type]


def test_a_frame_is_a_frozen_value() -> None:
    frame = WSL.frame(1, 2, 3, b"abc")

    assert frame == WSLFrame(type=1, transaction_id=2, transaction_step=3, payload=b"abc")
    assert repr(frame) == "WSLFrame(type=1, transaction_id=2, transaction_step=3, payload=b'abc')"
    assert pickle.loads(pickle.dumps(frame)) == frame
    assert {frame: "found"}[WSLFrame(1, 2, 3, b"abc")] == "found"
    with pytest.raises(dataclasses.FrozenInstanceError):
        frame.type = 1  # type: ignore[misc]


@pytest.mark.parametrize("max_size", [-1, 2**32 - 16])
def test_limits_that_make_no_sense(max_size: int) -> None:
    for make in (WSL.replace, WSLCodec):
        with pytest.raises(ValueError, match="max_size"):
            make(max_size=max_size)
    assert WSL.replace(max_size=2**32 - 17).max_size == 2**32 - 17
