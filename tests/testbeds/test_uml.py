"""The User Mode Linux testbed itself: what a command does inside must come out unchanged."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from . import uml
from .job import FAILED, TIMED_OUT, MissingTool

try:
    uml.find_tools()
except MissingTool as exc:
    pytest.skip(str(exc), allow_module_level=True)


pytestmark = pytest.mark.timeout(60)


def run(*command: str, timeout: float = 50, writable: tuple[Path, ...] = ()) -> tuple[int, str]:
    output = io.BytesIO()
    status = uml.run(command, timeout=timeout, writable=writable, output=output)

    return status, output.getvalue().decode()


def test_output_and_arguments_come_through_unchanged() -> None:
    arguments = ["", "a b", "it's", '"$HOME" `x` \\n', "two\nlines", "é*?", "-n"]

    assert run(sys.executable, "-c", "import sys; print(sys.argv[1:], end='')", *arguments) == (
        0,
        str(arguments),
    )


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 3", 3), ("kill -TERM $$", 128 + 15), ("exec no-such-command", 127)],
)
def test_the_exit_status_is_the_commands(script: str, status: int) -> None:
    assert run("sh", "-c", script)[0] == status


def test_a_machine_that_dies_without_a_verdict_is_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    status, output = run("sh", "-c", "echo last words; echo c >/proc/sysrq-trigger; sleep 60")

    assert (status, output) == (FAILED, "last words\n")
    assert "sysrq triggered crash" in capfd.readouterr().err


def test_the_timeout_ends_the_machine(capfd: pytest.CaptureFixture[str]) -> None:
    status, output = run("sh", "-c", "echo started; sleep 60", timeout=8)

    assert (status, output) == (TIMED_OUT, "started\n")
    assert "no verdict within 8 s" in capfd.readouterr().err


def test_the_command_runs_here_and_leaves_no_trace(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    lost = tmp_path / "lost"
    script = f"pwd; echo $AIOHVSOCK_TESTBED; cat /proc/modules | grep -o ^vsock_loopback; echo 1 >{kept}/file; echo 1 >{lost}"

    assert run("sh", "-c", script, writable=(kept,)) == (0, f"{Path.cwd()}\numl\nvsock_loopback\n")
    assert (kept / "file").read_text() == "1\n"
    assert not lost.exists()
