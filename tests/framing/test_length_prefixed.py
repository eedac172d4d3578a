from __future__ import annotations

import array
import copy
import dataclasses
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiohvsock.exceptions import FrameTooLarge, FramingError, IncompleteFrame
from aiohvsock.framing import Buffer, Codec, Decoder, LengthPrefixed
from aiohvsock.framing.base import DEFAULT_MAX_SIZE

from .reference import check, decode


def encoded(codec: Codec[Any], *payloads: Buffer) -> bytes:
    return b"".join(b"".join(codec.encode(payload)) for payload in payloads)


@st.composite
def codecs(draw: st.DrawFn) -> LengthPrefixed:
    width = draw(st.sampled_from([1, 2, 4, 8]))
    offset, pad = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    includes_header = draw(st.booleans())
    longest = 256**width - 1 - (offset + width + pad if includes_header else 0)
    return LengthPrefixed(
        width=width,
        byteorder=draw(st.sampled_from(["big", "little"])),
        includes_header=includes_header,
        offset=offset,
        pad=pad,
        max_size=draw(st.integers(0, min(longest, 300))),
    )


EVERY_SHAPE = [
    LengthPrefixed(width, byteorder, includes_header, offset, pad, max_size=100)
    for width in (1, 2, 4, 8)
    for byteorder in ("big", "little")
    for includes_header in (False, True)
    for offset, pad in ((0, 0), (4, 0), (0, 1), (3, 5))
]


# -- what is on the wire -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "wire"),
    [
        (LengthPrefixed(), b"\0\0\0\x03abc"),
        (LengthPrefixed(width=1), b"\x03abc"),
        (LengthPrefixed(width=2), b"\0\x03abc"),
        (LengthPrefixed(width=8), b"\0\0\0\0\0\0\0\x03abc"),
        (LengthPrefixed(byteorder="little"), b"\x03\0\0\0abc"),
        (LengthPrefixed(width=2, byteorder="little"), b"\x03\0abc"),
        (LengthPrefixed(includes_header=True), b"\0\0\0\x07abc"),
        # ttrpc: length, stream id, type and flags, without the header.
        (LengthPrefixed(pad=6), b"\0\0\0\x03\0\0\0\0\0\0abc"),
        # hcsshim's bridge: type, length with the header, id.
        (
            LengthPrefixed(byteorder="little", includes_header=True, offset=4, pad=8),
            b"\0\0\0\0\x13\0\0\0\0\0\0\0\0\0\0\0abc",
        ),
        # Nitro's command executer: 64 bits and one byte of zero.
        (LengthPrefixed(width=8, byteorder="little", pad=1), b"\x03\0\0\0\0\0\0\0\0abc"),
    ],
)
def test_wire(codec: LengthPrefixed, wire: bytes) -> None:
    assert encoded(codec, b"abc") == wire
    assert codec.decoder().feed(wire) == [b"abc"]


def test_what_stands_around_the_length_is_ignored() -> None:
    codec = LengthPrefixed(width=2, offset=3, pad=1)

    assert codec.decoder().feed(b"xyz\0\x03!abc") == [b"abc"]


def test_the_payload_is_not_copied() -> None:
    payload = bytearray(1000)

    *_, last = LengthPrefixed().encode(payload)

    assert last is payload


def test_a_wide_payload_is_counted_in_bytes() -> None:
    wide = memoryview(array.array("I", [1, 2, 3]))

    assert encoded(LengthPrefixed(width=1), wide) == bytes([12]) + wide.tobytes()
    with pytest.raises(FrameTooLarge):
        LengthPrefixed(max_size=11).encode(wide)


# -- decoding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", EVERY_SHAPE, ids=repr)
def test_every_shape_in_pieces_of_every_size(codec: LengthPrefixed) -> None:
    payloads = [b"", b"a", b"bc" * 20, bytes(100), b"", b"", b"end"]
    stream = encoded(codec, *payloads)

    for size in range(1, len(stream) + 1):
        decoder = codec.decoder()
        got: list[bytes] = []
        for start in range(0, len(stream), size):
            got += decoder.feed(stream[start : start + size])
        decoder.eof()
        assert got == payloads


