from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from aiohvsock import (
    Address,
    HvPermissionError,
    HvUnsupportedError,
    __version__,
    cli,
    open_hv_connection,
    service_id,
    start_hv_server,
)
from aiohvsock.cli import doctor
from aiohvsock.cli.doctor import connecting, installed, linux, windows
from aiohvsock.cli.doctor.findings import Finding, Findings
from aiohvsock.hyperv import Service

from ..helpers import new_socket, sockaddr

COMMAND = [sys.executable, "-W", "error", "-m", "aiohvsock", "doctor"]
KIND = "AF_HYPERV" if sys.platform == "win32" else "hybrid vsock"

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github/workflows/windows.yml"

# What no doctor does: any of it ends the program.
FORBIDDEN = """
import socket, sys

def refuse(event, arguments):
    if event == "socket.__new__" and arguments[1] == getattr(socket, "AF_VSOCK", -1):
        raise SystemExit(f"{event} of AF_VSOCK")
    if event in ("winreg.CreateKey", "winreg.SetValue", "winreg.DeleteKey", "winreg.DeleteValue"):
        raise SystemExit(event)

sys.addaudithook(refuse)
from aiohvsock import cli
from aiohvsock.cli.doctor import linux
"""


Doctored = Callable[..., tuple[object, str]]


@pytest.fixture
def doctored(capsys: pytest.CaptureFixture[str]) -> Doctored:
    """Runs the doctor in this process; returns its exit status and what it has printed."""

    def run(*arguments: str) -> tuple[object, str]:
        with pytest.raises(SystemExit) as caught:
            cli.main(["doctor", *arguments])
        output = capsys.readouterr()
        assert output.err == ""
        return caught.value.code, output.out

    return run


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the echoes, which take most of the time."""
    monkeypatch.setattr(doctor, "loops", dict)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The modules that Linux has loaded: none yet."""
    monkeypatch.setattr(linux, "_MODULES", tmp_path)
    return tmp_path


# -- as a person runs it -----------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_the_report() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = done.stdout.splitlines()
    assert f"  ok    aiohvsock: {__version__}" in lines
    for loop in installed.loops():
        pattern = (
            rf"  ok    {KIND}, {re.escape(loop)}: connected in [\d.]+ ms; "
            r"1 MiB and a half-close there and back in [\d.]+ ms; a message in [\d.]+ ms"
        )
        assert any(re.fullmatch(pattern, line) for line in lines), done.stdout
    for line in lines[:-1]:
        assert re.fullmatch(r"[a-z ]+|  (ok  |warn|skip)  \S.*: \S.*|        \S.*", line), line
    assert re.fullmatch(r"verdict: nothing failed: \d+ ok, \d+ to know of, \d+ skipped", lines[-1])


