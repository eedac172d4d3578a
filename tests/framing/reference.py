"""Decoders too simple to be wrong, and :func:`check`, which holds the real ones against them.

A reference decoder takes one byte at a time and follows the layout to the letter. There is no hypothesis in
here: a fuzzer calls :func:`check` as well, with bytes of its own for the stream and for the way it is cut.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable
from typing import Any
from unittest import mock

from aiohvsock.exceptions import FrameTooLarge, FramingError, IncompleteFrame
from aiohvsock.framing import (
    GCS,
    NITRO,
    NITRO_COMMAND_EXECUTER,
    TTRPC,
    WSL,
    Codec,
    DecimalPrefixed,
    Delimited,
    GCSCodec,
    GCSFrame,
    LengthPrefixed,
    OversizedFrame,
    TTRPCCodec,
    TTRPCFrame,
    Varint,
    WSLCodec,
    WSLFrame,
    decoders,
)
from aiohvsock.framing.room import Room

__all__ = ["CODECS", "Reference", "check", "decode", "held"]

CODECS: dict[str, Codec[Any]] = {
    "length": LengthPrefixed(max_size=300),
    "length-1": LengthPrefixed(width=1),
    "length-2-little": LengthPrefixed(width=2, byteorder="little", max_size=300),
    "length-8-with-header": LengthPrefixed(width=8, includes_header=True, max_size=300),
    "length-offset": LengthPrefixed(width=2, includes_header=True, offset=3, pad=1, max_size=40),
    "nothing": LengthPrefixed(max_size=0),
    "varint": Varint(max_size=300),
    "varint-1": Varint(max_size=20),
    "decimal": DecimalPrefixed(max_size=300),
    "lines": Delimited(max_size=40),
    "crlf": Delimited(b"\r\n", max_size=40),
    "overlapping": Delimited(b"abab", max_size=10),
    "ttrpc": TTRPC.replace(max_size=300),
    "ttrpc-skip": TTRPC.replace(max_size=30, oversize="skip"),
    "gcs": GCS.replace(max_size=300),
    "wsl": WSL.replace(max_size=300),
    "nitro": NITRO.replace(max_size=300),
    "nitro-command-executer": NITRO_COMMAND_EXECUTER.replace(max_size=300),
}
"""By name, for a fuzzer to choose from: every kind, with limits that small streams reach."""

# -- the reference -----------------------------------------------------------------------------------------

Layout = Generator[None, int, None]
Bytes = Generator[None, int, bytes]


class Reference:
    """What the bytes so far mean.

    Attributes:
        frames: those that are whole.
        error: what the stream is broken by.
        received: bytes of the frame that is not whole.
        expected: its length with the header, where that is known.
    """

    def __init__(self, codec: Codec[Any]) -> None:
        self.frames: list[Any] = []
        self.error: type[FramingError] | None = None
        self.received = 0
        self.expected: int | None = None
        self._layout = LAYOUTS[type(codec)](self, codec)
        next(self._layout)

    def feed(self, data: bytes) -> None:
        for byte in data:
            if self.error is None:
                self.received += 1
                try:
                    self._layout.send(byte)
                except FramingError as error:
                    self.error = type(error)

    def frame(self, frame: Any) -> None:
        self.frames.append(frame)
        self.received = 0
        self.expected = None


def take(size: int) -> Bytes:
    taken = bytearray()
    for _ in range(size):
        taken += bytes([(yield)])
    return bytes(taken)


def payload(reference: Reference, header: int, size: int, max_size: int) -> Bytes:
    if size < 0:
        raise FramingError
    if size > max_size:
        raise FrameTooLarge(size, max_size)
    reference.expected = header + size
    return (yield from take(size))


def big(digits: Iterable[int]) -> int:
    number = 0
    for digit in digits:
        number = number * 256 + digit
    return number


def little(digits: bytes) -> int:
    return big(reversed(digits))


def length_prefixed(reference: Reference, codec: LengthPrefixed) -> Layout:
    while True:
        header = yield from take(codec.offset + codec.width + codec.pad)
        digits = header[codec.offset :][: codec.width]
        size = big(digits) if codec.byteorder == "big" else little(digits)
        if codec.includes_header:
            size -= len(header)
        reference.frame((yield from payload(reference, len(header), size, codec.max_size)))


def varint(reference: Reference, codec: Varint) -> Layout:
    while True:
        digits = [(yield)]
        while digits[-1] & 0x80:
            if len(digits) == 10:
                raise FramingError
            digits.append((yield))
        size = sum((digit & 0x7F) * 128**place for place, digit in enumerate(digits))
        if size >= 2**64 or (len(digits) > 1 and digits[-1] == 0):
            raise FramingError
        reference.frame((yield from payload(reference, len(digits), size, codec.max_size)))


def decimal_prefixed(reference: Reference, codec: DecimalPrefixed) -> Layout:
    while True:
        digits = chr((yield))
        if digits not in "123456789":
            raise FramingError
        while (character := chr((yield))) != " ":
            digits += character
            if character not in "0123456789" or len(digits) > 20:
                raise FramingError
        reference.frame((yield from payload(reference, len(digits) + 1, int(digits), codec.max_size)))


def delimited(reference: Reference, codec: Delimited) -> Layout:
    line = b""
    while True:
        line += bytes([(yield)])
        if line.endswith(codec.delimiter):
            reference.frame(line.removesuffix(codec.delimiter))
            line = b""
            continue
        # How much of the delimiter may be here already.
        starts = [size for size in range(len(codec.delimiter)) if line.endswith(codec.delimiter[:size])]
        if not any(len(line) - size <= codec.max_size for size in starts):
            raise FrameTooLarge(len(line), codec.max_size)


def ttrpc(reference: Reference, codec: TTRPCCodec) -> Layout:
    while True:
        header = yield from take(10)
        size, stream_id, type, flags = big(header[:4]), big(header[4:8]), header[8], header[9]
        if size > codec.max_size and codec.oversize == "skip":
            yield from payload(reference, 10, size, size)
            reference.frame(OversizedFrame(stream_id, type, flags, size=size))
        else:
            data = yield from payload(reference, 10, size, codec.max_size)
            reference.frame(TTRPCFrame(stream_id, type, flags, data))


def gcs(reference: Reference, codec: GCSCodec) -> Layout:
    while True:
        header = yield from take(16)
        data = yield from payload(reference, 16, little(header[4:8]) - 16, codec.max_size)
        reference.frame(GCSFrame(little(header[:4]), little(header[8:]), data))


def wsl(reference: Reference, codec: WSLCodec) -> Layout:
    while True:
        header = yield from take(16)
        data = yield from payload(reference, 16, little(header[4:8]) - 16, codec.max_size)
        reference.frame(WSLFrame(little(header[:4]), little(header[8:12]), little(header[12:]), data))


LAYOUTS: dict[type, Callable[[Reference, Any], Layout]] = {
    LengthPrefixed: length_prefixed,
    Varint: varint,
    DecimalPrefixed: decimal_prefixed,
    Delimited: delimited,
    TTRPCCodec: ttrpc,
    GCSCodec: gcs,
    WSLCodec: wsl,
}


# -- the driver --------------------------------------------------------------------------------------------


def check(
    codec: Codec[Any] | str, data: bytes, chunking: Iterable[int] = (), *, large: int | None = None
) -> None:
    """Decode a stream, and assert that every step of it is what the reference says.

    Args:
        codec: one of this package's, or a name out of :data:`CODECS`.
        data: the stream.
        chunking: how it is cut. Each number n is a piece of n // 2 bytes, which is fed if n is even, and
            received in place, where the decoder has a place for it, if n is odd. What they leave is the
            last piece, received in place.
        large: bytes from which on a frame is received in place; None leaves that as it is.

    Raises:
        AssertionError: there is a difference.
    """
    codec = CODECS[codec] if isinstance(codec, str) else codec
    with mock.patch.object(decoders, "_LARGE", decoders._LARGE if large is None else large):
        _Check(codec).run(data, chunking)


def decode(codec: Codec[Any], data: bytes, chunking: Iterable[int] = ()) -> list[Any]:
    """Return the frames of a stream, cut as for :func:`check`; an error is raised in its place."""
    check = _Check(codec)
    for piece, in_place in check.pieces(data, chunking):
        check.step(piece, in_place)
    return check.got


def held(decoder: Any) -> int:
    """Return how many bytes of memory a decoder takes for what it keeps."""
    names = [name for each in type(decoder).__mro__ for name in getattr(each, "__slots__", ())]
    kept = [getattr(decoder, name) for name in names]
    room = sum(each.getbuffer().nbytes for each in kept if isinstance(each, Room))
    return room + sum(sys.getsizeof(each) for each in kept if isinstance(each, (bytes, bytearray)))


class _Check:
    def __init__(self, codec: Codec[Any]) -> None:
        self.codec = codec
        self.decoder: Any = codec.decoder()
        self.got: list[Any] = []
        self.views: list[memoryview] = []
        self.position = 0

    def pieces(self, data: bytes, chunking: Iterable[int]) -> Iterable[tuple[bytes, bool]]:
        for number in chunking:
            yield data[self.position : self.position + number // 2], number % 2 == 1
        while self.position < len(data):
            yield data[self.position :], True

    def step(self, piece: bytes, in_place: bool) -> int:
        """Hand over a piece, or the start of it that there is a place for; returns how much."""
        view = getattr(self.decoder, "buffer", None)
        if view is not None:
            assert len(view) and not view.readonly
        if in_place and view is not None:
            size = min(len(piece), len(view))
            view[:size] = piece[:size]
            if len(piece) % 3 == 0:
                self.views.append(view[:])  # kept, to be written to when it must not matter any more
            self.position += size
            self.got += self.decoder.received(size)
            return size
        data = (bytes, bytearray, memoryview)[len(piece) % 3](bytearray(piece))
        self.position += len(piece)
        try:
            self.got += self.decoder.feed(data)
        finally:
            if not isinstance(data, bytes):
                data[:] = b"\xff" * len(data)
        return len(piece)

    def run(self, data: bytes, chunking: Iterable[int]) -> None:
        reference = Reference(self.codec)
        for piece, in_place in self.pieces(data, chunking):
            before = len(self.got)
            start = self.position
            raised: type[FramingError] | None = None
            try:
                self.step(piece, in_place)
            except FramingError as error:
                raised = type(error)
            reference.feed(data[start : self.position])
            assert len(self.got) == len(reference.frames)
            assert self.got[before:] == reference.frames[before:]
            self.check_memory()
            if reference.error is not None:
                assert raised is (reference.error if len(self.got) == before else None)
                self.check_broken(reference.error)
                break
            assert raised is None
        else:
            self.check_end(reference)
        for view in self.views:
            view[:] = b"\xff" * len(view)
        assert self.got == reference.frames

    def check_memory(self) -> None:
        limit: int = self.codec.max_size  # type: ignore[attr-defined]
        # A bytearray takes an eighth more than is in it, and a thing of its own takes some room when empty.
        most = (limit + 40) * 9 // 8 + 400
        assert held(self.decoder) <= min(most, self.position * decoders._PART + 600)

    def check_broken(self, error: type[FramingError]) -> None:
        assert getattr(self.decoder, "buffer", None) is None
        for call in (lambda: self.decoder.feed(b""), lambda: self.decoder.feed(b"more"), self.decoder.eof):
            assert _error_of(call) is error

    def check_end(self, reference: Reference) -> None:
        assert self.decoder.feed(b"") == []
        if not reference.received:
            self.decoder.eof()
            return
        try:
            self.decoder.eof()
        except IncompleteFrame as error:
            assert (error.received, error.expected) == (reference.received, reference.expected)
        else:
            raise AssertionError("the end inside a frame went unnoticed")


def _error_of(call: Callable[[], object]) -> type[FramingError] | None:
    try:
        call()
    except FramingError as error:
        return type(error)
    return None
