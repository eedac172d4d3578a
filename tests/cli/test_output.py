"""An output that goes away, is full, or was never there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aiohvsock import cli
from aiohvsock.cli.output import OutputLost, say

COMMANDS = [["doctor"], ["doctor", "--json"], ["demo"]]


def run(arguments: list[str], stdout: int) -> tuple[int, str]:
    command = [sys.executable, "-W", "error", "-m", "aiohvsock", *arguments]
    # Unbuffered, nothing would be left to write when the interpreter exits.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ended = subprocess.run(
        command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=50, check=False
    )
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_whose_reader_has_left_ends_it_quietly(arguments: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run(arguments, writer) == (1, "")
    finally:
        os.close(writer)


@pytest.mark.linux
@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_that_is_full_is_said_in_a_sentence(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        status, said = run(arguments, full.fileno())

    assert status == 1
    # Each agent of the demo says so.
    assert set(said.splitlines()) == {
        "aiohvsock: the output cannot be written: [Errno 28] No space left on device"
    }


def test_that_is_not_there_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in pythonw.
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor"])
    assert caught.value.code == 0


def test_it_is_no_error_of_a_socket() -> None:
    assert not issubclass(OutputLost, OSError)


def test_what_the_output_cannot_show_is_escaped() -> None:
    script = "from aiohvsock.cli.output import say; say('caf\\u00e9 \\u4e16')"
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    shown = subprocess.run(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, timeout=50, check=True
    )
    assert shown.stdout.rstrip() == b"caf\xe9 \\u4e16"


def test_a_line_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    class Output:
        encoding = "utf-8"

        def __init__(self) -> None:
            self.written: list[str] = []

        def write(self, text: str) -> None:
            self.written.append(text)

        def flush(self) -> None:
            self.written.append("flushed")

    output = Output()
    monkeypatch.setattr(sys, "stdout", output)
    say("a line")
    assert [each for each in output.written if each] == ["a line\n", "flushed"]
