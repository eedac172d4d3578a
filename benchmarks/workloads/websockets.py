"""WebSocket messages with picows, whose transports are those of aiofastnet on either loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import picows

from .ends import ANSWER, Run, Serving, pack
from .links import unix_connect

__all__ = ["Speaker"]

BINARY = picows.WSMsgType.BINARY


class _UnixSocket(socket.socket):
    """What picows takes for TCP: it sets, and reads for its log, TCP_NODELAY and TCP_QUICKACK on whatever it has.

    When that fails, as it does on a Unix socket, the process crashes. Here these options do nothing. They matter
    only while a connection is made; what is measured is picows's own.
    """

    def setsockopt(self, level: int, *option: int) -> None:  # type: ignore[override]
        if level != socket.IPPROTO_TCP:
            super().setsockopt(level, *option)

    def getsockopt(self, level: int, *option: int) -> int:  # type: ignore[override]
        return 0 if level == socket.IPPROTO_TCP else super().getsockopt(level, *option)

    def accept(self) -> tuple[socket.socket, object]:
        accepted, address = super().accept()
        return _UnixSocket(fileno=accepted.detach()), address


class Echo(picows.WSListener):
    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type == BINARY:
            transport.send(BINARY, frame.get_payload_as_bytes())


class Count(picows.WSListener):
    def __init__(self) -> None:
        self._left = 0

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        # The others hand over bytes too.
        message = frame.get_payload_as_bytes()
        if self._left:
            self._left -= 1
            if not self._left:
                transport.send(BINARY, ANSWER)
        else:
            self._left = int.from_bytes(message, "big")


class Client(picows.WSListener):
    _transport: picows.WSTransport
    _done: asyncio.Future[None]

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._left = 0

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self._transport = transport

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionResetError("the server has gone"))

    async def run(self, count: int) -> None:
        self._left = count
        self._done = asyncio.get_running_loop().create_future()
        self.start()
        await self._done

    def start(self) -> None:
        raise NotImplementedError


class Pinger(Client):
    def start(self) -> None:
        self._transport.send(BINARY, self._payload)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        frame.get_payload_as_bytes()
        self._left -= 1
        if self._left:
            transport.send(BINARY, self._payload)
        else:
            self._done.set_result(None)


class Sender(Client):
    _paused = False

    def start(self) -> None:
        self._transport.send(BINARY, pack(self._left))
        self._send_more()

    def _send_more(self) -> None:
        while self._left and not self._paused:
            self._left -= 1
            self._transport.send(BINARY, self._payload)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send_more()

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        self._done.set_result(None)


async def _serve(path: str, listener: Callable[[], picows.WSListener]) -> None:
    serving = Serving()
    sock = _UnixSocket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    server = await picows.ws_create_server(lambda _: listener(), sock=sock)
    await serving.wait()
    server.close()


async def _connect(path: str, client: Client) -> Run:
    sock = _UnixSocket(socket.AF_UNIX, socket.SOCK_STREAM)
    await unix_connect(sock, path)
    await picows.ws_connect(lambda: client, "ws://localhost/", socket_factory=lambda _: sock)
    return client.run


class Speaker:
    async def serve_echo(self, path: str) -> None:
        await _serve(path, Echo)

    async def serve_count(self, path: str) -> None:
        await _serve(path, Count)

    async def pinger(self, path: str, size: int) -> Run:
        return await _connect(path, Pinger(bytes(size)))

    async def sender(self, path: str, size: int) -> Run:
        return await _connect(path, Sender(bytes(size)))
