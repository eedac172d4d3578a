"""Large frames, received in place. The rest is tested with the codecs."""

from __future__ import annotations

import tracemalloc
from pickle import PickleBuffer
from typing import Any

import pytest

from aiohvsock.exceptions import FrameTooLarge, FramingError, IncompleteFrame
from aiohvsock.framing import TTRPC, Buffer, Codec, DecimalPrefixed, LengthPrefixed, OversizedFrame, Varint
from aiohvsock.framing.decoders import LengthDecoder

from .reference import check, held

LARGE = 32 * 1024
HEADER = 4


def encoded(*payloads: Buffer, codec: Codec[Any] | None = None) -> bytes:
    codec = codec or LengthPrefixed()
    return b"".join(b"".join(codec.encode(payload)) for payload in payloads)


def pattern(size: int) -> bytes:
    return bytes(number % 251 for number in range(size))


def receive(decoder: Any, data: bytes) -> list[Any]:
    """Receive as a transport does: into the buffer, as long as there is one."""
    frames: list[Any] = []
    while data and decoder.buffer is not None:
        size = min(len(data), len(decoder.buffer))
        decoder.buffer[:size] = data[:size]
        frames += decoder.received(size)
        data = data[size:]
    frames += decoder.feed(data)
    return frames


# -- when there is a buffer --------------------------------------------------------------------------------


def test_a_large_frame_is_received_in_place() -> None:
    payload = pattern(100_000)
    wire = encoded(payload)
    decoder = LengthPrefixed().decoder()

    assert decoder.feed(wire[:20_000]) == []
    assert decoder.buffer is not None
    assert len(decoder.buffer) == len(wire) - 20_000
    decoder.buffer[:30_000] = wire[20_000:50_000]
    assert decoder.received(30_000) == []
    assert decoder.buffer is not None
    assert len(decoder.buffer) == len(wire) - 50_000
    decoder.buffer[:] = wire[50_000:]
    (got,) = decoder.received(len(wire) - 50_000)
    assert type(got) is bytes
    assert got == payload
    assert decoder.buffer is None
    decoder.eof()


@pytest.mark.parametrize(("size", "in_place"), [(LARGE - 1, False), (LARGE, True), (LARGE + 1, True)])
def test_a_frame_is_large_from_32_kib(size: int, in_place: bool) -> None:
    decoder = LengthPrefixed().decoder()
    wire = encoded(pattern(size))

    assert decoder.feed(wire[:-1]) == []
    assert (decoder.buffer is not None) is in_place
    assert receive(decoder, wire[-1:]) == [pattern(size)]


