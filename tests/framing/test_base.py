from __future__ import annotations

from collections.abc import Sequence

from aiohvsock.framing import (
    DEFAULT_MAX_SIZE,
    GCS,
    NITRO,
    TTRPC,
    WSL,
    Buffer,
    Codec,
    DecimalPrefixed,
    Decoder,
    Delimited,
    GCSFrame,
    InPlaceDecoder,
    LengthPrefixed,
    TTRPCFrame,
    Varint,
    WSLFrame,
)


class Fixed:
    """A codec that somebody else wrote: numbers of three digits."""

    def encode(self, payload: int) -> Sequence[Buffer]:
        return (b"%03d" % payload,)

    def decoder(self) -> Decoder[int]:
        return FixedDecoder()


class FixedDecoder:
    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: Buffer) -> list[int]:
        self.rest += bytes(data)
        whole = len(self.rest) // 3 * 3
        numbers = [int(self.rest[start : start + 3]) for start in range(0, whole, 3)]
        self.rest = self.rest[whole:]
        return numbers

    def eof(self) -> None:
        assert not self.rest


# The annotations are the test: mypy reads this file.
OF_BYTES: list[Codec[bytes]] = [LengthPrefixed(), Varint(), DecimalPrefixed(), Delimited(), NITRO]
OF_FRAMES: tuple[Codec[TTRPCFrame], Codec[GCSFrame], Codec[WSLFrame]] = (TTRPC, GCS, WSL)


def test_four_methods_make_a_codec() -> None:
    codec: Codec[int] = Fixed()
    decoder: Decoder[int] = codec.decoder()

    assert decoder.feed(b"".join([*codec.encode(7), *codec.encode(42)])) == [7, 42]
    assert not isinstance(decoder, InPlaceDecoder)
    decoder.eof()


def test_codecs_of_bytes_take_any_buffer() -> None:
    for codec in OF_BYTES:
        assert codec.decoder().feed(b"".join(codec.encode(b"abc"))) == [b"abc"]
    for payload in (bytearray(b"abc"), memoryview(b"abc")):
        assert b"".join(LengthPrefixed().encode(payload)) == b"\0\0\0\x03abc"
        assert b"".join(Varint().encode(payload)) == b"\x03abc"
        assert b"".join(DecimalPrefixed().encode(payload)) == b"3 abc"
        assert b"".join(Delimited().encode(payload)) == b"abc\n"


def test_a_decoder_can_receive_in_place() -> None:
    decoder: InPlaceDecoder[bytes] = LengthPrefixed().decoder()

    assert isinstance(decoder, InPlaceDecoder)
    assert decoder.buffer is None


def test_the_default_limit() -> None:
    assert DEFAULT_MAX_SIZE == 2**20
    limits = {LengthPrefixed().max_size, Varint().max_size, DecimalPrefixed().max_size, Delimited().max_size}
    assert limits == {DEFAULT_MAX_SIZE}