@pytest.mark.timeout(60)
def test_it_writes_nothing_and_makes_no_vsock_socket_where_that_would_be_a_strangers(tmp_path: Path) -> None:
    script = f"""{FORBIDDEN}
from pathlib import Path
linux._MODULES = Path({str(tmp_path)!r})
cli.main(["doctor"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "verdict: nothing failed" in done.stdout
    if sys.platform == "linux":
        assert "  skip  AF_VSOCK: without vsock_loopback" in done.stdout


@pytest.mark.vsock
@pytest.mark.skipif(
    not linux.has_loopback(), reason="needs vsock_loopback: make test runs it in User Mode Linux"
)
def test_the_loopback_of_vsock_is_used_where_it_is_this_machine(doctored: Doctored) -> None:
    code, report = doctored()

    assert code == 0, report
    for loop in installed.loops():
        assert f"  ok    AF_VSOCK, {loop}: connected in" in report


@pytest.mark.linux
def test_an_interrupt_ends_it_quietly(directory: str) -> None:
    # A machine's monitor that never answers.
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as monitor:
        monitor.bind(f"{directory}/vm.sock")
        monitor.listen()
        with subprocess.Popen(
            ["env", "--default-signal=INT", *COMMAND, "--address", f"vsock+unix://{directory}/vm.sock:1"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            connection, _ = monitor.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                output, errors = process.communicate()

    assert (process.returncode, errors) == (130, "")
    assert "verdict" not in output


@pytest.mark.usefixtures("quick")
def test_json(doctored: Doctored) -> None:
    code, text = doctored("--json")

    report = json.loads(text)
    assert (code, report["failed"]) == (0, [])
    assert report["verdict"].startswith("nothing failed: ")
    assert report["findings"][0] == {
        "section": "versions",
        "status": "ok",
        "name": "aiohvsock",
        "text": __version__,
        "cure": "",
    }
    assert {"versions", "address family"} <= {each["section"] for each in report["findings"]}


# -- what fails --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_a_check_that_breaks_is_a_finding_and_the_others_run(
    doctored: Doctored, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    async def broken() -> Findings:
        raise LookupError("unheard of")

    monkeypatch.setattr(doctor, "versions", broken)
    code, report = doctored(*arguments)

    assert code == 1
    assert "LookupError: unheard of" in report
    assert "paste this report into a bug" in report
    assert "address family" in report
    assert "1 failed (versions, versions), " in report


@pytest.mark.usefixtures("quick")
def test_a_check_that_hangs_is_given_up(doctored: Doctored, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hanging() -> Findings:
        await asyncio.Event().wait()
        raise AssertionError("nobody set it")

    monkeypatch.setattr(doctor, "versions", hanging)
    monkeypatch.setattr(doctor, "_LIMIT", 0.25)
    code, report = doctored()

    assert code == 1
    assert "  fail  versions: no end to it within 0.25 s\n" in report


@pytest.mark.usefixtures("quick")
def test_a_timeout_of_the_systems_is_not_taken_for_the_doctors(
    doctored: Doctored, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow() -> Findings:
        raise TimeoutError("the disk is asleep")

    monkeypatch.setattr(doctor, "versions", slow)

    assert "  fail  versions: TimeoutError: the disk is asleep\n" in doctored()[1]


def test_an_echo_that_loses_bytes_fails(doctored: Doctored, monkeypatch: pytest.MonkeyPatch) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read())[:-1])
        writer.close()

    monkeypatch.setattr(connecting, "_answer", half)
    code, report = doctored()

    assert code == 1
    for loop in installed.loops():
        assert (
            f"  fail  {KIND}, {loop}: EOFError: 1048575 bytes came back, and not those that were sent\n"
            in report
        )


async def test_the_service_of_an_echo_that_was_interrupted_ends_quietly(address: Address) -> None:
    ended = asyncio.get_running_loop().create_future()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await connecting._answer(reader, writer)
            ended.set_result(None)
        except Exception as error:
            ended.set_exception(error)

    async with await start_hv_server(answer, address) as server:
        reader, writer = await open_hv_connection(address)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        server.abort_clients()
        await ended
        writer.close()


def test_text_from_outside_stays_on_its_line(doctored: Doctored) -> None:
    report = doctored("--address", "vsock://\n  ok    forged\u202e")[1]

    assert "\n  ok    forged" not in report
    assert "\\n  ok    forged\\u202e" in report


def test_an_echo_without_such_sockets_is_skipped() -> None:
    @contextlib.contextmanager
    def none() -> Iterator[connecting.Addresses]:
        raise HvUnsupportedError(errno.EAFNOSUPPORT, "no such sockets")
        yield

    assert asyncio.run(connecting.echo("it", none)) == [
        Finding("skip", "it", "there are no such sockets here, see above")
    ]


def test_names_that_the_output_cannot_show(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.TextIOWrapper(io.BytesIO(), "cp1252")
    monkeypatch.setattr(sys, "stdout", output)
    doctor._print(Finding("ok", "services", "1 registered: '橋'"))

    output.seek(0)
    assert output.read() == "  ok    services: 1 registered: '\\u6a4b'\n"


# -- an address of the user's ------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_an_address_that_answers_is_sent_nothing(doctored: Doctored, kind: str, address: Address) -> None:
    with new_socket(kind) as listener, ThreadPoolExecutor(1) as pool:
        listener.bind(sockaddr(address))
        listener.listen()
        got: Future[bytes] = pool.submit(_receive, listener)
        code, report = doctored("--address", str(address))

        assert code == 0, report
        assert got.result() == b""
    assert re.search(
        rf"^address {re.escape(str(address))}\n  ok    connect: .* answers: connected in [\d.]+ ms$",
        report,
        re.MULTILINE,
    )


def _receive(listener: socket.socket) -> bytes:
    connection, _ = listener.accept()
    with connection:
        return connection.recv(1)


@pytest.mark.usefixtures("quick")
def test_an_address_where_nobody_listens(doctored: Doctored, address: Address) -> None:
    code, report = doctored("--address", str(address))

    assert code == 1
    line = next(line for line in report.splitlines() if line.startswith("  fail  connect: "))
    assert f"connect to {address}" in line
    assert "nobody listens" in line
    assert report.splitlines()[-1].startswith(f"verdict: 1 failed (address {address}, connect), ")


@pytest.mark.usefixtures("quick")
def test_an_address_that_is_none(doctored: Doctored) -> None:
    code, report = doctored("--address", "vsock://two:1")

    assert code == 1
    assert "  fail  connect: " in report
    assert "'two'" in report


def test_a_loop_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, installed._FASTER, None)
    found = asyncio.run(installed.versions())[-1]

    assert (found.status, found.name) == ("skip", installed._FASTER)
    assert not set(installed.loops()) & {"uvloop", "winloop"}


# -- Linux -------------------------------------------------------------------------------------------------


def test_a_python_without_vsock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_VSOCK", raising=False)
    (found,) = linux.family()

    assert (found.status, found.text) == ("warn", "it has no AF_VSOCK")
    assert "was built without AF_VSOCK" in found.cure


@pytest.mark.parametrize(
    ("protocols", "process", "statuses"),
    [
        ("AF_VSOCK  1240\nUNIX 1", "Name:\tpython\nSeccomp:\t0", {"kernel": "ok"}),
        ("UNIX  1240\nTCP 1", "Name:\tpython\nSeccomp:\t0", {"kernel": "warn"}),
        ("AF_VSOCK  1240", "Name:\tpython\nSeccomp:\t2", {"kernel": "ok", "seccomp": "warn"}),
    ],
)
def test_what_the_kernel_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, protocols: str, process: str, statuses: dict[str, str]
) -> None:
    for name, text in (("net/protocols", protocols), ("self/status", process)):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(text)
    monkeypatch.setattr(linux, "_PROC", tmp_path)
    monkeypatch.setattr(socket, "AF_VSOCK", 40, raising=False)

    found = {each.name: each.status for each in linux.family()}
    assert found == {"Python": "ok", **statuses}


def test_transports(modules: Path) -> None:
    (nothing,) = linux.transports()
    assert nothing.status == "warn"
    assert "hv_sock (in a Hyper-V guest)" in nothing.cure
    assert not linux.has_loopback()

    for name in ("hv_sock", "vsock_loopback", "vsock"):
        (modules / name).mkdir()
    assert linux.transports() == [
        Finding("ok", "transports", "hv_sock (in a Hyper-V guest), vsock_loopback (for CID 1)")
    ]
    assert linux.has_loopback()


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        (7, "ok", "7"),
        (None, "ok", "none, or a Hyper-V guest's"),
        (HvUnsupportedError(errno.ENODEV, "there is none"), "warn", "there is no /dev/vsock"),
        (HvPermissionError(errno.EACCES, "read", hint="chmod"), "warn", "not known"),
    ],
)
def test_the_local_cid(monkeypatch: pytest.MonkeyPatch, answer: object, status: str, text: str) -> None:
    def local_cid() -> object:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(linux.linux, "local_cid", local_cid)  # type: ignore[attr-defined]
    (found,) = linux.device()

    assert (found.status, found.text) == (status, text)
    assert bool(found.cure) == (status == "warn")


# -- Windows -----------------------------------------------------------------------------------------------


def test_a_windows_without_hyperv_sockets_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_socket(options: object) -> Any:
        raise HvUnsupportedError(errno.EAFNOSUPPORT, "turn on the feature 'Hyper-V'")

    monkeypatch.setattr(windows.windows, "open_socket", open_socket)  # type: ignore[attr-defined]

    assert windows.family() == [
        Finding("fail", "AF_HYPERV", "no socket can be made", "turn on the feature 'Hyper-V'")
    ]


@pytest.mark.parametrize(
    ("names", "build", "product"),
    [
        ({"ProductName": "Windows 10 Pro", "DisplayVersion": "22H2"}, 19045, "Windows 10 Pro 22H2"),
        ({"ProductName": "Windows 10 Pro", "DisplayVersion": "24H2"}, 26100, "Windows 11 Pro 24H2"),
        ({"ProductName": "Windows Server 2025 Datacenter"}, 26100, "Windows Server 2025 Datacenter"),
        ({}, 26100, "Windows"),
    ],
)
def test_what_windows_is_called(names: dict[str, str], build: int, product: str) -> None:
    assert installed._product(names, build) == product


@pytest.mark.parametrize(
    ("groups", "status", "text"),
    [
        ({"S-1-5-32-544"}, "ok", "this process is in Administrators"),
        ({"S-1-5-32-578"}, "ok", "this process is in Hyper-V Administrators"),
        (set(), "warn", "this process is not in Administrators, nor in Hyper-V Administrators"),
    ],
)
def test_rights(monkeypatch: pytest.MonkeyPatch, groups: set[str], status: str, text: str) -> None:
    monkeypatch.setattr(windows, "_is_member", groups.__contains__)
    monkeypatch.setenv("USERDOMAIN", "HOME")
    monkeypatch.setenv("USERNAME", "O'Neill")
    (found,) = windows.rights()

    assert (found.status, found.text) == (status, text)
    if status == "warn":
        assert found.cure.endswith(r"Add-LocalGroupMember -SID S-1-5-32-578 -Member 'HOME\O''Neill'")


@pytest.mark.skipif(sys.platform != "win32", reason="needs Windows: make test-windows runs it under Wine")
def test_membership() -> None:
    everyone, nobody = "S-1-1-0", "S-1-0-0"

    assert windows._is_member(everyone)
    assert not windows._is_member(nobody)
    with pytest.raises(OSError):
        windows._is_member("S-none")


def test_services(monkeypatch: pytest.MonkeyPatch) -> None:
    registered = [Service(service_id(port)) for port in range(21)]
    monkeypatch.setattr(windows, "list_services", lambda: registered)
    (found,) = windows.services()

    assert found.text.startswith("21 registered: (00000000-facb-11e6-bd58-64006a7986d3, port 0), ")
    assert found.text.endswith("port 19), ...")

    del registered[1:]
    assert windows.services()[0].text == "1 registered: (00000000-facb-11e6-bd58-64006a7986d3, port 0)"
    del registered[0]
    assert windows.services() == [Finding("ok", "services", "0 registered")]


def test_a_registry_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def list_services() -> Any:
        raise HvPermissionError(errno.EACCES, "read the registered services", hint="as administrator")

    monkeypatch.setattr(windows, "list_services", list_services)
    (found,) = windows.services()

    assert found.status == "fail"
    assert found.text.endswith("as administrator")


# -- the workflow that runs it on hosted Windows -----------------------------------------------------------


@pytest.mark.skipif(
    not WORKFLOW.exists(), reason="needs the repository: a source distribution has no workflows"
)
def test_no_test_of_the_workflow_puts_the_emulator_in_the_place_of_windows() -> None:
    emulating = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("*.py")
        if "testbeds" not in path.parts
        and re.search(r"^from .*provider\.testing import", path.read_text("utf-8"), re.MULTILINE)
    ]
    ignored = re.findall(r"--ignore (\S+)", WORKFLOW.read_text("utf-8"))

    assert emulating
    assert {"tests/testbeds", *emulating} <= set(ignored)
    assert all((ROOT / path).exists() for path in ignored)
