"""The decoders of all codecs, against those of ``tests/framing/reference.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from aiohvsock.exceptions import LocalProtocolError
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
    LengthPrefixed,
    TTRPCCodec,
    Varint,
    WSLCodec,
)

from ..framing.reference import Reference, check, decode
from .inputs import Script, Tell, ignore

__all__ = ["SIZES", "codec", "one_input", "seeds"]

WIDTHS = (1, 2, 4, 8)
DELIMITERS = (b"\n", b"\r\n", b"abab", b"aab", b"\0\0\0")
SIZES = (None, 0, 1, 2, 7, 20, 40, 63, 127, 128, 300, 1000)
"""Limits; None is the codec's own."""

LARGE = (None, 1, 8, 32)
"""From where on a frame is received in place; None is as it is, beyond what an input reaches."""

AGAIN = 0x80
"""With this bit, what was received is sent on."""


def length_prefixed(script: Script) -> Codec[Any]:
    form = script.byte()
    width = WIDTHS[form & 3]
    plain = LengthPrefixed(
        width,
        "little" if form & 4 else "big",
        bool(form & 8),
        offset=form >> 4 & 3,
        pad=form >> 6,
    )
    size = SIZES[script.byte() % len(SIZES)]
    return plain if size is None else plain.replace(max_size=min(size, plain.max_size))


def delimited(script: Script) -> Codec[Any]:
    return limited(Delimited(DELIMITERS[script.byte() % len(DELIMITERS)]))(script)


def ttrpc(script: Script) -> Codec[Any]:
    return limited(TTRPC.replace(oversize=("error", "skip")[script.byte() % 2]))(script)


def limited(codec: Any) -> Callable[[Script], Codec[Any]]:
    def make(script: Script) -> Codec[Any]:
        size = SIZES[script.byte() % len(SIZES)]
        changed: Codec[Any] = codec if size is None else codec.replace(max_size=size)
        return changed

    return make


MAKERS: tuple[Callable[[Script], Codec[Any]], ...] = (
    length_prefixed,
    limited(Varint()),
    limited(DecimalPrefixed()),
    delimited,
    ttrpc,
    limited(GCS),
    limited(WSL),
    limited(NITRO),
    limited(NITRO_COMMAND_EXECUTER),
)


def codec(script: Script) -> Codec[Any]:
    return MAKERS[script.byte() % len(MAKERS)](script)


def cut(script: Script) -> Callable[[bytes], list[int]]:
    """Return how to cut a stream, as check() takes it: not at all, into equal pieces, or each as a byte says."""
    count = script.byte()
    if count % 4 == 1:
        number = script.byte() + 2
        return lambda stream: [number] * (2 * len(stream) // (number - 1) + 1)
    pieces = script.take(count // 4) if count % 4 else b""
    return lambda stream: [size if size < 0xC0 else 25 * size - 4600 for size in pieces]


def one_input(data: bytes, tell: Tell = ignore) -> None:
    script = Script(data)
    chosen = codec(script)
    way = script.byte()
    large = LARGE[way % 4]
    make = cut(script)
    stream = script.rest()
    chunking = make(stream)
    tell(f"{chosen}, large {large}, cut into {chunking[:300]}: {stream!r}")
    check(chosen, stream, chunking, large=large)
    if way & AGAIN:
        reference = Reference(chosen)
        reference.feed(stream)
        for frame in reference.frames:
            send_on(chosen, frame)


def send_on(codec: Codec[Any], frame: Any) -> None:
    try:
        pieces = codec.encode(frame)
    except LocalProtocolError:
        assert hasattr(frame, "size"), "only what stands for a frame cannot be sent"
        return
    assert decode(codec, b"".join(pieces)) == [frame]


# -- seeds -------------------------------------------------------------------------------------------------


def seeds() -> Iterator[bytes]:
    """Yield a few frames of every codec, cut in some ways."""
    payloads = (b"hello", b"1 ", b"x" * 40, b"ab\r")
    for kind in range(len(MAKERS)):
        for form in (0, 1, 2, 3, 0x5F, 0x2A) if kind == 0 else (0, 1, 2):
            for limit in (0, 6, 10):
                head = bytes([kind, form, limit] if kind in (0, 3, 4) else [kind, limit])
                chosen = codec(Script(head))
                stream = b"".join(encoded(chosen, payload) for payload in payloads)
                for cuts in (b"\0", b"\x01\x01", b"\x01\x02", b"\x1a\x07\x01\x04\x40\x03\x08"):
                    yield head + bytes([AGAIN | form % 4]) + cuts + stream
                yield head + b"\x02\0" + encoded(chosen, b"").ljust(3, b"\xff") + stream[:-1]


def encoded(codec: Any, payload: bytes) -> bytes:
    """Return the bytes of a frame, be it over the limit."""
    wide = codec if codec.max_size >= len(payload) else codec.replace(max_size=100)
    frame: Any = payload
    match codec:
        case TTRPCCodec() | GCSCodec():
            frame = codec.frame(7, 3, payload=payload)
        case WSLCodec():
            frame = codec.frame(7, 3, 1, payload=payload)
    try:
        return b"".join(wide.encode(frame))
    except LocalProtocolError:
        return payload
