from __future__ import annotations

import pytest

from aiohvsock.exceptions import FrameTooLarge, FramingError, IncompleteFrame, LocalProtocolError
from aiohvsock.framing import DecimalPrefixed

from .reference import check

# RFC 5424, section 6.5, example 1; framed as in RFC 6587, section 3.4.1: MSG-LEN SP MSG.
SYSLOG = (
    b"<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \xef\xbb\xbf'su root' failed for lonvick "
    b"on /dev/pts/8"
)


@pytest.mark.parametrize(
    ("payload", "wire"),
    [
        (b"a", b"1 a"),
        (b" 1 ", b"3  1 "),
        (b"0123456789", b"10 0123456789"),
        (SYSLOG, b"110 " + SYSLOG),
    ],
)
def test_wire(payload: bytes, wire: bytes) -> None:
    codec = DecimalPrefixed()

    assert b"".join(codec.encode(payload)) == wire
    assert codec.decoder().feed(wire * 2) == [payload] * 2
    check(codec, wire * 2, [3] * 2 * len(wire))


def test_the_payload_is_not_copied() -> None:
    payload = bytearray(1000)

    *_, last = DecimalPrefixed().encode(payload)

    assert last is payload


def test_a_wide_payload_is_counted_in_bytes() -> None:
    wide = memoryview(bytes(16)).cast("I")

    assert DecimalPrefixed().encode(wide)[0] == b"16 "


def test_there_are_no_empty_frames() -> None:
    with pytest.raises(LocalProtocolError, match="no empty frames"):
        DecimalPrefixed().encode(b"")
    with pytest.raises(FramingError):
        DecimalPrefixed().decoder().feed(b"0 ")


@pytest.mark.parametrize(
    "stream",
    [
        b"0",
        b"0 ",
        b"05 hello",
        b" 5 hello",
        b"-1 a",
        b"+1 a",
        b"1_0 a",
        b"1.0 a",
        b"5\thello",
        b"5\nhello",
        b"5x hello",
        b"<34>1 a",
        "\u0661 a".encode(),
        b"\xff",
        b"\0",
        b"1" * 21,
        b"1" * 21 + b" ",
    ],
)
def test_what_is_no_length(stream: bytes) -> None:
    with pytest.raises(FramingError, match="up to 20 digits, no zero first, and a space") as caught:
        DecimalPrefixed().decoder().feed(stream)
    assert type(caught.value) is FramingError
    check(DecimalPrefixed(), stream, [2] * len(stream))
    check(DecimalPrefixed(), b"1 a" + stream + b"1 a", [6, 2])


def test_it_is_noticed_at_its_first_byte() -> None:
    for stream in (b"0", b"x", b"12x", b"1" * 21):
        decoder = DecimalPrefixed().decoder()
        for byte in stream[:-1]:
            assert decoder.feed(bytes([byte])) == []
        with pytest.raises(FramingError):
            decoder.feed(stream[-1:])


def test_a_stream_of_digits_is_quoted_in_part() -> None:
    with pytest.raises(FramingError) as caught:
        DecimalPrefixed().decoder().feed(b"1" * 100_000)

    assert len(str(caught.value)) < 100


@pytest.mark.parametrize("size", [2**20 + 1, 99999999999999999999])
def test_over_the_limit(size: int) -> None:
    with pytest.raises(FrameTooLarge) as caught:
        DecimalPrefixed().decoder().feed(b"%d " % size)
    assert (caught.value.size, caught.value.max_size) == (size, 2**20)
    with pytest.raises(FrameTooLarge):
        DecimalPrefixed(max_size=2).encode(b"abc")


@pytest.mark.parametrize(
    ("stream", "received", "expected"),
    [(b"1", 1, None), (b"12", 2, None), (b"12 ", 3, 15), (b"2 a", 3, 4), (b"1 a12", 2, None)],
)
def test_an_end_inside_a_frame(stream: bytes, received: int, expected: int | None) -> None:
    decoder = DecimalPrefixed().decoder()
    decoder.feed(stream)

    with pytest.raises(IncompleteFrame) as caught:
        decoder.eof()
    assert (caught.value.received, caught.value.expected) == (received, expected)


@pytest.mark.parametrize("max_size", [-1, 2**64])
def test_limits_that_make_no_sense(max_size: int) -> None:
    with pytest.raises(ValueError, match="max_size"):
        DecimalPrefixed(max_size=max_size)
