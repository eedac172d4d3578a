"""What is true of every codec."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiohvsock.exceptions import FrameTooLarge, FramingError, LocalProtocolError
from aiohvsock.framing import (
    GCS,
    NITRO,
    TTRPC,
    WSL,
    Codec,
    DecimalPrefixed,
    Delimited,
    GCSCodec,
    InPlaceDecoder,
    LengthPrefixed,
    TTRPCCodec,
    Varint,
    WSLCodec,
    room,
)
from aiohvsock.framing.decoders import _LARGE, LengthDecoder

from .reference import CODECS, check, decode, held

every_codec = pytest.mark.parametrize("name", CODECS)

# The others take any length that their header can tell, or skip it.
BREAKABLE = [name for name in CODECS if name not in ("length-1", "ttrpc-skip")]

AT_FULL_SIZE: list[Codec[Any]] = [
    LengthPrefixed(),
    LengthPrefixed(width=8, byteorder="little", includes_header=True, offset=4, pad=3),
    Varint(),
    DecimalPrefixed(),
    NITRO,
    TTRPC,
    TTRPC.replace(oversize="skip"),
    GCS,
    WSL,
]
at_full_size = pytest.mark.parametrize("codec", AT_FULL_SIZE, ids=repr)


def frame(codec: Codec[Any], payload: bytes) -> Any:
    """Return what the codec sends for a payload."""
    match codec:
        case TTRPCCodec():
            return codec.frame(stream_id=0x01020304, type=3, flags=255, payload=payload)
        case GCSCodec():
            return codec.frame(type=0x10100101, id=0x0102030405060708, payload=payload)
        case WSLCodec():
            return codec.frame(type=7, transaction_id=0x01020304, transaction_step=1, payload=payload)
    return payload


def payload_of(frame: Any) -> bytes:
    return frame if isinstance(frame, bytes) else frame.payload


def encoded(codec: Codec[Any], *payloads: bytes) -> bytes:
    return b"".join(b"".join(codec.encode(frame(codec, payload))) for payload in payloads)


def encodable(codec: Codec[Any], payload: bytes) -> bool:
    try:
        codec.encode(frame(codec, payload))
    except LocalProtocolError:
        return False
    return True


def limit(codec: Any) -> int:
    return int(codec.max_size)


@st.composite
def payloads(draw: st.DrawFn, codec: Codec[Any]) -> list[bytes]:
    size = st.sampled_from([0, 1, max(0, limit(codec) - 1), limit(codec)]) | st.integers(0, 30)
    byte = st.sampled_from(b"ab\r\n \0\x80\xff1")
    payload = size.flatmap(
        lambda n: st.binary(min_size=n, max_size=n) | st.lists(byte, max_size=n).map(bytes)
    )
    drawn = draw(st.lists(payload, max_size=8))
    return [each for each in drawn if len(each) <= limit(codec) and encodable(codec, each)]


@st.composite
def streams(draw: st.DrawFn, codec: Codec[Any]) -> bytes:
    """Frames, noise that headers are made of, and frames with a few bytes changed."""
    stream = bytearray()
    noise = st.binary(max_size=30) | st.lists(
        st.sampled_from(b"\0\0\0\x01\x02\x10\x7f\x80ab\n\r 019"), max_size=30
    )
    for _ in range(draw(st.integers(1, 3))):
        stream += encoded(codec, *draw(payloads(codec)))
        stream += bytes(draw(st.just(b"") | noise))
    for place, byte in draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=3)):
        stream[place : place + 1] = [byte][: len(stream[place : place + 1])]
    cut = draw(st.just(None) | st.integers(0, 60))
    return bytes(stream[:cut] if cut is None else stream[: len(stream) - cut])


chunkings = st.lists(st.integers(0, 80) | st.integers(0, 700), max_size=40) | st.integers(1, 8).map(
    lambda number: [number] * 600
)


# -- any stream, cut in any way ----------------------------------------------------------------------------


@every_codec
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_what_is_encoded_comes_out_again(name: str, data: st.DataObject) -> None:
    codec = CODECS[name]
    sent = data.draw(payloads(codec))
    stream = encoded(codec, *sent)
    chunking = data.draw(chunkings)

    got = decode(codec, stream, chunking)

    assert got == [frame(codec, payload) for payload in sent]
    assert all(type(payload_of(each)) is bytes for each in got)
    check(codec, stream, chunking, large=8)


@every_codec
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_stream_means_what_the_reference_says(name: str, data: st.DataObject) -> None:
    stream = data.draw(streams(CODECS[name]))
    check(name, stream, data.draw(chunkings), large=data.draw(st.sampled_from([None, 1, 8, 32])))


@every_codec
@given(st.binary(max_size=200), chunkings)
@example(b"", [])
@example(b"", [0, 1])
@settings(max_examples=25, deadline=None)
def test_no_stream_raises_anything_else(name: str, stream: bytes, chunking: list[int]) -> None:
    check(name, stream, chunking, large=8)


@every_codec
def test_one_byte_at_a_time(name: str) -> None:
    codec = CODECS[name]
    stream = encoded(codec, *(bytes([65 + size % 20]) * size for size in range(1, limit(codec) + 1, 7)))

    for number in (2, 3):
        check(codec, stream, [number] * len(stream), large=8)
        check(codec, stream[:-1], [number] * len(stream), large=8)


@at_full_size
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_large_frames(codec: Codec[Any], data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 100) | st.integers(_LARGE - 20, 2 * _LARGE - 50), max_size=4))
    stream = encoded(codec, *(bytes([size % 256]) * size for size in sizes))
    cut = data.draw(st.integers(0, 30))

    check(codec, stream[: len(stream) - cut], data.draw(st.lists(st.integers(0, 60_000), max_size=20)))


# -- frames ------------------------------------------------------------------------------------------------


@every_codec
def test_many_frames_in_one_piece(name: str) -> None:
    codec = CODECS[name]
    sent = [b"%d" % number for number in range(10_000)] if limit(codec) else [b""] * 10_000

    got = codec.decoder().feed(encoded(codec, *sent))

    assert [payload_of(each) for each in got] == sent


@every_codec
def test_the_limit_is_on_the_payload(name: str) -> None:
    codec = CODECS[name]
    longest = b"x" * limit(codec)

    assert [payload_of(each) for each in decode(codec, encoded(codec, longest))] == [longest]
    with pytest.raises(FrameTooLarge) as caught:
        codec.encode(frame(codec, longest + b"x"))
    assert (caught.value.size, caught.value.max_size) == (len(longest) + 1, len(longest))


@pytest.mark.parametrize("name", BREAKABLE)
@pytest.mark.parametrize("number", [2, 3, 8, 1000])
def test_frames_before_one_too_large_come_first(name: str, number: int) -> None:
    codec: Any = CODECS[name]
    good = [b"one", b"two"] if limit(codec) else [b"", b""]
    bad = encoded(codec.replace(max_size=1000), b"x" * (limit(codec) + 1))
    check(codec, encoded(codec, *good) + bad + encoded(codec, *good), [number] * 500)

    decoder = codec.decoder()
    assert [payload_of(each) for each in decoder.feed(encoded(codec, *good) + bad)] == good
    with pytest.raises(FrameTooLarge) as caught:
        decoder.feed(b"")
    assert (caught.value.size, caught.value.max_size) == (limit(codec) + 1, limit(codec))


@pytest.mark.parametrize("name", BREAKABLE)
def test_a_broken_stream_stays_broken_and_keeps_nothing(name: str) -> None:
    decoder = CODECS[name].decoder()
    depths = []
    for _ in range(50):
        with pytest.raises(FramingError) as caught:
            decoder.feed(b"\xff" * 1000)
        depths.append(len(caught.traceback))

    assert depths[-1] <= depths[0] + 1
    assert held(decoder) < 500


@every_codec
def test_decoders_of_one_codec_do_not_share_anything(name: str) -> None:
    codec = CODECS[name]
    payload = b"payload"[: limit(codec)]
    stream = encoded(codec, payload)
    one, two = codec.decoder(), codec.decoder()

    assert one.feed(stream[:3]) == []
    assert [payload_of(each) for each in two.feed(stream)] == [payload]
    assert [payload_of(each) for each in one.feed(stream[3:])] == [payload]


# -- the codec as a value ----------------------------------------------------------------------------------


@every_codec
def test_a_codec_is_a_frozen_value(name: str) -> None:
    codec: Any = CODECS[name]
    twin = pickle.loads(pickle.dumps(codec))

    with pytest.raises(dataclasses.FrozenInstanceError):
        codec.max_size = 4
    assert twin == codec == copy.copy(codec) == copy.deepcopy(codec) == codec.replace()
    assert {codec: "found"}[twin] == "found"
    assert encoded(twin, b"x"[: limit(codec)]) == encoded(codec, b"x"[: limit(codec)])
    with pytest.raises(TypeError):
        codec.replace(size=3)


@every_codec
def test_replace_changes_a_copy(name: str) -> None:
    codec: Any = CODECS[name]
    changed = codec.replace(max_size=17)

    assert changed.max_size == 17
    assert codec.max_size != 17
    assert changed.replace(max_size=codec.max_size) == codec
    with pytest.raises(ValueError, match="max_size"):
        codec.replace(max_size=-1)


# -- memory and time ---------------------------------------------------------------------------------------


def header(codec: Codec[Any], size: int) -> bytes:
    first, _ = codec.encode(frame(codec, bytes(size)))
    return bytes(first)


@at_full_size
@pytest.mark.parametrize("piece", [1, 100])
def test_a_frame_within_the_limit_costs_what_has_come_of_it(codec: Any, piece: int) -> None:
    codec = codec.replace(max_size=2**24)
    stream = header(codec, 2**24) + bytes(1000)
    decoder = codec.decoder()
    tracemalloc.start()
    try:
        for start in range(0, len(stream), piece):
            assert decoder.feed(stream[start : start + piece]) == []
        assert decoder.buffer is None
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()


@at_full_size
@pytest.mark.parametrize("piece", [1, 100])
def test_a_frame_over_the_limit_costs_nothing(codec: Any, piece: int) -> None:
    size = limit(codec) + 1
    stream = header(codec.replace(max_size=size), size) + bytes(1000)
    decoder = codec.decoder()
    raised = False
    tracemalloc.start()
    try:
        for start in range(0, len(stream), piece):
            try:
                assert decoder.feed(stream[start : start + piece]) == []
            except FrameTooLarge:
                raised = True
        assert tracemalloc.get_traced_memory()[1] < 20_000
    finally:
        tracemalloc.stop()
    assert raised is (codec != TTRPC.replace(oversize="skip"))


@at_full_size
def test_a_frame_that_is_done_is_not_held(codec: Codec[Any]) -> None:
    wire = encoded(codec, bytes(60_000))
    decoder = codec.decoder()
    tracemalloc.start()
    try:
        assert decoder.feed(wire[:-1]) == []
        assert len(decoder.feed(wire[-1:])) == 1
        room._spare.clear()  # one for all decoders
        assert tracemalloc.get_traced_memory()[0] < 5000
    finally:
        tracemalloc.stop()


@at_full_size
@pytest.mark.parametrize("size", [_LARGE - 1, _LARGE])
def test_byte_by_byte_every_byte_is_looked_at_once(
    codec: Codec[Any], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, looked_at, headers = LengthDecoder._cut, 0, 0
    wire = encoded(codec, b"x" * size)
    decoder: Any = codec.decoder()
    kind: Any = type(decoder)
    read_header: Callable[[Any, bytes, int], tuple[int, int] | None] = kind._header

    def counting_cut(self: Any, data: bytes, position: int, frames: list[Any]) -> list[Any]:
        nonlocal looked_at
        looked_at += len(data)
        return cut(self, data, position, frames)

    def counting_header(self: Any, data: bytes, position: int) -> tuple[int, int] | None:
        nonlocal headers
        headers += 1
        return read_header(self, data, position)

    monkeypatch.setattr(LengthDecoder, "_cut", counting_cut)
    monkeypatch.setattr(kind, "_header", counting_header)

    got = [whole for byte in wire if (whole := decoder.feed(bytes([byte])))]

    assert [payload_of(each) for [each] in got] == [b"x" * size]
    assert looked_at < 1.2 * len(wire)
    assert headers < 15


# -- who receives in place ---------------------------------------------------------------------------------


@at_full_size
def test_what_tells_the_length_can_receive_in_place(codec: Codec[Any]) -> None:
    assert isinstance(codec.decoder(), InPlaceDecoder)


def test_what_is_delimited_cannot() -> None:
    assert not isinstance(Delimited().decoder(), InPlaceDecoder)
