"""NativeProtocol, whatever comes and whatever is called in between, against its model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any
from unittest import mock

from aiohvsock.exceptions import FrameTooLarge, HvError, IncompleteFrame, LocalProtocolError
from aiohvsock.protocol import Closed, Event, Failed, Frame, Hello, NativeProtocol, Opened, Pong, core
from aiohvsock.protocol import frames as protocol_frames

from ..large import LARGE, LARGE_START, large_from
from ..reference_protocol import frame
from .inputs import Script, Tell, ignore
from .native_model import CLOSE, DATA, PING, PONG, Expected, Model, frames

__all__ = ["one_input", "seeds"]

VECTORS = Path(__file__).parents[2] / "docs" / "protocol-vectors.json"

# What an input chooses from.
MAX_MESSAGES = (0, 4, 8, 32, 500, 1024, 1500, 2500)
SECONDS = (None, 0.25, 4.0, 20.0)

# Where other ways begin for what is large or many: as it is, or where an input gets. Of messages received in place, and how
# much of one must be there; and of runs of messages of one size.
SCALES = (
    (LARGE, LARGE_START, protocol_frames.SHORTEST_RUN, protocol_frames._FEWEST),
    (64, 16, 64, 16),
    (8, 1, 0, 2),
    (32, 32, 24, 3),
)
NONCE = bytes(range(16))
KINDS = (DATA, DATA, PING, PONG, CLOSE, 0x80, 0xC1, 0x04)
PATIENCES = (0.0, 0.001, 0.5, 40.0)
DELAYS = (0.0, 1 / 64, 0.25, 1.0, 1.25, 5.0, 19.0, 4000.0)
FILLING = bytes(range(256)) * 150

# Bytes of one talk, since the model takes its time.
LONGEST_TALK = 3000

ALL, CALLBACK = 15, 13
"""As an argument, all there is; and that nobody looks before the next call."""


class Op(IntEnum):
    """What an input asks for, by the lowest four bits of a byte; the others are its argument."""

    PUT = 0  # so many bytes that follow, which the peer writes; 15: as many as a byte says
    PUT_FRAME = 1  # of a kind; two bytes: its size
    PUT_HELLO = 2  # with a longest message; a byte: the rest of it
    PUT_PONG = 3  # for one of our pings
    RECEIVE = (
        4  # so many bytes; 14: as many as a byte says; 13: all, and what comes next comes from a callback
    )
    IN_PLACE = 5  # likewise, where there is room for it
    SEND = 6  # of a kind; two bytes: the size
    PING = 7
    CLOSE = 8  # with a reason; a byte: the code
    STOP_SENDING = 9
    SET_READING = 10
    EOF = 11
    SET_WRITING = 12
    FIRE = 13  # the timer, so much too late
    WAIT = 14
    PUT_RUN = 15  # so many messages of one size; two bytes: the size, and one that is of another kind


UNTIL_THE_END = {Op.RECEIVE, Op.IN_PLACE, Op.CLOSE, Op.SET_READING}
"""What nobody calls once it is finished. It would start to wait again, though there is nothing to wait for."""


class Run:
    """One talk: the protocol, driven as by a transport, and its model."""

    def __init__(self, script: Script, tell: Tell) -> None:
        first, second = script.byte(), script.byte()
        self.tell = tell
        self.now = 1024.0
        self.max_size = MAX_MESSAGES[first & 7]
        self.large, self.large_start = core.LARGE, core._LARGE_START  # as one_input() has set them
        nonce = NONCE if first & 32 else None
        heartbeat, timeout, open_timeout, close_timeout = (SECONDS[second >> at & 3] for at in (0, 2, 4, 6))
        tell(f"{self.max_size=} {self.large=} {heartbeat=} {timeout=} {open_timeout=} {close_timeout=}")
        self.model = Model(self.now, self.max_size, nonce, heartbeat, timeout, open_timeout, close_timeout)
        self.protocol = NativeProtocol(
            lambda: self.now,
            max_size=self.max_size,
            open_timeout=open_timeout,
            close_timeout=close_timeout,
            heartbeat=heartbeat,
            heartbeat_timeout=timeout,
            nonce=nonce,
        )
        self.wire = bytearray()
        self.left = LONGEST_TALK
        self.writing = self.all_written = True
        self.closed = False
        self.seen = 0
        self.messages: list[bytes] = []
        self.bytes_received = 0
        self.views: list[memoryview] = []
        self.room = False
        self.pings_written = 0
        self.control()
        if first & 64:
            self.put(Hello(1000, PATIENCES[first >> 7]).encode())
            self.receive(len(self.wire), in_place=False)
        self.look()

    def do(self, script: Script) -> None:
        step = script.byte()
        op, argument = Op(step & 15), step >> 4
        self.tell(f"{self.now}: {op.name} {argument}")
        if self.protocol.finished and op in UNTIL_THE_END:
            return
        match op:
            case Op.PUT:
                self.put(script.take(argument if argument < ALL else script.byte()))
            case Op.PUT_FRAME:
                size = script.size() % 2600
                self.put(frame(KINDS[argument & 7], FILLING[self.left % 256 :][:size]))
            case Op.PUT_HELLO:
                rest = script.byte()
                limit = (1000, 0, 40, 2**32 - 1)[argument & 3]
                nonce, version, tail = NONCE if rest & 1 else None, 1 + (rest >> 1 & 1), bytes(rest >> 2)
                start = Hello(limit, PATIENCES[argument >> 2], nonce, version=version).encode()
                self.put(start[:10] + (len(start) - 12 + len(tail)).to_bytes(2, "big") + start[12:] + tail)
            case Op.PUT_PONG:
                self.put(frame(PONG, max(0, self.model.pings_sent - argument).to_bytes(8, "big")))
            case Op.RECEIVE | Op.IN_PLACE:
                size = len(self.wire) if argument in (ALL, CALLBACK) else argument
                self.receive(script.byte() if argument == 14 else size, op is Op.IN_PLACE)
                if argument == CALLBACK:
                    return
            case Op.SEND:
                self.send(argument, script.size())
            case Op.PING:
                self.ping()
            case Op.CLOSE:
                code, reason = script.byte(), "é€𝄞x"[argument & 3] * (argument >> 2) ** 6
                self.protocol.close(code, reason)
                self.model.close(code, reason)
            case Op.STOP_SENDING:
                self.protocol.stop_sending()
                self.model.mute = True
            case Op.SET_READING:
                self.protocol.set_reading(argument % 2 == 1)
                self.model.set_reading(argument % 2 == 1)
            case Op.EOF:
                self.end()
            case Op.SET_WRITING:
                self.writing = argument % 2 == 1
            case Op.FIRE:
                if self.protocol.timer is not None:
                    self.advance(max(self.now, self.protocol.timer) + DELAYS[argument & 7])
                    self.fire()
            case Op.WAIT:
                self.advance(self.now + DELAYS[argument & 7])
                self.fire()
                self.protocol.on_timer()  # now it is too early
            case Op.PUT_RUN:
                size, odd = script.byte(), script.byte()
                for at in range(min(8 * argument, self.left // (8 + size) + 1)):
                    self.put(frame(KINDS[odd & 7] if at == odd >> 3 else DATA, bytes([at]) * size))
        self.look()

    def finish(self) -> None:
        """Let everything come, and the end."""
        self.writing = True
        self.receive(len(self.wire), in_place=True)
        self.receive(len(self.wire), in_place=False)
        self.look()
        self.fire()
        self.look()
        self.end()
        self.look()
        # Whoever still has a place to receive into must not do any harm.
        for view in self.views:
            view[:] = b"\xff" * len(view)
        assert self.messages == self.model.side.messages
        assert all(type(message) is bytes for message in self.messages)

    # -- the calls, on both ----------------------------------------------------------------------------------

    def put(self, data: bytes) -> None:
        data = data[: self.left]
        self.left -= len(data)
        self.wire += data

    def receive(self, size: int, in_place: bool) -> None:
        if self.protocol.finished:
            return
        room = self.protocol.buffer
        if in_place and room is not None:
            size = min(size, len(room))
        data = bytes(self.wire[:size])
        del self.wire[:size]
        if in_place and room is not None:
            assert not room.readonly
            if size % 3 == 0:
                self.views.append(room[:])
            room[: len(data)] = data
            del room
            self.messages += self.protocol.received(len(data))
        else:
            self.messages += self.protocol.receive(data)
        self.bytes_received += len(data)
        self.model.receive(data)

    def end(self) -> None:
        pending = self.model.side._pending
        self.protocol.eof()
        for event in self.protocol.events:
            if isinstance(event, Failed) and isinstance(event.error, IncompleteFrame):
                size = 8 + int.from_bytes(pending[4:8], "big") if len(pending) >= 8 else None
                assert (event.error.received, event.error.expected) == (len(pending), size)
        self.model.end()

    def send(self, kind: int, size: int) -> None:
        message = FILLING[:size] if kind & 8 else FILLING[: size % 1100]
        expected = self.model.send(message)
        kinds: tuple[Callable[[bytes], Any], ...] = (bytes, bytearray, memoryview, bytes)
        try:
            written = self.frame(kinds[kind & 3](message), alone=not kind & 4)
        except (FrameTooLarge, LocalProtocolError) as error:
            assert expected is None
            too_large = self.model.side.sending == "OPEN" and not self.model.mute
            assert isinstance(error, FrameTooLarge) == too_large
            return
        assert (written if isinstance(written, bytes) else b"".join(written)) == expected

    def frame(self, message: Any, alone: bool) -> Frame:
        if alone:
            return self.protocol.frame(message)
        frames: list[Frame] = []
        more = self.protocol.add_frames(frames, iter([message]), 1)
        assert not more
        return frames[0]

    def ping(self) -> None:
        try:
            token = self.protocol.ping()
        except LocalProtocolError:
            assert self.model.side.sending != "OPEN"
        else:
            assert token == self.model.ping()

    def advance(self, now: float) -> None:
        self.now = self.model.now = now

    def fire(self) -> None:
        """Call on_timer(), if its time has come."""
        timer, pings = self.protocol.timer, self.protocol.pings_sent
        if timer is None or timer > self.now:
            return
        self.protocol.on_timer()
        gone = any(isinstance(event, Failed) and event.code == 9 for event in self.protocol.events)
        pinged = self.protocol.pings_sent - pings
        assert pinged <= 1
        assert self.protocol.lateness == self.now - timer
        self.model.fired(self.now - timer, gone, bool(pinged))
        assert self.protocol.timer is None or self.protocol.timer > self.now, "it would fire for ever"

    # -- what came of it -------------------------------------------------------------------------------------

    def look(self) -> None:
        """Do what a driver does after each call, and compare."""
        protocol, model = self.protocol, self.model
        told: list[Expected] = []
        rounds = 0
        while protocol.attention or not rounds:
            rounds += 1
            assert rounds < 4, "it asks for attention for ever"
            attention, protocol.attention = protocol.attention, False
            events, protocol.events = protocol.events, ()
            room, self.room = self.room, protocol.buffer is not None
            assert attention or not events and room >= self.room
            told += map(self.told, events)
            written, self.all_written = self.all_written, self.writing or protocol.close_sent
            if self.all_written:
                assert attention or not written or not (protocol._output or protocol._pong is not None)
                self.control()
        assert told == model.expected
        model.expected.clear()

        side = model.side
        assert len(self.messages) == len(side.messages)
        assert self.messages[self.seen :] == side.messages[self.seen :]
        self.seen = len(self.messages)
        assert protocol.close_sent == (side.sending == "CLOSED")
        assert protocol.close_received == (side.receiving == "CLOSED" or side.error is not None)
        assert protocol.finished == model.finished
        assert protocol.bytes_received == self.bytes_received
        assert protocol.pings_sent == model.pings_sent
        model.check_timer(protocol.timer)
        self.check_memory()

    def told(self, event: Event) -> Expected:
        match event:
            case Opened(peer):
                assert peer is not None and peer is self.protocol.peer
                return "Opened", peer.max_message, peer.patience, peer.nonce
            case Pong(token, latency):
                assert self.protocol.latency is not None
                return "Pong", token, latency
            case Closed(code, reason):
                return "Closed", code, reason
            case Failed(error, failed):
                assert isinstance(error, HvError) and str(error)
                return "Failed", failed

    def control(self) -> None:
        """Write what is to be written, and compare."""
        side = self.model.side
        data = self.protocol.data_to_send()
        if not data and not side.written and not self.model.gave:
            return
        if not self.seen and data[:1] == b"\x89":
            assert data == side.written
            side.written.clear()
            return
        written, expected = frames(data), frames(side.written)
        side.written.clear()
        assert not (self.closed and written), "nothing follows a CLOSE"
        self.closed = any(kind == CLOSE for kind, _ in written)
        self.pings_written = self.protocol.pings_sent
        if written:
            self.model.said_at = self.now
        if side.error is not None and expected:
            self.check_error(written, expected)
        pongs = [payload for kind, payload in written if kind == PONG]
        wanted = [payload for kind, payload in expected if kind == PONG]
        if side.sending == "CLOSED":
            assert pongs in ([], wanted[-1:])
        else:
            assert pongs == (wanted[-1:] or [b""] * self.model.gave)
        self.model.gave = False
        assert [each for each in written if each[0] != PONG] == [each for each in expected if each[0] != PONG]

    def check_error(self, written: list[tuple[int, bytes]], expected: list[tuple[int, bytes]]) -> None:
        """Compare a CLOSE that has a reason of its own."""
        assert written
        (kind, payload), (_, code) = written.pop(), expected.pop()
        assert kind == CLOSE and payload[:1] == code[:1] and 1 < len(payload) <= 1024
        payload[1:].decode()

    def check_memory(self) -> None:
        """Check that nothing is kept beyond what the limits allow."""
        protocol, side = self.protocol, self.model.side
        joined = min(self.max_size, max(self.large, self.large_start))
        # A bytearray takes an eighth more than is in it.
        most = (8 + max(joined, 1024)) * 9 // 8 + 100
        assert sys.getsizeof(protocol._partial) <= min(most, 200 + 2 * self.bytes_received)
        pings = protocol._pings or {}
        assert pings == self.model.pings
        assert len(protocol._output) <= protocol.pings_sent - self.pings_written + 3
        assert len(protocol._pong or b"") <= 64
        assert (protocol.buffer is None) == (protocol._large is None)
        if protocol.buffer is not None and protocol._large is not None:
            have = len(side._pending) - 8
            size = int.from_bytes(side._pending[4:8], "big")
            assert (side.receiving == "FRAMES" or protocol.finished) and side._pending[0] == DATA
            assert size >= self.large and have >= self.large_start
            assert sys.getsizeof(protocol._large) <= size * 9 // 8 + 300
            assert len(protocol.buffer) == size - have > 0


def one_input(data: bytes, tell: Tell = ignore) -> None:
    script = Script(data)
    large, start, run, fewest = SCALES[data[0] >> 3 & 3] if data else SCALES[0]
    with (
        large_from(large, start),
        mock.patch.object(core, "SHORTEST_RUN", run),
        mock.patch.object(protocol_frames, "_FEWEST", fewest),
    ):
        talk = Run(script, tell)
        while script:
            talk.do(script)
        talk.finish()


# -- seeds -------------------------------------------------------------------------------------------------


def seeds() -> Iterator[bytes]:
    """Yield the vectors, cut in some ways, and talks about time and calls."""
    for number, vector in enumerate(json.loads(VECTORS.read_text("utf-8"))["vectors"]):
        local = vector["local"]
        limit = min(MAX_MESSAGES, key=lambda size: abs(size - local["max_message"]))
        settings = MAX_MESSAGES.index(limit) | number % 4 << 3 | (32 if local["nonce"] else 0)
        for way in (RECEIVE_ALL, IN_PLACE_ALL, do(Op.RECEIVE, 7), do(Op.RECEIVE, 1)):
            steps = b"".join(_step(step, way) for step in vector["steps"])
            yield bytes([settings, 0xFF]) + steps
    fires, stop, start = do(Op.FIRE, 0) * 4, do(Op.SET_READING, 0), do(Op.SET_READING, 1)
    silence, speech = do(Op.SET_WRITING, 0), do(Op.SET_WRITING, 1)
    pinged = do(Op.PUT, ALL) + b"\x10" + frame(PING, b"12345678") + RECEIVE_ALL
    talks = (
        fires,
        (do(Op.FIRE, 1) + do(Op.PUT_PONG, 0) + RECEIVE_ALL) * 3 + fires,
        stop + fires + start + fires,
        do(Op.FIRE, 5) * 2 + do(Op.WAIT, 0) + fires,
        silence + pinged * 2 + do(Op.PING, 0) + speech + fires,
        do(Op.PING, 0) * 3 + do(Op.PUT_PONG, 1) + RECEIVE_ALL + do(Op.CLOSE, 5) + b"\0" + fires,
        do(Op.STOP_SENDING, 0) + do(Op.SEND, 0) + b"\0\5" + pinged,
        do(Op.PUT_FRAME, 0) + b"\1\0" + do(Op.RECEIVE, 14) + b"\x80" + IN_PLACE_ALL * 2,
        do(Op.PUT_RUN, 3) + b"\3\0" + pinged + do(Op.PUT_RUN, 1) + b"\5\0" + RECEIVE_ALL,
        pinged[:-1] + do(Op.RECEIVE, CALLBACK) + do(Op.CLOSE, 5) + b"\0" + fires,
        do(Op.WAIT, 7) + do(Op.SEND, 8) + b"\1\0" + do(Op.EOF, 0),
    )
    for first, second in ((0x40 | 5, 0xAA), (0xC0 | 5 | 8, 0xFF)):
        for talk in talks:
            yield bytes([first, second]) + talk


def do(op: Op, argument: int) -> bytes:
    return bytes([op | argument << 4])


RECEIVE_ALL, IN_PLACE_ALL = do(Op.RECEIVE, ALL), do(Op.IN_PLACE, ALL)


def _step(step: dict[str, Any], way: bytes) -> bytes:
    match step:
        case {"receive": text}:
            stream = bytes.fromhex(text)
            parts = [stream[at : at + 255] for at in range(0, len(stream), 255)]
            puts = b"".join(do(Op.PUT, ALL) + bytes([len(part)]) + part for part in parts)
            return puts + way * (2 if way in (RECEIVE_ALL, IN_PLACE_ALL) else min(60, len(stream)))
        case {"call": "send", "data": message}:
            return do(Op.SEND, 0) + (len(message) // 2).to_bytes(2, "big")
        case {"call": "close", "code": code}:
            return do(Op.CLOSE, 5) + bytes([code])
        case {"call": "ping"}:
            return do(Op.PING, 0)
        case _:
            return do(Op.EOF, 0)
