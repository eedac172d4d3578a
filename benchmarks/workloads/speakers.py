"""What is done with messages, and which API does it."""

from __future__ import annotations

from typing import Protocol

from .ends import Run
from .links import LINKS

__all__ = ["Speaker", "speaker"]


class Speaker(Protocol):
    """One API for messages. Each message is given to code in Python, as bytes, whatever the API."""

    async def serve_echo(self, path: str) -> None:
        """Send each message back."""

    async def serve_count(self, path: str) -> None:
        """Count messages: the first is a number of eight bytes, says how many follow, and the last is answered."""

    async def pinger(self, path: str, size: int) -> Run:
        """For a server that echoes: send a message, wait until it is back, send the next."""

    async def sender(self, path: str, size: int) -> Run:
        """For a server that counts: send messages as fast as they are taken, and wait for the answer to the last."""


def speaker(library: str, api: str) -> Speaker:
    """The speaker of a contender. Peers are imported only here: not every machine has them."""
    from . import buffered, native, streams

    if library == "picows":
        from . import websockets

        return websockets.Speaker()
    if library == "grpclib":
        from . import grpc

        return grpc.Speaker()
    link = LINKS[library]
    if api == "buffered":
        return buffered.Speaker(link)
    if api == "streams":
        return streams.Speaker(link)
    return native.SPEAKERS[api]