@pytest.mark.parametrize("size", [LARGE, LARGE + 1, 100_000, 2**20 - 1, 2**20])
@pytest.mark.parametrize("piece", [1000, 2**20])
def test_there_is_a_buffer_from_a_sixteenth_of_the_payload(size: int, piece: int) -> None:
    decoder = LengthPrefixed().decoder()
    wire = encoded(bytes(size))
    sixteenth = HEADER + -(-size // 16)

    for start in range(0, sixteenth - 1, piece):
        assert decoder.feed(wire[start : min(start + piece, sixteenth - 1)]) == []
        assert decoder.buffer is None
    assert decoder.feed(wire[sixteenth - 1 : sixteenth]) == []
    assert decoder.buffer is not None
    assert len(decoder.buffer) == len(wire) - sixteenth


def test_a_large_frame_that_comes_whole_needs_no_buffer() -> None:
    decoder = LengthPrefixed().decoder()
    wire = encoded(pattern(LARGE), pattern(2 * LARGE))

    assert decoder.feed(wire) == [pattern(LARGE), pattern(2 * LARGE)]
    assert decoder.buffer is None


def test_a_frame_over_the_limit_gets_none() -> None:
    decoder = LengthPrefixed(max_size=LARGE).decoder()

    with pytest.raises(FrameTooLarge):
        decoder.feed(encoded(bytes(LARGE + 1))[:-1])
    assert decoder.buffer is None


# -- how it is used ----------------------------------------------------------------------------------------


def test_one_byte_at_a_time() -> None:
    wire = encoded(b"before", pattern(LARGE), b"after")

    for number in (2, 3):
        check(LengthPrefixed(), wire, [number] * len(wire))


def test_feeding_while_there_is_a_buffer_is_right_too() -> None:
    decoder = LengthPrefixed().decoder()
    wire = encoded(pattern(LARGE), b"small", pattern(LARGE + 1))

    assert decoder.feed(wire[:10_000]) == []
    assert decoder.feed(bytearray(wire[10_000:20_000])) == []
    assert receive(decoder, wire[20_000:25_000]) == []
    assert decoder.feed(memoryview(wire)[25_000 : LARGE + 20_000]) == [pattern(LARGE), b"small"]
    assert decoder.buffer is not None
    assert receive(decoder, wire[LARGE + 20_000 :]) == [pattern(LARGE + 1)]


def test_nothing_may_be_received() -> None:
    decoder = LengthPrefixed().decoder()
    wire = encoded(pattern(LARGE))

    assert decoder.feed(wire[:-1]) == []
    assert decoder.received(0) == []
    assert decoder.feed(b"") == []
    assert receive(decoder, wire[-1:]) == [pattern(LARGE)]


def test_what_cannot_have_been_received() -> None:
    decoder = LengthPrefixed().decoder()
    for size in (0, 1):
        with pytest.raises(ValueError, match=f"^{size} bytes cannot have been received: there is no buffer$"):
            decoder.received(size)

    decoder.feed(encoded(pattern(LARGE))[:-10])
    for size in (-1, 11):
        with pytest.raises(ValueError, match=f"^{size} bytes cannot .*: there is a buffer of 10 bytes$"):
            decoder.received(size)


@pytest.mark.parametrize("hold", [lambda view: view, lambda view: view[1:], lambda view: memoryview(view)])
def test_a_payload_does_not_change_any_more(hold: Any) -> None:
    # Whoever still holds the place it was received into cannot write to it.
    decoder = LengthPrefixed().decoder()
    wire = encoded(pattern(LARGE))
    assert decoder.feed(wire[:20_000]) == []
    assert decoder.buffer is not None
    held = hold(decoder.buffer)

    (payload,) = receive(decoder, wire[20_000:])

    try:
        held[:] = bytes(len(held))
    except ValueError:
        pass  # it was released
    assert payload == pattern(LARGE)


def test_a_buffer_that_is_exported_can_still_be_filled() -> None:
    # As an overlapped read, or uvloop, holds it while the protocol is told.
    decoder = LengthPrefixed().decoder()
    wire = encoded(pattern(LARGE))
    assert decoder.feed(wire[:-10]) == []
    assert decoder.buffer is not None

    held = PickleBuffer(decoder.buffer)
    assert receive(decoder, wire[-10:]) == [pattern(LARGE)]
    held.release()


def test_a_large_payload_is_copied_once() -> None:
    size = 2**20
    wire = encoded(bytes(size))
    decoder = LengthPrefixed().decoder()
    tracemalloc.start()
    try:
        assert decoder.feed(wire[: size // 16 + HEADER]) == []
        start = size // 16 + HEADER
        while start < len(wire):
            assert decoder.buffer is not None
            payloads = receive(decoder, wire[start : start + 10_000])
            start += 10_000
        assert [len(payload) for payload in payloads] == [size]
        assert tracemalloc.get_traced_memory()[1] < 2.2 * size
    finally:
        tracemalloc.stop()


# -- the end, and errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [LengthPrefixed(), Varint(), DecimalPrefixed()])
def test_an_end_inside_a_large_frame(codec: Codec[bytes]) -> None:
    wire = encoded(pattern(LARGE), codec=codec)

    for received in (1000, 10_000, len(wire) - 1):
        decoder = codec.decoder()
        assert decoder.feed(wire[:received]) == []
        with pytest.raises(IncompleteFrame) as caught:
            decoder.eof()
        assert (caught.value.received, caught.value.expected) == (received, len(wire))


def test_an_error_behind_a_large_frame_waits_for_it() -> None:
    codec = LengthPrefixed(includes_header=True)
    wire = encoded(pattern(LARGE), codec=codec)
    decoder = codec.decoder()

    assert decoder.feed(wire[:20_000]) == []
    assert decoder.feed(wire[20_000:] + b"\0\0\0\x03") == [pattern(LARGE)]
    assert decoder.buffer is None
    with pytest.raises(FramingError, match="says it is 3 bytes long, less than its header"):
        decoder.feed(b"")
    with pytest.raises(ValueError, match="no buffer"):
        decoder.received(1)


# -- frames over the limit that are skipped ----------------------------------------------------------------


def test_a_skipped_payload_is_counted_and_not_kept() -> None:
    codec = TTRPC.replace(max_size=10, oversize="skip")
    huge = TTRPC.frame(5, 1, 2, bytes(4 * 2**20))
    wire = b"".join(TTRPC.encode(huge))
    after = b"".join(TTRPC.encode(TTRPC.frame(7, 1)))
    decoder = codec.decoder()
    tracemalloc.start()
    try:
        for start in range(0, len(wire) - 1000, 1000):
            assert decoder.feed(memoryview(wire)[start : start + 1000]) == []
            assert decoder.buffer is None
        assert tracemalloc.get_traced_memory()[1] < 10_000
    finally:
        tracemalloc.stop()

    with pytest.raises(IncompleteFrame) as caught:
        decoder.eof()
    assert caught.value.expected == len(wire)
    assert caught.value.received == start + 1000
    got = decoder.feed(wire[start + 1000 :] + after)
    assert got == [OversizedFrame(5, 1, 2, size=4 * 2**20), TTRPC.frame(7, 1)]


@pytest.mark.parametrize("size", [11, 12, 100, LARGE, 2 * LARGE])
def test_not_a_byte_of_a_skipped_payload_is_kept(size: int) -> None:
    decoder = TTRPC.replace(max_size=10, oversize="skip").decoder()
    wire = b"".join(TTRPC.encode(TTRPC.frame(5, 1, 2, bytes(size))))
    assert decoder.feed(wire[:10]) == []
    kept = held(decoder)

    for byte in wire[10:-1]:
        assert decoder.feed(bytes([byte])) == []
    assert held(decoder) == kept
    assert decoder.feed(wire[-1:]) == [OversizedFrame(5, 1, 2, size=size)]


def test_the_base_class_reads_no_header() -> None:
    with pytest.raises(NotImplementedError):
        LengthDecoder[bytes](10).feed(b"abc")
