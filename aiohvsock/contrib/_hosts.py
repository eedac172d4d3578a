"""Which machine the host of a URL is, for the HTTP clients."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias, cast

from ..addresses import AddressLike, to_address
from ..exceptions import HvAddressError, HvConnectError
from ..listening import AddressSource

__all__ = ["Hosts", "Resolver", "Target"]

Target: TypeAlias = AddressLike | AddressSource
"""Whom to dial: an address, or who gives it before each attempt."""

Resolver: TypeAlias = Callable[[str, int], Target | None | Awaitable[Target | None]]
"""Gives the address of a machine for the host and the port of a URL, at once or as an awaitable. For a host that it
does not know it gives None, or raises :exc:`LookupError`."""


class Hosts:
    """Finds machines.

    Args:
        address: one for every host; an async callable without arguments that gives it; a mapping of hosts to either;
            or a :data:`Resolver`.

    Raises:
        HvAddressError: the address is malformed.
    """

    def __init__(self, address: Target | Mapping[str, Target] | Resolver) -> None:
        self.table: Mapping[str, Target] | None = None
        """The mapping, if it is one."""
        self._find: Resolver
        if isinstance(address, Mapping):
            self.table = address
            self._find = self.look_up
        elif callable(address) and _takes_host_and_port(address):
            self._find = cast("Resolver", address)
        else:
            fixed = cast("AddressSource", address) if callable(address) else to_address(address)
            self._find = lambda host, port: fixed

    def look_up(self, host: str, port: int) -> Target | None:
        """Return what the mapping has for a host now."""
        assert self.table is not None
        found = self.table.get(host)
        if found is None:
            # In a URL a host has lost its capitals.
            found = next((self.table[name] for name in self.table if name.lower() == host), None)
        return found

    async def find(self, host: str, port: int) -> Target:
        """Return whom to dial.

        Raises:
            HvConnectError: nobody is known by this name.
            OSError: the resolver's.
        """
        cause: Exception | None = None
        found: object = None
        try:
            found = self._find(host, port)
            if inspect.isawaitable(found):
                found = await found
        except (LookupError, HvAddressError) as error:
            cause = error
        if found is not None:
            return cast("Target", found)
        raise HvConnectError(
            errno.EHOSTUNREACH,
            "connect",
            remote=host,
            detail=f"no machine is known by this name{f': {cause!r}' if cause else ''}",
            hint=f"known are: {', '.join(sorted(self.table)) or 'none'}" if self.table is not None else "",
        ) from cause


def _takes_host_and_port(function: Callable[..., object]) -> bool:
    """Tell a resolver from an async callable that gives one address."""
    try:
        inspect.signature(function).bind("host", 80)
    except TypeError:
        return False
    except ValueError:  # one written in C has no signature
        pass
    return True
