"""What WSL says, from its host and from inside, of every age and in every language."""

from __future__ import annotations

import asyncio
import sys

import pytest

from aiohvsock.hyperv import Machine, _wsl
from aiohvsock.hyperv._asking import NoAnswer, Output
from aiohvsock.hyperv._machine import Answer
from aiohvsock.hyperv._wsl import ask_wsl, ask_wsl_host

from .host import LIST, Host
from .host import WSL as ID
from .programs import Hanging, Programs


def exec_in(name: str) -> list[str]:
    return ["--distribution", name, "--exec", "wslinfo", "--vm-id"]


def wsl(running: str, *, encoding: str = "utf-8", **answers: str) -> str:
    """Return the script of a wsl.exe: what it lists, and what it does in each distribution."""
    return f"""
if sys.argv[1:] == {LIST!r}:
    say({running!r}, {encoding!r})
elif sys.argv[3:] == ["--exec", "wslinfo", "--vm-id"]:
    exec({answers!r}[sys.argv[2]])
else:
    sys.exit("usage")
"""


SAY_ID = f"say('{ID}\\n')"
SAY_WSL1 = "say('wsl1\\n')"
OLD = "say('Invalid command line argument: --vm-id\\nPlease use --help\\n', to=sys.stderr); sys.exit(1)"


# -- from the host -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
async def test_who_runs_is_asked(host: Host, encoding: str) -> None:
    host.register(["Ubuntu", "Debian", "kali-linux"])
    host.programs.add(
        "wsl", wsl("Ubuntu\r\nkali-linux\r\n", encoding=encoding, **{"Ubuntu": SAY_ID, "kali-linux": SAY_ID})
    )

    answer = await ask_wsl_host()

    assert answer == Answer(
        [Machine("WSL", ID, "wsl", "Running", "WSL", ("Ubuntu", "kali-linux"))], ("Debian",)
    )
    # What is stopped would be started by asking it.
    assert host.programs.calls("wsl") == [exec_in("Ubuntu"), exec_in("kali-linux"), LIST]


async def test_names_are_not_all_ascii(host: Host) -> None:
    host.register(["Debiän 12"])
    host.programs.add("wsl", wsl("Debiän 12\r\n", encoding="utf-16-le", **{"Debiän 12": SAY_ID}))

    assert (await ask_wsl_host()).machines[0].aliases == ("Debiän 12",)


@pytest.mark.parametrize("running", ["", "\r\n", "Es werden keine Distributionen ausgeführt.\r\n"])
async def test_nobody_runs(host: Host, running: str) -> None:
    host.register(["Ubuntu"])
    host.programs.add("wsl", wsl(running))

    assert await ask_wsl_host() == Answer([], ("Ubuntu",))
    assert host.programs.calls("wsl") == [LIST]


async def test_without_a_distribution_nobody_is_asked(host: Host) -> None:
    """wsl.exe would offer to install one, and wait a minute for a key."""
    host.register([])
    host.programs.add("wsl", wsl(""))

    assert await ask_wsl_host() == Answer([])
    assert host.programs.calls("wsl") == []


async def test_wsl_1_has_no_machine(host: Host) -> None:
    host.register(["Old", "New"])
    host.programs.add("wsl", wsl("Old\nNew\n", Old=SAY_WSL1, New=SAY_ID))

    assert await ask_wsl_host() == Answer([Machine("WSL", ID, "wsl", "Running", "WSL", ("New",))])


async def test_only_wsl_1(host: Host) -> None:
    host.register(["Old"])
    host.programs.add("wsl", wsl("Old\n", Old=SAY_WSL1))

    assert await ask_wsl_host() == Answer([])


async def test_one_that_cannot_tell_does_no_harm(host: Host) -> None:
    host.register(["docker-desktop", "Ubuntu"])
    host.programs.add("wsl", wsl("docker-desktop\nUbuntu\n", **{"docker-desktop": OLD, "Ubuntu": SAY_ID}))

    assert (await ask_wsl_host()).machines[0].aliases == ("Ubuntu",)


async def test_none_that_can_tell(host: Host) -> None:
    host.register(["Ubuntu"])
    host.programs.add("wsl", wsl("Ubuntu\n", Ubuntu=OLD))

    with pytest.raises(NoAnswer, match=r"^Ubuntu: wslinfo --vm-id: it said 'Invalid command") as caught:
        await ask_wsl_host()
    assert caught.value.absent


@pytest.mark.parametrize(
    ("output", "text", "absent"),
    [
        (Output(1, "", "Invalid argument: --vm-id"), "it said 'Invalid.* wsl.exe --update brings it", True),
        (Output(1, "<3>WSL (498) ERROR: execvpe(wslinfo) failed\n", ""), r"execvpe\(wslinfo\) failed", True),
        (Output(1, "", ""), "it said '' and exited with 1", True),
        (Output(1, "Error code: Wsl/Service/0x8007274c\r\n", ""), "0x8007274c", False),
        (Output(0, "", ""), "it said '' and exited with 0", False),
        (Output(0, "00000000-0000-0000-0000-000000000000", ""), "it said '00000000-", False),
        (Output(0, "8636363d-c5f9-49aa-b507-3b83f98c0d1", ""), "it said '8636363d", False),
        (Output(1, str(ID), ""), "it said '8636363d.* exited with 1", True),
        (Output(0, "\0\xff" * 1000, ""), "it said", False),
    ],
)
def test_what_is_no_id(output: Output, text: str, absent: bool) -> None:
    with pytest.raises(NoAnswer, match=text) as caught:
        _wsl._vm_id(output)

    assert caught.value.absent == absent


