"""Get a socket connected: one attempt, and trying again while a virtual machine boots.

:func:`retrying` and :func:`opened` know no loop: :func:`dial` drives them on asyncio, an adapter on its own library.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import socket
from collections.abc import Awaitable, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ._log import logger
from .addresses import Address, to_address
from .exceptions import HvAddressError, HvConnectError, HvError
from .listening import AddressSource
from .platforms import Names, Options, Platform, platform_for
from .transports.readiness import connect

__all__ = ["Retry", "dial", "opened", "retrying"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Retry:
    """How to keep trying to connect while a virtual machine boots.

    Only errors that a booting machine gives are tried again: nobody listens yet, no answer in time, no such
    CID or socket yet. The others (a right is missing, this system cannot) end it at once. It has no limit of
    its own; bound it with :func:`asyncio.timeout`.

    Args:
        delay: seconds to wait after the first attempt.
        max_delay: seconds to wait at most.
        factor: what the wait grows by each time.
        jitter: the part of each wait that is random, 0 ... 1, so that many clients do not come at once.

    Raises:
        ValueError: a figure makes no sense.
    """

    delay: float = 0.1
    max_delay: float = 2.0
    factor: float = 1.6
    jitter: float = 0.1

    def __post_init__(self) -> None:
        if not (0 < self.delay <= self.max_delay and self.factor >= 1 and 0 <= self.jitter <= 1):
            raise ValueError(f"{self!r}: needs 0 < delay <= max_delay, factor >= 1, 0 <= jitter <= 1")

    def delays(self) -> Generator[float]:
        """Yield the waits between attempts, in seconds, without end."""
        delay = self.delay
        while True:
            yield delay * (1 + self.jitter * random.uniform(-1, 1))
            delay = min(delay * self.factor, self.max_delay)


async def dial(
    loop: asyncio.AbstractEventLoop, address: Address | AddressSource, options: Options, retry: Retry | None
) -> tuple[socket.socket, Names]:
    """Return a connected socket and its names, as :func:`create_hv_connection` wants them."""

    async def attempt(address: Address) -> tuple[socket.socket, Names]:
        with opened(address, options) as (platform, native, sock):
            async with asyncio.timeout(options.connect_timeout):
                await connect(loop, sock, platform.dial(sock, native))
            return sock, platform.names(sock, native)

    return await retrying(attempt, address, retry, asyncio.sleep)


async def retrying(
    attempt: Callable[[Address], Awaitable[_T]],
    address: Address | AddressSource,
    retry: Retry | None,
    sleep: Callable[[float], Awaitable[object]],
) -> _T:
    """Try to connect until it is done, or until trying again cannot help; a source is asked before each attempt."""
    delays = retry.delays() if retry is not None else None
    while True:
        try:
            return await attempt(await _look_up(address) if callable(address) else address)
        except HvConnectError as error:
            if delays is None or not error.transient:
                raise
            delay = next(delays)
            logger.debug("%s; trying again in %.1f s", error.strerror, delay)
        await sleep(delay)


async def _look_up(source: AddressSource) -> Address:
    try:
        return to_address(await source())
    except HvAddressError as error:
        raise HvConnectError(
            errno.EHOSTUNREACH,
            "connect",
            remote=source,
            detail=str(error),
            hint="is the machine running?",
            transient=True,
        ) from error


@contextlib.contextmanager
def opened(address: Address, options: Options) -> Iterator[tuple[Platform, Address, socket.socket]]:
    """Open a socket, to be connected in the block; if that fails, the socket is closed, and the error says all there is.

    A TimeoutError without a number is taken for the end of ``options.connect_timeout``.
    """
    platform = platform_for(address)
    address = platform.native(address)
    try:
        sock = platform.open_socket(options)
    except HvError:
        raise
    except OSError as error:
        raise platform.failure(error, "connect", remote=address, local=None) from error
    try:
        try:
            yield platform, address, sock
        except OSError as error:
            local = platform.local(sock)
            if error.errno is None:
                reason = OSError(errno.ETIMEDOUT, f"no answer within {options.connect_timeout:g} s")
            else:
                reason = error
            raise platform.failure(reason, "connect", remote=address, local=local) from error
    except BaseException:
        sock.close()
        raise
