"""httpx over VM sockets: a transport for its client, on asyncio and on trio.

It stands where :class:`httpx.AsyncHTTPTransport` with ``uds=`` stands for Unix sockets; all the rest of httpx is as it is
everywhere. It comes with ``pip install aiohvsock[httpx]``.
"""

from __future__ import annotations

import httpcore
import httpx

from ._hosts import Resolver
from ._httpcore import Body, Libraries, Pooled

__all__ = ["HvTransport", "Resolver"]


class _Body(Body, httpx.AsyncByteStream):
    pass


class HvTransport(Pooled, httpx.AsyncBaseTransport):
    """Connects an :class:`httpx.AsyncClient` to virtual machines: ``AsyncClient(transport=HvTransport(address))``.

    With one address, every URL leads there, whatever its host says; with a mapping or a resolver the host says which
    machine, and one client talks to many. Connections are kept and reused for each host and port by themselves. The
    client's proxies, and those of the environment, are not asked.

    A request that fails raises httpx's own errors: :exc:`httpx.ConnectError` and :exc:`httpx.ConnectTimeout` with the
    text of this package's error, which names both addresses and is their ``__cause__``; and so on.
    Cancelling a request leaves no descriptor behind. The client's ``timeout`` counts; its ``connect`` part bounds
    one attempt, or with ``retry`` all of them.

    Args:
        address: whom to dial: an address, as a value or as text; an async callable without arguments that is asked for
            it before each attempt, such as :func:`aiohvsock.hyperv.machine_address`; a mapping of hosts to either,
            in which the case of the names is of no matter; or a :data:`Resolver`, called with host and port. Each
            is asked for each new connection only.
        verify: how ``https`` checks the server: True with certifi's certificates, a context, or False for not at all. The
            name in the certificate is the URL's host, or the request's extension ``sni_hostname``.
        max_connections: connections at once; more requests wait. None is no limit.
        max_keepalive_connections: idle connections that are kept; None is no limit.
        keepalive_expiry: seconds that an idle connection is kept; None is no limit.
        retry: how to keep trying while the machine boots; None tries once.
        buffer_size, connected_suspend, socket_options: as in :func:`~aiohvsock.create_hv_connection`.

    Raises:
        HvAddressError: the address is malformed.
    """

    _libraries = Libraries(httpx, httpcore, _Body)
