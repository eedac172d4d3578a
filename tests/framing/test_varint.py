from __future__ import annotations

import pytest

from aiohvsock.exceptions import FrameTooLarge, FramingError, IncompleteFrame
from aiohvsock.framing import Varint

from .reference import check


@pytest.mark.parametrize(
    ("size", "length"),
    [
        (0, b"\0"),
        (1, b"\x01"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (150, b"\x96\x01"),  # protobuf.dev, "Base 128 Varints"
        (300, b"\xac\x02"),
        (16383, b"\xff\x7f"),
        (16384, b"\x80\x80\x01"),
        (2**20, b"\x80\x80\x40"),
    ],
)
def test_wire(size: int, length: bytes) -> None:
    codec = Varint()
    payload = b"x" * size

    assert b"".join(codec.encode(payload)) == length + payload
    assert codec.decoder().feed(length + payload) == [payload]
    check(codec, (length + payload)[:20_000] if size > 20_000 else length + payload, [3, 3, 3, 3])


def test_the_payload_is_not_copied() -> None:
    payload = bytearray(1000)

    *_, last = Varint().encode(payload)

    assert last is payload


def test_a_wide_payload_is_counted_in_bytes() -> None:
    wide = memoryview(bytes(16)).cast("I")

    assert Varint().encode(wide)[0] == b"\x10"


@pytest.mark.parametrize(
    ("size", "length"),
    [
        (2**32, b"\x80\x80\x80\x80\x10"),
        (2**63, b"\x80" * 9 + b"\x01"),
        (2**64 - 1, b"\xff" * 9 + b"\x01"),
    ],
)
def test_lengths_up_to_64_bits(size: int, length: bytes) -> None:
    with pytest.raises(FrameTooLarge) as caught:
        Varint().decoder().feed(length)
    assert caught.value.size == size
    # Within a limit that large it is but a frame that has not come.
    decoder = Varint(max_size=2**64 - 1).decoder()
    assert decoder.feed(length) == []
    with pytest.raises(IncompleteFrame) as incomplete:
        decoder.eof()
    assert (incomplete.value.received, incomplete.value.expected) == (len(length), len(length) + size)


@pytest.mark.parametrize(
    "length",
    [
        b"\xff" * 9 + b"\x02",  # 2**64 and more
        b"\xff" * 9 + b"\x7f",
        b"\xff" * 10,
        b"\x80" * 10,
        b"\x80" * 9 + b"\x80\0",
        b"\xff" * 9 + b"\x81",
    ],
)
def test_lengths_over_64_bits(length: bytes) -> None:
    for codec in (Varint(), Varint(max_size=2**64 - 1)):
        with pytest.raises(FramingError, match="more than 64 bits") as caught:
            codec.decoder().feed(length)
        assert type(caught.value) is FramingError
        check(codec, length + b"abc", [2] * 20)
        check(codec, b"\x01a" + length, [4, 2, 2])


def test_a_length_without_an_end_is_noticed_at_its_tenth_byte() -> None:
    decoder = Varint().decoder()

    for _ in range(9):
        assert decoder.feed(b"\x80") == []
    with pytest.raises(FramingError):
        decoder.feed(b"\x80")


@pytest.mark.parametrize("length", [b"\x80\0", b"\x81\0", b"\xff\x80\0", b"\x80" * 9 + b"\0"])
def test_a_length_has_one_spelling(length: bytes) -> None:
    with pytest.raises(FramingError, match="ends in zeros that it does not need") as caught:
        Varint().decoder().feed(length)
    assert type(caught.value) is FramingError
    check(Varint(), length, [2] * 20)


@pytest.mark.parametrize(
    ("stream", "received", "expected"),
    [
        (b"\x80", 1, None),
        (b"\xff\xff", 2, None),
        (b"\x02", 1, 3),
        (b"\x80\x01a", 3, 130),
        (b"\x01a\x80", 1, None),
    ],
)
def test_an_end_inside_a_frame(stream: bytes, received: int, expected: int | None) -> None:
    decoder = Varint().decoder()
    decoder.feed(stream)

    with pytest.raises(IncompleteFrame) as caught:
        decoder.eof()
    assert (caught.value.received, caught.value.expected) == (received, expected)


@pytest.mark.parametrize("max_size", [-1, 2**64])
def test_limits_that_make_no_sense(max_size: int) -> None:
    with pytest.raises(ValueError, match="max_size"):
        Varint(max_size=max_size)
