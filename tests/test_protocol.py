"""The state machines of aiohvsock.protocol; with the vectors, this covers them."""

from __future__ import annotations

import array
import contextlib
import itertools
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from aiohvsock.exceptions import (
    FrameTooLarge,
    FramingError,
    HvError,
    IncompleteFrame,
    LocalProtocolError,
    ProtocolError,
)
from aiohvsock.framing import Buffer, LengthPrefixed
from aiohvsock.protocol import (
    MAX_MESSAGE,
    VERSION,
    BareProtocol,
    CloseCode,
    Closed,
    Event,
    Failed,
    Frame,
    Hello,
    NativeProtocol,
    Opened,
    Pong,
)
from aiohvsock.protocol.hello import parse_hello

from .large import large_from
from .reference_protocol import Reference, frame
from .test_protocol_vectors import RealSide, ReferenceSide, Side, check_written, frames

DATA, PING, PONG, CLOSE = range(4)
NONCE = bytes(range(16))
HELLO = Hello(2**20).encode()
LARGE = 100_000


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.calls = 0

    def __call__(self) -> float:
        self.calls += 1
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(clock: Callable[[], float], hello: Hello | None = None, **arguments: Any) -> NativeProtocol:
    """Return a protocol that has said hello, to a peer that has too."""
    protocol = NativeProtocol(clock, **arguments)
    assert protocol.receive((hello or Hello(2**20)).encode()) == []
    assert written(protocol)[:4] == HELLO[:4]
    assert [type(event) for event in events(protocol)] == [Opened]
    return protocol


def written(protocol: NativeProtocol) -> bytes:
    return protocol.data_to_send()


def control(protocol: NativeProtocol) -> list[tuple[int, bytes]]:
    """Return the frames, types and payloads, that are to be written beside messages."""
    return frames(protocol.data_to_send())


def events(protocol: NativeProtocol | BareProtocol[Any]) -> list[Event]:
    """Take what happened, and look whether there was a hint to do so."""
    found = list(protocol.events)
    assert protocol.attention or not found
    protocol.events = ()
    protocol.attention = False
    return found


def joined(pieces: Frame) -> bytes:
    return pieces if isinstance(pieces, bytes) else b"".join(pieces)


def failure(protocol: NativeProtocol) -> Failed:
    """Return the one event there is, a failure."""
    (event,) = events(protocol)
    assert isinstance(event, Failed)
    return event


def fire(protocol: NativeProtocol, clock: Clock, late: float = 0.0) -> float:
    """Let the timer's moment come, and return it."""
    assert protocol.timer is not None
    clock.now = max(clock.now, protocol.timer) + late
    protocol.on_timer()
    return clock.now


# -- hello ---------------------------------------------------------------------------------------------------


def test_hello_on_the_wire() -> None:
    encoded = Hello(65536, 30.0, NONCE).encode()

    assert encoded == (
        b"\x89hvmsg\r\n" + bytes((1, 1, 0, 28)) + bytes((0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0x75, 0x30)) + NONCE
    )
    assert parse_hello(encoded) == (Hello(65536, 30.0, NONCE, capabilities=1), 40)


@pytest.mark.parametrize(
    ("hello", "tail"),
    [
        (Hello(0), "00000000 00000000 00000000"),
        (Hello(MAX_MESSAGE, 1e12), "00000000 ffffffff ffffffff"),
        (Hello(1, 0.0004), "00000000 00000001 00000000"),
        (Hello(1, 40.0, capabilities=1), "00000000 00000001 00009c40"),  # no nonce, no bit
        (Hello(1, 40.0, capabilities=6), "00000006 00000001 00009c40"),
    ],
)
def test_hello_figures(hello: Hello, tail: str) -> None:
    assert hello.encode() == b"\x89hvmsg\r\n" + bytes((VERSION, 1, 0, 12)) + bytes.fromhex(tail)


@pytest.mark.parametrize("size", [-1, 2**32])
def test_a_hello_with_a_wrong_limit(size: int, clock: Clock) -> None:
    with pytest.raises(ValueError, match=r"2\*\*32 - 1 bytes"):
        Hello(size)
    with pytest.raises(ValueError, match=r"2\*\*32 - 1 bytes"):
        NativeProtocol(clock, max_size=size)


@pytest.mark.parametrize("nonce", [b"", bytes(15), bytes(17)])
def test_a_hello_with_a_wrong_nonce(nonce: bytes) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        Hello(1, nonce=nonce)


def test_a_hello_as_it_comes() -> None:
    encoded = Hello(5, 0.0, NONCE).encode()

    for have in range(len(encoded)):
        hello, need = parse_hello(bytearray(encoded[:have]))
        assert hello is None
        assert have < need <= len(encoded)
    assert parse_hello(encoded + b"more")[1] == len(encoded)


@pytest.mark.parametrize(
    ("at", "octet", "text"),
    [
        (0, 0x88, "does not speak this protocol"),
        (7, 0x0D, "does not speak this protocol"),
        (8, 0, "versions 1 to 0"),
        (9, 0, "versions 0 to 1"),
        (9, 2, "versions 2 to 1"),
        (11, 11, "length of 11, not 12 to 1012"),
        (10, 4, "length of 1036, not 12 to 1012"),
        (15, 1, "too short for its nonce"),
    ],
)
def test_a_hello_that_is_none(at: int, octet: int, text: str, clock: Clock) -> None:
    hello = bytearray(HELLO)
    hello[at] = octet
    protocol = NativeProtocol(clock)
    written(protocol)

    assert protocol.receive(bytes(hello)) == []
    ((kind, payload),) = control(protocol)
    assert (kind, payload[0]) == (CLOSE, CloseCode.PROTOCOL_ERROR)
    event = failure(protocol)
    assert type(event.error) is ProtocolError
    assert text in str(event.error)
    assert payload[1:].decode() == str(event.error)
    assert event.code == CloseCode.PROTOCOL_ERROR


def test_the_first_wrong_byte_is_enough(clock: Clock) -> None:
    protocol = NativeProtocol(clock)
    protocol.receive(b"\x89hv")
    assert events(protocol) == []
    protocol.receive(b"M")
    assert failure(protocol).code == CloseCode.PROTOCOL_ERROR


def test_what_the_peer_says_of_itself(clock: Clock) -> None:
    protocol = NativeProtocol(clock)
    protocol.receive(Hello(77, 12.5, NONCE, version=3).encode())

    assert protocol.peer == Hello(77, 12.5, NONCE, capabilities=1, version=3)
    assert events(protocol) == [Opened(protocol.peer)]


