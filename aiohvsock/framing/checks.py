"""Checks of what a codec or a frame is made of."""

from __future__ import annotations

__all__ = ["check_max_size", "check_payload", "check_unsigned"]


def check_max_size(max_size: int, longest: int) -> None:
    """Check a limit against the longest payload that a header can tell.

    Raises:
        ValueError: it is outside 0 ... ``longest``.
    """
    if not 0 <= max_size <= longest:
        raise ValueError(f"max_size {max_size!r} is outside 0 ... {longest}")


def check_unsigned(name: str, value: int, bits: int) -> None:
    """Check a field of a header.

    Raises:
        TypeError: it is not an int.
        ValueError: it does not fit into so many bits.
    """
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{name} is outside 0 ... 2**{bits}-1: {value!r}")


def check_payload(payload: bytes) -> None:
    """Check the payload of a frame.

    Raises:
        TypeError: it is not bytes.
    """
    if not isinstance(payload, bytes):
        raise TypeError(f"payload must be bytes, not {type(payload).__name__}")
