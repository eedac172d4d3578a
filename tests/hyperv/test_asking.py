"""Running programs and blocking calls beside the loop: what they give, and that nothing is left of them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from aiohvsock.hyperv import _asking
from aiohvsock.hyperv._asking import NoAnswer, in_thread, program, run

from .programs import Hanging, Programs

on_windows = pytest.mark.skipif(
    sys.platform != "win32", reason="needs the PATH of Windows: make test-windows runs it under Wine"
)


# -- what a program gives ----------------------------------------------------------------------------------


async def test_status_output_and_errors(programs: Programs) -> None:
    path = programs.add("asked", "say('out\\n'); say('err\\n', to=sys.stderr); sys.exit(3)")

    assert await run([path]) == (3, "out\n", "err\n")


async def test_arguments_arrive_as_they_are(programs: Programs) -> None:
    path = programs.add("asked", "")

    await run([path, "--list", "two words", "Ünicode", "{ $x = 'y'; }"])

    assert programs.calls("asked") == [["--list", "two words", "Ünicode", "{ $x = 'y'; }"]]


async def test_wsl_is_asked_for_utf_8(programs: Programs) -> None:
    path = programs.add("asked", "say(os.environ['WSL_UTF8'])")

    assert (await run([path])).text == "1"


async def test_it_has_no_input(programs: Programs) -> None:
    path = programs.add("asked", "say(repr(sys.stdin.read()))")
    # Ours has no end.
    ours, (reading, writing) = os.dup(0), os.pipe()
    try:
        os.dup2(reading, 0)
        async with asyncio.timeout(10):
            assert (await run([path])).text == "''"
    finally:
        os.dup2(ours, 0)
        for fd in (ours, reading, writing):
            os.close(fd)


async def test_the_encoding_is_found_out(programs: Programs) -> None:
    path = programs.add("asked", "say('Debiän\\r\\n'); say('Müll', 'utf-16-le', to=sys.stderr)")

    assert await run([path]) == (0, "Debiän\r\n", "Müll")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_encodings(encoding: str, mark: str) -> None:
    # Chinese alone has no zeros in UTF-16, but an end of a line has.
    for text in ("Debiän 12", "没有正在运行的分发。\r\n"):
        assert _asking._decode(f"{mark}{text}".encode(encoding)) == text


@pytest.mark.parametrize("data", [b"", b"\xff\xfe\xfd", b"\0", b"\xd8\0\0", b"a\0\xff", bytes(range(256))])
def test_garbage_is_text_of_some_kind(data: bytes) -> None:
    assert type(_asking._decode(data)) is str


async def test_a_mib_is_taken_on_both_sides(programs: Programs) -> None:
    path = programs.add("asked", "say('x' * 2**20, to=sys.stderr); say('y' * 2**20)")

    assert await run([path]) == (0, "y" * 2**20, "x" * 2**20)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_more_than_a_mib_is_not(programs: Programs, stream: str) -> None:
    path = programs.add("asked", f"while True: say('x' * 65536, to=sys.{stream})")

    with pytest.raises(NoAnswer, match="wrote more than 1 MiB"):
        await run([path])


async def test_what_cannot_be_started(tmp_path: Path) -> None:
    with pytest.raises(NoAnswer, match="cannot be run"):
        await run([str(tmp_path / "nowhere")])


def test_what_it_said_is_one_short_line() -> None:
    output = _asking.Output(1, "usage:\r\n\tmore" + " and more" * 1000, "error")

    assert output.said().startswith("it said 'error usage: more and more")
    assert output.said().endswith("' and exited with 1")
    assert len(output.said()) < 250


# -- cancelling --------------------------------------------------------------------------------------------

FAMILY = """
import subprocess

if sys.argv[1:] != ["child"]:
    subprocess.Popen([sys.executable, "-I", "-S", __file__, "child"])
hang()
"""


async def test_cancelling_kills_it_and_what_it_has_started(programs: Programs, hung: Hanging) -> None:
    task = asyncio.create_task(run([programs.add("asked", FAMILY)]))
    await hung.reach(2)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await hung.reach(0)


@on_windows
async def test_what_it_has_started_at_once_is_killed_too(
    programs: Programs, hung: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot start anything before it belongs to the job that is killed."""
    if sys.platform == "win32":
        add = _asking._Job.add

        def late(job: _asking._Job, process: subprocess.Popen[bytes]) -> None:
            time.sleep(1.0)  # enough for it to start another, if it may
            add(job, process)

        monkeypatch.setattr(_asking._Job, "add", late)
    task = asyncio.create_task(run([programs.add("asked", "hang()")]))
    await hung.reach(1)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await hung.reach(0)


