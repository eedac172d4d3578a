"""BareProtocol with any codec, against the reference decoders and the few rules that it adds to them."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any
from unittest import mock

from aiohvsock.exceptions import FramingError, LocalProtocolError
from aiohvsock.framing import Codec, OversizedFrame, decoders
from aiohvsock.protocol import BareProtocol, CloseCode, Closed, Event, Failed, Opened

from ..framing.reference import Reference, decode, held
from . import framing
from .inputs import Script, Tell, ignore

__all__ = ["one_input", "seeds"]

LARGE = (decoders._LARGE, 1, 8, 32)
CLOSE_TIMEOUT = 10.0
CALLBACK = 30


class Op(IntEnum):
    """What an input asks for, by the lowest three bits of a byte; the others are its argument.

    To receive 30 bytes is to receive many, and what comes next comes from a callback.
    """

    RECEIVE = 0
    IN_PLACE = 1
    CLOSE = 2
    EOF = 3
    WAIT = 4
    SEND = 5
    STOP_SENDING = 6
    MISCELLANY = 7


class Run:
    def __init__(self, codec: Codec[Any], tell: Tell) -> None:
        self.codec = codec
        self.tell = tell
        self.now = 1000.0
        self.protocol = BareProtocol(lambda: self.now, codec, CLOSE_TIMEOUT)
        self.reference = Reference(codec)
        self.messages: list[Any] = []
        self.expected: list[Any] = []
        self.events: list[Event] = []
        self.bytes_received = 0
        self.closed_at: float | None = None
        self.mute = False
        self.peer_closed = False
        self.ended = False
        self.look()

    def do(self, script: Script) -> None:
        step = script.byte()
        op, argument = Op(step & 7), step >> 3
        self.tell(f"{op.name} {argument}")
        match op:
            case Op.RECEIVE | Op.IN_PLACE if not self.protocol.finished:
                self.receive(script.take(argument if argument < CALLBACK else 500), op is Op.IN_PLACE)
                if argument == CALLBACK:
                    return
            case Op.CLOSE:
                self.protocol.close()
                if self.closed_at is None:
                    self.closed_at = self.now
                self.ended |= self.peer_closed
            case Op.EOF:
                self.eof()
            case Op.WAIT:
                self.now += argument / 2
                self.protocol.on_timer()
                if self.closed_at is not None and self.now >= self.closed_at + CLOSE_TIMEOUT:
                    self.ended = True
            case Op.SEND:
                self.send(argument)
            case Op.STOP_SENDING:
                self.protocol.stop_sending()
                self.mute = True
            case _:
                self.protocol.set_reading(argument % 2 == 0)
                assert self.protocol.data_to_send() == b""
        self.look()

    def receive(self, data: bytes, in_place: bool) -> None:
        before = len(self.reference.frames)
        room = self.protocol.buffer
        if in_place and room is not None:
            data = data[: len(room)]
            room[: len(data)] = data
            self.messages += self.protocol.received(len(data))
        else:
            self.messages += self.protocol.receive(data)
        self.bytes_received += len(data)
        if self.closed_at is None and not self.peer_closed:
            self.reference.feed(data)
            self.expected += self.reference.frames[before:]
            self.ended = self.reference.error is not None

    def eof(self) -> None:
        self.protocol.eof()
        if not self.ended:
            # Without an error, it is over when both sides have closed it.
            self.ended = self.closed_at is not None or self.reference.received > 0
            self.peer_closed = True

    def send(self, which: int) -> None:
        """Send back one of the messages that came."""
        if not self.expected:
            return
        message = self.expected[which % len(self.expected)]
        try:
            frame = self.protocol.frame(message)
        except LocalProtocolError:
            assert self.closed_at is not None or self.mute or isinstance(message, OversizedFrame)
        else:
            assert self.closed_at is None and not self.mute
            pieces = [frame] if isinstance(frame, bytes) else frame
            assert decode(self.codec, b"".join(pieces)) == [message]

    def look(self) -> None:
        protocol = self.protocol
        assert protocol.attention or not protocol.events
        protocol.attention = False
        self.events += protocol.events
        protocol.events = ()
        assert self.messages == self.expected
        assert protocol.bytes_received == self.bytes_received
        assert protocol.close_sent == (self.closed_at is not None)
        assert protocol.finished == self.ended
        deadline = None if self.closed_at is None else self.closed_at + CLOSE_TIMEOUT
        assert protocol.timer == deadline or (self.ended and protocol.timer is None)
        self.check_events()
        limit: int = self.codec.max_size  # type: ignore[attr-defined]
        most = min((limit + 40) * 9 // 8 + 400, self.bytes_received * decoders._PART + 600)
        assert held(protocol._decoder) <= most

    def check_events(self) -> None:
        assert self.events[:1] == [Opened(None)]
        match self.events[1:]:
            case []:
                pass
            case [Closed(CloseCode.OK, "")]:
                assert self.peer_closed
                assert self.closed_at is not None or self.reference.received == 0
            case [Failed(FramingError(), None)]:
                assert self.ended
                assert self.reference.error is not None or self.reference.received
            case _:
                raise AssertionError(self.events)


def one_input(data: bytes, tell: Tell = ignore) -> None:
    script = Script(data)
    codec = framing.codec(script)
    large = LARGE[script.byte() % len(LARGE)]
    tell(f"{codec}, large {large}")
    with mock.patch.object(decoders, "_LARGE", large):
        run = Run(codec, tell)
        while script:
            run.do(script)
        for op in (Op.EOF, Op.CLOSE, Op.WAIT):
            run.do(Script(bytes([op])))


# -- seeds -------------------------------------------------------------------------------------------------


def seeds() -> Iterator[bytes]:
    """Yield a few frames of every codec, with other things between."""
    for kind in range(len(framing.MAKERS)):
        head = bytes([kind, 2, 6] if kind in (0, 3, 4) else [kind, 6])
        chosen = framing.codec(Script(head))
        frames = [framing.encoded(chosen, payload) for payload in (b"hello", b"x" * 39, b"world")]
        for way in (Op.RECEIVE, Op.IN_PLACE):
            talk = [bytes([31 << 3 | way]) + b"".join(frames)]
            parts = [frame[start:][:7] for frame in frames for start in range(0, len(frame), 7)]
            yield head + b"\2" + b"".join(talk)
            yield head + b"\2" + bytes([CALLBACK << 3 | way]) + b"".join(frames)
            for between in (b"", bytes([Op.MISCELLANY]), bytes([1 << 3 | Op.SEND])):
                pieces = [bytes([len(part) << 3 | way]) + part + between for part in parts]
                yield head + b"\2" + b"".join(pieces)
                for last in (Op.CLOSE, Op.EOF, Op.STOP_SENDING):
                    yield head + b"\2" + b"".join([*pieces[:-2], bytes([last]), *pieces[-2:]])
                    yield head + b"\2" + b"".join([bytes([last, 25 << 3 | Op.WAIT]), *pieces])
