"""TLS over a transport of ours.

It is asyncio's own :class:`asyncio.sslproto.SSLProtocol`, on uvloop too: uvloop's ``loop.start_tls()`` accepts
no transport but its own (uvloop ``loop.pyx``, ``start_tls``).
"""

from __future__ import annotations

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

__all__ = ["TLS", "app_transport", "start_tls"]


@dataclass(frozen=True, slots=True)
class TLS:
    """What to speak TLS with; the fields are asyncio's keywords."""

    context: ssl.SSLContext | None
    """None: asyncio's default for a client."""
    server_hostname: str | None = None
    handshake_timeout: float | None = None
    shutdown_timeout: float | None = None

    def protocol(
        self,
        loop: asyncio.AbstractEventLoop,
        app_protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[Any],
        *,
        server_side: bool,
        call_connection_made: bool = True,
    ) -> SSLProtocol:
        """Return the protocol that stands between the transport and the application's."""
        return SSLProtocol(
            cast("asyncio.BaseEventLoop", loop),
            cast("asyncio.Protocol", app_protocol),
            self.context,  # type: ignore[arg-type]  # None is asyncio's default, unknown to typeshed
            waiter,
            server_side,
            self.server_hostname,
            call_connection_made=call_connection_made,
            ssl_handshake_timeout=self.handshake_timeout,  # type: ignore[arg-type]  # a float does, too
            ssl_shutdown_timeout=self.shutdown_timeout,
        )


def app_transport(protocol: SSLProtocol) -> asyncio.Transport:
    """Return the transport the application writes to."""
    return cast("asyncio.Transport", protocol._app_transport)


async def start_tls(
    transport: asyncio.Transport,
    protocol: asyncio.BaseProtocol,
    tls: TLS,
    *,
    server_side: bool,
    on_wrapped: Callable[[asyncio.Transport], None],
) -> None:
    """Do what ``loop.start_tls()`` does, on any loop.

    If it fails or is cancelled, the transport is aborted.

    Args:
        on_wrapped: called with the transport to write to from here on, before the handshake starts: the first
            data can follow the handshake so closely that the protocol must know it by then.

    Raises:
        ssl.SSLError: the handshake failed.
    """
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[Any] = loop.create_future()
    ssl_protocol = tls.protocol(loop, protocol, waiter, server_side=server_side, call_connection_made=False)
    on_wrapped(app_transport(ssl_protocol))
    # What comes from here on is the handshake's, not the application's.
    transport.pause_reading()
    transport.set_protocol(ssl_protocol)
    ssl_protocol.connection_made(transport)
    transport.resume_reading()
    try:
        await waiter
    except BaseException:
        transport.abort()
        raise
