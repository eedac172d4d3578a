"""The half of a message connection that sends: it gathers small messages, and waits while the peer is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TypeVar

from ..addresses import Address
from ..exceptions import ConnectionLost
from ..framing import Buffer
from ..protocol import MessageProtocol
from .core import MessageCore, OnMessage

__all__ = ["SendingHalf"]

T = TypeVar("T")


class SendingHalf(MessageCore[T], asyncio.Protocol):
    """What :class:`MessageConnection` sends with; it brings the receiving half and the end."""

    __slots__ = ("_lost", "_room", "_turn", "local_address", "peer_address")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, wire: MessageProtocol[T], on_message: OnMessage[T] | None
    ) -> None:
        super().__init__(loop, wire, on_message)
        self.local_address: Address | None = None
        """Our own address, as far as it is known."""
        self.peer_address: Address | None = None
        """The peer's address; None over a ``sock=`` of a foreign family."""
        self._lost = False  # the transport is gone
        self._room: asyncio.Future[None] | None = None  # somebody waits until it is not paused
        self._turn: asyncio.Lock | None = None  # who waits in send()

    def __str__(self) -> str:
        return f"{self.local_address} to {self.peer_address}"

    async def _send_in_turn(self, message: T | Buffer) -> None:
        # Each in turn: or the task that was first in line would be so again and again.
        if self._turn is None:
            self._turn = asyncio.Lock()
        async with self._turn:
            while self._write_paused:
                await self._wait_for_room()
            self.send_nowait(message)

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
