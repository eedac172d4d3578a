"""httpx2, the successor of httpx, over VM sockets: a transport for its client, on asyncio and on trio.

It stands where :class:`httpx2.AsyncHTTPTransport` with ``uds=`` stands for Unix sockets; all the rest of httpx2 is as it is
everywhere. It comes with ``pip install aiohvsock[httpx2]``.
"""

from __future__ import annotations

import httpcore2
import httpx2

from ._hosts import Resolver
from ._httpcore import Body, Libraries, Pooled

__all__ = ["HvTransport", "Resolver"]


class _Body(Body, httpx2.AsyncByteStream):
    pass


class HvTransport(Pooled, httpx2.AsyncBaseTransport):
    """Connects an :class:`httpx2.AsyncClient` to virtual machines, as
    :class:`aiohvsock.contrib.httpx.HvTransport` does one of httpx's: with the same arguments and errors.
    """

    _libraries = Libraries(httpx2, httpcore2, _Body)
