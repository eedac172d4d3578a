"""The options that Hyper-V sockets have."""

from __future__ import annotations

import sys

if sys.platform != "win32":
    raise ImportError("Hyper-V sockets of Windows have these options")

from .winsock import HV_PROTOCOL_RAW, SOL_SOCKET, WSAEINVAL, WSAENOPROTOOPT, WinsockError

__all__ = ["Options"]

# Of the level HV_PROTOCOL_RAW; each is an unsigned integer of four bytes.
CONNECT_TIMEOUT = 1
CONTAINER_PASSTHRU = 2
CONNECTED_SUSPEND = 4
HIGH_VTL = 8

_DEFAULTS = {CONNECT_TIMEOUT: 2000, CONTAINER_PASSTHRU: 0, CONNECTED_SUSPEND: 0, HIGH_VTL: 0}
_CONNECT_TIMEOUT_MAX = 300_000

# Of the level SOL_SOCKET, those that do not depend on the provider. SO_REUSEADDR, SO_KEEPALIVE and the like are about networks.
_SOCKET_LEVEL = {
    0x0002,  # SO_ACCEPTCONN
    0x0080,  # SO_LINGER
    ~0x0080 & 0xFFFFFFFF,  # SO_DONTLINGER
    ~0x0004 & 0xFFFFFFFF,  # SO_EXCLUSIVEADDRUSE
    0x1001,  # SO_SNDBUF
    0x1002,  # SO_RCVBUF
    0x1005,  # SO_SNDTIMEO
    0x1006,  # SO_RCVTIMEO
    0x1007,  # SO_ERROR
    0x1008,  # SO_TYPE
    0x2004,  # SO_PROTOCOL_INFOA
    0x2005,  # SO_PROTOCOL_INFOW
    0x700B,  # SO_UPDATE_ACCEPT_CONTEXT
    0x700C,  # SO_CONNECT_TIME
    0x7010,  # SO_UPDATE_CONNECT_CONTEXT
}


class Options:
    """The options of one socket. An accepted one starts with none."""

    def __init__(self) -> None:
        self.given: dict[tuple[int, int], int | bytes] = {}
        """What was set, by level and option."""

    @property
    def connect_timeout(self) -> float:
        """In seconds."""
        milliseconds = self.given.get((HV_PROTOCOL_RAW, CONNECT_TIMEOUT), 0) or _DEFAULTS[CONNECT_TIMEOUT]
        assert isinstance(milliseconds, int)
        return milliseconds / 1000

    def set(self, level: int, option: int, data: bytes, *, dialled: bool) -> bool:
        """Set an option, or raise what Windows says to it; tell whether the socket below has to hear of it."""
        _check(level, option)
        value = int.from_bytes(data, "little")
        if level == HV_PROTOCOL_RAW:
            if len(data) != 4:
                raise WinsockError(WSAEINVAL)
            if option == CONNECT_TIMEOUT and (value > _CONNECT_TIMEOUT_MAX or dialled):
                raise WinsockError(WSAEINVAL)
        self.given[level, option] = value if len(data) == 4 else data
        return level == SOL_SOCKET

    def get(self, level: int, option: int) -> bytes | None:
        """The value of an option; None if the socket below has it."""
        _check(level, option)
        if level == SOL_SOCKET:
            return None
        value = self.given.get((level, option), _DEFAULTS[option])
        assert isinstance(value, int)
        return value.to_bytes(4, "little")


def _check(level: int, option: int) -> None:
    if level == SOL_SOCKET:
        known = option & 0xFFFFFFFF in _SOCKET_LEVEL
    else:
        known = level == HV_PROTOCOL_RAW and option in _DEFAULTS
    if not known:
        raise WinsockError(WSAENOPROTOOPT)
