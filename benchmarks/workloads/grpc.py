"""gRPC messages with grpclib: one call that streams both ways, of plain bytes, so that no code is generated."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

import grpclib.client
import grpclib.const
import grpclib.exceptions
import grpclib.server
from grpclib.encoding.base import CodecBase

from .ends import ANSWER, Run, Serving, pack

__all__ = ["Speaker"]

ClientStream: TypeAlias = grpclib.client.Stream[bytes, bytes]
ServerStream: TypeAlias = grpclib.server.Stream[bytes, bytes]

_METHOD = "/benchmark/messages"
_CARDINALITY = grpclib.const.Cardinality.STREAM_STREAM


class _Bytes(CodecBase):
    __content_subtype__ = "bytes"

    def encode(self, message: bytes, message_type: object) -> bytes:
        return message

    def decode(self, data: bytes, message_type: object) -> bytes:
        return data


class _Service:
    def __init__(self, handler: Callable[[ServerStream], Awaitable[None]]) -> None:
        self._handler = handler

    def __mapping__(self) -> Mapping[str, grpclib.const.Handler]:
        return {_METHOD: grpclib.const.Handler(self._handler, _CARDINALITY, bytes, bytes)}


async def _serve(path: str, handler: Callable[[ServerStream], Awaitable[None]]) -> None:
    serving = Serving()

    async def handle(stream: ServerStream) -> None:
        try:
            await handler(stream)
        except grpclib.exceptions.StreamTerminatedError:
            pass
        except Exception as error:
            serving(error)
            raise

    server = grpclib.server.Server([_Service(handle)], codec=_Bytes())
    await server.start(path=path)
    await serving.wait()
    server.close()


async def _call(path: str) -> ClientStream:
    """Begin the one call, which goes on until the process ends."""
    channel = grpclib.client.Channel(path=path, codec=_Bytes())
    stream = channel.request(_METHOD, _CARDINALITY, bytes, bytes)
    return await stream.__aenter__()


async def _echo(stream: ServerStream) -> None:
    async for message in stream:
        await stream.send_message(message)


async def _count(stream: ServerStream) -> None:
    left = 0
    async for message in stream:
        if left:
            left -= 1
            if not left:
                await stream.send_message(ANSWER)
        else:
            left = int.from_bytes(message, "big")


class Speaker:
    async def serve_echo(self, path: str) -> None:
        await _serve(path, _echo)

    async def serve_count(self, path: str) -> None:
        await _serve(path, _count)

    async def pinger(self, path: str, size: int) -> Run:
        stream = await _call(path)
        payload = bytes(size)

        async def run(count: int) -> None:
            for _ in range(count):
                await stream.send_message(payload)
                await stream.recv_message()

        return run

    async def sender(self, path: str, size: int) -> Run:
        stream = await _call(path)
        payload = bytes(size)

        async def run(count: int) -> None:
            await stream.send_message(pack(count))
            for _ in range(count):
                await stream.send_message(payload)
            await stream.recv_message()

        return run
