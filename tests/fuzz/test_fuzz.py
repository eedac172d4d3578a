"""The targets without a fuzzer, so that they stay right; and what the command line makes of a finding."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable, Sequence
from io import BufferedWriter
from pathlib import Path
from random import Random
from typing import Any

import pytest

from aiohvsock.framing import decoders
from aiohvsock.protocol import BareProtocol, NativeProtocol

from . import __main__ as command_line
from .findings import minimised, place
from .inputs import TARGETS, Script, Tell, ignore, load

every_target = pytest.mark.parametrize("name", TARGETS)


def mutant(seeds: Sequence[bytes], random: Random) -> bytes:
    """Return a seed, or two halves of them, with some bytes changed, added, left out or repeated."""
    one, other = random.choice(seeds), random.choice(seeds)
    data = bytearray(one[: random.randrange(len(one) + 1)] + other[random.randrange(len(other) + 1) :])
    for _ in range(random.randrange(8)):
        at, size = random.randrange(len(data) + 1), random.choice((0, 1, 1, 2, 9))
        data[at : at + size] = random.choice((b"", random.randbytes(size or 1), data[at : at + size] * 2))
    return bytes(data)


@every_target
def test_seeds(name: str) -> None:
    target = load(name)
    seeds = list(target.seeds())
    for seed in seeds:
        target.one_input(seed)
    assert len(set(seeds)) > 200


@every_target
def test_any_bytes(name: str) -> None:
    target, random = load(name), Random(name)
    seeds = list(target.seeds())
    target.one_input(b"")
    for _ in range(200):
        target.one_input(random.randbytes(random.randrange(200)))
        target.one_input(mutant(seeds, random))


def without_the_last(method: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """Break a method that returns messages: of several at once, one is lost."""

    def broken(*arguments: Any) -> list[Any]:
        messages = method(*arguments)
        return messages[:-1] if len(messages) > 1 else messages

    return broken


PLANTED = {
    "framing": lambda patch: patch.setattr(decoders.LengthDecoder, "eof", lambda self: None),
    "bare": lambda patch: patch.setattr(BareProtocol, "receive", without_the_last(BareProtocol.receive)),
    "native": lambda patch: patch.setattr(
        NativeProtocol, "receive", without_the_last(NativeProtocol.receive)
    ),
}


@every_target
def test_a_planted_bug_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = load(name)
    PLANTED[name](monkeypatch)
    failing = [seed for seed in target.seeds() if place(target, seed)]
    assert failing
    assert place(target, minimised(target, min(failing, key=len)))


@pytest.mark.parametrize("clock", ["deadline", "check"])
def test_a_planted_bug_of_times_is_found(clock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A side that never judges, and one that asks for its timer again and again."""
    from aiohvsock.protocol import liveness, native

    class Late(liveness.Liveness):
        __slots__ = ()

        def deadline(self, now: float) -> float | None:
            return now if clock == "deadline" else super().deadline(now)

        def check(self, now: float, lateness: float, bytes_received: int) -> liveness.Verdict:
            verdict = super().check(now, lateness, bytes_received)
            return liveness.Verdict.NOTHING if verdict is liveness.Verdict.GONE else verdict

    monkeypatch.setattr(native, "Liveness", Late)
    target = load("native")
    assert any(place(target, seed) for seed in target.seeds())


def test_scripts_end_in_zeros() -> None:
    script = Script(b"\1\2\3")
    assert (script.byte(), script.size(), bool(script)) == (1, 0x203, False)
    assert (script.byte(), script.size(), script.take(5), script.rest()) == (0, 0, b"", b"")


# -- findings ----------------------------------------------------------------------------------------------


class Picky:
    """A target that fails on an X before a Y."""

    def one_input(self, data: bytes, tell: Tell = ignore) -> None:
        tell(repr(data))
        assert b"Y" not in data[data.find(b"X") :] or b"X" not in data, "an X before a Y"

    def seeds(self) -> list[bytes]:
        return [b"seed"]


@pytest.fixture
def picky(monkeypatch: pytest.MonkeyPatch) -> Picky:
    target = Picky()
    monkeypatch.setattr(command_line, "load", lambda name: target)
    return target


def test_findings_become_small(picky: Picky) -> None:
    assert minimised(picky, b"Y..X..X.Y.." * 30) == b"XY"
    assert minimised(picky, b"nothing") == b"nothing"


def test_findings_are_shown_again(picky: Picky, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(b"YX")
    bad.write_bytes(b"X Y")
    assert command_line.main(["native", str(good)]) == 0
    assert capsys.readouterr().out == "b'YX'\n"
    assert command_line.main(["native", str(good), str(bad)]) == 1
    assert "b'X Y'\nTraceback" in capsys.readouterr().out


class Engine:
    """Stands in for the process that fuzzes."""

    def __init__(self, code: int, says: str, found: tuple[str, bytes] | None = None) -> None:
        self.code, self.says, self.found = code, says, found
        self.commands: list[list[str]] = []

    def run(
        self, command: list[str], *, stdout: BufferedWriter, **_: Any
    ) -> subprocess.CompletedProcess[bytes]:
        self.commands.append(command)
        text = self.says
        if self.found:
            (prefix,) = (each.partition("=")[2] for each in command if each.startswith("-artifact_prefix="))
            Path(prefix + self.found[0]).write_bytes(self.found[1])
            text += f"Test unit written to {prefix}{self.found[0]}\n"
        stdout.write(text.encode())
        return subprocess.CompletedProcess(command, self.code)


STATISTICS = "stat::number_of_executed_units: 123\n"


@pytest.mark.parametrize(
    ("engine", "code", "said"),
    [
        (Engine(0, STATISTICS), 0, "native: 123 inputs in 7 s"),
        (Engine(77, STATISTICS, ("crash-1", b"..X..Y..")), 1, "b'XY'\nTraceback"),
        (Engine(77, STATISTICS, ("timeout-1", b"slow")), 1, "timeout-1"),
        (Engine(1, "ImportError: something\n"), 1, "ended with 1:\nImportError: something"),
    ],
    ids=["nothing", "crash", "timeout", "nothing of the kind"],
)
def test_what_fuzzing_ends_with(
    engine: Engine,
    code: int,
    said: str,
    picky: Picky,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command_line, "CACHE", tmp_path)
    monkeypatch.setattr(subprocess, "run", engine.run)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)

    assert command_line.main(["native", "--seconds", "7"]) == code

    out = capsys.readouterr().out
    assert said in out
    assert [path.read_bytes() for path in (tmp_path / "seeds" / "native").iterdir()] == [b"seed"]
    if engine.found:
        kept = Path(out.split()[-1])
        assert out.endswith(f"python -m tests.fuzz native {kept}\n")
        assert kept.read_bytes() == (b"XY" if engine.found[0] == "crash-1" else b"slow")


def test_all_targets_are_fuzzed(
    picky: Picky, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine(0, STATISTICS)
    monkeypatch.setattr(command_line, "CACHE", tmp_path)
    monkeypatch.setattr(subprocess, "run", engine.run)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)

    assert command_line.main(["--corpus", str(tmp_path / "mine")]) == 0

    assert [command[3] for command in engine.commands] == list(TARGETS)
    assert all(str(tmp_path / "mine" / command[3]) in command for command in engine.commands)


def test_without_atheris(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        command_line.main([])
    assert "pip install --group fuzz" in capsys.readouterr().err