def test_a_payload_comes_with_its_last_byte() -> None:
    decoder = LengthPrefixed().decoder()

    got = [decoder.feed(bytes([each])) for each in b"\0\0\0\x02ab\0\0\0\0"]

    assert got == [[], [], [], [], [], [b"ab"], [], [], [], [b""]]


def test_payloads_are_bytes_of_their_own() -> None:
    stream = bytearray(b"\0\0\0\x03abc\0\0\0\x03d")

    decoder = LengthPrefixed().decoder()
    (payload,) = decoder.feed(memoryview(stream))
    stream[:] = bytes(len(stream))

    assert type(payload) is bytes
    assert payload == b"abc"
    assert decoder.feed(bytearray(b"ef")) == [b"def"]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_input_is_a_snapshot(kind: type[Any], size: int) -> None:
    codec = LengthPrefixed(width=2)
    payloads = [b"one", b"", b"three" * 10]
    decoder = codec.decoder()
    got: list[bytes] = []
    for start in range(0, len(stream := encoded(codec, *payloads)), size):
        piece = bytearray(stream[start : start + size])
        got += decoder.feed(kind(piece))
        # One buffer serves many reads: what comes next overwrites it, and it must not be held on to.
        piece[:] = b"\xff" * len(piece)
        piece.clear()

    assert got == payloads


def test_input_of_wider_items_is_taken_as_bytes() -> None:
    codec = LengthPrefixed(width=4, byteorder="little")
    wide = array.array("I")
    wide.frombytes(encoded(codec, b"12345678", b"abcd"))
    decoder = codec.decoder()

    assert decoder.feed(memoryview(wide)[:2]) == []
    assert decoder.feed(memoryview(wide)[2:]) == [b"12345678", b"abcd"]
    # Five items, as if it were one frame of five bytes.
    assert decoder.feed(memoryview(encoded(codec, *[b"a"] * 4)).cast("I")) == [b"a"] * 4


@given(codecs(), st.data())
@settings(max_examples=200, deadline=None)
def test_what_is_encoded_comes_out_again(codec: LengthPrefixed, data: st.DataObject) -> None:
    payloads = data.draw(st.lists(st.binary(max_size=codec.max_size), max_size=20))

    got = decode(codec, encoded(codec, *payloads), data.draw(st.lists(st.integers(0, 100))))

    assert got == payloads
    assert encoded(codec, *got) == encoded(codec, *payloads)


@given(codecs(), st.data())
@settings(max_examples=300, deadline=None)
def test_any_stream_means_what_the_reference_says(codec: LengthPrefixed, data: st.DataObject) -> None:
    # Frames, and among them anything: small numbers, so that headers make sense now and then.
    frame = st.binary(max_size=codec.max_size).map(lambda payload: encoded(codec, payload))
    small = st.lists(st.sampled_from(b"\0\0\0\x01\x02\x14"), max_size=30).map(bytes)
    stream = b"".join(data.draw(st.lists(frame | frame | st.binary(max_size=30) | small, max_size=10)))

    check(codec, stream, data.draw(st.lists(st.integers(0, 80))), large=8)


# -- the limit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", EVERY_SHAPE, ids=repr)
def test_the_limit_is_on_the_payload(codec: LengthPrefixed) -> None:
    limit = codec.max_size
    wire = encoded(codec, bytes(limit))

    assert codec.decoder().feed(wire) == [bytes(limit)]
    with pytest.raises(FrameTooLarge) as sending:
        codec.encode(bytes(limit + 1))
    with pytest.raises(FrameTooLarge) as receiving:
        codec.decoder().feed(encoded(codec.replace(max_size=limit + 1), bytes(limit + 1)))
    for caught in (sending, receiving):
        assert (caught.value.size, caught.value.max_size) == (limit + 1, limit)


