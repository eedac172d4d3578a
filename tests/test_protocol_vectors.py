"""docs/protocol-vectors.json on the reference and on the real thing; the dumps in docs/protocol.md against it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pytest

from aiohvsock.exceptions import FrameTooLarge, LocalProtocolError
from aiohvsock.protocol import CloseCode, Closed, Failed, NativeProtocol, Opened, Pong

from .reference_protocol import Reference

DOCS = Path(__file__).parent.parent / "docs"
Json: TypeAlias = dict[str, Any]
VECTORS: list[Json] = json.loads((DOCS / "protocol-vectors.json").read_text("utf-8"))["vectors"]


class Side(Protocol):
    """What the vectors ask of an implementation. Each ``take_`` returns what is new since the last call."""

    def receive(self, stream: bytes) -> None: ...
    def end(self) -> None: ...
    def send(self, message: bytes) -> bool: ...
    def close(self, code: int, reason: str) -> None: ...
    def ping(self, payload: bytes) -> bool: ...
    def take_messages(self) -> list[bytes]: ...
    def take_written(self) -> bytes: ...
    def take_answers(self) -> list[bytes]: ...
    def result(self) -> Json: ...


Local: TypeAlias = Json


class ReferenceSide:
    def __init__(self, local: Local) -> None:
        nonce = local["nonce"] and bytes.fromhex(local["nonce"])
        self.side = Reference(local["max_message"], local["patience"], nonce)
        self.receive = self.side.receive
        self.end = self.side.end
        self.send = self.side.send
        self.close = self.side.close
        self.ping = self.side.ping

    def take_messages(self) -> list[bytes]:
        messages, self.side.messages = self.side.messages, []
        return messages

    def take_written(self) -> bytes:
        written, self.side.written = self.side.written, bytearray()
        return bytes(written)

    def take_answers(self) -> list[bytes]:
        answers, self.side.answers = self.side.answers, []
        return answers

    def result(self) -> Json:
        side = self.side
        return {"outcome": side.outcome, "code": side.code, "reason": side.reason, "stream": side.stream}


class RealSide:
    """The sans-IO protocol, driven as by a transport that writes at once."""

    def __init__(self, local: Local) -> None:
        patience = local["patience"] / 1000
        self.protocol = NativeProtocol(
            lambda: 0.0,
            max_size=local["max_message"],
            heartbeat=20.0 if patience else None,
            heartbeat_timeout=patience or None,
            nonce=local["nonce"] and bytes.fromhex(local["nonce"]),
        )
        self.messages: list[bytes] = []
        self.written = bytearray()
        self.answers: list[bytes] = []
        self.pings: list[tuple[int, bytes]] = []
        self.closed: Closed | None = None
        self.failed: Failed | None = None
        self._look()

    def _look(self) -> None:
        """Do what whoever drives a protocol does after each call."""
        protocol = self.protocol
        if not protocol.attention:
            assert not protocol.events
            assert protocol.data_to_send() == b""
            return
        protocol.attention = False
        self.written += protocol.data_to_send()
        for event in protocol.events:
            match event:
                case Opened(peer):
                    assert peer is protocol.peer
                case Pong(token):
                    self.answers += [payload for ping, payload in self.pings if ping <= token]
                    self.pings = [each for each in self.pings if each[0] > token]
                case Closed():
                    assert self.closed is None
                    self.closed = event
                case Failed():
                    assert self.failed is None
                    self.failed = event
        protocol.events = ()

    def receive(self, stream: bytes) -> None:
        self.messages += self.protocol.receive(stream)
        self._look()

    def end(self) -> None:
        self.protocol.eof()
        self._look()

    def send(self, message: bytes) -> bool:
        try:
            frame = self.protocol.frame(message)
        except (FrameTooLarge, LocalProtocolError):
            return False
        self.written += frame if isinstance(frame, bytes) else b"".join(frame)
        return True

    def close(self, code: int, reason: str) -> None:
        self.protocol.close(code, reason)
        self._look()

    def ping(self, payload: bytes) -> bool:
        # It numbers them itself, and so do the vectors.
        token = self.protocol.ping()
        self.pings.append((token, payload))
        self._look()
        return True

    def take_messages(self) -> list[bytes]:
        messages, self.messages = self.messages, []
        return messages

    def take_written(self) -> bytes:
        written, self.written = self.written, bytearray()
        return bytes(written)

    def take_answers(self) -> list[bytes]:
        answers, self.answers = self.answers, []
        return answers

    def result(self) -> Json:
        code, reason, outcome, stream = None, None, "open", "read"
        if self.closed is not None:
            code, reason = self.closed.code, self.closed.reason
            outcome = "closed" if CloseCode.is_ok(code) else "lost"
            stream = "wait"
        if self.failed is not None:
            outcome = "lost"
        if self.failed is not None or self.protocol.finished:
            stream = "close"
        return {"outcome": outcome, "code": code, "reason": reason, "stream": stream}


Make: TypeAlias = Callable[[Local], Side]


# -- the runner ----------------------------------------------------------------------------------------------


def frames(stream: bytes) -> list[tuple[int, bytes]]:
    found = []
    while stream:
        size = 8 + int.from_bytes(stream[4:8], "big")
        assert len(stream) >= size >= 8
        found.append((stream[0], stream[8:size]))
        stream = stream[size:]
    return found


def check_written(step: Json, written: bytes) -> None:
    sends = bytes.fromhex(step.get("sends", ""))
    assert written.endswith(sends)
    rest = frames(written.removesuffix(sends))
    closes = "closes" in step or sends[:1] == b"\x03"
    if "closes" in step:
        kind, payload = rest.pop()
        assert (kind, payload[0]) == (3, step["closes"])
        assert 1 < len(payload) <= 1024, "an error should have a reason"
        payload[1:].decode()
    wanted = [(2, bytes.fromhex(payload)) for payload in step.get("pongs", ())]
    assert closes or rest[-1:] == wanted[-1:]
    for each in rest:
        assert each in wanted
        del wanted[: wanted.index(each) + 1]


def run(vector: Json, make: Make, size: int | None) -> None:
    """Run one vector, with what is received cut into pieces of this size."""
    side = make(vector["local"])
    assert side.take_written().hex() == vector["hello"]
    for step in vector["steps"]:
        done = True
        match step:
            case {"receive": text}:
                stream = bytes.fromhex(text)
                for start in range(0, len(stream), size or len(stream)):
                    side.receive(stream[start:][:size])
            case {"end": True}:
                side.end()
            case {"call": "send", "data": message}:
                done = side.send(bytes.fromhex(message))
            case {"call": "close", "code": code, "reason": reason}:
                side.close(code, reason)
            case {"call": "ping", "payload": payload}:
                done = side.ping(bytes.fromhex(payload))
            case _:
                raise AssertionError(step)
        assert done is not step.get("refused", False)
        assert [message.hex() for message in side.take_messages()] == step.get("messages", [])
        assert [payload.hex() for payload in side.take_answers()] == step.get("answers", [])
        check_written(step, side.take_written())
    assert side.result() == vector["result"]


@pytest.mark.parametrize("size", [None, 1, 7], ids=["whole", "bytes", "sevens"])
@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
@pytest.mark.parametrize("make", [ReferenceSide, RealSide], ids=["reference", "real"])
def test_vector(make: Make, vector: Json, size: int | None) -> None:
    run(vector, make, size)


# -- the vectors, and the page, themselves -------------------------------------------------------------------


def test_the_vectors_are_well_formed() -> None:
    actions, expectations = (
        {"receive", "end", "call"},
        {"messages", "sends", "pongs", "closes", "answers", "refused"},
    )
    arguments = {"data", "code", "reason", "payload"}
    assert len({vector["name"] for vector in VECTORS}) == len(VECTORS)
    for vector in VECTORS:
        assert vector.keys() == {"name", "about", "local", "hello", "steps", "result"}
        assert vector["local"].keys() == {"max_message", "patience", "nonce"}
        assert vector["result"].keys() == {"outcome", "code", "reason", "stream"}
        for step in vector["steps"]:
            assert len(step.keys() & actions) == 1
            assert step.keys() <= actions | expectations | (arguments if "call" in step else set())


def dumps() -> list[dict[str, bytes]]:
    """Return what A and B write in each of the page's examples."""
    found = []
    for block in re.findall(
        r"^```hexdump\n(.*?)^```", (DOCS / "protocol.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    ):
        sides = {"A": b"", "B": b""}
        for line in filter(None, block.splitlines()):
            sides[line[0]] += bytes.fromhex(line[3:51])
        found.append(sides)
    return found


def local(hello: bytes) -> Local:
    """Return the settings that lead to a hello."""
    max_message, patience = (int.from_bytes(hello[at:][:4], "big") for at in (16, 20))
    return {"max_message": max_message, "patience": patience, "nonce": hello[24:40].hex() or None}


@pytest.mark.parametrize("make", [ReferenceSide, RealSide], ids=["reference", "real"])
def test_the_dumps_are_right(make: Make) -> None:
    talk, refusal = dumps()
    a, b = make(local(talk["A"][:24])), make(local(talk["B"][:40]))
    a.receive(talk["B"][:-9])
    b.receive(talk["A"][:-13])
    a.close(0, "done")
    b.receive(talk["A"][-13:])
    a.receive(talk["B"][-9:])
    written = a.take_written()
    assert a.send(b"hello") is False
    assert written == talk["A"].replace(bytes([0] * 7 + [5]) + b"hello", b"")
    assert talk["B"].startswith(b.take_written()[:-9])
    assert (a.take_messages(), b.take_messages()) == ([b""], [b"hello"])
    assert a.result() == {"outcome": "closed", "code": 0, "reason": "", "stream": "close"}
    assert b.result() == {"outcome": "closed", "code": 0, "reason": "done", "stream": "wait"}

    b = make(local(refusal["B"][:40]))
    b.receive(refusal["A"])
    check_written({"closes": 2}, refusal["B"][40:])
    check_written({"closes": 2}, b.take_written()[40:])
