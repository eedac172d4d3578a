from __future__ import annotations

import enum
import re
from typing import Any

import pytest

from aiohvsock.framing.checks import check_max_size, check_payload, check_unsigned


class Number(enum.IntEnum):
    ONE = 1


@pytest.mark.parametrize("max_size", [0, 1, 255])
def test_a_limit_that_a_header_can_tell(max_size: int) -> None:
    check_max_size(max_size, 255)


@pytest.mark.parametrize("max_size", [-1, 256, 2**64])
def test_a_limit_that_it_cannot(max_size: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"max_size {max_size} is outside 0 ... 255")):
        check_max_size(max_size, 255)


@pytest.mark.parametrize("value", [0, 255, Number.ONE])
def test_a_number_that_fits(value: int) -> None:
    check_unsigned("flags", value, 8)


@pytest.mark.parametrize("value", [-1, 256, 2**64])
def test_a_number_that_does_not(value: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"flags is outside 0 ... 2**8-1: {value}")):
        check_unsigned("flags", value, 8)


@pytest.mark.parametrize("value", ["1", 1.0, None, b"1"])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(f"flags must be an int, not {value!r}")):
        check_unsigned("flags", value, 8)


def test_payloads_are_bytes() -> None:
    check_payload(b"")
    for payload in (bytearray(), memoryview(b""), "", None):
        with pytest.raises(TypeError, match=f"payload must be bytes, not {type(payload).__name__}"):
            check_payload(payload)  # type: ignore[arg-type]
