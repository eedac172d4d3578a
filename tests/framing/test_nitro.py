from __future__ import annotations

import pytest

from aiohvsock.framing import DEFAULT_MAX_SIZE, NITRO, NITRO_COMMAND_EXECUTER, LengthPrefixed

from .reference import check


@pytest.mark.parametrize(
    ("codec", "header"),
    [
        # LittleEndian::write_u64 into [0u8; size_of::<u64>()] and into [0u8; 9].
        (NITRO, b"\x05\0\0\0\0\0\0\0"),
        (NITRO_COMMAND_EXECUTER, b"\x05\0\0\0\0\0\0\0\0"),
    ],
)
def test_wire(codec: LengthPrefixed, header: bytes) -> None:
    assert b"".join(codec.encode(b"hello")) == header + b"hello"
    assert codec.decoder().feed((header + b"hello") * 2) == [b"hello"] * 2
    check(codec, (header + b"hello") * 2, [3] * 40)


def test_the_ninth_byte_is_ignored() -> None:
    assert NITRO_COMMAND_EXECUTER.decoder().feed(b"\x01\0\0\0\0\0\0\0\xffa") == [b"a"]


def test_the_limit_is_ours() -> None:
    assert NITRO.max_size == NITRO_COMMAND_EXECUTER.max_size == DEFAULT_MAX_SIZE
