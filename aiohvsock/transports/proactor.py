"""Carry bytes on Windows' Proactor loop, with the socket coroutines that every loop has.

It is the transport of :mod:`.selector`, and keeps its promises. The loop's own would not: when a write fails it
cancels its read, and forgets what that had brought already (asyncio/proactor_events.py, ``_force_close()``).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from ..platforms import Names
from .selector import SelectorTransport

__all__ = ["ProactorTransport"]

# What each connection lends the system to read into; as much as asyncio's own transport does.
_READ_SIZE = 64 * 1024

# The largest piece lent to the system to send.
_SEND_SIZE = 256 * 1024

# Turns of the loop in which what has come already shows: one to ask the system, one to hear of it, one to spare.
_TURNS = 3


class _Operation:
    """One of the loop's socket coroutines, run without a task: those of ``asyncio.all_tasks()`` are the user's.

    Args:
        coroutine: one that is not started.
        done: called with its result and None, or with None and its error, but not before this returns.
    """

    __slots__ = ("_coroutine", "_done", "_future")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        coroutine: Coroutine[Any, None, Any],
        done: Callable[[Any, OSError | None], object],
    ) -> None:
        self._coroutine = coroutine
        self._done = done
        self._future: asyncio.Future[Any] | None = None
        try:
            future = coroutine.send(None)
        except StopIteration as end:
            loop.call_soon(self._finish, end.value, None)
        except OSError as error:
            loop.call_soon(self._finish, None, error)
        else:
            self._wait(future)

    def _wait(self, future: asyncio.Future[Any]) -> None:
        self._future = future
        future.add_done_callback(self._go_on)

    def _go_on(self, future: asyncio.Future[Any]) -> None:
        if future is not self._future:  # cancelled
            return
        try:
            future = self._coroutine.send(None)
        except StopIteration as end:
            self._finish(end.value, None)
        except OSError as error:
            self._finish(None, error)
        else:
            self._wait(future)

    def _finish(self, result: Any, error: OSError | None) -> None:
        self._done(result, error)

    def cancel(self) -> None:
        """End it; nothing is called any more. The loop keeps what the system still writes to."""
        self._done = _nothing
        future, self._future = self._future, None
        if future is not None:
            future.cancel()
            self._coroutine.close()


def _nothing(result: Any, error: OSError | None) -> None:
    pass


class ProactorTransport(SelectorTransport):
    """A connected stream socket as an :class:`asyncio.Transport`; see :class:`.SelectorTransport`.

    What is small and finds room is still sent at once, without the loop.
    """

    _is_bare = False

    __slots__ = ("_draining", "_end", "_failure", "_input", "_read", "_start", "_turns", "_write")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        names: Names,
        on_lost: Callable[[SelectorTransport], None] | None = None,
    ) -> None:
        # Before the rest: set_protocol() comes with it.
        self._input = memoryview(bytearray(_READ_SIZE))
        self._start = 0  # from here ...
        self._end = 0  # ... to here it has been read, and not been delivered
        self._failure: OSError | EOFError | None = None  # how a read ended, if it was not delivered
        self._read: _Operation | None = None
        self._write: _Operation | None = None
        self._turns = 0
        self._draining = False
        super().__init__(loop, sock, protocol, names, on_lost)

    # -- reading -------------------------------------------------------------------------------------------

    def _start_reading(self) -> None:
        if self._start < self._end or self._failure is not None:
            self._loop.call_soon(self._deliver)
        elif self._read is None:
            assert self._sock is not None
            self._read = _Operation(
                self._loop, self._loop.sock_recv_into(self._sock, self._input), self._read_done
            )

    def _end_reading(self) -> None:
        # A read under way is left so: what it brings is kept until it is wanted.
        pass

    def _read_done(self, size: int, error: OSError | None) -> None:
        self._read = None
        self._turns = 0
        if size:
            self._start, self._end = 0, size
        else:
            self._failure = error or EOFError()
        self._deliver()

    def _deliver(self) -> None:
        """Give the protocol what was read, as long as it takes it; then read on."""
        while self._reading and self._start < self._end:
            try:
                if self._buffered:
                    self._fill()
                else:
                    data = bytes(self._input[self._start : self._end])
                    self._start = self._end
                    self._protocol.data_received(data)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:
                self._fatal(
                    error,
                    f"protocol.{'get_buffer() or buffer_updated' if self._buffered else 'data_received'}() failed",
                )
        if not self._reading:
            return
        failure, self._failure = self._failure, None
        if isinstance(failure, OSError):
            self._read_failed(failure)
        elif failure is not None:
            self._eof_received()
        else:
            self._start_reading()

    def _fill(self) -> None:
        # Released before buffer_updated(), where the protocol may change its buffer's size.
        with memoryview(self._protocol.get_buffer(-1)) as view, view.cast("B") as buffer:
            if not len(buffer):
                raise RuntimeError("get_buffer() returned an empty buffer")
            size = min(len(buffer), self._end - self._start)
            buffer[:size] = self._input[self._start : self._start + size]
        self._start += size
        self._protocol.buffer_updated(size)

    def _drain(self) -> None:
        """Read on after a failed write, until the end or until nothing more has come."""
        if not self._draining:
            self._draining = True
            self._turns = 0
            self._drain_on()

    def _drain_on(self) -> None:
        if not self._reading:
            self._draining = False
        elif self._turns == _TURNS:
            self._read_would_block()
        else:
            self._turns += 1
            self._loop.call_soon(self._drain_on)

    # -- writing -------------------------------------------------------------------------------------------

    def _start_writing(self) -> None:
        pieces = []
        size = 0
        for piece in self._queue.head():
            pieces.append(piece[: _SEND_SIZE - size])
            size += len(pieces[-1])
            if size == _SEND_SIZE:
                break
        # A copy: the queue may add to its pieces, and the system reads this until it is done.
        data = b"".join(pieces)
        assert self._sock is not None
        self._write = _Operation(
            self._loop,
            self._loop.sock_sendall(self._sock, data),
            # It says how much, if it was not all: under Wine, when the peer ends its side meanwhile.
            lambda sent, error: self._write_done(size if sent is None else sent, error),
        )

    def _end_writing(self) -> None:
        write, self._write = self._write, None
        if write is not None:
            write.cancel()

    def _write_done(self, size: int, error: OSError | None) -> None:
        self._write = None
        if error is not None:
            self._write_failed(error)
            return
        self._was_sent(size)
        if self._writing:
            self._start_writing()

    # -- the end -------------------------------------------------------------------------------------------

    def _finish(self, error: BaseException | None) -> None:
        read, self._read = self._read, None
        if read is not None:
            read.cancel()
        super()._finish(error)
