"""Carry bytes on any loop that has ``add_reader`` and ``add_writer``: asyncio's selector loop, uvloop.

The transport is our own, because no loop's is right for these sockets: uvloop cannot carry the family at
all, and all of them throw away received data when a write fails and forget the peer's name after a
half-close.
"""

from __future__ import annotations

import asyncio
import socket
import sys
import warnings
import weakref
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable

from .._compiled import speedups
from ..platforms import Names
from .writing import WOULD_BLOCK, WritingHalf

__all__ = ["SelectorTransport", "scratch_of"]

# The largest piece read at once. One buffer serves all transports of a loop, so that an idle connection owns
# none, and no read pays for a fresh 256 KiB from malloc, which is what half of asyncio's time goes into.
_READ_SIZE = 256 * 1024

# Where much comes, it is read into bytes of its own, which saves copying it.
_LARGE = 64 * 1024
_LARGE_FROM = 16 * 1024

_scratch: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview] = weakref.WeakKeyDictionary()


def scratch_of(loop: asyncio.AbstractEventLoop) -> memoryview:
    """Return the buffer that all connections of a loop read into: what it holds is good until the next read."""
    scratch = _scratch.get(loop)
    if scratch is None:
        scratch = _scratch[loop] = memoryview(bytearray(_READ_SIZE))
    return scratch


_NO_PROTOCOL = asyncio.Protocol()


class SelectorTransport(WritingHalf):
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

    __slots__ = ("_buffered", "_large", "_on_lost", "_paused", "_read_eof", "_scratch")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        names: Names,
        on_lost: Callable[[SelectorTransport], None] | None = None,
    ) -> None:
        super().__init__(loop, sock, names)
        self._scratch = scratch_of(loop)
        self._on_lost = on_lost
        self._large = False  # the last read brought much
        self._paused = False  # pause_reading() was called
        self._read_eof = False  # the peer has ended its side
        self.set_protocol(protocol)

    def __repr__(self) -> str:
        info = [type(self).__name__, f"fd={self._fd}"]
        if self._sock is None:
            info.append("closed")
        elif self._closing:
            info.append("closing")
        for name in ("local", "peer"):
            address = getattr(self._names, name)
            if address is not None:
                info.append(f"{name}={address}")
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

    @property
    def _is_bare(self) -> bool:
        # The inner loops in C then receive and send on the descriptor. A class of somebody's own may do more.
        return sys.platform != "win32" and type(self._sock) is socket.socket

    # -- protocol ------------------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self._buffered = isinstance(protocol, asyncio.BufferedProtocol)
        if self._reading:
            self._start_reading()
        elif self._paused:
            # resume_reading() then tells the new one of an end the old one has seen: start_tls() relies on it.
            self._read_eof = False

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
                self._start_reading()
            else:
                self._end_reading()

    def _end_reading(self) -> None:
        """Undo :meth:`_start_reading`."""
        self._loop.remove_reader(self._fd)
        self._watch_stuck()

    def _start_reading(self) -> None:
        """Have the loop read what comes, for the protocol as it is now."""
        # Not kept as an attribute: a bound method of ourselves would be a cycle for the garbage collector.
        callback: Callable[[], None]
        if self._buffered:
            callback = self._read_into_buffer
        elif self._is_bare and speedups is not None:
            callback = speedups.Reader(self, self._fd, self._protocol, self._scratch)
        else:
            callback = self._read_into_scratch
        self._loop.add_reader(self._fd, callback)

    def _read_into_scratch(self) -> None:
        try:
            if self._large:
                data = self._sock.recv(_LARGE)  # type: ignore[union-attr]
                size = len(data)
            else:
                size = self._sock.recv_into(self._scratch)  # type: ignore[union-attr]
                data = bytes(self._scratch[:size])
        except WOULD_BLOCK:
            self._read_would_block()
            return
        except OSError as error:
            self._read_failed(error)
            return
        if not size:
            self._eof_received()
            return
        self._large = size >= _LARGE_FROM
        try:
            self._protocol.data_received(data)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal(error, "protocol.data_received() failed")

    def _read_into_buffer(self) -> None:
        try:
            buffer = self._protocol.get_buffer(-1)
            if not len(buffer):
                raise RuntimeError("get_buffer() returned an empty buffer")
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal(error, "protocol.get_buffer() failed")
            return
        try:
            size = self._sock.recv_into(buffer)  # type: ignore[union-attr]
        except WOULD_BLOCK:
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
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal(error, "protocol.buffer_updated() failed")

    def _read_would_block(self) -> None:
        # The write failed and there is no end to read: the peer has only shut its receiving side. What it
        # sent before is delivered; nothing says that more will come.
        if self._broken is not None:
            self._force_close(self._broken)

    def _read_failed(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            # On AF_HYPERV what a peer that closes without shutdown() leaves behind; Linux reads no such thing.
            self._eof_received()
        else:
            self._force_close(self._broken or self._translate(error))

    def _eof_received(self) -> None:
        self._read_eof = True
        self._update_reading()
        try:
            keep_open = self._protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            self._fatal(error, "protocol.eof_received() failed")
            return
        if not keep_open:
            self.close()
        elif self._broken is not None and not isinstance(self._protocol, SSLProtocol):
            # TLS says "keep open" while its own protocol has paused reading; it closes when that has read all.
            self._force_close(self._broken)

    def _writing_broke(self) -> None:
        # The kernel still holds what the peer sent before it closed.
        if self._closing or self._read_eof:
            self._force_close(self._broken)
        elif not self._paused:
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        """Read on after a failed write, until the end or until nothing more has come."""
        if self._reading:
            if self._buffered:
                self._read_into_buffer()
            else:
                self._read_into_scratch()
            self._loop.call_soon(self._drain)

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

    def _fatal(self, error: BaseException, message: str) -> None:
        self._report(error, message)
        self._force_close(error)