def test_no_common_version(clock: Clock) -> None:
    protocol = NativeProtocol(clock)
    written(protocol)
    protocol.receive(Hello(1, version=5, oldest=4).encode() + frame(DATA, b"x"))

    event = failure(protocol)
    assert event.code == CloseCode.NO_COMMON_VERSION
    assert "versions 4 to 5" in str(event.error)
    assert control(protocol)[0][1][0] == CloseCode.NO_COMMON_VERSION


def test_own_hello_goes_first_and_at_once(clock: Clock) -> None:
    protocol = NativeProtocol(clock, max_size=9, heartbeat=20.0, heartbeat_timeout=20.0, nonce=NONCE)
    assert protocol.attention
    assert protocol.timer is None
    protocol.close()
    assert written(protocol) == Hello(9, 20.0, NONCE).encode() + frame(CLOSE, b"\0")


@pytest.mark.parametrize(("heartbeat", "timeout"), [(None, 20.0), (20.0, None), (None, None)])
def test_who_never_judges_has_no_patience(
    heartbeat: float | None, timeout: float | None, clock: Clock
) -> None:
    protocol = NativeProtocol(clock, heartbeat=heartbeat, heartbeat_timeout=timeout)
    assert written(protocol) == HELLO


def test_no_hello_in_time(clock: Clock) -> None:
    protocol = NativeProtocol(clock, open_timeout=10.0)
    written(protocol)
    protocol.receive(HELLO[:-1])
    assert protocol.timer == 1010.0
    clock.now = 1009.9
    protocol.on_timer()
    assert not protocol.finished
    fire(protocol, clock)

    event = failure(protocol)
    assert event.code == CloseCode.NO_HELLO
    assert "hello in time" in str(event.error)
    assert control(protocol)[0][1][0] == CloseCode.NO_HELLO
    assert protocol.finished
    assert protocol.timer is None
    protocol.on_timer()
    assert events(protocol) == []


def test_a_hello_in_time(clock: Clock) -> None:
    protocol = NativeProtocol(clock, open_timeout=10.0)
    protocol.receive(HELLO)
    assert protocol.timer is None


