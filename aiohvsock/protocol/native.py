"""The native message protocol; its format is specified in ``docs/protocol.md``."""

from __future__ import annotations

from typing import NoReturn

from ..exceptions import FrameTooLarge, HvError, IncompleteFrame, LocalProtocolError, ProtocolError
from .core import LARGE, NativeCore
from .events import Clock, CloseCode, Closed, Event, Failed, Opened, Pong
from .frames import (
    CLOSE,
    DATA,
    HEADER_SIZE,
    IGNORABLE,
    LENGTH,
    LONGEST,
    PING,
    PONG,
    RESERVED,
    TYPE_SHIFT,
    pack,
)
from .hello import VERSION, Hello, parse_hello
from .liveness import Liveness, Verdict

__all__ = ["NativeProtocol"]

# Seconds to read on, and throw away, after the peer broke a rule: so that it can read why.
_FAILED_LINGER = 1.0


class NativeProtocol(NativeCore):
    """One side of one connection; :class:`MessageProtocol` says what the attributes and methods are.

    Args:
        clock: seconds, only ever going forward; asked when a ping is sent and answered, and when a wait begins.
        max_size: bytes; the longest message taken from the peer.
        open_timeout: seconds for the peer's hello; None waits as long as it takes.
        close_timeout: seconds for the peer to confirm a close; None waits as long as it takes.
        heartbeat: seconds between pings; None sends none.
        heartbeat_timeout: seconds without a sign of life after a ping, until the peer is held for gone; None
            never does so.
        nonce: 16 bytes to tell the peer, or None.

    Raises:
        ValueError: a figure makes no sense.
    """

    __slots__ = (
        "_clock",
        "_close_timeout",
        "_heartbeat",
        "_liveness",
        "_max_size",
        "_mute",
        "_output",
        "_pings",
        "_pong",
        "close_sent",
        "events",
        "latency",
        "lateness",
        "pings_sent",
        "timer",
    )

    half_close = False

    def __init__(
        self,
        clock: Clock,
        *,
        max_size: int = 2**20,
        open_timeout: float | None = None,
        close_timeout: float | None = None,
        heartbeat: float | None = None,
        heartbeat_timeout: float | None = None,
        nonce: bytes | None = None,
    ) -> None:
        super().__init__(max_size)
        self._clock = clock
        self._max_size = max_size
        self._close_timeout = close_timeout
        self._liveness = Liveness(heartbeat, heartbeat_timeout)
        hello = Hello(max_size, self._liveness.patience, nonce)

        # Sending.
        self._output: tuple[bytes, ...] = (hello.encode(),)
        self._pong: bytes | None = None  # the answer we owe; of several pings only the last gets one
        self._mute = False

        # What whoever drives this looks at.
        self.events: tuple[Event, ...] = ()
        self.timer: float | None = None if open_timeout is None else clock() + open_timeout
        self.close_sent = False

        # Pings.
        self._pings: dict[int, float] | None = None  # when each was sent that is not answered
        self._heartbeat = 0  # the last one that nobody but the heartbeat asked for
        self.pings_sent = 0
        self.latency: float | None = None
        self.lateness = 0.0

    # -- sending -------------------------------------------------------------------------------------------

    def stop_sending(self) -> None:
        """Refuse messages from here on, while what the peer has sent is still received."""
        self._mute = True
        self._peer_max = self._longest_joined = -1

    def _refuse(self) -> NoReturn:
        when = (
            "after a close"
            if self.close_sent
            else "before the peer's hello"
            if self.peer is None
            else "any more"
        )
        raise LocalProtocolError(f"nothing can be sent {when}")

    def ping(self) -> int:
        """Ask for a sign of life; returns the token that the :class:`Pong` will carry."""
        if self.close_sent or self.peer is None:
            self._refuse()
        self.pings_sent += 1
        token = self.pings_sent
        if self._pings is None:
            self._pings = {}
        self._pings[token] = self._clock()
        self._control(PING, token.to_bytes(8, "big"))
        return token

    def close(self, code: int = CloseCode.OK, reason: str = "") -> None:
        """Say that nothing more will be sent. A reason that is too long is cut.

        Raises:
            ValueError: the code is not 0 ... 255.
        """
        if not 0 <= code <= 255:
            raise ValueError(f"a close code must be 0 ... 255, not {code!r}")
        if not self.close_sent and not self.finished:
            self._send_close(code, reason)
            self._wait(self._close_timeout)

    def _send_close(self, code: int, reason: str) -> None:
        if not self.close_sent:
            text = reason.encode("utf-8", "replace")[: LONGEST[CLOSE] - 1].decode("utf-8", "ignore")
            self._control(CLOSE, bytes((code,)) + text.encode())
            self.close_sent = True
            self.stop_sending()
            self._pong = None
            self._limit = -1

    def _control(self, kind: int, payload: bytes) -> None:
        self._output += (pack(kind << TYPE_SHIFT | len(payload)) + payload,)
        self.attention = True

    def data_to_send(self) -> bytes:
        """Return the bytes, beside messages, that must be written now, and forget them."""
        if self._pong is not None:
            self._control(PONG, self._pong)
            self._pong = None
        output, self._output = self._output, ()
        return b"".join(output)

    # -- receiving -----------------------------------------------------------------------------------------

    def _resume(self, data: bytes, messages: list[bytes]) -> bytes:
        """Add to what has come before; returns what frames may be cut from."""
        if self.finished or self.close_received:
            return b""
        if self.buffer is not None:
            part = data[: len(self.buffer)]
            self.buffer[: len(part)] = part
            messages += self.received(len(part))
            self.bytes_received -= len(part)
            return data[len(part) :]
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            if self._skip:
                return b""
            self._partial = None
            return data[skipped:]
        partial = self._partial
        assert partial is not None
        if self.peer is None or len(partial) + len(data) < self._need:
            partial += data
            return self._receive_hello(partial) if len(partial) >= self._need else b""
        self._partial = None
        return b"".join((partial, data))

    def _other_frame(self, header: int, data: bytes, start: int) -> int:
        """Handle a frame that is no message to deliver.

        Returns where the next one starts, or 0 if there is none in this data.
        """
        kind, size = header >> TYPE_SHIFT, header & LENGTH
        if header & RESERVED:
            return self._broken("the reserved bytes of a frame are not zero")
        if kind == DATA:
            longest = self._max_size
        elif kind >= IGNORABLE:
            longest = max(self._max_size, LONGEST[CLOSE])
        elif kind in LONGEST:
            longest = LONGEST[kind]
        else:
            return self._broken(f"a frame has the unknown type {kind:#04x}")
        if size > longest and kind == DATA:
            return self._fail(FrameTooLarge(size, longest), CloseCode.MESSAGE_TOO_LARGE)
        if size > longest:
            return self._broken(f"a frame of type {kind:#04x} has {size} bytes, over the limit of {longest}")
        following = start + size
        if following > len(data):
            if kind in LONGEST:
                self._partial = bytearray(memoryview(data)[start - HEADER_SIZE :])
                self._need = HEADER_SIZE + size
            else:
                self._partial = bytearray()
                self._skip = following - len(data)
            return 0
        if kind == PING and not self.close_sent:
            self._pong = data[start:following]
            self.attention = True
        elif kind == PONG:
            self._pong_received(data[start:following])
        elif kind == CLOSE:
            return self._close_frame_received(data[start:following])
        return following

    def _receive_hello(self, partial: bytearray) -> bytes:
        try:
            hello, self._need = parse_hello(partial)
        except ProtocolError as error:
            self._fail(error, CloseCode.PROTOCOL_ERROR)
            return b""
        if hello is None:
            # What has come can be enough for the next step.
            return b"" if len(partial) < self._need else self._receive_hello(partial)
        self.peer = hello
        if hello.oldest > VERSION:
            spoken = f"the peer speaks versions {hello.oldest} to {hello.version}, this side {VERSION}"
            self._fail(ProtocolError(spoken), CloseCode.NO_COMMON_VERSION)
            return b""
        rest = bytes(partial[self._need :])
        self._partial = None
        if not self.close_sent:
            if not self._mute:
                self._peer_max = hello.max_message
                self._longest_joined = min(hello.max_message, LARGE - 1)
            now = self._clock()
            self._liveness.start(now, hello.patience)
            self.timer = self._liveness.deadline(now)
            self._tell(Opened(hello))
        return rest

    def _pong_received(self, payload: bytes) -> None:
        token = int.from_bytes(payload, "big") if len(payload) == 8 else 0
        pings = self._pings
        if pings is None or token not in pings:
            return
        self.latency = self._clock() - pings[token]
        for answered in [earlier for earlier in pings if earlier <= token]:
            del pings[answered]
        self._tell(Pong(token, self.latency))

    def _close_frame_received(self, payload: bytes) -> int:
        if not payload:
            return self._broken("a close has no code")
        code, reason = payload[0], payload[1:].decode("utf-8", "replace")
        self.close_received = True
        self._partial = bytearray()
        if self.close_sent:
            self._finish()
        else:
            # The peer closes the stream when it has our answer.
            self._send_close(code, "")
            self._wait(self._close_timeout)
        self._tell(Closed(code, reason))
        return 0

    def eof(self) -> None:
        """Tell that the stream has ended."""
        if self.finished:
            return
        self._finish()
        if self.close_received:
            return
        if self.peer is None:
            error: HvError = ProtocolError("the peer has closed the connection before its hello was whole")
        elif self.buffer is not None and self._large is not None:
            size = HEADER_SIZE + self._large.getbuffer().nbytes
            error = IncompleteFrame(size - len(self.buffer), size)
        elif self._partial:
            have = len(self._partial)
            size = HEADER_SIZE + int.from_bytes(self._partial[4:8], "big")
            error = IncompleteFrame(have, size if have >= HEADER_SIZE else None)
        else:
            error = ProtocolError("the peer has gone without closing the connection")
        self._tell(Failed(error))

    def _broken(self, text: str) -> int:
        return self._fail(ProtocolError(text), CloseCode.PROTOCOL_ERROR)

    def _fail(self, error: HvError, code: CloseCode) -> int:
        self._send_close(code, str(error))
        self.close_received = True  # as good as: nothing more is taken
        self._partial = bytearray()
        self.buffer = self._large = None
        self._wait(_FAILED_LINGER)
        self._tell(Failed(error, code))
        return 0

    def _tell(self, event: Event) -> None:
        self.events += (event,)
        self.attention = True

    # -- timers --------------------------------------------------------------------------------------------

    def on_timer(self) -> None:
        """Do what is due. Call it when :attr:`timer` has come; earlier does nothing."""
        now = self._clock()
        if self.timer is None or now < self.timer:
            return
        self.lateness = now - self.timer
        if self.close_sent:
            # The peer did not confirm in time.
            self._finish()
        elif self.peer is None:
            self._silent("the peer did not say hello in time", CloseCode.NO_HELLO)
        else:
            match self._liveness.check(now, self.lateness, self.bytes_received):
                case Verdict.GONE:
                    return self._silent("the peer gave no sign of life in time", CloseCode.NO_ANSWER)
                case Verdict.ASK if not self._output and self._heartbeat not in (self._pings or ()):
                    # One that is not answered though the peer lives waits behind what it is slow to read.
                    self._heartbeat = self.ping()
                case Verdict.GIVE:
                    self._pong = self._pong or b""
                    self.attention = True
            self.timer = self._liveness.deadline(now)

    def _silent(self, text: str, code: CloseCode) -> None:
        self._fail(ProtocolError(text), code)
        self._finish()

    def _finish(self) -> None:
        self.finished = True
        self.attention = True
        self.timer = None
        if self._partial is None:
            self._partial = bytearray()  # so that nothing more is taken

    def set_reading(self, reading: bool) -> None:
        """Tell that the stream is not read for a while, or is again."""
        self._liveness.set_reading(reading, self._clock())
        if self.peer is not None and not (self.close_sent or self.finished):
            self.timer = self._liveness.deadline(self._clock())

    def _wait(self, timeout: float | None) -> None:
        """Wait for the peer's end from here on."""
        self.timer = None if timeout is None else self._clock() + timeout