def test_a_limit_of_nothing_lets_empty_frames_through() -> None:
    codec = LengthPrefixed(max_size=0)

    assert codec.decoder().feed(encoded(codec, b"", b"")) == [b"", b""]
    with pytest.raises(FrameTooLarge):
        codec.encode(b"a")


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("includes_header", [False, True])
def test_the_largest_that_the_width_reaches(width: int, includes_header: bool) -> None:
    longest = 256**width - 1 - (width if includes_header else 0)
    codec = LengthPrefixed(width=width, includes_header=includes_header, max_size=longest)

    assert codec.max_size == longest
    with pytest.raises(
        ValueError, match=f"max_size {longest + 1} does not fit: {width} bytes reach to {longest}"
    ):
        LengthPrefixed(width=width, includes_header=includes_header, max_size=longest + 1)
    if longest <= DEFAULT_MAX_SIZE:
        assert codec.decoder().feed(encoded(codec, bytes(longest))) == [bytes(longest)]


def test_the_default_limit_is_one_mebibyte_or_what_the_width_reaches() -> None:
    assert LengthPrefixed().max_size == 2**20
    assert LengthPrefixed(width=2).max_size == 2**16 - 1
    assert LengthPrefixed(width=1, includes_header=True).max_size == 254
    with pytest.raises(FrameTooLarge):
        LengthPrefixed(width=1).encode(bytes(256))


def test_a_broken_stream_stays_broken() -> None:
    codec = LengthPrefixed(max_size=10)
    decoder = codec.decoder()

    assert decoder.feed(encoded(codec, b"good") + b"\0\0\0\x0b") == [b"good"]
    for _ in range(3):
        with pytest.raises(FrameTooLarge):
            decoder.feed(b"")
        with pytest.raises(FrameTooLarge):
            decoder.feed(encoded(codec, b"good"))
        with pytest.raises(FrameTooLarge):
            decoder.eof()
    assert codec.decoder().feed(encoded(codec, b"good")) == [b"good"]


@pytest.mark.parametrize("codec", [codec for codec in EVERY_SHAPE if codec.includes_header], ids=repr)
def test_a_length_below_that_of_the_header(codec: LengthPrefixed) -> None:
    header = codec.offset + codec.width + codec.pad
    for length in range(header):
        wire = bytes(codec.offset) + length.to_bytes(codec.width, codec.byteorder) + bytes(codec.pad)
        decoder = codec.decoder()
        with pytest.raises(
            FramingError, match=f"says it is {length} bytes long, less than its header"
        ) as caught:
            decoder.feed(wire)
        assert type(caught.value) is FramingError
        with pytest.raises(FramingError):
            decoder.eof()


# -- the end -----------------------------------------------------------------------------------------------


def test_an_end_between_frames_is_clean() -> None:
    codec = LengthPrefixed()
    decoder = codec.decoder()
    decoder.eof()

    assert decoder.feed(encoded(codec, b"abc")) == [b"abc"]
    assert decoder.eof() is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize(
    ("stream", "received", "expected"),
    [
        (b"\0", 1, None),
        (b"\0\0\0", 3, None),
        (b"\0\0\0\x02", 4, 6),
        (b"\0\0\0\x02a", 5, 6),
        (b"\0\0\0\x01a\0", 1, None),
        (b"\0\0\0\x01a\0\0\0\x03ab", 6, 7),
    ],
)
def test_an_end_inside_a_frame(stream: bytes, received: int, expected: int | None) -> None:
    whole, by_byte = LengthPrefixed().decoder(), LengthPrefixed().decoder()
    whole.feed(stream)
    for each in stream:
        by_byte.feed(bytes([each]))

    for decoder in (whole, by_byte):
        with pytest.raises(IncompleteFrame) as caught:
            decoder.eof()
        assert (caught.value.received, caught.value.expected) == (received, expected)


def test_an_empty_piece_is_not_the_end() -> None:
    decoder = LengthPrefixed(width=1).decoder()

    assert decoder.feed(b"") == []
    assert decoder.feed(b"\x02a") == []
    assert decoder.feed(b"") == []
    assert decoder.feed(b"b") == [b"ab"]


# -- the codec itself --------------------------------------------------------------------------------------


