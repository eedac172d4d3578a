"""The ways to be connected. The protocols and handlers on top are the same objects for each of them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from aiohvsock import HybridAddress

__all__ = ["LINKS", "Handler", "HvLink", "Link", "dialled", "unix_connect"]

P = TypeVar("P", bound=asyncio.BaseProtocol)
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HV_PORT = 5000


def dialled(library: str, path: str) -> str:
    """Where a server of `library` really listens that was told `path`."""
    return f"{path}_{HV_PORT}" if library == "aiohvsock" else path


async def unix_connect(sock: socket.socket, path: str) -> socket.socket:
    """Connect a new socket, or close it."""
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, path)
    except BaseException:
        sock.close()
        raise
    return sock


class Closable(Protocol):
    def close(self) -> None: ...


class Link(Protocol):
    """One library's way to listen on, and to connect to, the Unix socket at `path`."""

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], path: str) -> Closable: ...
    async def connect(self, factory: Callable[[], P], path: str) -> P: ...
    async def listen_streams(self, handler: Handler, path: str) -> Closable: ...
    async def connect_streams(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]: ...


class AsyncioLink:
    """The transports of the running loop itself."""

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], path: str) -> Closable:
        return await asyncio.get_running_loop().create_unix_server(factory, path)

    async def connect(self, factory: Callable[[], P], path: str) -> P:
        _, protocol = await asyncio.get_running_loop().create_unix_connection(factory, path)
        return protocol

    async def listen_streams(self, handler: Handler, path: str) -> Closable:
        return await asyncio.start_unix_server(handler, path)

    async def connect_streams(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(path)


class HvLink:
    """aiohvsock, listening as a guest's port on a hybrid-vsock host does.

    The client is given a connected socket: dialling a `HybridAddress` would want a monitor to shake hands with.
    """

    async def listen(self, factory: Callable[[], asyncio.BaseProtocol], path: str) -> Closable:
        import aiohvsock

        return await aiohvsock.create_hv_server(factory, self.address(path))

    async def connect(self, factory: Callable[[], P], path: str) -> P:
        import aiohvsock

        _, protocol = await aiohvsock.create_hv_connection(factory, sock=await self.dial(path))
        return protocol

    async def listen_streams(self, handler: Handler, path: str) -> Closable:
        import aiohvsock

        return await aiohvsock.start_hv_server(handler, self.address(path))

    async def connect_streams(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        import aiohvsock

        return await aiohvsock.open_hv_connection(sock=await self.dial(path))

    @staticmethod
    def address(path: str) -> HybridAddress:
        import aiohvsock

        return aiohvsock.HybridAddress(path, HV_PORT)

    @staticmethod
    async def dial(path: str) -> socket.socket:
        return await unix_connect(
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), dialled("aiohvsock", path)
        )


LINKS: dict[str, Link] = {"asyncio": AsyncioLink(), "aiohvsock": HvLink()}
