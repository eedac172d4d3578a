"""Connect to a server of messages, once or again and again."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Generator
from types import TracebackType
from typing import Any, Generic, TypeAlias, TypeVar, Unpack, overload

from .._log import logger
from ..addresses import AddressLike
from ..dialling import Retry
from ..endpoints import ConnectOptions, create_hv_connection
from ..exceptions import ConnectionClosed, HvConnectError, HvTimeout
from ..framing import Codec
from ..framing.base import DEFAULT_MAX_SIZE
from ..listening import AddressSource
from ..protocol import CloseCode
from .connection import MessageConnection
from .core import OnMessage
from .settings import DEFAULT_CLOSE_TIMEOUT, DEFAULT_HEARTBEAT, DEFAULT_OPEN_TIMEOUT, Settings, check_callback

__all__ = ["Transient", "connect", "is_transient"]

T = TypeVar("T")

Transient: TypeAlias = Callable[[Exception], bool]

# With these a peer says that it is itself what is in the way, for the moment.
_TRANSIENT_CODES = (
    None,
    CloseCode.GOING_AWAY,
    CloseCode.INTERNAL_ERROR,
    CloseCode.TRY_AGAIN_LATER,
    CloseCode.NO_HELLO,
    CloseCode.NO_ANSWER,
)


def is_transient(error: Exception) -> bool:
    """Tell whether to connect again can help: the default of ``transient=``.

    It does after what a machine that boots, reboots or is paused gives: nobody listens yet, no answer in time, the
    connection was lost before the hello or closed because the service goes away. It does not when a right is
    missing, the address is wrong, the peer speaks something else, or closes with a code of its own.
    """
    if isinstance(error, HvConnectError):
        return error.transient
    return isinstance(error, ConnectionClosed) and error.code in _TRANSIENT_CODES


class connect(Generic[T]):
    """Connect to a server of messages.

    - ``connection = await connect(...)``;
    - ``async with connect(...) as connection:`` closes it at the end of the block;
    - ``async for connection in connect(...):`` connects again whenever the block is left by its end or by
      ``continue``: through reboots and pauses of the machine and restarts of the service. Catch
      :exc:`ConnectionClosed` inside, and leave with ``break``.

    Each can be cancelled at any moment, and leaves no descriptor behind.

    Args:
        address: whom to dial, as a value or as text; or an async callable that is asked for it before each attempt.
        on_message: a plain function ``(connection, message)``, called with each message in place of ``recv()``. It
            must not block. What it raises is logged, and closes the connection. While the peer is slow to read
            what is sent, nothing more is read from it.
        codec: how messages are framed, for peers that are not ours; None is the native protocol, which has a
            hello, a heartbeat and a proper close. A codec alone has none of these.
        max_size: bytes; the longest message taken. Both sides tell each other.
        open_timeout: seconds for the peer's hello once the socket is connected; None waits as long as it takes.
        close_timeout: seconds :meth:`MessageConnection.close` waits for the peer; None as long as it takes.
        heartbeat: seconds between pings; None sends none.
        heartbeat_timeout: seconds without a sign of life after a ping until the connection is lost; None never.
            A peer that stops answering is found within ``heartbeat + heartbeat_timeout``.
        transient: with ``async for``, tells of an error whether to try again; None is :func:`is_transient`.
        options: the keywords of :func:`create_hv_connection`, with its errors. With ``async for``, ``retry`` says
            how long to wait between attempts; None is ``Retry()``.

    Raises:
        ValueError: a figure makes no sense.
        HvTimeout: there is no connection, or no hello, in time.
        ConnectionClosed: the peer closed before its hello, or does not speak the protocol.
    """

    @overload
    def __init__(
        self: connect[bytes],
        address: AddressLike | AddressSource | None = None,
        *,
        on_message: OnMessage[bytes] | None = None,
        codec: None = None,
        max_size: int = ...,
        open_timeout: float | None = ...,
        close_timeout: float | None = ...,
        heartbeat: float | None = ...,
        heartbeat_timeout: float | None = ...,
        transient: Transient | None = None,
        **options: Unpack[ConnectOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        address: AddressLike | AddressSource | None = None,
        *,
        on_message: OnMessage[T] | None = None,
        codec: Codec[T],
        open_timeout: float | None = ...,
        close_timeout: float | None = ...,
        transient: Transient | None = None,
        **options: Unpack[ConnectOptions],
    ) -> None: ...

    def __init__(
        self,
        address: AddressLike | AddressSource | None = None,
        *,
        on_message: OnMessage[Any] | None = None,
        codec: Codec[Any] | None = None,
        max_size: int = DEFAULT_MAX_SIZE,
        open_timeout: float | None = DEFAULT_OPEN_TIMEOUT,
        close_timeout: float | None = DEFAULT_CLOSE_TIMEOUT,
        heartbeat: float | None = DEFAULT_HEARTBEAT,
        heartbeat_timeout: float | None = DEFAULT_HEARTBEAT,
        transient: Transient | None = None,
        **options: Unpack[ConnectOptions],
    ) -> None:
        self._address = address
        self._on_message = on_message
        self._settings: Settings[T] = Settings(
            codec, max_size, open_timeout, close_timeout, heartbeat, heartbeat_timeout
        )
        check_callback("on_message", on_message)
        check_callback("transient", transient)
        self._transient = transient or is_transient
        self._options = options
        self._connection: MessageConnection[T] | None = None
        self._entered = False  # by an ``async with``

    async def _connect(self, options: ConnectOptions) -> MessageConnection[T]:
        _, connection = await create_hv_connection(
            lambda: MessageConnection(self._settings, self._on_message), self._address, **options
        )
        try:
            await connection.wait_opened()
        except ConnectionClosed as error:
            try:
                await connection.wait_closed()
            finally:
                connection.transport.abort()
            if error.code == CloseCode.NO_HELLO:
                raise self._no_hello(connection) from error
            raise
        except BaseException:
            connection.transport.abort()
            raise
        logger.debug("%s: connected", connection)
        return connection

    def _no_hello(self, connection: MessageConnection[T]) -> HvTimeout:
        return HvTimeout(
            errno.ETIMEDOUT,
            "connect",
            remote=connection.peer_address,
            local=connection.local_address,
            detail=f"the peer said no hello within {self._settings.open_timeout} s",
            hint="it may hang, or not speak this protocol; codec= is for peers that speak another",
            transient=True,
        )

    def __await__(self) -> Generator[Any, None, MessageConnection[T]]:
        return self._connect(self._options).__await__()

    async def __aenter__(self) -> MessageConnection[T]:
        if self._entered:
            raise RuntimeError("this connect() is in use; each connection needs its own")
        self._entered = True
        try:
            self._connection = await self._connect(self._options)
        except BaseException:
            self._entered = False
            raise
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        connection, self._connection = self._connection, None
        assert connection is not None
        self._entered = False
        await connection.close()

    async def __aiter__(self) -> AsyncIterator[MessageConnection[T]]:
        if self._options.get("sock") is not None:
            raise ValueError("a sock= connects once; connecting again needs an address")
        retry = self._options.get("retry") or Retry()
        options = self._options | {"retry": None}
        loop = asyncio.get_running_loop()
        delays = retry.delays()
        while True:
            try:
                connection = await self._connect(options)
            except Exception as error:
                if not self._transient(error):
                    raise
                logger.info("%s", error)
            else:
                since = loop.time()
                try:
                    yield connection
                finally:
                    await connection.close()
                # One that lasted was a good one; a service that accepts and fails at once is not flooded.
                if loop.time() - since > retry.max_delay:
                    delays = retry.delays()
            delay = next(delays)
            logger.info("connecting to %s again in %.1f s", self._address, delay)
            await asyncio.sleep(delay)