def test_it_is_a_codec() -> None:
    # The annotations are the test: mypy reads this file.
    codec: Codec[bytes] = LengthPrefixed()
    decoder: Decoder[bytes] = codec.decoder()

    assert decoder.feed(b"".join(codec.encode(b"abc"))) == [b"abc"]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"width": 0}, "width must be 1, 2, 4 or 8, not 0"),
        ({"width": 3}, "width must be 1, 2, 4 or 8, not 3"),
        ({"width": 16}, "width must be 1, 2, 4 or 8, not 16"),
        ({"width": -1}, "width must be 1, 2, 4 or 8, not -1"),
        ({"width": "4"}, "width must be 1, 2, 4 or 8, not '4'"),
        ({"byteorder": "network"}, "byteorder must be 'big' or 'little', not 'network'"),
        ({"byteorder": ">"}, "byteorder must be 'big' or 'little', not '>'"),
        ({"offset": -1}, "offset, pad and max_size cannot be negative"),
        ({"pad": -1}, "offset, pad and max_size cannot be negative"),
        ({"max_size": -1}, "offset, pad and max_size cannot be negative"),
        ({"width": 1, "max_size": 256}, "max_size 256 does not fit: 1 bytes reach to 255"),
        ({"width": 2, "max_size": 2**16}, "max_size 65536 does not fit"),
        ({"max_size": 2**32}, "max_size 4294967296 does not fit"),
        (
            {"width": 1, "includes_header": True, "max_size": 255},
            "max_size 255 does not fit: 1 bytes reach to 254",
        ),
        (
            {"width": 1, "includes_header": True, "offset": 255},
            "the length of the header does not fit into 1 bytes",
        ),
    ],
)
def test_figures_that_make_no_sense(arguments: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError) as caught:
        LengthPrefixed(**arguments)

    assert fault in str(caught.value)


def test_a_header_as_long_as_the_length_can_tell_carries_empty_frames_only() -> None:
    codec = LengthPrefixed(width=1, includes_header=True, offset=254)

    assert codec.max_size == 0
    assert codec.decoder().feed(encoded(codec, b"")) == [b""]


def test_replace_changes_a_copy() -> None:
    codec = LengthPrefixed(byteorder="little")
    changed = codec.replace(max_size=10, pad=1)

    assert changed == LengthPrefixed(byteorder="little", max_size=10, pad=1)
    assert codec == LengthPrefixed(byteorder="little")
    assert codec.replace() == codec
    with pytest.raises(ValueError, match="width must be"):
        codec.replace(width=3)
    with pytest.raises(TypeError):
        codec.replace(size=3)


def test_a_limit_that_was_not_asked_for_does_not_stay() -> None:
    narrow = LengthPrefixed(width=1)

    assert narrow.max_size == 255
    assert narrow.replace(width=2).max_size == 2**16 - 1
    assert narrow.replace(width=4) == LengthPrefixed()
    assert narrow.replace(width=2).replace(width=4, includes_header=True).max_size == DEFAULT_MAX_SIZE
    assert narrow.replace(width=4, max_size=300).max_size == 300
    assert pickle.loads(pickle.dumps(narrow)).replace(width=4) == LengthPrefixed()
    # One that was, does.
    assert LengthPrefixed(width=1, max_size=255).replace(width=4).max_size == 255
    assert LengthPrefixed(max_size=300).replace(width=2).max_size == 300
    with pytest.raises(ValueError, match="max_size 300 does not fit"):
        LengthPrefixed(max_size=300).replace(width=1)


def test_a_codec_is_a_frozen_value() -> None:
    codec = LengthPrefixed(width=2, pad=1)

    with pytest.raises(dataclasses.FrozenInstanceError):
        codec.width = 4  # type: ignore[misc]
    assert {codec: "found"}[LengthPrefixed(width=2, pad=1)] == "found"
    assert copy.copy(codec) == pickle.loads(pickle.dumps(codec)) == codec
    assert repr(codec) == (
        "LengthPrefixed(width=2, byteorder='big', includes_header=False, offset=0, pad=1, max_size=65535)"
    )
