from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .job import MISSING, Job, Verdict, environment_passed_on, variables

TOKEN = "verdict-0123"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_the_verdict_is_found_however_the_console_is_cut(size: int) -> None:
    verdict = Verdict(TOKEN)
    console = b"ver\nverdict-012 verver" + b"verdict-0123 3\n" + b"last words of the machine"

    output = b"".join(verdict.feed(console[i : i + size]) for i in range(0, len(console), size))

    assert (output, verdict.status, verdict.rest()) == (b"ver\nverdict-012 verver", 3, b"")


def test_output_is_held_back_no_longer_than_it_may_be_the_verdict() -> None:
    verdict = Verdict(TOKEN)

    assert verdict.feed(b"some output, verd") == b"some output, "
    assert verdict.rest() == b"verd"
    assert verdict.feed(b"igris") == b"verdigris"
    assert (verdict.status, verdict.rest()) == (None, b"")


def test_only_the_environment_that_tests_need_is_passed_on() -> None:
    passed = environment_passed_on(
        {"PATH": "/bin", "AIOHVSOCK_X": "1", "PYTHONDEVMODE": "1", "SECRET_TOKEN": "x"}
    )

    assert passed == {"PATH": "/bin", "AIOHVSOCK_X": "1", "PYTHONDEVMODE": "1", "TERM": passed["TERM"]}


def test_a_directory_below_tmp_keeps_tmp() -> None:
    def job(directory: Path) -> Job:
        return Job(["true"], testbed="uml", busybox="/bin/busybox", output="/dev/tty1", directory=directory)

    assert not job(Path("/tmp/project")).leaves_tmp_alone()


@pytest.mark.parametrize("value", ["", "a b", "it's", '"$HOME" `x` \\', "two\nlines", "é*?"])
def test_variables_are_quoted_for_the_shell(value: str) -> None:
    script = variables(value=value) + '\nprintf %s "$value"'

    assert subprocess.run(["sh", "-c", script], capture_output=True, check=True).stdout == os.fsencode(value)


@pytest.mark.parametrize(
    ("testbed", "cure"),
    [
        ("uml", "apt-get install user-mode-linux busybox-static"),
        ("qemu", "apt-get install qemu-system-x86 busybox-static"),
    ],
)
def test_what_is_not_installed_is_told_with_the_cure(testbed: str, cure: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", f"tests.testbeds.{testbed}", "--", "true"],
        env={**os.environ, "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == MISSING
    assert cure in result.stderr
    assert result.stderr.count("\n") == 1