@pytest.mark.parametrize("text", [f"{ID}\n", str(ID).upper(), f"{{{ID}}}\r\n"])
def test_an_id(text: str) -> None:
    assert _wsl._vm_id(Output(0, text, "wsl: a proxy was found, and is not mirrored into WSL\n")) == ID


async def test_what_may_pass_is_told_before_what_will_not(host: Host) -> None:
    host.register(["Old", "Busy"])
    host.programs.add("wsl", wsl("Old\nBusy\n", Old=OLD, Busy="say('Wsl/Service/0x8007274c'); sys.exit(1)"))

    with pytest.raises(NoAnswer, match="Busy: ") as caught:
        await ask_wsl_host()
    assert not caught.value.absent


async def test_wsl_fails(host: Host) -> None:
    host.register(["Ubuntu"])
    host.programs.add("wsl", "say('Fehlercode: Wsl/0x80070005\\r\\n', 'utf-16-le'); sys.exit(1)")

    with pytest.raises(
        NoAnswer, match="wsl.exe --list: it said 'Fehlercode: Wsl/0x80070005' and exited with 1"
    ):
        await ask_wsl_host()


async def test_there_is_no_wsl_exe(host: Host) -> None:
    host.register(["Ubuntu"])

    with pytest.raises(NoAnswer, match="wsl is not on the PATH") as caught:
        await ask_wsl_host()
    assert caught.value.absent


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        ("Il n’y a aucune distribution en cours d’exécution.", False),
        ("Wsl/Service/0x8007274c", True),
        ("Error: 0x800706be", True),
        # As it was before WSL came from the Store, without --quiet.
        ("Ubuntu\n", False),
    ],
)
def test_the_exit_status_minus_one_has_two_meanings(text: str, fails: bool) -> None:
    output = Output(0xFFFFFFFF, text, "")
    if fails:
        with pytest.raises(NoAnswer, match="exited with 4294967295"):
            _wsl._running(output, ["Ubuntu"])
    else:
        assert _wsl._running(output, ["Ubuntu"]) == (["Ubuntu"] if "Ubuntu" in text else [])


async def test_cancelling_it_while_several_hang(host: Host, hung: Hanging) -> None:
    host.register(["One", "Two"])
    host.programs.add("wsl", wsl("One\nTwo\n", One="hang()", Two="hang()"))
    task = asyncio.create_task(ask_wsl_host())
    await hung.reach(2)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await hung.reach(0)


# -- its registry ------------------------------------------------------------------------------------------

on_windows = pytest.mark.skipif(
    sys.platform != "win32", reason="needs the registry of Windows: make test-windows runs it under Wine"
)


@on_windows
def test_registered_distributions(host: Host) -> None:
    host.register(["Ubuntu", "Debiän"])

    assert _wsl.registered_distributions() == ["Ubuntu", "Debiän"]


@on_windows
def test_wsl_was_never_there(host: Host) -> None:
    assert _wsl.registered_distributions() == []


@on_windows
def test_a_key_without_a_name(host: Host) -> None:
    host.register(["Ubuntu"])
    if sys.platform == "win32":
        import winreg

        winreg.CreateKey(winreg.HKEY_CURRENT_USER, _wsl._LXSS + r"\AppxInstallerCache").Close()

    assert _wsl.registered_distributions() == ["Ubuntu"]


@pytest.mark.skipif(sys.platform == "win32", reason="is about other systems: make test runs it")
def test_other_systems_have_no_registry() -> None:
    assert _wsl.registered_distributions() == []


# -- from inside -------------------------------------------------------------------------------------------

inside = pytest.mark.skipif(sys.platform == "win32", reason="is about WSL's inside: make test runs it")


@inside
@pytest.mark.parametrize(("name", "aliases"), [("Ubuntu", ("Ubuntu",)), (None, ())])
async def test_a_distribution_knows_its_machine(
    programs: Programs, monkeypatch: pytest.MonkeyPatch, name: str | None, aliases: tuple[str, ...]
) -> None:
    monkeypatch.delenv("WSL_DISTRO_NAME", raising=False)
    if name is not None:
        monkeypatch.setenv("WSL_DISTRO_NAME", name)
    programs.add("wslinfo", SAY_ID)

    assert await ask_wsl() == Answer([Machine("WSL", ID, "wsl", "Running", "WSL", aliases)])
    assert programs.calls("wslinfo") == [["--vm-id"]]


@inside
async def test_inside_of_wsl_1(programs: Programs) -> None:
    programs.add("wslinfo", SAY_WSL1)

    assert await ask_wsl() == Answer([])


@inside
async def test_inside_of_an_old_wsl_2(programs: Programs) -> None:
    programs.add("wslinfo", OLD)

    with pytest.raises(NoAnswer, match="wsl.exe --update brings it") as caught:
        await ask_wsl()
    assert caught.value.absent
