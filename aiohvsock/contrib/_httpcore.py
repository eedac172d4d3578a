"""What httpx and httpx2 need alike: a network for the connection pool each has in its own httpcore."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from types import ModuleType, TracebackType
from typing import Any, NamedTuple, Self

import anyio
from anyio import aclose_forcefully
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute, TLSStream

from ..dialling import Retry
from ..endpoints import SocketOption
from ..exceptions import HvAddressError, HvError
from ._hosts import Hosts, Resolver, Target
from .anyio import HvAttribute, connect_hv

__all__ = ["Body", "Libraries", "Pooled"]


class Libraries(NamedTuple):
    """An httpx, the httpcore below it, and a :class:`Body` that is that httpx's ``AsyncByteStream``."""

    httpx: Any
    httpcore: Any
    body: Any


class _Network:
    """Connects to virtual machines: an ``AsyncNetworkBackend``, by its methods."""

    def __init__(
        self, core: ModuleType, hosts: Hosts, retry: Retry | None, options: Mapping[str, Any]
    ) -> None:
        self._core = core
        self._hosts = hosts
        self._retry = retry
        self._options = options

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, **meant_for_tcp: object
    ) -> _Stream:
        # Each attempt may take as long, and all of them together; an error of an attempt says more.
        with _failing(self._core, "Connect", timeout if self._retry is not None else None):
            target = await self._hosts.find(host, port)
            stream = await connect_hv(target, connect_timeout=timeout, retry=self._retry, **self._options)
        return _Stream(self._core, stream)

    async def connect_unix_socket(self, path: str, **options: object) -> _Stream:
        raise self._core.UnsupportedProtocol("a transport for VM sockets has no uds=")

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _Stream:
    """A connection: an ``AsyncNetworkStream``, by its methods."""

    def __init__(self, core: ModuleType, stream: ByteStream) -> None:
        self._core = core
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _failing(self._core, "Read", timeout):
            try:
                return await self._stream.receive(max_bytes)
            except anyio.EndOfStream:
                return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if buffer:
            with _failing(self._core, "Write", timeout):
                await self._stream.send(buffer)

    async def aclose(self) -> None:
        # TLS would wait for a peer that may be gone, and HTTP tells the end of a message itself.
        await aclose_forcefully(self._stream)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> _Stream:
        try:
            with _failing(self._core, "Connect", timeout):
                stream = await TLSStream.wrap(
                    self._stream,
                    hostname=server_hostname,
                    ssl_context=ssl_context,
                    server_side=False,
                    standard_compatible=False,
                )
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise
        return _Stream(self._core, stream)

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "ssl_object":
                return self._stream.extra(TLSAttribute.ssl_object, None)
            case "client_addr":
                return self._stream.extra(HvAttribute.local_address, None)
            case "server_addr":
                return self._stream.extra(HvAttribute.peer_address, None)
            case "socket":
                return self._stream.extra(SocketAttribute.raw_socket)
            case "is_readable":
                return _is_readable(self._stream.extra(SocketAttribute.raw_socket))
        return None


def _is_readable(sock: socket.socket) -> bool:
    """Tell whether an idle connection has something to read: its end."""
    if sock.fileno() < 0:
        return True
    if not hasattr(select, "poll"):  # Windows; where select() minds how many, not which numbers
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


@contextlib.contextmanager
def _failing(core: ModuleType, operation: str, timeout: float | None) -> Iterator[None]:
    """Raise httpcore's errors: ReadTimeout, ReadError, WriteTimeout, ...

    Args:
        operation: how their names begin.
        timeout: seconds for the block; None is no limit.
    """
    try:
        with anyio.fail_after(timeout) as scope:
            yield
    except TimeoutError as error:
        # One that a resolver raises is none of ours, and may come without a limit, and without a text.
        ours = scope.cancelled_caught
        reason = f"{operation.lower()}: not done within {timeout:g} s" if ours else str(error) or repr(error)
        raise getattr(core, f"{operation}Timeout")(reason) from error
    except (
        OSError,
        HvAddressError,
        anyio.BrokenResourceError,
        anyio.ClosedResourceError,
        anyio.EndOfStream,
    ) as error:
        reason = str(error) or str(error.__cause__ or "") or repr(error)
        raise getattr(core, f"{operation}Error")(reason) from error


class Body:
    """The body of a response."""

    def __init__(self, libraries: Libraries, stream: Any) -> None:
        self._libraries = libraries
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with _translated(self._libraries):
            async for part in self._stream:
                yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


@contextlib.contextmanager
def _translated(libraries: Libraries) -> Iterator[None]:
    """Raise httpx's errors for those of httpcore, whose names they have."""
    try:
        yield
    except Exception as error:
        for each in type(error).__mro__:
            if each.__module__.partition(".")[0] == libraries.httpcore.__name__:
                same: type[Exception] | None = getattr(libraries.httpx, each.__name__, None)
                if same is not None:
                    # The pool says `from None`, and would hide what tells most.
                    below = error.__context__
                    raise same(str(error)) from below if isinstance(below, HvError) else error
        raise


class Pooled:
    """An ``AsyncBaseTransport`` over httpcore's connection pool, for each httpx to derive from."""

    _libraries: Libraries

    def __init__(
        self,
        address: Target | Mapping[str, Target] | Resolver,
        *,
        verify: ssl.SSLContext | bool = True,
        max_connections: int | None = 100,
        max_keepalive_connections: int | None = 20,
        keepalive_expiry: float | None = 5.0,
        retry: Retry | None = None,
        buffer_size: int | None = None,
        connected_suspend: bool = False,
        socket_options: Iterable[SocketOption] = (),
    ) -> None:
        httpx, core, _ = self._libraries
        options = {
            "buffer_size": buffer_size,
            "connected_suspend": connected_suspend,
            "socket_options": tuple(socket_options),
        }
        self._pool = core.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(verify=verify),
            max_connections=max_connections,
            max_keepalive_connections=max_keepalive_connections,
            keepalive_expiry=keepalive_expiry,
            network_backend=_Network(core, Hosts(address), retry, options),
        )

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._pool.__aexit__(kind, error, traceback)

    async def aclose(self) -> None:
        """Close the connections that are kept."""
        await self._pool.aclose()

    async def handle_async_request(self, request: Any) -> Any:
        """Send a request; the client calls it."""
        httpx, core, body = self._libraries
        url = core.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        with _translated(self._libraries):
            response = await self._pool.handle_async_request(
                core.Request(
                    method=request.method,
                    url=url,
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            status_code=response.status,
            headers=response.headers,
            stream=body(self._libraries, response.stream),
            extensions=response.extensions,
        )
