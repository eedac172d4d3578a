"""The code and the reason of a close: what a program may say, and how what the peer said is told."""

from __future__ import annotations

from ..protocol import CloseCode

__all__ = ["check_close", "said"]

# The other codes below 128 are for this package to find.
_CODES = frozenset(
    (
        CloseCode.OK,
        CloseCode.GOING_AWAY,
        CloseCode.INTERNAL_ERROR,
        CloseCode.NOT_ALLOWED,
        CloseCode.TRY_AGAIN_LATER,
        *range(128, 256),
    )
)


def check_close(code: int, reason: str) -> None:
    """Check what a program wants to say.

    Raises:
        ValueError: a code that is not for a program to use.
        TypeError: a reason that is no text.
    """
    if code not in _CODES:
        raise ValueError(f"a program closes with a code of CloseCode or from 128 to 255, not {code!r}")
    if not isinstance(reason, str):
        raise TypeError(f"reason must be a str, not {reason!r}")


def said(code: int, reason: str) -> str:
    """Return what the peer said at the end; its text may hold anything, and must not make lines in a log."""
    known = code in CloseCode.__members__.values()
    name = CloseCode(code).name.lower().replace("_", " ") if known else f"code {code}"
    return f" ({name}: {reason!r})" if reason else f" ({name})" if code else ""
