from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aiohvsock.exceptions import FrameTooLarge, IncompleteFrame, LocalProtocolError
from aiohvsock.framing import Delimited

from .reference import check, decode, held


@pytest.mark.parametrize(
    ("codec", "payload", "wire"),
    [
        (Delimited(), b"", b"\n"),
        # qemu-ga-ref: a client flushes the agent's parser with 0xFF first.
        (
            Delimited(),
            b'\xff{"execute":"guest-sync-delimited","arguments":{"id":1}}',
            b'\xff{"execute":"guest-sync-delimited","arguments":{"id":1}}\n',
        ),
        (Delimited(), b"with a \r", b"with a \r\n"),
        (Delimited(b"\0"), b"two\nlines", b"two\nlines\0"),
        (Delimited(b"\r\n"), b"\r", b"\r\r\n"),
        (Delimited(b"\r\n"), b"a\nb\r", b"a\nb\r\r\n"),
        (Delimited(b"abc"), b"ab", b"ababc"),
        (Delimited(b"aab"), b"a", b"aaab"),
    ],
)
def test_wire(codec: Delimited, payload: bytes, wire: bytes) -> None:
    assert b"".join(codec.encode(payload)) == wire
    assert codec.decoder().feed(wire * 2) == [payload] * 2
    for number in (2, 3, 4, 6):
        check(codec, wire * 2, [number] * 2 * len(wire))


def test_the_payload_is_not_copied() -> None:
    payload = bytearray(1000)

    first, _ = Delimited().encode(payload)

    assert first is payload


@pytest.mark.parametrize(
    ("delimiter", "payload"),
    [
        (b"\n", b"\n"),
        (b"\n", b"one\ntwo"),
        (b"\r\n", b"one\r\ntwo"),
        (b"\r\n", b"one\r\n"),
        # These form one with the delimiter behind them, before it.
        (b"aa", b"a"),
        (b"aa", b"xa"),
        (b"abab", b"ab"),
        (b"abab", b"xxxab"),
        (b"abcabcabc", b"xabcabc"),
    ],
)
def test_a_payload_that_would_end_early(delimiter: bytes, payload: bytes) -> None:
    codec = Delimited(delimiter)
    for each in (payload, bytearray(payload), memoryview(payload)):
        with pytest.raises(LocalProtocolError, match="cannot contain the delimiter") as caught:
            codec.encode(each)
        assert repr(delimiter) in str(caught.value)


@given(st.binary(min_size=1, max_size=4).map(lambda each: bytes(b"ab"[byte % 2] for byte in each)), st.data())
@settings(max_examples=200, deadline=None)
def test_what_encode_takes_comes_out_and_what_it_refuses_would_not(
    delimiter: bytes, data: st.DataObject
) -> None:
    codec = Delimited(delimiter)
    payload = bytes(data.draw(st.lists(st.sampled_from(b"ab"), max_size=8)))
    survives = decode(codec, payload + delimiter) == [payload]

    try:
        wire = b"".join(codec.encode(payload))
    except LocalProtocolError:
        assert not survives
    else:
        assert survives
        assert wire == payload + delimiter


@pytest.mark.parametrize("delimiter", [b"\r\n", b"abc", b"aab", b"abab", b"aaa"])
def test_a_delimiter_in_pieces(delimiter: bytes) -> None:
    stream = delimiter.join([b"", b"x", delimiter[:-1] + b"x", b"x" + delimiter[:1], b""])

    for first in range(2 * len(stream)):
        for second in (2, 3, 4, 20):
            check(Delimited(delimiter, max_size=8), stream, [first, second, 2])


# -- the limit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [b"\n", b"\r\n", b"abab"])
def test_a_line_is_too_long_as_soon_as_it_cannot_end_within_the_limit(delimiter: bytes) -> None:
    codec = Delimited(delimiter, max_size=10)
    begun = delimiter[:-1]

    assert codec.decoder().feed(b"x" * 10 + delimiter) == [b"x" * 10]
    assert codec.decoder().feed(b"x" * 10 + begun) == []
    for stream, size in [
        (b"x" * 11, 11),
        (b"x" * 11 + delimiter, 11),
        (b"x" * 11 + begun, 11),
        (b"x" * 10 + begun + b"x", 10 + len(delimiter)),
        (b"x" * 1000, 1000),
        (b"x" * 1000 + delimiter, 1000),
    ]:
        with pytest.raises(FrameTooLarge) as caught:
            codec.decoder().feed(stream)
        assert (caught.value.size, caught.value.max_size) == (size, 10)
        check(codec, b"x" + delimiter + stream, [2] * 2000)


def test_lines_before_one_too_long_come_first() -> None:
    codec = Delimited(max_size=3)
    decoder = codec.decoder()

    assert decoder.feed(b"a\nb") == [b"a"]
    assert decoder.feed(b"\nccc\ndddd\ne\n") == [b"b", b"ccc"]
    for call in (lambda: decoder.feed(b""), lambda: decoder.feed(b"f\n"), decoder.eof):
        with pytest.raises(FrameTooLarge):
            call()


def test_it_keeps_no_more_than_the_limit_and_the_delimiter() -> None:
    codec = Delimited(b"\r\n", max_size=1000)
    decoder = codec.decoder()
    empty = held(decoder)

    assert decoder.feed(b"a\r\n" * 10_000 + b"x" * 1000 + b"\r") == [b"a"] * 10_000
    assert held(decoder) - empty < 1001 * 9 / 8 + 20
    assert decoder.feed(b"\n" + b"a\r\n" * 10_000) == [b"x" * 1000] + [b"a"] * 10_000
    assert held(decoder) - empty < 20


def test_byte_by_byte_no_byte_is_searched_again() -> None:
    class Counting(bytearray):
        searched = 0

        def find(self, *arguments: Any) -> int:
            Counting.searched += len(self) - arguments[1]
            return super().find(*arguments)

    decoder: Any = Delimited(b"\r\n").decoder()
    decoder._rest = Counting()
    wire = b"x" * 50_000 + b"\r\n"

    got = [whole for byte in wire if (whole := decoder.feed(bytes([byte])))]

    assert got == [[b"x" * 50_000]]
    assert Counting.searched < 3 * len(wire)


# -- the end -----------------------------------------------------------------------------------------------


def test_an_end_between_lines_is_clean() -> None:
    decoder = Delimited().decoder()
    decoder.eof()

    assert decoder.feed(b"a\n") == [b"a"]
    decoder.eof()


@pytest.mark.parametrize(("stream", "received"), [(b"a", 1), (b"\r", 1), (b"a\r", 2), (b"a\r\nbcd", 3)])
def test_an_end_inside_a_line(stream: bytes, received: int) -> None:
    decoder = Delimited(b"\r\n").decoder()
    decoder.feed(stream)

    with pytest.raises(IncompleteFrame) as caught:
        decoder.eof()
    assert (caught.value.received, caught.value.expected) == (received, None)


# -- the codec itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"delimiter": b""}, "delimiter must be bytes, at least one, not b''"),
        ({"delimiter": "\n"}, r"delimiter must be bytes, at least one, not '\n'"),
        ({"delimiter": bytearray(b"\n")}, "delimiter must be bytes, at least one, not bytearray"),
        ({"max_size": -1}, "max_size cannot be negative, as -1 is"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError) as caught:
        Delimited(**arguments)

    assert fault in str(caught.value)
