"""The half of the transport that writes: it queues, gathers, and tells the protocol when to wait."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterable, Sequence
from typing import Any

from .._log import logger
from ..platforms import Names
from .queue import PIECES, SMALL_WRITE, SendQueue

__all__ = ["WOULD_BLOCK", "WritingHalf"]

_HIGH_WATER = 64 * 1024

# Of these len() is the number of bytes.
_BYTES = (bytes, bytearray)

# Seconds between two tries to write while nothing is read.
_STUCK_RETRY = 2.0

WOULD_BLOCK = (BlockingIOError, InterruptedError)


if hasattr(socket.socket, "sendmsg"):

    def _send_pieces(sock: socket.socket, pieces: Sequence[Any]) -> int:
        return sock.sendmsg(pieces)

else:  # Windows

    def _send_pieces(sock: socket.socket, pieces: Sequence[Any]) -> int:
        return sock.send(b"".join(pieces) if len(pieces) > 1 else pieces[0])


class WritingHalf(asyncio.Transport):
    """What :class:`SelectorTransport` writes with; it brings the reading half and the end."""

    _protocol: Any

    __slots__ = (
        "__weakref__",
        "_broken",
        "_closing",
        "_direct",
        "_dropped",
        "_eof",
        "_fd",
        "_finishing",
        "_high",
        "_loop",
        "_low",
        "_names",
        "_protocol",
        "_protocol_paused",
        "_queue",
        "_reading",
        "_sock",
        "_stuck",
        "_writing",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket, names: Names) -> None:
        self._names = names
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._fd = sock.fileno()
        self._queue = SendQueue()
        self._high = _HIGH_WATER
        self._low = _HIGH_WATER // 4
        self._protocol_paused = False
        self._direct = True  # write() may go straight to the socket: nothing queued, not ending
        self._dropped = 0  # writes thrown away
        self._stuck = False  # a timer of _watch_stuck() is running
        self._writing = False  # registered with the loop for what is queued
        self._reading = False  # registered with the loop for what comes
        self._eof = False  # write_eof() was called
        self._broken: OSError | None = None  # the error that ended writing
        self._closing = False  # close() or abort() was called, or the connection has failed
        self._finishing = False  # connection_lost() is scheduled

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        # Not a dictionary, of which each connection would have its own.
        match name:
            case "socket":
                return self._sock if self._sock is not None else default
            case "sockname" | "peername":
                return getattr(self._names, name)
            case "hv_local":
                return self._names.local
            case "hv_peer":
                return self._names.peer
            case "hv_write_error" if self._broken is not None:
                return self._broken
        return default

    # What the whole transport does, and this half asks for:

    def _force_close(self, error: BaseException | None) -> None:
        """End the connection; ``connection_lost(error)`` follows."""
        raise NotImplementedError  # pragma: no cover

    def _writing_broke(self) -> None:
        """Writing is over, :attr:`_broken` says why: deliver what has come, then end."""
        raise NotImplementedError  # pragma: no cover

    # -- writing -------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._direct:
            self._write_later((data,))
            return
        try:
            sent = self._sock.send(data)  # type: ignore[union-attr]
        except WOULD_BLOCK:
            sent = 0
        except OSError as error:
            self._write_failed(error)
            return
        # len() counts the items of a memoryview or array, not its bytes.
        if sent != len(data) or type(data) not in _BYTES:
            self._write_rest(data, sent)

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        pieces = list(list_of_data)
        if not self._direct:
            self._write_later(pieces)
            return
        # Also finds what is no buffer before any of it is sent.
        sizes = [memoryview(piece).nbytes for piece in pieces]
        if sum(sizes) < SMALL_WRITE:
            self.write(b"".join(pieces))
            return
        try:
            sent = _send_pieces(self._sock, pieces[:PIECES])  # type: ignore[arg-type]
        except WOULD_BLOCK:
            sent = 0
        except OSError as error:
            self._write_failed(error)
            return
        for piece, size in zip(pieces, sizes, strict=True):
            self._queue.add(piece, min(sent, size))
            sent -= min(sent, size)
        self._wait_to_write()

    def _write_later(self, pieces: Iterable[bytes | bytearray | memoryview[Any]]) -> None:
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._closing or self._broken is not None:
            self._dropped += 1
            if self._dropped == 5:  # asyncio's own threshold: a program that does not look at the errors
                logger.warning("%r: writing to a closed connection", self)
            return
        for view in [memoryview(piece) for piece in pieces]:  # all or nothing of what is no buffer
            self._queue.add(view)
        self._check_high_water()

    def _write_rest(self, data: bytes | bytearray | memoryview[Any], sent: int) -> None:
        """Leave to the loop what was not sent of this."""
        self._queue.add(data, sent)
        self._wait_to_write()

    def _wait_to_write(self) -> None:
        """Leave what is queued to the loop."""
        if self._queue.size:
            self._direct = False
            if not self._writing:
                self._writing = True
                self._start_writing()
            self._check_high_water()

    def _start_writing(self) -> None:
        """Have the loop send what is queued."""
        self._loop.add_writer(self._fd, self._on_writable)
        self._watch_stuck()

    def _watch_stuck(self) -> None:
        """Try a blocked write again from time to time while nothing is read.

        A peer that has gone makes an AF_VSOCK socket writable only when what it sent has been read
        (af_vsock.c, vsock_poll()); send() says EPIPE at once.
        """
        if self._writing and not self._reading and not self._stuck:
            self._stuck = True
            self._loop.call_later(_STUCK_RETRY, self._retry_stuck)

    def _retry_stuck(self) -> None:
        self._stuck = False
        if self._writing and not self._reading:
            self._on_writable()
            self._watch_stuck()

    def _on_writable(self) -> None:
        try:
            sent = _send_pieces(self._sock, self._queue.head())  # type: ignore[arg-type]
        except WOULD_BLOCK:
            return
        except OSError as error:
            self._write_failed(error)
            return
        self._was_sent(sent)

    def _was_sent(self, size: int) -> None:
        self._queue.sent(size)
        if not self._queue.size:
            self._flushed()
        # The protocol may write on right here, and mostly does: so the loop is told last.
        self._check_low_water()
        if not self._queue.size:
            self._stop_writing()

    def _flushed(self) -> None:
        if self._eof:
            self._shutdown()
        else:
            self._direct = not self._closing
        if self._closing:
            self._force_close(None)

    def _write_failed(self, error: OSError) -> None:
        if self._broken is not None or self._finishing:
            return
        self._broken = self._translate(error)
        self._direct = False
        self._discard_queue()
        # A protocol may have this method besides asyncio's: to say so to who wants to write next.
        if hasattr(self._protocol, "writing_failed"):
            self._tell_protocol("writing_failed", self._broken)
        self._check_low_water()
        self._writing_broke()

    def _discard_queue(self) -> None:
        self._queue.clear()
        self._stop_writing()

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._end_writing()

    def _end_writing(self) -> None:
        """Undo :meth:`_start_writing`."""
        self._loop.remove_writer(self._fd)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if self._closing or self._eof or self._broken is not None:
            return
        self._eof = True
        self._direct = False
        if not self._queue.size:
            self._shutdown()

    def _shutdown(self) -> None:
        assert self._sock is not None
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._write_failed(error)

    # -- flow control --------------------------------------------------------------------------------------

    def get_write_buffer_size(self) -> int:
        return self._queue.size

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = _HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low
        self._check_high_water()

    def _check_high_water(self) -> None:
        if self._queue.size > self._high and not self._protocol_paused:
            self._protocol_paused = True
            self._tell_protocol("pause_writing")

    def _check_low_water(self) -> None:
        if self._protocol_paused and self._queue.size <= self._low:
            self._protocol_paused = False
            self._tell_protocol("resume_writing")

    def _tell_protocol(self, method: str, *arguments: object) -> None:
        try:
            getattr(self._protocol, method)(*arguments)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._report(error, f"protocol.{method}() failed")

    def _report(self, error: BaseException, message: str) -> None:
        self._loop.call_exception_handler(
            {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
        )

    def _translate(self, error: OSError) -> OSError:
        """Return the error to show: a reset of the whole transport reads ENOTCONN on AF_VSOCK.

        Live migration, a restored snapshot and a removed device end every connection so; only SO_ERROR
        would say ECONNRESET (af_vsock.c looks at the state before it looks at the error).
        """
        if error.errno != errno.ENOTCONN:
            return error
        reset = ConnectionResetError(
            errno.ECONNRESET,
            "the transport was reset: the VM was migrated, restored or removed, or its device was",
        )
        reset.__cause__ = error
        return reset
