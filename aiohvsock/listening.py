"""Bind listeners, and follow a machine whose address changes."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeAlias, cast

from ._log import logger
from .addresses import Address, AddressLike, HybridAddress, HypervAddress, VsockAddress, to_address
from .exceptions import HvAddressError, HvConnectError, HvError, HvPermissionError, HvUnsupportedError
from .platforms import Listener, Options, platform_for
from .server import HvServer

__all__ = ["AddressSource", "FollowedListener", "ListenOn", "bind_all"]

AddressSource: TypeAlias = Callable[[], Awaitable[AddressLike]]
"""An async callable that gives the address of a machine as it is now, as
:func:`aiohvsock.hyperv.machine_address` makes it. It raises :exc:`HvAddressError` while there is no such machine."""

ListenOn: TypeAlias = AddressLike | AddressSource | Iterable[AddressLike | AddressSource]

# Seconds between two looks after one that found nothing, and for a machine that may have moved. Whoever asks WSL
# for its id keeps it from stopping when nobody uses it, which it does after a quarter of a minute.
_LOOK = 5.0
_LOOK_AGAIN = 60.0


class FollowedListener:
    """Listens where a machine is, and again where it is next: a VM id of WSL changes with each start of it.

    Args:
        source: gives the address.
        options: for each socket.
    """

    def __init__(self, source: AddressSource, options: Options) -> None:
        self._source = source
        self._options = options
        self._address: Address | None = None
        self._said: str | None = None  # what was logged last
        self.listener: Listener | None = None
        """The one of now; None while there is no such machine."""

    async def look(self) -> bool:
        """Find out whether the address has changed; :attr:`listener` is then another one, and the old one not closed.

        Raises:
            HvUnsupportedError: it cannot be found out here, and never will.
            HvPermissionError: it must not be found out, or not be listened on.
            HvConnectError: it could not be found out this time. What listens goes on.
        """
        before = self.listener
        try:
            address = _native(to_address(await self._source()))
            if address != self._address:
                self.listener = _listen(address, self._options)
                self._address = address
                logger.info("%s is at %s", self._source, self.listener.address)
            self._said = None
        except (HvUnsupportedError, HvPermissionError):
            raise
        except HvAddressError as error:
            self._lose(error)
        except HvConnectError as error:
            # A machine that is known, and stopped, is no more there than one that is not known.
            if error.operation != "listen" and error.errno != errno.EHOSTUNREACH and before is not None:
                raise
            self._lose(error)
        return self.listener is not before

    def _lose(self, error: HvError) -> None:
        self.listener = self._address = None
        if str(error) != self._said:
            logger.warning("%s is not to be listened on until it is there: %s", self._source, error)
        self._said = str(error)

    async def follow(self, server: HvServer) -> None:
        """Listen where the machine is, until cancelled."""
        while server.is_open:
            await asyncio.sleep(_LOOK if self._said is not None else _LOOK_AGAIN)
            before = self.listener
            try:
                if await self.look():
                    if not server.is_open:  # closed by the one who was asked
                        _close(self)
                        return
                    try:
                        server.replace_listener(before, self.listener)
                    except BaseException:
                        self.listener = self._address = None  # to try again
                        raise
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                # It may well be over the next time, and what listens goes on.
                if str(error) != self._said:
                    logger.error("looking where %s is failed", self._source, exc_info=error)
                self._said = str(error)


def _is_cancelled() -> bool:
    """Whether a CancelledError is for the task that runs, and not for another, that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def bind_all(listen_on: ListenOn, options: Options) -> Sequence[Listener | FollowedListener]:
    """Bind a socket for every address, which do not listen yet.

    Of several, those that this machine has nothing for are left out.

    Raises:
        ValueError: there is none at all.
        HvError: one cannot be bound; or of several, all were left out.
    """
    if callable(listen_on) or isinstance(listen_on, (str, VsockAddress, HypervAddress, HybridAddress)):
        return [await _bind(listen_on, options)]
    addresses = [
        each if callable(each) else to_address(each) for each in cast("Iterable[AddressLike]", listen_on)
    ]
    if not addresses:
        raise ValueError("no address was specified")
    bound: list[Listener | FollowedListener] = []
    left_out: list[HvError] = []
    try:
        for each in addresses:
            try:
                bound.append(await _bind(each, options))
            except (HvUnsupportedError, HvAddressError) as error:
                logger.info("%s is left out: %s", each, error)
                left_out.append(error)
        if not bound:
            first, *others = left_out
            for other in others:
                first.add_note(str(other))
            raise first
    except BaseException:
        for listener in bound:
            _close(listener)
        raise
    return bound


def _close(listener: Listener | FollowedListener) -> None:
    """Close what :func:`bind_all` has bound."""
    found = listener.listener if isinstance(listener, FollowedListener) else listener
    if found is not None:
        found.close()


async def _bind(listen_on: AddressLike | AddressSource, options: Options) -> Listener | FollowedListener:
    if callable(listen_on):
        followed = FollowedListener(listen_on, options)
        await followed.look()
        return followed
    return _listen(_native(to_address(listen_on)), options)


def _native(address: Address) -> Address:
    """Return the address of this system's kind that means the same.

    Raises:
        HvAddressError: there is none.
    """
    return platform_for(address).native(address)


def _listen(address: Address, options: Options) -> Listener:
    """Bind a socket, which does not listen yet.

    Raises:
        HvError: it cannot be bound.
    """
    platform = platform_for(address)
    try:
        return platform.listen(address, options)
    except HvError:
        raise
    except OSError as error:
        raise platform.failure(error, "listen", remote=None, local=address) from error