# -- sending -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 255, 256, 32767, 32768, LARGE])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_frame(size: int, kind: Callable[[bytes], Any], clock: Clock) -> None:
    protocol = opened(clock)
    message = bytes(range(256)) * (size // 256 + 1)

    assert joined(protocol.frame(kind(message[:size]))) == frame(DATA, message[:size])


def test_large_messages_are_not_copied(clock: Clock) -> None:
    protocol = opened(clock)
    message = bytes(LARGE)

    for given_as in (message, memoryview(message)):
        pieces = protocol.frame(given_as)  # type: ignore[arg-type]
        assert memoryview(pieces[1]).obj is message  # type: ignore[arg-type]


def test_views_of_all_kinds(clock: Clock) -> None:
    protocol = opened(clock)
    numbers = array.array("I", range(20_000))

    assert joined(protocol.frame(numbers)) == frame(DATA, numbers.tobytes())  # type: ignore[arg-type]
    assert joined(protocol.frame(memoryview(numbers)[::2])) == frame(  # type: ignore[arg-type]
        DATA, numbers[::2].tobytes()
    )


@pytest.mark.parametrize("limit", [0, 10, 40_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_a_message_the_peer_does_not_take(limit: int, kind: Callable[[int], Any], clock: Clock) -> None:
    protocol = opened(clock, Hello(limit))

    with pytest.raises(FrameTooLarge) as caught:
        protocol.frame(kind(limit + 1))
    assert (caught.value.size, caught.value.max_size) == (limit + 1, limit)
    assert joined(protocol.frame(kind(limit))) == frame(DATA, bytes(limit))


@pytest.mark.parametrize("message", ["text", None, 5])
def test_what_is_no_message(message: Any, clock: Clock) -> None:
    with pytest.raises(TypeError):
        opened(clock).frame(message)


@pytest.mark.parametrize("message", [b"", bytes(LARGE), bytearray(LARGE)])
def test_when_nothing_can_be_sent(message: bytes, clock: Clock) -> None:
    protocol = NativeProtocol(clock)

    def refused(text: str) -> None:
        with pytest.raises(LocalProtocolError, match=text):
            protocol.frame(message)
        with pytest.raises(LocalProtocolError, match=text):
            protocol.ping()

    refused("before the peer's hello")
    protocol.receive(HELLO)
    protocol.close()
    refused("after a close")

    protocol = opened(clock)
    protocol.receive(frame(CLOSE, b"\0"))
    refused("after a close")

    protocol = opened(clock)
    protocol.receive(frame(0x7F, b""))
    refused("after a close")

    protocol = opened(clock)
    protocol.stop_sending()
    with pytest.raises(LocalProtocolError, match="any more"):
        protocol.frame(message)


def test_stopping_to_send_stops_messages_only(clock: Clock) -> None:
    protocol = opened(clock, heartbeat=20.0, heartbeat_timeout=20.0)
    protocol.stop_sending()

    assert protocol.receive(frame(DATA, b"still here") + frame(PING, b"?")) == [b"still here"]
    assert control(protocol) == [(PONG, b"?")]
    fire(protocol, clock)
    assert [kind for kind, _ in control(protocol)] == [PING]
    protocol.close(1)
    assert control(protocol) == [(CLOSE, b"\1")]


def test_stopping_to_send_before_the_hello(clock: Clock) -> None:
    protocol = NativeProtocol(clock)
    protocol.stop_sending()
    protocol.receive(HELLO)
    with pytest.raises(LocalProtocolError, match="any more"):
        protocol.frame(b"")


# -- receiving -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 255, 256, 16383, 16384, 32767, 32768, LARGE])
@pytest.mark.parametrize("cut", [1000, 16392, 50_000, 10**6])
def test_messages_of_all_sizes(size: int, cut: int, clock: Clock) -> None:
    message = (bytes(range(251)) * (size // 251 + 1))[:size]
    stream = (frame(DATA, message) + frame(DATA, b"next")) * 3
    protocol = opened(clock)

    found = []
    for start in range(0, len(stream), cut):
        found += protocol.receive(stream[start:][:cut])
    assert found == [message, b"next"] * 3
    assert all(type(each) is bytes for each in found)
    assert protocol.bytes_received == len(HELLO) + len(stream)


def test_nothing_received_is_nothing(clock: Clock) -> None:
    protocol = NativeProtocol(clock)
    assert protocol.receive(b"") == []
    protocol.receive(HELLO)
    assert protocol.receive(b"") == []
    assert protocol.receive(b"\0") == protocol.receive(b"") == []


def test_receiving_in_place(clock: Clock) -> None:
    message = bytes(range(250)) * 400
    stream = frame(DATA, message)
    protocol = opened(clock)

    assert protocol.receive(stream[:10_000]) == []
    assert protocol.buffer is None
    assert protocol.receive(stream[10_000:20_000]) == []
    position = 20_000
    found: list[bytes] = []
    while position < len(stream):
        assert protocol.buffer is not None
        assert len(protocol.buffer) == len(stream) - position
        part = stream[position:][:30_000]
        protocol.buffer[: len(part)] = part
        position += len(part)
        found = protocol.received(len(part))
    assert found == [message]
    assert type(found[0]) is bytes
    assert protocol.buffer is None
    assert protocol.bytes_received == len(HELLO) + len(stream)
    assert protocol.receive(frame(DATA, b"next")) == [b"next"]


def test_receiving_elsewhere_though_there_is_a_buffer(clock: Clock) -> None:
    message = bytes(range(250)) * 400
    stream = frame(DATA, message) + frame(DATA, b"next") + frame(PING, b"?")
    protocol = opened(clock)

    protocol.receive(stream[:20_000])
    assert protocol.buffer is not None
    protocol.buffer[:1000] = stream[20_000:21_000]
    assert protocol.received(1000) == []
    assert protocol.receive(stream[21_000:30_000]) == []
    assert protocol.buffer is not None
    assert protocol.receive(stream[30_000:]) == [message, b"next"]
    assert control(protocol) == [(PONG, b"?")]
    assert protocol.bytes_received == len(HELLO) + len(stream)


@pytest.mark.parametrize("closer", ["us", "them, impossible", "error"])
def test_the_end_inside_a_large_message(closer: str, clock: Clock) -> None:
    stream = frame(DATA, bytes(LARGE))
    protocol = opened(clock)
    protocol.receive(stream[:20_000])
    assert protocol.buffer is not None

    if closer == "us":
        protocol.close()
        assert protocol.received(len(protocol.buffer)) == []
        assert protocol.receive(frame(DATA, b"x") + frame(CLOSE, b"\0")) == []
        assert events(protocol) == [Closed(0, "")]
    else:
        protocol.eof()
        error = failure(protocol).error
        assert isinstance(error, IncompleteFrame)
        assert (error.received, error.expected) == (20_000, len(stream))


@pytest.mark.parametrize(
    ("stream", "received", "expected"),
    [
        (frame(DATA, b"hello")[:3], 3, None),
        (frame(DATA, b"hello")[:8], 8, 13),
        (frame(DATA, b"hello")[:12], 12, 13),
        (frame(PING, b"hello")[:9], 9, 13),
        (frame(DATA, bytes(LARGE))[:9], 9, LARGE + 8),
    ],
)
def test_the_end_inside_a_frame(stream: bytes, received: int, expected: int | None, clock: Clock) -> None:
    protocol = opened(clock)
    protocol.receive(stream)
    protocol.eof()

    event = failure(protocol)
    assert isinstance(event.error, IncompleteFrame)
    assert (event.error.received, event.error.expected) == (received, expected)
    assert event.code is None
    assert protocol.finished
    assert control(protocol) == []


@pytest.mark.parametrize("stream", [b"", HELLO[:1], HELLO[:-1]])
def test_the_end_before_the_hello(stream: bytes, clock: Clock) -> None:
    protocol = NativeProtocol(clock, open_timeout=10.0)
    protocol.receive(stream)
    protocol.eof()

    event = failure(protocol)
    assert "before its hello was whole" in str(event.error)
    assert event.code is None
    assert protocol.finished
    assert protocol.timer is None


def test_the_end_without_a_close(clock: Clock) -> None:
    protocol = opened(clock, heartbeat=20.0, heartbeat_timeout=20.0)
    protocol.receive(frame(0x80, b"ignored"))
    protocol.eof()

    assert "without closing" in str(failure(protocol).error)
    assert protocol.timer is None
    protocol.eof()
    assert events(protocol) == []


# -- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "code", "text"),
    [
        (b"\0\0\1" + bytes(5), 2, "reserved bytes"),
        (frame(0x04, b""), 2, "unknown type 0x04"),
        (frame(0x7F, b""), 2, "unknown type 0x7f"),
        (frame(PING, bytes(65))[:8], 2, "type 0x01 has 65 bytes, over the limit of 64"),
        (frame(PONG, bytes(65))[:8], 2, "type 0x02 has 65 bytes, over the limit of 64"),
        (frame(CLOSE, bytes(1025))[:8], 2, "type 0x03 has 1025 bytes, over the limit of 1024"),
        (frame(CLOSE, b""), 2, "no code"),
        (frame(0x80, bytes(5001))[:8], 2, "type 0x80 has 5001 bytes, over the limit of 5000"),
        (frame(DATA, bytes(5001))[:8], 4, "5001 bytes is over the limit of 5000"),
    ],
)
@pytest.mark.parametrize("closed", [False, True])
def test_a_peer_that_breaks_a_rule(stream: bytes, code: int, text: str, closed: bool, clock: Clock) -> None:
    protocol = opened(clock, max_size=5000, close_timeout=10.0, heartbeat=20.0, heartbeat_timeout=20.0)
    if closed:
        protocol.close()
        assert control(protocol) == [(CLOSE, b"\0")]
    delivered = protocol.receive(frame(DATA, b"before") + stream + frame(DATA, b"after"))

    assert delivered == ([] if closed else [b"before"])
    event = failure(protocol)
    assert text in str(event.error)
    assert isinstance(event.error, FrameTooLarge if code == 4 else ProtocolError)
    assert event.code == code
    assert control(protocol) == ([] if closed else [(CLOSE, bytes((code,)) + str(event.error).encode())])
    # It reads on for a moment, and nothing that comes counts.
    assert not protocol.finished
    assert protocol.receive(frame(DATA, b"x") + frame(PING, b"") + frame(CLOSE, b"\0")) == []
    assert control(protocol) == []
    assert events(protocol) == []
    assert fire(protocol, clock) == 1001.0
    assert protocol.finished
    protocol.eof()
    assert events(protocol) == []


def test_the_end_after_an_error(clock: Clock) -> None:
    protocol = opened(clock)
    protocol.receive(frame(0x10, b""))
    failure(protocol)
    protocol.eof()
    assert protocol.finished
    assert events(protocol) == []


# -- ping and pong -------------------------------------------------------------------------------------------


def test_the_last_ping_is_answered(clock: Clock) -> None:
    protocol = opened(clock)
    protocol.attention = False
    protocol.receive(frame(PING, b"1") + frame(DATA, b"") + frame(PING, b"2"))
    assert protocol.attention
    assert control(protocol) == [(PONG, b"2")]
    assert control(protocol) == []
    protocol.receive(frame(PING, bytes(64)))
    assert control(protocol) == [(PONG, bytes(64))]


def test_a_ping_in_pieces(clock: Clock) -> None:
    protocol = opened(clock)
    for octet in frame(PING, b"abc"):
        assert control(protocol) == []
        protocol.receive(bytes((octet,)))
    assert control(protocol) == [(PONG, b"abc")]


def test_latency(clock: Clock) -> None:
    protocol = opened(clock)
    assert protocol.latency is None
    first = protocol.ping()
    ((kind, payload),) = control(protocol)
    assert kind == PING
    assert protocol.pings_sent == 1
    clock.now += 0.25
    protocol.receive(frame(PONG, payload))
    assert events(protocol) == [Pong(first, 0.25)]
    assert protocol.latency == 0.25
    clock.now += 1.0
    protocol.receive(frame(PONG, payload))
    assert events(protocol) == []
    assert protocol.latency == 0.25


def test_a_pong_answers_all_before(clock: Clock) -> None:
    protocol = opened(clock)
    tokens = []
    for _ in range(4):
        tokens.append(protocol.ping())
        clock.now += 1.0
    payloads = [payload for _, payload in control(protocol)]
    assert len(set(payloads)) == 4

    protocol.receive(frame(PONG, payloads[2]))
    assert events(protocol) == [Pong(tokens[2], 2.0)]
    protocol.receive(frame(PONG, payloads[0]) + frame(PONG, payloads[1]))
    assert events(protocol) == []
    protocol.receive(frame(PONG, payloads[3]))
    assert events(protocol) == [Pong(tokens[3], 1.0)]


@pytest.mark.parametrize("payload", [b"", b"\1", bytes(8), bytes(7) + b"\2", bytes(64), bytes(8) + b"\1"])
def test_a_pong_for_nothing(payload: bytes, clock: Clock) -> None:
    protocol = opened(clock)
    protocol.receive(frame(PONG, payload))
    protocol.ping()
    protocol.receive(frame(PONG, payload))
    assert events(protocol) == []
    assert protocol.latency is None


def test_after_a_close_no_ping_is_answered(clock: Clock) -> None:
    protocol = opened(clock)
    protocol.receive(frame(PING, b"early"))
    protocol.close()
    protocol.receive(frame(PING, b"late"))
    assert (CLOSE, b"\0") in (found := control(protocol))
    assert (PONG, b"late") not in found


# -- close ---------------------------------------------------------------------------------------------------


def test_closing_first(clock: Clock) -> None:
    protocol = opened(clock, close_timeout=10.0)
    protocol.close(1, "update")
    assert protocol.close_sent
    assert control(protocol) == [(CLOSE, b"\1update")]
    assert protocol.timer == 1010.0
    assert not protocol.finished
    assert protocol.receive(frame(DATA, b"dropped") + frame(CLOSE, b"\1")) == []
    assert protocol.close_received
    assert protocol.finished
    assert events(protocol) == [Closed(1, "")]
    assert control(protocol) == []


def test_closing_second(clock: Clock) -> None:
    protocol = opened(clock, close_timeout=10.0, heartbeat=20.0, heartbeat_timeout=20.0)
    assert protocol.receive(frame(DATA, b"a") + frame(CLOSE, b"\xc8why") + frame(DATA, b"b")) == [b"a"]
    assert events(protocol) == [Closed(200, "why")]
    assert control(protocol) == [(CLOSE, b"\xc8")]
    assert protocol.close_received
    assert not protocol.finished
    assert protocol.timer == 1010.0
    assert protocol.receive(b"anything") == []
    protocol.close(0)
    assert control(protocol) == []
    protocol.eof()
    assert protocol.finished
    assert protocol.timer is None
    assert events(protocol) == []


@pytest.mark.parametrize("first", [True, False])
def test_a_peer_that_does_not_finish(first: bool, clock: Clock) -> None:
    protocol = opened(clock, close_timeout=10.0, heartbeat=20.0, heartbeat_timeout=20.0)
    if first:
        protocol.close()
    else:
        protocol.receive(frame(CLOSE, b"\0"))
    events(protocol)
    protocol.set_reading(False)
    protocol.set_reading(True)
    assert fire(protocol, clock) == 1010.0
    assert protocol.finished
    assert protocol.attention
    assert protocol.timer is None
    assert protocol.close_received is not first


def test_waiting_for_ever(clock: Clock) -> None:
    protocol = opened(clock, heartbeat=20.0, heartbeat_timeout=20.0)
    protocol.close()
    assert protocol.timer is None
    protocol.on_timer()
    assert not protocol.finished


def test_the_end_after_closing_without_an_answer(clock: Clock) -> None:
    protocol = opened(clock)
    protocol.close()
    protocol.eof()
    assert "without closing" in str(failure(protocol).error)


def test_closing_before_the_peers_hello(clock: Clock) -> None:
    protocol = NativeProtocol(clock, open_timeout=10.0, close_timeout=5.0)
    protocol.close(7, "full")
    assert written(protocol) == HELLO + frame(CLOSE, b"\7full")
    assert protocol.timer == 1005.0
    assert protocol.receive(HELLO + frame(DATA, b"x") + frame(CLOSE, b"\7")) == []
    assert events(protocol) == [Closed(7, "")]
    assert protocol.finished


def test_closing_twice(clock: Clock) -> None:
    protocol = opened(clock, close_timeout=10.0)
    protocol.close(128)
    clock.now += 5.0
    protocol.close(0, "again")
    assert control(protocol) == [(CLOSE, b"\x80")]
    assert protocol.timer == 1010.0


@pytest.mark.parametrize("code", [-1, 256])
def test_a_code_that_is_none(code: int, clock: Clock) -> None:
    with pytest.raises(ValueError, match=r"0 \.\.\. 255"):
        opened(clock).close(code)


@pytest.mark.parametrize(
    ("reason", "encoded"),
    [
        ("r" * 1023, b"r" * 1023),
        ("r" * 1024, b"r" * 1023),
        ("ü" * 600, "ü".encode() * 511),
        ("r" * 1021 + "世", b"r" * 1021),
        ("a\udc80b", b"a?b"),
    ],
)
def test_reasons(reason: str, encoded: bytes, clock: Clock) -> None:
    protocol = opened(clock)
    protocol.close(0, reason)
    assert control(protocol) == [(CLOSE, b"\0" + encoded)]


def test_codes() -> None:
    assert [code for code in range(256) if CloseCode.is_ok(code)] == [0, 1, *range(128, 256)]
    assert [int(code) for code in CloseCode] == list(range(10))


# -- heartbeat -----------------------------------------------------------------------------------------------


def beating(clock: Clock, heartbeat: float = 20.0, timeout: float | None = 20.0) -> NativeProtocol:
    return opened(clock, Hello(1000, 30.0), heartbeat=heartbeat, heartbeat_timeout=timeout)


def until_gone(protocol: NativeProtocol, clock: Clock, late: float = 0.0) -> float:
    """Let time pass until the peer is held for gone, and return when that was."""
    while not protocol.finished:
        assert protocol.timer is not None
        assert protocol.timer - clock.now <= 100.0
        fire(protocol, clock, late)
    return clock.now


def test_a_peer_that_answers(clock: Clock) -> None:
    protocol = beating(clock)
    for beat in range(1, 4):
        assert fire(protocol, clock) == 1000.0 + 20 * beat
        ((kind, payload),) = control(protocol)
        assert kind == PING
        clock.now += 0.1
        protocol.receive(frame(PONG, payload))
        assert isinstance(events(protocol)[0], Pong)
        assert protocol.latency == pytest.approx(0.1)
    assert protocol.pings_sent == 3
    assert protocol.lateness == 0.0


def test_a_peer_that_is_gone(clock: Clock) -> None:
    protocol = beating(clock)
    fire(protocol, clock)
    assert [kind for kind, _ in control(protocol)] == [PING]
    assert until_gone(protocol, clock) == 1040.0
    assert [payload[0] for kind, payload in control(protocol) if kind == CLOSE] == [CloseCode.NO_ANSWER]
    event = failure(protocol)
    assert event.code == CloseCode.NO_ANSWER
    assert "no sign of life" in str(event.error)
    assert protocol.timer is None
    assert protocol.receive(frame(DATA, b"too late")) == []
    assert events(protocol) == []


def test_gone_inside_a_large_message(clock: Clock) -> None:
    protocol = beating(clock)
    stream = frame(DATA, bytes(LARGE))
    protocol.receive(stream[:50_000])
    until_gone(protocol, clock)
    failure(protocol)
    assert protocol.receive(stream[50_000:] + frame(DATA, b"")) == []


@pytest.mark.parametrize("stream", [frame(DATA, b"x"), frame(PONG, b""), b"\0", frame(0x80, b"")])
def test_every_byte_is_a_sign_of_life(stream: bytes, clock: Clock) -> None:
    protocol = beating(clock)
    fire(protocol, clock)
    clock.now += 19.9
    protocol.receive(stream)
    assert 1059.9 <= until_gone(protocol, clock) <= 1079.9


@pytest.mark.parametrize(("heartbeat", "timeout"), [(20.0, 20.0), (20.0, 5.0), (5.0, 20.0), (60.0, 10.0)])
@pytest.mark.parametrize("quiet", [0.0, 0.1, 3.0, 19.9, 21.0])
def test_patience_is_kept(heartbeat: float, timeout: float, quiet: float, clock: Clock) -> None:
    """The peer was told how long it may be silent, so it is not judged before; and it is found in time."""
    protocol = beating(clock, heartbeat, timeout)
    assert protocol.timer == 1000.0 + heartbeat
    while protocol.timer is not None and protocol.timer <= 1000.0 + quiet:
        fire(protocol, clock)
    clock.now = silent = 1000.0 + quiet
    protocol.receive(frame(DATA, b"the last sign of life"))
    asked = len(control(protocol)) > 0
    while not protocol.finished:
        fire(protocol, clock)
        asked = asked or len(control(protocol)) > 0
        assert asked or clock.now < silent + 2 * heartbeat
    assert timeout <= clock.now - silent + 0.001
    assert clock.now - silent <= heartbeat + timeout + 0.001


@pytest.mark.parametrize("heartbeat", [5.0, 20.0])
def test_a_heartbeat_that_never_judges(heartbeat: float, clock: Clock) -> None:
    protocol = beating(clock, heartbeat, None)
    for _ in range(50):
        fire(protocol, clock)
    assert clock.now == 1000.0 + 50 * heartbeat
    assert not protocol.finished
    # What is not read is not asked again: the first question still waits.
    assert [kind for kind, _ in control(protocol)] == [PING]


def test_no_heartbeat(clock: Clock) -> None:
    protocol = opened(clock, Hello(1000, 30.0), heartbeat_timeout=20.0)
    assert protocol.timer is None
    protocol.on_timer()
    assert control(protocol) == []


def test_a_timer_too_early_does_nothing(clock: Clock) -> None:
    protocol = beating(clock)
    clock.now += 19.0
    protocol.on_timer()
    assert control(protocol) == []
    assert protocol.timer == 1020.0


@pytest.mark.parametrize("late", [0.5, 4.9])
def test_a_timer_a_little_late_judges(late: float, clock: Clock) -> None:
    protocol = beating(clock)
    assert 1040.0 <= until_gone(protocol, clock, late) <= 1080.0
    assert protocol.lateness == pytest.approx(late)


@pytest.mark.parametrize("late", [5.1, 3600.0])
@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("answer", [True, False])
def test_a_timer_far_too_late_asks_again(late: float, asked: bool, answer: bool, clock: Clock) -> None:
    """The process was stopped, or the whole machine: what the peer said meanwhile was not heard."""
    protocol = beating(clock)
    if asked:
        fire(protocol, clock)
    woken = fire(protocol, clock, late)
    assert protocol.lateness == pytest.approx(late)
    assert not protocol.finished
    ((kind, payload),) = control(protocol)
    assert kind == PING
    if answer:
        clock.now += 0.1
        protocol.receive(frame(PONG, payload))
        woken += 20.0
    assert woken + 20.0 <= until_gone(protocol, clock) <= woken + 60.1
    assert protocol.lateness == 0.0


def test_late_with_a_short_timeout(clock: Clock) -> None:
    """A busy loop is late by tenths of a second; that is no suspended machine."""
    protocol = beating(clock, 1.0, 0.5)
    until_gone(protocol, clock, 0.9)
    assert failure(protocol).code == CloseCode.NO_ANSWER


def test_a_side_that_does_not_read_gives_signs_of_life(clock: Clock) -> None:
    protocol = beating(clock)
    protocol.set_reading(False)
    for _ in range(20):
        before = clock.now
        fire(protocol, clock)
        assert clock.now - before <= 10.001
        assert control(protocol) == [(PONG, b"")]
    assert not protocol.finished


@pytest.mark.parametrize("heartbeat", [None, 20.0])
def test_who_does_not_read_cannot_judge(heartbeat: float | None, clock: Clock) -> None:
    protocol = opened(clock, Hello(1000), heartbeat=heartbeat, heartbeat_timeout=20.0)
    if heartbeat is not None:
        fire(protocol, clock)
    protocol.set_reading(False)
    # The peer never judges, so it needs no sign of life; but the driver is told when it should listen.
    if heartbeat is None:
        assert protocol.timer is None
    for _ in range(5 if heartbeat is not None else 0):
        fire(protocol, clock)
    assert not protocol.finished


def test_reading_again(clock: Clock) -> None:
    protocol = beating(clock)
    fire(protocol, clock)
    protocol.set_reading(False)
    for _ in range(5):
        fire(protocol, clock)
    resumed = clock.now
    protocol.set_reading(True)
    assert resumed + 20.0 <= until_gone(protocol, clock) <= resumed + 60.0


def test_reading_again_is_not_late(clock: Clock) -> None:
    """lateness is for stopped processes; this one was only slow."""
    protocol = beating(clock)
    protocol.set_reading(False)
    for _ in range(5):
        fire(protocol, clock)
    protocol.set_reading(True)
    fire(protocol, clock)
    assert protocol.lateness == pytest.approx(0.0)


def test_reading_now_and_then_is_not_reading(clock: Clock) -> None:
    """The peer's ping may be far back, behind what is taken in little bits."""
    protocol = beating(clock)  # the peer's patience is 30 s
    last = clock.now
    for beat in range(60):
        protocol.set_reading(beat % 2 == 1)
        clock.now += 3.0 if beat % 2 == 0 else 0.001
        if protocol.timer is not None and clock.now >= protocol.timer:
            protocol.on_timer()
        if beat % 2 == 1:
            protocol.receive(frame(DATA, b"a little"))
        if control(protocol):
            last = clock.now
        assert clock.now - last <= 20.0


def test_signs_of_life_that_cannot_be_written_do_not_pile_up(clock: Clock) -> None:
    protocol = beating(clock)
    protocol.set_reading(False)
    for _ in range(100):
        fire(protocol, clock)
    assert control(protocol) == [(PONG, b"")]


def test_reading_before_the_hello(clock: Clock) -> None:
    protocol = NativeProtocol(clock, open_timeout=10.0, heartbeat=20.0, heartbeat_timeout=20.0)
    protocol.set_reading(False)
    protocol.set_reading(True)
    assert protocol.timer == 1010.0


def test_two_sides_that_idle_or_stall_live_long(clock: Clock) -> None:
    """Five hours of two sides, with what they write always a little under way."""
    names = {"a": (20.0, 20.0), "b": (7.0, 30.0)}
    sides = {
        name: NativeProtocol(clock, heartbeat=heartbeat, heartbeat_timeout=timeout)
        for name, (heartbeat, timeout) in names.items()
    }
    waiting: dict[str, list[bytes]] = {"a": [], "b": []}  # what each has to read
    reading = {"a": True, "b": True}
    for step in range(5 * 3600):
        clock.now += 1.0
        if step % 1000 == 500:
            reading["a"] = not reading["a"]
            sides["a"].set_reading(reading["a"])
        for name, other in (("a", "b"), ("b", "a")):
            side = sides[name]
            if reading[name]:
                data = b"".join(waiting[name])
                waiting[name].clear()
                side.receive(data)
            if side.timer is not None and clock.now >= side.timer:
                side.on_timer()
            waiting[other].append(side.data_to_send())
    for side in sides.values():
        assert [event for event in side.events if isinstance(event, (Failed, Closed))] == []


# -- without IO ----------------------------------------------------------------------------------------------


def test_no_other_clock_is_read(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden() -> NoReturn:
        raise AssertionError("a clock was read")

    with monkeypatch.context() as patch:
        for name in ("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns"):
            patch.setattr(time, name, forbidden)
        protocol = beating(clock)
        fire(protocol, clock)
        protocol.receive(frame(DATA, b"x") + frame(PING, b"x"))
        protocol.set_reading(False)
        protocol.set_reading(True)
        protocol.close()
        protocol.receive(frame(CLOSE, b"\0"))


def test_messages_need_no_clock(clock: Clock) -> None:
    protocol = beating(clock)
    calls = clock.calls
    protocol.receive(frame(DATA, b"x") * 10 + frame(PING, b"x"))
    joined(protocol.frame(b"x"))
    protocol.data_to_send()
    assert clock.calls == calls


# -- memory --------------------------------------------------------------------------------------------------


def memory(action: Callable[[], object]) -> int:
    """Return how many bytes more are taken, after an action or at some time in it."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        action()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_a_promise_costs_no_memory(clock: Clock) -> None:
    protocol = opened(clock, max_size=2**30)
    header = frame(DATA, b"")[:4] + (2**30).to_bytes(4, "big")
    assert memory(lambda: protocol.receive(header + b"x")) < 10_000


def test_a_flood_of_pings_costs_no_memory(clock: Clock) -> None:
    protocol = opened(clock)
    pings = b"".join(frame(PING, bytes((n % 256,)) * 64) for n in range(500))

    def flood() -> None:
        for _ in range(50):
            protocol.receive(pings)

    assert memory(flood) < 10_000
    assert control(protocol) == [(PONG, bytes((499 % 256,)) * 64)]


@pytest.mark.parametrize("kind", [DATA, 0x80])
def test_what_is_dropped_costs_no_memory(kind: int, clock: Clock) -> None:
    protocol = opened(clock, max_size=2**30)
    if kind == DATA:
        protocol.close()
    piece = bytes(1000)

    def flood() -> None:
        protocol.receive(bytes((kind, 0, 0, 0)) + (10**6).to_bytes(4, "big"))
        for _ in range(1000):
            protocol.receive(piece)

    assert memory(flood) < 10_000
    assert protocol.receive(frame(CLOSE, b"\0")) == []
    assert protocol.close_received


def test_a_hello_costs_little_memory(clock: Clock) -> None:
    protocol = NativeProtocol(clock)
    stream = HELLO[:10] + (1012).to_bytes(2, "big") + bytes(1012)

    def slowly() -> None:
        for octet in stream:
            protocol.receive(bytes((octet,)))

    assert memory(slowly) < 20_000
    assert protocol.peer is not None


# -- against the reference -----------------------------------------------------------------------------------

HELLOS = st.one_of(
    st.just(HELLO),
    st.builds(
        lambda hello, rest: hello[:10] + (len(hello) - 12 + len(rest)).to_bytes(2, "big") + hello[12:] + rest,
        st.builds(
            lambda *values: Hello(*values).encode(),
            st.integers(0, 300) | st.integers(0, MAX_MESSAGE),
            st.sampled_from([0.0, 0.001, 40.0]),
            st.none() | st.binary(min_size=16, max_size=16),
            st.sampled_from([0, 2, 2**32 - 2]),
            st.sampled_from([1, 1, 2, 255]),
        ),
        st.binary(max_size=50),
    ),
    st.builds(
        lambda head, rest: HELLO[:8] + head + rest,
        st.lists(st.integers(0, 3), min_size=4, max_size=4).map(bytes),
        st.binary(max_size=40),
    ),
)
PAYLOADS = st.binary(max_size=12) | st.integers(0, 1100).map(bytes)
FRAMES = st.one_of(
    st.builds(frame, st.just(DATA), PAYLOADS),
    st.builds(
        frame, st.sampled_from([PING, PONG]), st.binary(max_size=8) | st.sampled_from([64, 65]).map(bytes)
    ),
    st.builds(frame, st.sampled_from([PING, PONG]), st.integers(0, 3).map(lambda n: n.to_bytes(8, "big"))),
    st.builds(frame, st.integers(0x80, 0xFF), PAYLOADS),
    st.builds(frame, st.just(CLOSE), st.binary(min_size=1, max_size=5)),
)
BROKEN = st.one_of(
    st.builds(frame, st.integers(0, 0xFF), PAYLOADS),
    st.binary(max_size=20),
    st.sampled_from([1023, 1024, 1025]).map(lambda size: frame(CLOSE, b"\0" * size)),
    st.builds(
        lambda kind, reserved, length: bytes((kind, *reserved)) + length.to_bytes(4, "big"),
        st.sampled_from([0, 1, 2, 3, 4, 0x80]),
        st.sampled_from([(0, 0, 0), (0, 0, 1), (0x80, 0, 0)]),
        st.integers(0, 2000) | st.integers(0, 2**32 - 1),
    ),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """What a peer might write, from the faultless to noise."""
    stream = draw(HELLOS) + b"".join(draw(st.lists(FRAMES, max_size=12)))
    for part in draw(st.lists(BROKEN | FRAMES, max_size=2)):
        stream += part
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        at = draw(st.integers(0, len(stream)))
        cut = draw(st.sampled_from([0, 1, 1, 5]))
        stream = stream[:at] + draw(st.binary(max_size=2)) + stream[at + cut :]
    return stream


class Buffered(RealSide):
    """Receives in place what can be."""

    def receive(self, stream: bytes) -> None:
        while stream:
            room = self.protocol.buffer
            if room is None:
                return super().receive(stream)
            part, stream = stream[: len(room)], stream[len(room) :]
            room[: len(part)] = part
            self.messages += self.protocol.received(len(part))
            self._look()


ACTIONS = st.one_of(
    st.tuples(st.just("send"), st.binary(max_size=40) | st.integers(0, 400).map(bytes)),
    st.tuples(st.just("close"), st.sampled_from([0, 1, 5, 200])),
    st.tuples(st.just("ping"), st.none()),
    st.tuples(st.just("end"), st.none()),
)


def compare(real: Side, reference: ReferenceSide) -> None:
    """Look whether a step has come to the same on both."""
    assert real.take_messages() == reference.take_messages()
    assert real.take_answers() == reference.take_answers()
    step: dict[str, Any] = {}
    expected = reference.take_written()
    for kind, payload in frames(expected):
        if kind == PONG:
            step.setdefault("pongs", []).append(payload.hex())
        elif kind == CLOSE and reference.side.error is not None:
            step["closes"] = payload[0]
        else:
            step["sends"] = frame(kind, payload).hex()
    check_written(step, real.take_written())
    assert real.result() == reference.result()


def drive(
    make: type[RealSide],
    local: dict[str, Any],
    stream: bytes,
    cuts: list[int] | None,
    actions: dict[int, Any],
) -> None:
    """Do the same to both, with the stream cut into pieces of these sizes and the rest; None is single bytes."""
    real, reference = make(local), ReferenceSide(local)
    assert real.take_written() == reference.take_written()
    pings = itertools.count(1)
    sizes = [1] * len(stream) if cuts is None else [*cuts, len(stream)]
    for number, size in enumerate(sizes):
        piece, stream = stream[:size], stream[size:]
        if piece:
            real.receive(piece)
            reference.receive(piece)
            compare(real, reference)
        match actions.get(number):
            case ("send", message):
                assert real.send(message) == reference.send(message)
            case ("close", code):
                real.close(code, "why")
                reference.close(code, "why")
            case ("ping", _) if reference.side.sending == "OPEN":
                payload = next(pings).to_bytes(8, "big")
                assert real.ping(payload) is reference.ping(payload) is True
            case ("end", _):
                real.end()
                reference.end()
                compare(real, reference)
                return
        compare(real, reference)
    assert stream == b""


LOCALS = st.builds(
    lambda size, nonce: {"max_message": size, "patience": 40000, "nonce": nonce},
    st.sampled_from([0, 5, 100, 500, 1024, 5000]),
    st.sampled_from([None, NONCE.hex()]),
)
CUTS = st.lists(st.integers(1, 60), max_size=60) | st.none()


@pytest.mark.parametrize("make", [RealSide, Buffered])
@pytest.mark.parametrize("large", [False, True])
@settings(max_examples=100, deadline=None)
@given(
    local=LOCALS,
    stream=streams(),
    cuts=CUTS,
    actions=st.dictionaries(st.integers(0, 30), ACTIONS, max_size=4),
)
@example(
    local={"max_message": 5000, "patience": 0, "nonce": None},
    stream=HELLO + frame(DATA, bytes(5000)) + frame(CLOSE, b"\0"),
    cuts=[30, 500, 1000],
    actions={1: ("close", 0)},
)
def test_as_the_reference(
    make: type[RealSide],
    large: bool,
    local: dict[str, Any],
    stream: bytes,
    cuts: list[int] | None,
    actions: dict[int, Any],
) -> None:
    with large_from(64, 16) if large else contextlib.nullcontext():
        drive(make, local, stream, cuts, actions)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(1, 20), max_size=20))
def test_noise(noise: bytes, cuts: list[int]) -> None:
    local = {"max_message": 100, "patience": 0, "nonce": None}
    drive(RealSide, local, noise, cuts, {})
    drive(RealSide, local, HELLO + noise, cuts, {})


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("receive"), FRAMES | BROKEN | st.just(HELLO)),
            st.tuples(st.just("wait"), st.sampled_from([0.0, 0.3, 5.0, 30.0, 4000.0])),
            st.tuples(st.just("reading"), st.booleans()),
            st.tuples(st.sampled_from(["close", "stop", "eof", "drain"]), st.none()),
        ),
        max_size=40,
    )
)
def test_whatever_happens_it_only_tells(happenings: list[tuple[str, Any]]) -> None:
    """Nothing that comes, or does not, makes a method raise; a failure is told once."""
    clock = Clock()
    protocol = NativeProtocol(
        clock, open_timeout=10.0, close_timeout=10.0, heartbeat=20.0, heartbeat_timeout=20.0
    )
    for happening in [("receive", HELLO), *happenings]:
        match happening:
            case ("receive", data) if not protocol.finished:
                protocol.receive(data)
            case ("wait", seconds):
                clock.now += seconds
                protocol.on_timer()
            case ("reading", reading):
                protocol.set_reading(reading)
            case ("close", _):
                protocol.close()
            case ("stop", _):
                protocol.stop_sending()
            case ("eof", _):
                protocol.eof()
            case _:
                protocol.data_to_send()
    kinds = [type(event) for event in protocol.events]
    assert kinds.count(Failed) + kinds.count(Closed) <= 1
    assert kinds.count(Opened) <= 1
    for event in protocol.events:
        assert not isinstance(event, Failed) or isinstance(event.error, HvError)


def test_the_reference_is_no_copy() -> None:
    """Two implementations that know each other agree on anything."""
    assert Reference.__module__ != NativeProtocol.__module__
    assert not {"struct", "aiohvsock"} & set(Reference.receive.__globals__)


# -- a bare codec --------------------------------------------------------------------------------------------


def bare(clock: Clock, max_size: int = 2**20, **arguments: Any) -> BareProtocol[bytes]:
    return BareProtocol(clock, LengthPrefixed(max_size=max_size), **arguments)


def prefixed(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


def test_bare_messages(clock: Clock) -> None:
    protocol = bare(clock)
    assert events(protocol) == [Opened(None)]
    assert protocol.frame(b"hello") == prefixed(b"hello")
    assert protocol.receive(prefixed(b"a") + prefixed(b"b") + b"\0") == [b"a", b"b"]
    assert protocol.bytes_received == 11
    assert protocol.data_to_send() == b""
    assert (protocol.peer, protocol.latency, protocol.lateness, protocol.pings_sent) == (None, None, 0.0, 0)
    protocol.set_reading(False)
    assert protocol.timer is None


def test_bare_large_messages_are_not_joined(clock: Clock) -> None:
    message = bytes(LARGE)
    pieces = bare(clock).frame(message)
    assert not isinstance(pieces, bytes)
    assert pieces[-1] is message
    assert joined(pieces) == prefixed(message)


def test_bare_receives_in_place_if_the_codec_can(clock: Clock) -> None:
    protocol = bare(clock)
    stream = prefixed(bytes(range(250)) * 1000)
    found: list[bytes] = []
    position = 0
    in_place = 0
    while position < len(stream):
        room = protocol.buffer
        if room is None:
            part = stream[position:][:60_000]
            found += protocol.receive(part)
        else:
            part = stream[position:][: min(len(room), 60_000)]
            room[: len(part)] = part
            found += protocol.received(len(part))
            in_place += 1
        position += len(part)
    assert found == [stream[4:]]
    assert protocol.bytes_received == len(stream)
    assert in_place == 0 or protocol.buffer is None


class Lines:
    """A codec that needs no more than it must have."""

    def __init__(self) -> None:
        self.rest = b""

    def encode(self, payload: bytes) -> list[bytes]:
        return [payload, b"\n"]

    def decoder(self) -> Lines:
        return Lines()

    def feed(self, data: Buffer) -> list[bytes]:
        *lines, self.rest = (self.rest + bytes(data)).split(b"\n")
        return lines

    def eof(self) -> None:
        pass


def test_bare_with_a_simple_codec(clock: Clock) -> None:
    protocol: BareProtocol[bytes] = BareProtocol(clock, Lines())
    assert protocol.frame(b"one") == b"one\n"
    assert protocol.receive(b"one\ntw") == [b"one"]
    assert protocol.buffer is None
    assert protocol.receive(b"o\n") == [b"two"]


def test_bare_ends(clock: Clock) -> None:
    protocol = bare(clock)
    events(protocol)
    protocol.receive(prefixed(b"x"))
    protocol.eof()
    assert events(protocol) == [Closed(0, "")]
    assert protocol.close_received
    protocol.eof()
    assert events(protocol) == []
    assert protocol.receive(prefixed(b"x")) == []
    # The peer may wait for an answer.
    assert not protocol.finished
    assert protocol.frame(b"answer") == prefixed(b"answer")
    protocol.close()
    assert protocol.finished


def test_bare_ends_inside_a_frame(clock: Clock) -> None:
    protocol = bare(clock)
    events(protocol)
    protocol.receive(prefixed(b"xyz")[:-1])
    protocol.eof()
    (event,) = events(protocol)
    assert isinstance(event, Failed)
    assert isinstance(event.error, IncompleteFrame)


def test_bare_breaks(clock: Clock) -> None:
    protocol = bare(clock, max_size=10)
    events(protocol)
    assert protocol.receive(prefixed(b"good") + prefixed(bytes(11))) == [b"good"]
    (event,) = events(protocol)
    assert isinstance(event, Failed)
    assert isinstance(event.error, FramingError)
    assert protocol.finished


def test_bare_breaks_at_once(clock: Clock) -> None:
    protocol = bare(clock, max_size=10)
    events(protocol)
    assert protocol.receive(prefixed(bytes(11))) == []
    assert [type(event) for event in events(protocol)] == [Failed]


def test_bare_closes(clock: Clock) -> None:
    protocol = bare(clock, close_timeout=10.0)
    events(protocol)
    protocol.receive(prefixed(b"xyz")[:-1])
    protocol.close(200, "kept to ourselves")
    assert protocol.close_sent
    assert protocol.timer == 1010.0
    clock.now = 1005.0
    protocol.close()
    protocol.on_timer()
    assert protocol.timer == 1010.0
    assert not protocol.finished
    assert protocol.receive(b"z" + prefixed(b"dropped")) == []
    with pytest.raises(LocalProtocolError, match="any more"):
        protocol.frame(b"")
    protocol.eof()
    assert events(protocol) == [Closed(0, "")]


def test_bare_closes_without_the_peer(clock: Clock) -> None:
    protocol = bare(clock, close_timeout=10.0)
    protocol.close()
    clock.now = 1010.0
    protocol.on_timer()
    assert protocol.finished
    assert protocol.timer is None
    protocol = bare(clock)
    protocol.close()
    assert protocol.timer is None


def test_bare_stops_sending(clock: Clock) -> None:
    protocol = bare(clock)
    protocol.stop_sending()
    with pytest.raises(LocalProtocolError, match="any more"):
        protocol.frame(b"")
    assert protocol.receive(prefixed(b"x")) == [b"x"]


def test_bare_pings_not(clock: Clock) -> None:
    with pytest.raises(LocalProtocolError, match="no ping"):
        bare(clock).ping()
