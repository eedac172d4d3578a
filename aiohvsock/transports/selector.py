"""Carry bytes on any loop that has ``add_reader`` and ``add_writer``: asyncio's selector loop, uvloop.

The transport is our own, because no loop's is right for these sockets: uvloop cannot carry the family at
all, and all of them throw away received data when a write fails and forget the peer's name after a
half-close.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import warnings
import weakref
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable, Iterable
from typing import Any

from .._log import logger
from ..platforms import Names
from .queue import PIECES, SMALL_WRITE, SendQueue

__all__ = ["SelectorTransport"]

# The largest piece read at once. One buffer serves all transports of a loop, so that an idle connection owns
# none, and no read pays for a fresh 256 KiB from malloc, which is what half of asyncio's time goes into.
_READ_SIZE = 256 * 1024

_HIGH_WATER = 64 * 1024

_WOULD_BLOCK = (BlockingIOError, InterruptedError)

_scratch: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview] = weakref.WeakKeyDictionary()


def _scratch_of(loop: asyncio.AbstractEventLoop) -> memoryview:
    scratch = _scratch.get(loop)
    if scratch is None:
        scratch = _scratch[loop] = memoryview(bytearray(_READ_SIZE))
    return scratch


_NO_PROTOCOL = asyncio.Protocol()


class SelectorTransport(asyncio.Transport):
    """A connected stream socket as an :class:`asyncio.Transport`.

    It differs from asyncio's own in what it promises: when a write fails because the peer has closed, what
    the peer sent before is delivered first, and ``connection_lost()`` comes after it with the write's error.

    Args:
        loop: the running loop.
        sock: a connected, non-blocking stream socket. The transport takes ownership.
        protocol: gets ``connection_made()`` from :meth:`start`, not before.
        names: the socket's names, which outlive a half-close.
        on_lost: called after ``connection_lost()``.
    """

    _extra: dict[str, Any]  # of asyncio.BaseTransport

    __slots__ = (
        "__weakref__",
        "_broken",
        "_buffered",
        "_closing",
        "_direct",
        "_dropped",
        "_eof",
        "_fd",
        "_finishing",
        "_high",
        "_loop",
        "_low",
        "_on_lost",
        "_paused",
        "_protocol",
        "_protocol_paused",
        "_queue",
        "_read_eof",
        "_reading",
        "_recv_into",
        "_scratch",
        "_send",
        "_sendmsg",
        "_sock",
        "_writing",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        names: Names,
        on_lost: Callable[[SelectorTransport], None] | None = None,
    ) -> None:
        super().__init__(
            {
                "socket": sock,
                "sockname": names.sockname,
                "peername": names.peername,
                "hv_local": names.local,
                "hv_peer": names.peer,
            }
        )
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._fd = sock.fileno()
        self._recv_into = sock.recv_into
        self._send = sock.send
        self._sendmsg = sock.sendmsg
        self._scratch = _scratch_of(loop)
        self._on_lost = on_lost
        self._queue = SendQueue()
        self._high = _HIGH_WATER
        self._low = _HIGH_WATER // 4
        self._protocol_paused = False
        self._direct = True  # write() may go straight to the socket: nothing queued, not ending
        self._dropped = 0  # writes thrown away
        self._writing = False  # registered with the loop for what is queued
        self._eof = False  # write_eof() was called
        self._broken: Exception | None = None  # the error that ended writing
        self._reading = False  # registered with the loop
        self._paused = False  # pause_reading() was called
        self._read_eof = False  # the peer has ended its side
        self._closing = False  # close() or abort() was called, or the connection has failed
        self._finishing = False  # connection_lost() is scheduled
        self.set_protocol(protocol)

    def __repr__(self) -> str:
        info = [type(self).__name__, f"fd={self._fd}"]
        if self._sock is None:
            info.append("closed")
        elif self._closing:
            info.append("closing")
        for name in ("hv_local", "hv_peer"):
            address = self._extra[name]
            if address is not None:
                info.append(f"{name[3:]}={address}")
        return f"<{' '.join(info)}>"

    def __del__(self) -> None:
        sock = getattr(self, "_sock", None)
        if sock is not None:
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self, stacklevel=1)
            sock.close()

    def start(self) -> None:
        """Call ``connection_made()``, and start reading.

        Raises:
            Exception: what ``connection_made()`` raised; the transport is then the caller's to abort.
        """
        self._protocol.connection_made(self)
        self._update_reading()

    # -- protocol ------------------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol: Any = protocol
        self._buffered = isinstance(protocol, asyncio.BufferedProtocol)
        if self._reading:
            self._add_reader()

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    # asyncio's loop.start_tls() asks for this (base_events.py).
    _start_tls_compatible = True

    # -- reading -------------------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        return not (self._closing or self._paused)

    def pause_reading(self) -> None:
        self._paused = True
        self._update_reading()

    def resume_reading(self) -> None:
        if self._paused:
            self._paused = False
            self._update_reading()
            if self._broken is not None:
                self._loop.call_soon(self._drain)

    def _update_reading(self) -> None:
        wanted = not (self._paused or self._closing or self._read_eof)
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._add_reader()
            else:
                self._loop.remove_reader(self._fd)

    def _add_reader(self) -> None:
        # Not kept as an attribute: a bound method of ourselves would be a cycle for the garbage collector.
        self._loop.add_reader(self._fd, self._read_into_buffer if self._buffered else self._read_into_scratch)

    def _read_into_scratch(self) -> None:
        try:
            size = self._recv_into(self._scratch)
        except _WOULD_BLOCK:
            self._read_would_block()
            return
        except OSError as error:
            self._read_failed(error)
            return
        if not size:
            self._eof_received()
            return
        try:
            self._protocol.data_received(bytes(self._scratch[:size]))
        except Exception as error:
            self._fatal(error, "protocol.data_received() failed")

    def _read_into_buffer(self) -> None:
        try:
            buffer = self._protocol.get_buffer(-1)
            if not len(buffer):
                raise RuntimeError("get_buffer() returned an empty buffer")
        except Exception as error:
            self._fatal(error, "protocol.get_buffer() failed")
            return
        try:
            size = self._recv_into(buffer)
        except _WOULD_BLOCK:
            self._read_would_block()
            return
        except OSError as error:
            self._read_failed(error)
            return
        if not size:
            self._eof_received()
            return
        try:
            self._protocol.buffer_updated(size)
        except Exception as error:
            self._fatal(error, "protocol.buffer_updated() failed")

    def _read_would_block(self) -> None:
        # The write failed and there is no end to read: the peer has only shut its receiving side. What it
        # sent before is delivered; nothing says that more will come.
        if self._broken is not None:
            self._force_close(self._broken)

    def _read_failed(self, error: OSError) -> None:
        self._force_close(self._broken or self._translate(error))

    def _eof_received(self) -> None:
        self._read_eof = True
        self._update_reading()
        try:
            keep_open = self._protocol.eof_received()
        except Exception as error:
            self._fatal(error, "protocol.eof_received() failed")
            return
        if not keep_open:
            self.close()
        elif self._broken is not None and not isinstance(self._protocol, SSLProtocol):
            # TLS says "keep open" while its own protocol has paused reading; it closes when that has read all.
            self._force_close(self._broken)

    def _drain(self) -> None:
        """Read on after a failed write, until the end or until nothing more has come."""
        if self._reading:
            if self._buffered:
                self._read_into_buffer()
            else:
                self._read_into_scratch()
            self._loop.call_soon(self._drain)

    # -- writing -------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if not self._direct:
            self._write_later((data,))
            return
        try:
            sent = self._send(data)
        except _WOULD_BLOCK:
            sent = 0
        except OSError as error:
            self._write_failed(error)
            return
        if sent != len(data):
            self._queue.add(data, sent)
            self._wait_to_write()

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
            sent = self._sendmsg(pieces[:PIECES])
        except _WOULD_BLOCK:
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

    def _wait_to_write(self) -> None:
        """Leave what is queued to the loop."""
        if self._queue.size:
            self._direct = False
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._fd, self._on_writable)
            self._check_high_water()

    def _on_writable(self) -> None:
        try:
            self._queue.sent(self._sendmsg(self._queue.head()))
        except _WOULD_BLOCK:
            return
        except OSError as error:
            self._write_failed(error)
            return
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
        """Writing is over. The kernel still holds what the peer sent before it closed: deliver that first."""
        if self._broken is not None or self._finishing:
            return
        self._broken = self._translate(error)
        self._extra["hv_write_error"] = self._broken
        self._direct = False
        self._discard_queue()
        self._check_low_water()
        if self._closing or self._read_eof:
            self._force_close(self._broken)
        elif not self._paused:
            self._loop.call_soon(self._drain)

    def _discard_queue(self) -> None:
        self._queue.clear()
        self._stop_writing()

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
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

    def _tell_protocol(self, method: str) -> None:
        try:
            getattr(self._protocol, method)()
        except Exception as error:
            self._report(error, f"protocol.{method}() failed")

    # -- the end -------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        return self._closing or self._broken is not None

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._direct = False
        self._update_reading()
        if not self._queue.size:
            self._force_close(self._broken)

    def abort(self) -> None:
        self._force_close(None)

    def _force_close(self, error: BaseException | None) -> None:
        # asyncio.sslproto calls this by name.
        if self._finishing:
            return
        self._finishing = True
        self._closing = True
        self._direct = False
        self._discard_queue()
        self._update_reading()
        self._loop.call_soon(self._finish, error)

    def _finish(self, error: BaseException | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            sock, self._sock = self._sock, None
            assert sock is not None
            sock.close()
            self._protocol = _NO_PROTOCOL  # which usually has us: a cycle
            on_lost, self._on_lost = self._on_lost, None
            if on_lost is not None:
                on_lost(self)

    def _fatal(self, error: Exception, message: str) -> None:
        self._report(error, message)
        self._force_close(error)

    def _report(self, error: Exception, message: str) -> None:
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
