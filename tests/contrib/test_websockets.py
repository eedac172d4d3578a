"""The client, against websockets' own server on the same sockets; its server is in test_websockets_server.py."""

from __future__ import annotations

import asyncio
import http
import logging
import os
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import Server, ServerConnection
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

import aiohvsock
from aiohvsock import (
    Address,
    HvAddressError,
    HvConnectError,
    HvConnectionRefused,
    HvPermissionError,
    HvTimeout,
    HvUnsupportedError,
    Retry,
    create_hv_server,
)
from aiohvsock.contrib.websockets import connect, process_exception, serve

from ..descriptors import open_sockets
from ..helpers import Recorder, no_counterpart
from ..test_listening import Source, another
from .aiohttp_service import MIB, contexts
from .test_aiohttp import silent_monitor

# What a test of reconnecting waits in between.
AT_ONCE = Retry(delay=0.001, max_delay=0.01).delays


async def echo(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(message)


async def stop(server: Server) -> None:
    server.close()
    await server.wait_closed()


# -- one connection ----------------------------------------------------------------------------------------


async def test_messages(address: Address) -> None:
    async with serve(echo, address), connect(str(address)) as websocket:
        for message in ("hello", b"\x00\xff", "x" * 200_000, os.urandom(MIB // 2), ""):
            await websocket.send(message)
            assert await websocket.recv() == message
        assert await (await websocket.ping()) >= 0
        assert websocket.transport.get_extra_info("hv_peer") == address
        assert type(websocket.transport.get_extra_info("hv_local")) is type(address)
        assert websocket.remote_address == websocket.transport.get_extra_info("peername")
        assert websocket.request is not None
        assert (websocket.request.path, websocket.request.headers["Host"]) == ("/", "localhost")


async def test_it_is_awaited(address: Address) -> None:
    async with serve(echo, address):
        websocket = await connect(address)
        await websocket.send("hello")
        assert await websocket.recv() == "hello"
        await websocket.close(CloseCode.GOING_AWAY, "bye")
        assert (websocket.close_code, websocket.close_reason) == (CloseCode.GOING_AWAY, "bye")


async def test_options_of_websockets(address: Address) -> None:
    asked: list[Request] = []

    class Mine(ClientConnection):
        pass

    def note(connection: ServerConnection, request: Request) -> None:
        asked.append(request)

    async with (
        serve(echo, address, subprotocols=["chat"], process_request=note),
        connect(
            address,
            "ws://guest.example/room?id=1",
            subprotocols=["chat", "none"],
            additional_headers={"X-Colour": "red"},
            compression=None,
            create_connection=Mine,
        ) as websocket,
    ):
        assert type(websocket) is Mine
        assert websocket.subprotocol == "chat"
    (request,) = asked
    assert request.path == "/room?id=1"
    assert (request.headers["Host"], request.headers["X-Colour"]) == ("guest.example", "red")


async def test_no_proxy_is_asked(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ws_proxy", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serve(echo, address), connect(address, "ws://guest.example/") as websocket:
        await websocket.send("hello")
        assert await websocket.recv() == "hello"


# -- again and again ---------------------------------------------------------------------------------------


async def test_it_connects_again(address: Address) -> None:
    """Through restarts of the service, on another socket each time."""
    seen: list[tuple[socket.socket, ClientConnection]] = []
    server = await serve(echo, address)
    async for websocket in connect(address, reconnect_delays=AT_ONCE):
        sock = websocket.transport.get_extra_info("socket")
        assert all(sock is not other and before.close_code for other, before in seen)
        seen.append((sock, websocket))
        await websocket.send("hello")
        assert await websocket.recv() == "hello"
        if len(seen) == 4:
            await websocket.close()  # or the break does so, with 1011
            break
        if len(seen) == 1:
            continue  # the block was left, and the server is still there
        await stop(server)
        with pytest.raises(websockets.ConnectionClosedOK) as caught:
            await websocket.recv()
        assert caught.value.rcvd is not None and caught.value.rcvd.code == CloseCode.GOING_AWAY
        server = await serve(echo, address)
    assert [websocket.close_code for _, websocket in seen] == [1000, 1001, 1001, 1000]
    await stop(server)


async def test_it_waits_for_the_service(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="websockets.client")
    refused = asyncio.Event()

    def note(error: Exception) -> Exception | None:
        assert isinstance(error, HvConnectionRefused)
        refused.set()
        return process_exception(error)

    async def once() -> object:
        async for websocket in connect(address, reconnect_delays=AT_ONCE, process_exception=note):
            await websocket.send("hello")
            return await websocket.recv()
        raise AssertionError

    asking = asyncio.create_task(once())
    await refused.wait()
    async with serve(echo, address):
        assert await asking == "hello"
    assert "reconnecting in 0.0 seconds: aiohvsock.exceptions.HvConnectionRefused: [Errno" in caplog.text
    assert str(address) in caplog.text


async def test_it_follows_a_machine_that_moves(address: Address) -> None:
    """A callable is asked before each attempt, and what it cannot tell for now is no end."""
    source = Source(HvAddressError("no such machine"))
    there = asyncio.Event()

    def note(error: Exception) -> Exception | None:
        there.set()
        return process_exception(error)

    addresses = []
    elsewhere = another(address)
    async with serve(echo, [address, elsewhere]):

        async def start() -> None:
            await there.wait()
            source.where = address

        starting = asyncio.create_task(start())
        async for websocket in connect(source, reconnect_delays=AT_ONCE, process_exception=note):
            addresses.append(websocket.transport.get_extra_info("hv_peer"))
            source.where = elsewhere
            if len(addresses) == 2:
                break
        await starting
    assert addresses == [address, elsewhere]


async def test_it_goes_on_after_a_connection_is_lost(address: Address) -> None:
    """Without a goodbye, as when the machine is reset."""
    lost = 0
    async with serve(echo, address) as server:
        async for websocket in connect(address, reconnect_delays=AT_ONCE):
            if lost == 3:
                break
            for connection in server.connections:
                connection.transport.abort()
            with pytest.raises(websockets.ConnectionClosedError) as caught:
                await websocket.recv()
            assert caught.value.rcvd is None
            lost += 1


@pytest.mark.parametrize(
    "error",
    [
        HvPermissionError(13, "connect"),
        HvUnsupportedError("needs Python 3.12"),
        HvConnectError(24, "connect"),
        HvAddressError("7"),
        websockets.InvalidHandshake(),
    ],
)
async def test_what_ends_it(address: Address, error: Exception) -> None:
    assert process_exception(error) is error
    if isinstance(error, (HvConnectError, HvUnsupportedError)):  # as of the asking, it would be another
        with pytest.raises(type(error)) as caught:
            async for _ in connect(Source(error), reconnect_delays=AT_ONCE):
                raise AssertionError
        assert caught.value is error


def test_what_does_not_end_it() -> None:
    assert process_exception(HvConnectionRefused(104, "connect", transient=True)) is None
    assert process_exception(TimeoutError()) is None
    assert process_exception(ConnectionResetError()) is None


async def test_what_ends_it_can_be_told_otherwise(address: Address) -> None:
    with pytest.raises(HvConnectionRefused):
        async for _ in connect(address, process_exception=lambda error: error):
            raise AssertionError


# -- redirects ---------------------------------------------------------------------------------------------


def to(place: str) -> Callable[[ServerConnection, Request], Response | None]:
    def process(connection: ServerConnection, request: Request) -> Response | None:
        if request.path != "/":
            return None
        answer = connection.respond(http.HTTPStatus.FOUND, "")
        answer.headers["Location"] = place
        return answer

    return process


async def test_a_redirect(address: Address) -> None:
    """To another path; the socket is another one, too."""
    async with serve(echo, address, process_request=to("/new")), connect(address) as websocket:
        assert websocket.request is not None and websocket.request.path == "/new"
        await websocket.send("hello")
        assert await websocket.recv() == "hello"


@pytest.mark.parametrize("place", ["ws://elsewhere.example/", "wss://localhost/"])
async def test_a_redirect_to_elsewhere(address: Address, place: str) -> None:
    """Which this address cannot know."""
    async with serve(echo, address, process_request=to(place)):
        with pytest.raises(ValueError, match="cannot follow cross-origin redirect"):
            await connect(address)


# -- what goes wrong ---------------------------------------------------------------------------------------


async def test_nobody_listens(address: Address) -> None:
    with pytest.raises(ConnectionRefusedError) as caught:
        await connect(address)
    assert isinstance(caught.value, HvConnectionRefused)
    assert caught.value.remote == address


async def test_retry(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    """It goes on within the opening, and for as long as that may last."""
    caplog.set_level(logging.DEBUG, logger="aiohvsock")
    asking = asyncio.ensure_future(connect(address, retry=Retry(delay=0.001), open_timeout=30).connect())
    while "trying again" not in caplog.text:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    async with serve(echo, address), await asking as websocket:
        await websocket.send("hello")
        assert await websocket.recv() == "hello"
    with pytest.raises(TimeoutError, match="timed out during opening handshake"):
        await connect(address, retry=Retry(delay=0.001), open_timeout=0.05)


@pytest.mark.parametrize(
    "options", [{"open_timeout": 0.05}, {"connect_timeout": 0.05}, {"retry": Retry(), "open_timeout": 0.05}]
)
async def test_no_answer(directory: str, options: dict[str, Any]) -> None:
    with (
        silent_monitor(directory) as address,
        pytest.raises(TimeoutError, match="timed out during opening handshake") as caught,
    ):
        await connect(address, **options)
    if "connect_timeout" in options:
        assert isinstance(caught.value.__cause__, HvTimeout)
        assert str(address) in str(caught.value.__cause__)


async def test_a_server_that_says_nothing(address: Address) -> None:
    async with await create_hv_server(Recorder, address) as server:
        with pytest.raises(TimeoutError):
            await connect(address, open_timeout=0.05)
        server.abort_clients()


async def test_a_server_that_says_something_else(address: Address) -> None:
    class Other(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            assert self.transport is not None
            self.transport.write(b"SSH-2.0-OpenSSH_9.2\r\n")

    async with await create_hv_server(Other, address):
        with pytest.raises(websockets.InvalidMessage):
            await connect(address)
    async with await aiohvsock.serve(AssertionError, address):  # type: ignore[arg-type]
        with pytest.raises(websockets.InvalidMessage):
            await connect(address)


async def test_a_server_that_refuses(address: Address) -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        return connection.respond(http.HTTPStatus.FORBIDDEN, "no")

    async with serve(echo, address, process_request=refuse):
        with pytest.raises(websockets.InvalidStatus) as caught:
            await connect(address)
    assert (caught.value.response.status_code, caught.value.response.body) == (403, b"no")


async def test_a_peer_that_hangs(address: Address) -> None:
    """websockets' own pings find out, on these sockets as on others."""

    def pause(websocket: ServerConnection) -> Coroutine[Any, Any, None]:
        websocket.transport.pause_reading()
        return websocket.wait_closed()

    async with serve(pause, address) as server:
        websocket = await connect(address, ping_interval=0.05, ping_timeout=0.05, close_timeout=0.05)
        with pytest.raises(websockets.ConnectionClosedError, match="keepalive ping timeout"):
            await websocket.recv()
        for connection in server.connections:
            connection.transport.abort()


async def test_addresses_are_checked() -> None:
    with pytest.raises(HvAddressError, match="no scheme"):
        connect("vm:80")
    with pytest.raises(HvAddressError, match="counterpart"):
        await connect(no_counterpart(1))
    with pytest.raises(websockets.InvalidURI):
        connect("vsock://3:80", "http://vm/")


@pytest.mark.parametrize("option", ["sock", "proxy", "host", "unix", "colour"])
def test_unknown_options(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        connect("vsock://3:80", **{option: cast("Any", None)})


@pytest.mark.parametrize("tls", [False, True])
async def test_cancelled_at_any_moment(address: Address, tls: bool) -> None:
    server, trusting, _ = contexts()
    uri = f"{'wss' if tls else 'ws'}://guest.example/"
    async with serve(echo, address, ssl=server if tls else None):

        async def once() -> None:
            async with connect(address, uri, ssl=trusting if tls else None) as websocket:
                await websocket.send("hello")
                await websocket.recv()

        await once()
        before = open_sockets()
        cancelled = 0
        for turns in range(40):
            pending = asyncio.create_task(once())
            for _ in range(turns):
                await asyncio.sleep(0)
            pending.cancel()
            await asyncio.wait([pending])
            cancelled += pending.cancelled()
        assert cancelled
        while not open_sockets() <= before:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# -- TLS ---------------------------------------------------------------------------------------------------


async def test_tls(address: Address) -> None:
    server, trusting, _ = contexts()
    peers = []

    async def note(websocket: ServerConnection) -> None:
        peers.append(websocket.transport.get_extra_info("hv_peer"))
        await echo(websocket)

    async with serve(note, address, ssl=server):
        for uri, name in (("wss://guest.example/", None), (None, "guest.example")):
            async with connect(address, uri, ssl=trusting, server_hostname=name) as websocket:
                await websocket.send("x" * 200_000)
                assert await websocket.recv() == "x" * 200_000
                assert websocket.transport.get_extra_info("hv_peer") == address
                assert websocket.transport.get_extra_info("ssl_object").version() == "TLSv1.3"
        lenient = ssl.create_default_context()
        lenient.check_hostname, lenient.verify_mode = False, ssl.CERT_NONE
        async with connect(address, ssl=lenient, server_hostname=""):
            pass
        # Another name, an authority that is not known, and none of these asked for at all.
        for uri, context in (("wss://host.example/", trusting), ("wss://guest.example/", None)):
            with pytest.raises(ssl.SSLCertVerificationError):
                await connect(address, uri, ssl=context)
        with pytest.raises(websockets.InvalidMessage):
            await connect(address)
    assert {type(peer) for peer in peers} == {type(address)}


async def test_a_server_that_speaks_no_tls(address: Address) -> None:
    _, trusting, _ = contexts()
    async with serve(echo, address):
        with pytest.raises(OSError, match="TLS|SSL"):
            await connect(address, ssl=trusting)


async def test_options_of_tls_without_it(address: Address) -> None:
    with pytest.raises(ValueError, match="ssl argument is incompatible with a ws:// URI"):
        connect(address, "ws://guest.example/", ssl=True)
    with pytest.raises(ValueError, match="only meaningful with ssl"):
        await connect(address, server_hostname="guest.example")
    with pytest.raises(ValueError, match="only meaningful with ssl"):
        await connect(address, ssl_handshake_timeout=1.0)
