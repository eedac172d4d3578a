"""The first bytes of each side, in which it says what it speaks and what it takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from struct import Struct

from ..exceptions import ProtocolError

__all__ = ["MAX_MESSAGE", "VERSION", "Hello", "parse_hello"]

VERSION = 1
"""The version of the protocol that is spoken here; the only one there is."""

MAX_MESSAGE = 2**32 - 1
"""Bytes; the longest message that the format can say."""

_MAGIC = b"\x89hvmsg\r\n"
_HEAD = Struct(">8sBBH")  # magic, version, oldest, length of what follows
_FIXED = Struct(">III")  # capabilities, max_message, patience
_LENGTHS = range(_FIXED.size, 1013)
_HAS_NONCE = 1  # capability bit 0
_NONCE_SIZE = 16


@dataclass(frozen=True, slots=True)
class Hello:
    """What a side says of itself.

    Args:
        max_message: bytes; the longest message it takes.
        patience: seconds; once it has asked for a sign of life, it holds its peer for gone when it has heard nothing
            for so long. 0 is never.
        nonce: 16 bytes for the layers above, or None.
        capabilities: the bits of what it can do beyond version 1; bit 0 says that there is a nonce.
        version: the highest version it speaks.
        oldest: the lowest one.

    Raises:
        ValueError: a figure does not fit.
    """

    max_message: int
    patience: float = 0.0
    nonce: bytes | None = None
    capabilities: int = 0
    version: int = VERSION
    oldest: int = VERSION

    def __post_init__(self) -> None:
        if not 0 <= self.max_message <= MAX_MESSAGE:
            raise ValueError(f"the longest message must be 0 ... 2**32 - 1 bytes, not {self.max_message!r}")
        if self.nonce is not None and len(self.nonce) != _NONCE_SIZE:
            raise ValueError(f"nonce must be {_NONCE_SIZE} bytes or None, not {self.nonce!r}")

    def encode(self) -> bytes:
        """Return it as it goes over the wire."""
        nonce = self.nonce or b""
        capabilities = self.capabilities & ~_HAS_NONCE | (_HAS_NONCE if nonce else 0)
        # What does not fit is longer than anybody waits.
        patience = min(round(self.patience * 1000), 2**32 - 1)
        head = _HEAD.pack(_MAGIC, self.version, self.oldest, _FIXED.size + len(nonce))
        return head + _FIXED.pack(capabilities, self.max_message, patience) + nonce


def parse_hello(data: bytes | bytearray) -> tuple[Hello | None, int]:
    """Read a hello as far as it has come.

    Returns:
        The hello and how many bytes it has; or None and how many must have come to go on.

    Raises:
        ProtocolError: it is none; found at the first byte that is wrong.
    """
    if data[: len(_MAGIC)] != _MAGIC[: len(data)]:
        raise ProtocolError("the peer does not speak this protocol: its first bytes are no hello")
    if len(data) < _HEAD.size:
        # Byte by byte, as long as it may still turn out to be none.
        return None, len(data) + 1 if len(data) < len(_MAGIC) else _HEAD.size
    _, version, oldest, length = _HEAD.unpack_from(data)
    if length not in _LENGTHS:
        raise ProtocolError(f"the peer's hello has a length of {length}, not {_LENGTHS[0]} to {_LENGTHS[-1]}")
    if not 1 <= oldest <= version:
        raise ProtocolError(f"the peer's hello has the versions {oldest} to {version}, which makes no sense")
    if oldest > VERSION:
        # The rest of it may mean something else.
        return Hello(0, version=version, oldest=oldest), _HEAD.size
    size = _HEAD.size + length
    if len(data) < size:
        return None, size
    return _parse_whole(bytes(data[:size])), size


# Most peers say the same, and so share one object.
@lru_cache(maxsize=16)
def _parse_whole(data: bytes) -> Hello:
    _, version, oldest, _ = _HEAD.unpack_from(data)
    capabilities, max_message, patience = _FIXED.unpack_from(data, _HEAD.size)
    nonce = None
    if capabilities & _HAS_NONCE:
        start = _HEAD.size + _FIXED.size
        nonce = data[start : start + _NONCE_SIZE]
        if len(nonce) < _NONCE_SIZE:
            raise ProtocolError("the peer's hello is too short for its nonce")
    return Hello(max_message, patience / 1000, nonce, capabilities, version, oldest)
