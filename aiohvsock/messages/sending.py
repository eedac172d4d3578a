"""The half of a message connection that sends: it gathers small messages, and waits while the peer is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar, cast

from ..addresses import Address
from ..exceptions import ConnectionClosed, ConnectionLost, LocalProtocolError
from ..framing import Buffer
from ..protocol import Frame, MessageProtocol

__all__ = ["SendingHalf"]

T = TypeVar("T")

# Bytes of messages gathered before they are written.
_GATHER = 64 * 1024

# Bytes waiting to be sent beyond which send_nowait() refuses.
_SEND_LIMIT = 2**20


class SendingHalf(asyncio.Protocol, Generic[T]):
    """What :class:`MessageConnection` sends with; it brings the receiving half and the end."""

    __slots__ = (
        "_direct",
        "_end",
        "_flush_scheduled",
        "_gathered",
        "_gathered_bytes",
        "_loop",
        "_lost",
        "_room",
        "_sent",
        "_sent_bytes",
        "_transport",
        "_turn",
        "_wire",
        "_write_paused",
        "local_address",
        "peer_address",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, wire: MessageProtocol[T]) -> None:
        self._loop = loop
        self._wire = wire
        self._transport: asyncio.Transport | None = None
        self.local_address: Address | None = None
        """Our own address, as far as it is known."""
        self.peer_address: Address | None = None
        """The peer's address; None over a ``sock=`` of a foreign family."""
        self._end: ConnectionClosed | None = None  # why nothing more will come, and nothing can be sent
        self._lost = False  # the transport is gone

        # The first message after a read is written at once, those after it are gathered.
        self._direct = True
        self._gathered: list[bytes] | None = None
        self._gathered_bytes = 0
        self._flush_scheduled = False
        self._sent = 0
        self._sent_bytes = 0
        self._write_paused = False
        self._room: asyncio.Future[None] | None = None  # somebody waits until it is not
        self._turn: asyncio.Lock | None = None  # who waits in send()

    def __str__(self) -> str:
        return f"{self.local_address} to {self.peer_address}"

    @property
    def transport(self) -> asyncio.Transport:
        """The transport below. It is the connection's: look, but do not write."""
        assert self._transport is not None
        return self._transport

    async def send(self, message: T | Buffer) -> None:
        """Send one message; wait first while the peer is slow.

        If it is cancelled the message was not sent. Success says that it is on its way, not that the peer has it.

        Raises:
            FrameTooLarge: the peer does not take a message that long; the connection goes on.
            ConnectionClosedOK: the connection was closed.
            ConnectionLost: the connection is gone.
            TypeError: it is no message.
        """
        if not self._write_paused:
            self.send_nowait(message)
            return
        # Each in turn: or the task that was first in line would be so again and again.
        if self._turn is None:
            self._turn = asyncio.Lock()
        async with self._turn:
            while self._write_paused:
                await self._wait_for_room()
            self.send_nowait(message)

    def send_nowait(self, message: T | Buffer) -> None:
        """Send one message without ever waiting, as a callback must.

        The first message after something was received goes straight out; those that follow in the same turn of
        the loop leave together.

        Raises:
            LocalProtocolError: 1 MiB is waiting already for a peer that is slow; the message was not sent.
            FrameTooLarge: as :meth:`send`.
            ConnectionClosed: as :meth:`send`.
        """
        try:
            frame = self._wire.frame(message)  # type: ignore[arg-type]
        except LocalProtocolError:
            self._raise_end()
            raise
        gathered = self._gathered
        if type(frame) is not bytes:
            self._check_room()
            self._flush()
            self._sent += 1
            self._write(*frame)
        elif gathered is not None:
            gathered.append(frame)
            self._gathered_bytes += len(frame)
            if self._gathered_bytes >= _GATHER:
                self._flush()
        elif self._direct:
            self._direct = False
            self._sent += 1
            self._sent_bytes += len(frame)
            self._transport.write(frame)  # type: ignore[union-attr]
        else:
            self._check_room()
            self._gathered = [frame]
            self._gathered_bytes = len(frame)
            if not self._flush_scheduled:
                self._flush_scheduled = True
                self._loop.call_soon(self._flush_soon)

    def _check_room(self) -> None:
        if self._write_paused and (waiting := self.transport.get_write_buffer_size()) >= _SEND_LIMIT:
            raise LocalProtocolError(
                f"{self!r}: {waiting} bytes wait to be sent to a peer that reads slowly; await send() instead"
            )

    def _flush_soon(self) -> None:
        self._flush_scheduled = False
        self._flush()
        self._direct = not self._write_paused

    def _flush(self) -> None:
        frames, self._gathered = self._gathered, None
        if frames is not None:
            self._sent += len(frames)
            self._write(b"".join(frames))

    def _write(self, data: Buffer, *pieces: Buffer) -> None:
        if type(data) is bytes and not pieces:
            self._sent_bytes += len(data)
            self.transport.write(data)
        else:
            # Of what the user gave, len() may count items.
            self._sent_bytes += sum(memoryview(piece).nbytes for piece in (data, *pieces))
            self.transport.writelines((data, *pieces))

    async def send_many(self, messages: Iterable[T | Buffer]) -> None:
        """Send messages in turn, gathered into large writes; wait while the peer is slow.

        If it is cancelled, or a message cannot be sent, those before were sent; an iterator stands behind the last
        one that was taken from it.

        Raises:
            FrameTooLarge: as :meth:`send`; likewise the others.
        """
        iterator = iter(messages)
        done = False
        while not done:
            while self._write_paused:
                await self._wait_for_room()
            done = self._send_some(iterator)
            if not done:
                await asyncio.sleep(0)  # there is other work than ours, even if the peer never makes us wait

    def _send_some(self, messages: Iterator[T | Buffer]) -> bool:
        """Send as many as make a large write; returns whether there are no more."""
        self._flush()
        frames: list[Frame] = []
        try:
            return self._wire.add_frames(frames, cast("Iterator[T]", messages), _GATHER)
        except LocalProtocolError:
            self._raise_end()
            raise
        finally:
            self._sent += len(frames)
            if frames:
                in_pieces = () if isinstance(frames[-1], bytes) else frames.pop()
                self._write(b"".join(cast("list[bytes]", frames)), *in_pieces)

    async def _wait_for_room(self) -> None:
        self._raise_end()
        if self._room is None:
            self._room = self._loop.create_future()
        # Shielded, since others may wait for it too.
        await asyncio.shield(self._room)
        self._raise_end()

    def _raise_end(self) -> None:
        if self._end is not None:
            # Or its traceback would grow with each time it is raised.
            raise self._end.with_traceback(None)
        error = self.transport.get_extra_info("hv_write_error")
        if error is not None:
            assert isinstance(error, Exception)
            raise ConnectionLost(f"{self} is lost: {error}") from error

    # -- asyncio.BaseProtocol --------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        self._write_paused = True
        self._direct = False

    def resume_writing(self) -> None:
        self._write_paused = False
        self._direct = not self._flush_scheduled
        self._write_control()
        self._wake_senders()

    def writing_failed(self, error: OSError) -> None:
        """Hear from our own transport that nothing can be sent any more; what has come is still to be read."""
        self._wire.stop_sending()
        self._wake_senders()

    def _write_control(self) -> None:
        data = self._wire.data_to_send()
        if data:
            self._flush()
            self.transport.write(data)

    def _wake_senders(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.set_result(None)
