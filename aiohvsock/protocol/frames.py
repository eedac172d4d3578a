"""The frames that everything after the hello consists of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from struct import Struct

from ..framing import Buffer

__all__ = [
    "CLOSE",
    "DATA",
    "HEADER_SIZE",
    "IGNORABLE",
    "LENGTH",
    "LONGEST",
    "PING",
    "PONG",
    "RESERVED",
    "SHORTEST_RUN",
    "TYPE_SHIFT",
    "cut_run",
    "pack",
    "unpack",
]

# A header is the type, three bytes of zero, and the length: as one integer, that of DATA is its length.
_HEADER = Struct(">Q")
HEADER_SIZE = _HEADER.size
pack, unpack = _HEADER.pack, _HEADER.unpack_from
TYPE_SHIFT = 56
RESERVED = 0xFFFFFF << 32
LENGTH = 0xFFFFFFFF

DATA, PING, PONG, CLOSE = range(4)
IGNORABLE = 0x80
"""From this type on, what is unknown is ignored."""

LONGEST = {PING: 64, PONG: 64, CLOSE: 1024}
"""Bytes of payload."""

SHORTEST_RUN = 4096
"""Bytes of data from which on :func:`cut_run` may be worth its while."""

_FEWEST = 16


def cut_run(data: bytes, limit: int, messages: list[bytes]) -> int:
    """Cut off messages of one size, if data begins with many of them, as a stream of records does.

    All its loops over the data are in C, so it takes a third of the time.

    Args:
        data: frames, from the start of one on.
        limit: bytes of the longest message; a negative one finds none.
        messages: to append to.

    Returns:
        Where the run ends.
    """
    size: int = unpack(data)[0]
    stride = HEADER_SIZE + size
    count = len(data) // stride
    if size > limit or count < _FEWEST:
        return 0
    # The second and the last tell whether to look at all of them.
    if (size,) != unpack(data, stride) or (size,) != unpack(data, (count - 1) * stride):
        return 0
    for index, byte in enumerate(pack(size)):
        column = data[index : count * stride : stride]
        count = len(column) - len(column.lstrip(bytes((byte,))))
    end = count * stride
    messages += [message for (message,) in _records(size)(memoryview(data)[:end])]
    return end


@lru_cache(maxsize=64)
def _records(size: int) -> Callable[[Buffer], Iterator[tuple[bytes]]]:
    return Struct(f"{HEADER_SIZE}x{size}s").iter_unpack
