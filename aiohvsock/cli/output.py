"""What goes to stdout: it can go away, as when a pager is left, or be full."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

__all__ = ["OutputLost", "say", "without_output"]


class OutputLost(Exception):
    """stdout takes no more.

    Args:
        reason: the system's error. It is no base of this one, or it could be taken for that of a socket.
    """

    def __init__(self, reason: OSError) -> None:
        super().__init__(reason)
        self.reason = reason


def say(text: str) -> None:
    """Print a text and a line end, in one write, and flush them. Without a stdout nothing is done.

    Raises:
        OutputLost: it cannot be written.
    """
    # A name can be in any script, and the output in a code page that has not heard of it.
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    shown = f"{text}\n".encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(shown, end="", flush=True)
    except OSError as error:
        raise OutputLost(error) from error


def without_output(lost: OutputLost) -> None:
    """Give stdout up: quietly if its reader has left, or else with a sentence on stderr."""
    # What is still in the buffer would end in a complaint of the interpreter's when it exits.
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
    # Windows says EINVAL of a pipe that nobody reads.
    left = isinstance(lost.reason, BrokenPipeError) or (
        sys.platform == "win32" and lost.reason.errno == errno.EINVAL
    )
    if not left:
        print(f"aiohvsock: the output cannot be written: {lost.reason}", file=sys.stderr)
