from __future__ import annotations

import asyncio
import errno
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from aiohvsock import Address, HvTimeout, __version__, cli, parse_address
from aiohvsock.cli import demo, demo_http
from aiohvsock.platforms import linux

from ..conftest import LOOPS

COMMAND = [sys.executable, "-W", "error", "-m", "aiohvsock"]
LOOP_CLASSES = {"asyncio": "asyncio.unix_events._UnixSelectorEventLoop", "uvloop": "uvloop.Loop"}
CHOICES = list(LOOPS)
if sys.platform == "win32":
    LOOP_CLASSES["asyncio"] = "asyncio.windows_events.ProactorEventLoop"
    CHOICES = ["asyncio"]
GUID = "0123abcd-4567-89ab-cdef-0123456789ab"


def aiohvsock(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


def status(*arguments: str) -> int | str | None:
    """Run the command line in this process."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    return caught.value.code


@pytest.fixture
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_MEASURE", 0.02)
    monkeypatch.setattr(demo_http, "_MEASURE", 0.02)


# -- the demo, as a person runs it -------------------------------------------------------------------------


@pytest.mark.timeout(60)
@pytest.mark.parametrize("loop", CHOICES)
def test_two_processes_talk(loop: str) -> None:
    done = aiohvsock("demo", "--loop", loop)

    assert (done.returncode, done.stderr) == (0, "")
    if sys.platform == "win32":
        kind, scheme = "AF_HYPERV", "hvsock"
    elif linux.has_loopback():
        kind, scheme = "AF_VSOCK loopback", "vsock"
    else:
        kind, scheme = "hybrid vsock (a Unix socket with the CONNECT handshake)", r"vsock\+unix"
    # Two processes share the output: each one's lines are in order, but not one's among the other's.
    host = [line for line in done.stdout.splitlines() if line.startswith(" host | ")]
    guest = [line for line in done.stdout.splitlines() if line.startswith("guest | ")]
    assert len(host) + len(guest) == len(done.stdout.splitlines())
    expected = {
        tuple(host): [
            rf" host \| listening on {scheme}://.*",
            rf" host \| a guest called: {scheme}://.*",
            rf" host \| it says: hello, this is aiohvsock {re.escape(__version__)} on Python .*, process (\d+)",
            r" host \| the guest hung up",
            rf" host \| an aiohttp service at {scheme}://.*",
            r" host \| PUT /upload: 16 MiB, a piece at a time",
        ],
        tuple(guest): [
            rf"guest \| calling {scheme}://.*",
            rf"guest \| the host says: welcome, this is aiohvsock {re.escape(__version__)} .*, process (\d+)",
            r"guest \| its clock is [+-]\d+\.\d ms from mine",
            rf"guest \| address kind   {re.escape(kind)}",
            rf"guest \| event loop     {re.escape(LOOP_CLASSES[loop])}",
            r"guest \| transport      \w+",
            r"guest \| round trips    [1-9][\d,]* a second, 256 bytes each way",
            r"guest \| throughput     [1-9][\d,]* MiB/s, 64 KiB messages",
            r'guest \| GET /status    200 \{"healthy": true, "asked_by": ".+"\}',
            r"guest \| requests       [1-9][\d,]* a second, one after the other",
            r"guest \| PUT /upload    200, the same SHA-256 on both sides",
        ],
    }
    for lines, patterns in expected.items():
        assert len(lines) == len(patterns), done.stdout
        for line, pattern in zip(lines, patterns, strict=True):
            assert re.fullmatch(pattern, line), (pattern, line)
    processes = re.findall(r"process (\d+)", done.stdout)
    assert len(set(processes)) == 2


@pytest.mark.linux
def test_an_interrupt_ends_it_quietly(address: Address) -> None:
    with subprocess.Popen(
        # A shell starts what runs in the background with SIGINT ignored, and that is inherited.
        ["env", "--default-signal=INT", *COMMAND, "demo", "--role", "host", str(address)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as agent:
        assert agent.stdout is not None
        assert "listening on" in agent.stdout.readline()
        agent.send_signal(signal.SIGINT)
        _, errors = agent.communicate()

    assert (agent.returncode, errors) == (130, "")


@pytest.mark.parametrize("arguments", [[], ["demo"]])
def test_help(arguments: list[str]) -> None:
    done = aiohvsock(*arguments, "--help")

    assert (done.returncode, done.stderr) == (0, "")
    assert "demo" in done.stdout


def test_version() -> None:
    done = aiohvsock("--version")

    assert (done.returncode, done.stdout, done.stderr) == (0, f"aiohvsock {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["dance"], "dance"),
        (["demo", "--loop", "trio"], "trio"),
        (["demo", "--role", "spy", "vsock+unix:///v:1"], "spy"),
        (["demo", "vsock+unix:///v:1", "vsock+unix:///w:1"], "vsock+unix:///w:1"),
        (["demo", "--role", "host"], "--role needs an address"),
        (["demo", "--role", "guest"], "--role needs an address"),
    ],
)
def test_a_wrong_call_exits_2(arguments: list[str], words: str) -> None:
    done = aiohvsock(*arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["demo", "2:2761"], "'2:2761': no scheme"),
        (["demo", "vsock://2:x"], "port must be a decimal number"),
        (["demo", "--role", "host", "tcp://2:1"], "unknown scheme 'tcp'"),
        (["demo", "--role", "guest", "vsock://2:4294967296"], "port 4294967296 is outside"),
        *(
            [
                (["demo", "--role", "guest", "vsock://7:1"], "has no counterpart on Windows"),
                (["demo", "--role", "host", "vsock://any:any"], "chooses no free service id"),
            ]
            if sys.platform == "win32"
            else [
                (["demo", "--role", "guest", f"hvsock://any/{GUID}"], "has no counterpart on Linux"),
                (["demo", "--role", "host", f"hvsock://{GUID}:1"], "has no counterpart on Linux"),
                (
                    ["demo", "--role", "host", "vsock+unix:///missing/v.sock:1"],
                    "its directory does not exist",
                ),
                (["demo", "--role", "guest", "vsock+unix:///dev/null/v.sock:1"], "Not a directory"),
                (["demo", "--role", "host", "vsock+unix:///" + "x" * 200 + ":1"], "bytes long"),
            ]
        ),
    ],
)
def test_an_address_that_cannot_be_used_exits_1_with_one_line(arguments: list[str], words: str) -> None:
    done = aiohvsock(*arguments)

    assert done.returncode == 1
    assert done.stderr.startswith("aiohvsock: ")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("address", "words"),
    [("vsock://7:1", "has no counterpart on Windows")]
    if sys.platform == "win32"
    else [
        ("vsock+unix:///missing/v.sock:1", "its directory does not exist"),
        ("vsock+unix:///dev/null/v.sock:1", "Not a directory"),
        (f"hvsock://{GUID}:1", "has no counterpart on Linux"),
    ],
)
def test_the_one_half_does_not_wait_for_the_other_that_failed(address: str, words: str) -> None:
    done = aiohvsock("demo", address)

    assert done.returncode == 1
    assert "gave up" not in done.stdout
    assert words in done.stderr
    assert {line.partition(" ")[0] for line in done.stderr.splitlines()} == {"aiohvsock:"}


# -- the same in this process ------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_a_hurry")
@pytest.mark.parametrize("loop", CHOICES)
def test_the_two_halves(address: Address, loop: str, capfd: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor() as pool:
        host = pool.submit(status, "demo", "--loop", loop, "--role", "host", str(address))
        assert status("demo", "--loop", loop, "--role", "guest", str(address)) == 0
        assert host.result() == 0

    output = capfd.readouterr()
    assert output.err == ""
    assert f"event loop     {LOOP_CLASSES[loop]}\n" in output.out
    assert "the guest hung up" in output.out


@pytest.mark.usefixtures("in_a_hurry")
@pytest.mark.parametrize("answers", [[False, True], [True, False]], ids=["guest", "host"])
def test_one_of_them_has_no_aiohttp(
    address: Address, answers: list[bool], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = iter(answers)  # the guest is the first to be asked
    monkeypatch.setattr(demo_http, "has_aiohttp", lambda: next(asked))
    with ThreadPoolExecutor() as pool:
        host = pool.submit(status, "demo", "--role", "host", str(address))
        assert status("demo", "--role", "guest", str(address)) == 0
        assert host.result() == 0

    output = capfd.readouterr()
    assert output.err == ""
    assert "no HTTP        both sides need aiohttp: pip install aiohvsock[aiohttp]" in output.out


@pytest.mark.usefixtures("in_a_hurry")
def test_a_guest_that_hangs_up_early_is_a_failure_of_the_host(
    address: Address, capfd: pytest.CaptureFixture[str]
) -> None:
    script = (
        "import asyncio, sys, aiohvsock\n"
        "async def main():\n"
        "    async with aiohvsock.connect(sys.argv[1], retry=aiohvsock.Retry()): pass\n"
        "asyncio.run(main())\n"
    )
    with ThreadPoolExecutor() as pool:
        host = pool.submit(status, "demo", "--loop", "asyncio", "--role", "host", str(address))
        subprocess.run([sys.executable, "-c", script, str(address)], check=True)
        result = host.result()

    assert "a guest called" in capfd.readouterr().out
    assert result == 1


def test_nobody_there(
    directory: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_LIMIT", 0.1)
    address = f"vsock+unix://{directory}/vm.sock:2761"

    assert status("demo", "--loop", "asyncio", "--role", "guest", address) == 1
    assert "gave up after 0.1 s" in "".join(capfd.readouterr())
    assert status("demo", "--loop", "asyncio", "--role", "host", address) == 1
    assert "gave up after 0.1 s" in "".join(capfd.readouterr())


def test_without_uvloop(
    directory: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_LIMIT", 0.1)
    monkeypatch.setitem(sys.modules, "uvloop", None)
    address = f"vsock+unix://{directory}/vm.sock:2761"

    assert "pip install aiohvsock[uvloop]" in str(
        status("demo", "--loop", "uvloop", "--role", "host", address)
    )
    assert status("demo", "--loop", "auto", "--role", "host", address) == 1
    assert "gave up" in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("scripts", "result"),
    [
        (("exit(0)", "exit(0)"), 0),
        (("exit(1)", "time.sleep(60)"), 1),
        (("time.sleep(60)", "exit(1)"), 1),
        (("os.kill(os.getpid(), 9)", "time.sleep(60)"), 9),
        (("exit(130)", "exit(130)"), 130),
    ],
)
def test_an_agent_that_fails_ends_the_other(
    scripts: tuple[str, str], result: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, ...]] = []
    real = asyncio.create_subprocess_exec

    async def start(*command: str) -> asyncio.subprocess.Process:
        calls.append(command)
        return await real(sys.executable, "-c", f"import os, time; {scripts[len(calls) - 1]}")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)

    assert status("demo") == result
    assert [call[call.index("--role") + 1] for call in calls] == ["host", "guest"]
    assert calls[0][-1] == calls[1][-1]


@pytest.mark.linux
def test_an_address_for_both_halves_that_fail(capfd: pytest.CaptureFixture[str]) -> None:
    assert status("demo", "vsock+unix:///missing/v.sock:1") == 1
    assert "its directory does not exist" in capfd.readouterr().err


def test_a_role_needs_an_address(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("demo", "--role", "guest") == 2
    assert "--role needs an address" in capsys.readouterr().err


def test_an_interrupt_is_no_failure_to_write_home_about(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_run", interrupted)

    assert status("demo") == 130
    assert capsys.readouterr() == ("", "")


def test_a_timeout_of_the_systems_is_not_taken_for_the_demos(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def agent(address: object) -> None:
        raise HvTimeout(errno.ETIMEDOUT, "connect", hint="the machine is paused")

    monkeypatch.setattr(demo, "_guest", agent)

    assert status("demo", "--role", "guest", "vsock+unix:///v:1") == 1
    output = capsys.readouterr()
    assert "the machine is paused" in output.err
    assert "gave up" not in output.out


def test_the_kind_on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")

    for text in ("hvsock://parent:1", "vsock://host:1"):
        assert demo._kind(parse_address(text)) == "AF_HYPERV"


@pytest.mark.linux
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("vsock://1:1", "AF_VSOCK loopback"),
        ("vsock://2:1", "AF_VSOCK"),
        ("hvsock://parent:1", "AF_VSOCK"),
        ("vsock+unix:///v:1", "hybrid vsock (a Unix socket with the CONNECT handshake)"),
    ],
)
def test_the_kinds_of_address(text: str, kind: str) -> None:
    assert demo._kind(parse_address(text)) == kind
