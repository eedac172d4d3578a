"""The server, against websockets' own client on the same sockets, and peers that misbehave."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.server import Server, ServerConnection, broadcast
from websockets.frames import CloseCode
from websockets.version import version

from aiohvsock import (
    Address,
    HvAddressError,
    HvConnectError,
    HvServer,
    HypervAddress,
    VsockAddress,
    create_hv_connection,
    open_hv_connection,
)
from aiohvsock.contrib.websockets import connect, serve

from ..helpers import Recorder, no_counterpart
from ..test_listening import another
from .aiohttp_service import MIB, contexts, machine, until

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: vm\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def echo(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(message)


class Handler:
    """Keeps a connection open, and notes how it ended."""

    def __init__(self) -> None:
        self.connections: list[ServerConnection] = []
        self.ended: asyncio.Queue[websockets.ConnectionClosed] = asyncio.Queue()

    async def __call__(self, websocket: ServerConnection) -> None:
        self.connections.append(websocket)
        try:
            while True:
                await websocket.send(await websocket.recv())
        except websockets.ConnectionClosed as error:
            self.ended.put_nowait(error)


def listener(server: Server) -> HvServer:
    assert isinstance(server.server, HvServer)
    return server.server


# -- who asks ----------------------------------------------------------------------------------------------


async def test_who_asks(address: Address) -> None:
    handler = Handler()
    async with serve(handler, address), connect(address) as websocket:
        await websocket.send("hello")
        assert await websocket.recv() == "hello"
        (connection,) = handler.connections
        peer = connection.transport.get_extra_info("hv_peer")
        assert (type(peer), machine(peer)) == (type(address), machine(address))
        assert machine(connection.transport.get_extra_info("hv_local")) == machine(address)
        match peer:
            case VsockAddress():
                assert connection.remote_address == (peer.cid, peer.port)
            case HypervAddress():
                assert connection.remote_address == (str(peer.vm_id), str(peer.service_id))
            case _:
                assert connection.remote_address == ""  # a Unix socket's that is a client's has none


async def test_who_is_not_allowed(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    handler = Handler()
    asked: list[Address] = []

    def nobody(peer: Address) -> bool:
        asked.append(peer)
        return False

    async with serve(handler, address, allow=nobody):
        with pytest.raises(websockets.InvalidMessage):
            await connect(address)
    assert {machine(peer) for peer in asked} == {machine(address)}
    assert handler.connections == []
    assert "not allowed" in caplog.text


async def test_who_is_allowed(address: Address) -> None:
    name: str | int = machine(address)
    if isinstance(address, VsockAddress):
        name = int(name)
    async with serve(echo, address, allow=[name]), connect(address) as websocket:
        await websocket.send("hello")
        assert await websocket.recv() == "hello"


async def test_max_connections(address: Address) -> None:
    handler = Handler()
    async with serve(handler, address, max_connections=1):
        async with connect(address) as first:
            waiting = asyncio.create_task(connect(address).connect())
            for _ in range(10):  # there would have been time for it
                await first.send("hello")
                assert await first.recv() == "hello"
            assert len(handler.connections) == 1
        async with await waiting as second:
            await second.send("hello")
            assert await second.recv() == "hello"


async def test_broadcast(address: Address) -> None:
    async with (
        serve(echo, address) as server,
        connect(address) as one,
        connect(address) as two,
    ):
        await until(lambda: len(server.connections) == 2)
        broadcast(server.connections, "news")
        assert (await one.recv(), await two.recv()) == ("news", "news")


# -- the listener ------------------------------------------------------------------------------------------


async def test_where_it_listens(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="websockets.server")
    elsewhere = another(address)
    async with serve(echo, (each for each in (str(address), no_counterpart(1), elsewhere))) as server:
        assert listener(server).addresses == (address, elsewhere)
        assert server.sockets == ()
        assert server.is_serving()
        assert server.get_loop() is asyncio.get_running_loop()
        for each in (address, elsewhere):
            async with connect(each) as websocket:
                await websocket.send("hello")
                assert await websocket.recv() == "hello"
            assert f"server listening on {each}" in caplog.messages
    assert not server.is_serving()


async def test_it_starts_later(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="websockets.server")
    async with serve(echo, address, start_serving=False) as server:
        with pytest.raises(ConnectionRefusedError):
            await connect(address)
        assert "listening" not in caplog.text
        await server.start_serving()
        async with connect(address):
            pass


async def test_where_it_cannot_listen(address: Address) -> None:
    async with serve(echo, address):
        with pytest.raises(HvConnectError, match="listen"):
            await serve(echo, address)
    with pytest.raises(HvAddressError, match="no scheme"):
        await serve(echo, "vm:80")


@pytest.mark.parametrize("option", ["sock", "host", "port", "unix", "reuse_port", "colour"])
async def test_unknown_options(option: str) -> None:
    with pytest.raises(TypeError, match=option):
        serve(echo, "vsock://any:80", **{option: cast("Any", None)})


async def test_a_websockets_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no public attribute has is missed at once, and not at the first connection."""
    changed = SimpleNamespace(create_server=lambda: None)
    monkeypatch.setattr("websockets.asyncio.server.serve", lambda *_, **__: changed)
    with pytest.raises(RuntimeError, match=f"websockets {version} is not known"):
        serve(echo, "vsock://any:80")


# -- the end -----------------------------------------------------------------------------------------------