async def test_who_has_cancelled_finds_it_gone(
    programs: Programs, hung: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    popen = _asking._popen

    def recorded(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(_asking, "_popen", recorded)
    task = asyncio.create_task(run([programs.add("asked", "hang()")]))
    await hung.reach(1)

    task.cancel()
    await asyncio.wait([task])

    assert [process.returncode is None for process in started] == [False]


async def test_one_that_has_closed_its_output(programs: Programs, hung: Hanging) -> None:
    script = "os.dup2(os.open(os.devnull, os.O_WRONLY), 1); os.dup2(1, 2); hang()"
    task = asyncio.create_task(run([programs.add("asked", script)]))
    await hung.reach(1)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await hung.reach(0)


async def test_cancelling_at_once_and_again(programs: Programs, hung: Hanging) -> None:
    path = programs.add("asked", "hang()")
    for turns in range(4):
        task = asyncio.create_task(run([path]))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    # What was cancelled twice is killed, if not yet gone.
    for thread in threading.enumerate():
        if thread.name.startswith("aiohvsock"):
            await asyncio.to_thread(thread.join)
    await hung.reach(0)


async def test_a_limit_of_time(programs: Programs, hung: Hanging) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await run([programs.add("asked", "hang()")])
    await hung.reach(0)


# -- calls that block --------------------------------------------------------------------------------------


async def test_the_loop_goes_on_while_a_call_blocks() -> None:
    go = threading.Event()
    task = asyncio.create_task(
        in_thread(lambda: go.wait() and threading.current_thread().daemon, name="test")
    )
    await asyncio.sleep(0.01)
    assert not task.done()

    go.set()

    assert await task is True


@pytest.mark.parametrize("error", [OSError(5, "no"), NoAnswer("no"), KeyError("no"), SystemExit(3)])
async def test_what_it_raises_is_raised(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await in_thread(fail, name="test")

    assert caught.value is error


async def test_a_call_that_cannot_be_stopped_is_left_alone() -> None:
    go, ended = threading.Event(), threading.Event()

    def work() -> None:
        go.wait()
        ended.set()

    task = asyncio.create_task(in_thread(work, name="test"))
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert not ended.is_set()

    go.set()
    await asyncio.to_thread(ended.wait)


def test_a_call_may_outlast_its_loop() -> None:
    go = threading.Event()
    loop = asyncio.new_event_loop()
    task = loop.create_task(in_thread(go.wait, name="test"))
    loop.call_later(0.01, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    (thread,) = [each for each in threading.enumerate() if each.name == "aiohvsock: test"]
    loop.close()

    go.set()

    thread.join()


async def test_what_does_not_die_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_asking, "_GRACE", 0.05)
    go, stopped = threading.Event(), threading.Event()
    task = asyncio.create_task(in_thread(go.wait, name="test", stop=stopped.set))
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task

    assert stopped.is_set()
    go.set()


# -- where programs are ------------------------------------------------------------------------------------


def test_a_program_is_found_on_the_path(programs: Programs) -> None:
    path = programs.add("asked", "")

    assert os.path.normcase(program("asked")) == os.path.normcase(path)


def test_one_that_is_not_there(programs: Programs) -> None:
    with pytest.raises(NoAnswer, match="asked is not on the PATH") as caught:
        program("asked")
    assert caught.value.absent


@on_windows
@pytest.mark.parametrize("path", ["", ".", "folder"])
def test_not_in_the_current_directory(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    programs.add("asked", "")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", path.replace("folder", f"..\\{tmp_path.name}"))

    with pytest.raises(NoAnswer):
        program("asked")


@on_windows
def test_the_suffixes_of_windows(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs.add("asked", "")
    (tmp_path / "asked.exe").touch()

    assert program("asked").lower().endswith("asked.exe")
    monkeypatch.setenv("PATHEXT", ".CMD;.EXE")
    assert program("asked").lower().endswith("asked.cmd")


@on_windows
def test_a_32_bit_python_finds_the_programs_of_64_bit_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "Sysnative").mkdir()
    (tmp_path / "Sysnative" / "wsl.exe").touch()
    monkeypatch.setenv("SystemRoot", str(tmp_path))

    assert program("wsl").lower().endswith("sysnative\\wsl.exe")