async def test_close(address: Address) -> None:
    """It says goodbye, and waits until the handlers are done."""
    handler = Handler()
    server = await serve(handler, address)
    websocket = await connect(address)
    await until(lambda: server.connections)
    server.close(reason="maintenance")
    with pytest.raises(websockets.ConnectionClosedOK) as caught:
        await websocket.recv()
    assert caught.value.rcvd is not None
    assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (CloseCode.GOING_AWAY, "maintenance")
    await server.wait_closed()
    assert (await handler.ended.get()).rcvd_then_sent is False
    with pytest.raises(ConnectionRefusedError):
        await connect(address)


async def test_close_and_let_the_clients_go_on(address: Address) -> None:
    server = await serve(echo, address)
    async with connect(address) as websocket:
        await websocket.send("one")
        assert await websocket.recv() == "one"
        server.close(close_connections=False)
        closing = asyncio.create_task(server.wait_closed())
        await websocket.send("two")
        assert await websocket.recv() == "two"
        assert not closing.done()
    await closing


async def test_serve_forever(address: Address) -> None:
    server = await serve(echo, address)
    serving = asyncio.create_task(server.serve_forever())
    websocket = await connect(address)
    await until(lambda: server.connections)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert websocket.close_code == CloseCode.GOING_AWAY


async def test_a_handler_that_fails(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(websocket: ServerConnection) -> None:
        raise RuntimeError("no")

    async with serve(fail, address), connect(address) as websocket:
        with pytest.raises(websockets.ConnectionClosedError) as caught:
            await websocket.recv()
        assert caught.value.rcvd is not None and caught.value.rcvd.code == CloseCode.INTERNAL_ERROR
    assert "connection handler failed" in caplog.text


# -- peers that misbehave ----------------------------------------------------------------------------------


async def test_a_peer_that_dies(address: Address) -> None:
    """In the midst of a message; and the others do not notice."""
    handler = Handler()
    async with serve(handler, address), connect(address) as other:
        reader, writer = await open_hv_connection(address)
        writer.write(UPGRADE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        writer.write(b"\x82\xff\x00\x00\x00\x00\x00\x01\x00\x00" + bytes(1000))
        writer.transport.abort()
        error = await handler.ended.get()
        assert (error.rcvd, error.sent) == (None, None)
        await other.send("hello")
        assert await other.recv() == "hello"


async def test_a_peer_that_breaks_the_rules(address: Address) -> None:
    handler = Handler()
    async with serve(handler, address):
        transport, protocol = await create_hv_connection(Recorder, address)
        transport.write(UPGRADE)
        await protocol.until(lambda: b"\r\n\r\n" in protocol.data)
        protocol.data.clear()
        transport.write(b"\xff\xff")
        await protocol.received(4)
        assert (protocol.data[0], int.from_bytes(protocol.data[2:4])) == (0x88, CloseCode.PROTOCOL_ERROR)
        error = await handler.ended.get()
        assert error.sent is not None and error.sent.code == CloseCode.PROTOCOL_ERROR
        transport.abort()


async def test_a_peer_that_speaks_something_else(address: Address) -> None:
    handler = Handler()
    async with serve(handler, address):
        transport, protocol = await create_hv_connection(Recorder, address)
        transport.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await protocol.lost
        assert protocol.data == b""
    assert handler.connections == []


@pytest.mark.parametrize("tls", [False, True])
async def test_a_peer_that_says_nothing(address: Address, tls: bool) -> None:
    """Has ``open_timeout``, of which TLS' handshake is part."""
    context = contexts()[0] if tls else None
    async with serve(echo, address, open_timeout=0.05, ssl=context):
        _, protocol = await create_hv_connection(Recorder, address)
        await protocol.lost


async def test_a_peer_that_says_nothing_has_as_long_as_told(address: Address) -> None:
    async with serve(echo, address, open_timeout=60, ssl=contexts()[0], ssl_handshake_timeout=0.05):
        _, protocol = await create_hv_connection(Recorder, address)
        await protocol.lost


async def test_a_slow_reader(address: Address) -> None:
    """Makes the sender wait, and loses nothing."""
    count = 64
    sent = 0
    sending: asyncio.Future[ServerConnection] = asyncio.get_running_loop().create_future()

    async def pour(websocket: ServerConnection) -> None:
        nonlocal sent
        sending.set_result(websocket)
        for number in range(count):
            await websocket.send(bytes([number]) * (MIB // 2))
            sent += 1

    async with serve(pour, address, compression=None), connect(address, compression=None) as websocket:
        connection = await sending
        # Its queue is full, and so is what lies between; it is waited for, all the same.
        await until(lambda: connection.paused and websocket.recv_messages.paused)
        assert sent < count
        assert connection.transport.get_write_buffer_size() < 2 * MIB
        for number in range(count):
            assert await websocket.recv() == bytes([number]) * (MIB // 2)
    assert sent == count


async def test_tls_ends_with_a_goodbye(address: Address) -> None:
    server, trusting, _ = contexts()
    handler = Handler()
    async with serve(handler, address, ssl=server) as serving:
        websocket: ClientConnection = await connect(address, "wss://guest.example/", ssl=trusting)
        await until(lambda: serving.connections)
        serving.close()
        with pytest.raises(websockets.ConnectionClosedOK):
            await websocket.recv()
    assert websocket.close_code == CloseCode.GOING_AWAY
