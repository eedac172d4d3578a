"""Finding machines by name: all sources together, and what each way of failing tells the user."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import pickle
import sys
import uuid
from typing import Any

import pytest

from aiohvsock import (
    HvAddressError,
    HvConnectError,
    HvPermissionError,
    HvUnsupportedError,
    HypervAddress,
    is_transient,
)
from aiohvsock.hyperv import Machine, MachineAddress, _survey, find_machine, list_machines, machine_address
from aiohvsock.hyperv._asking import NoAnswer
from aiohvsock.hyperv._machine import Answer, Source

from .host import WSL, A, B, C, Host, asked, powershell, system, vm, wsl
from .programs import Programs
from .test_wsl import SAY_ID, exec_in

elsewhere = pytest.mark.skipif(sys.platform == "win32", reason="is about other systems: make test runs it")


# -- the list ----------------------------------------------------------------------------------------------


async def test_everybody_tells_what_they_know(full: Host) -> None:
    assert await list_machines() == [
        Machine("Build", B, "powershell", "Off", "VMMS"),
        Machine("sandbox-1", C, "hcs", "Running", "Sandbox"),
        Machine("web", uuid.UUID(int=1), "powershell", "Running", "VMMS"),
        Machine("Web", A, "powershell", "Running", "VMMS"),
        Machine("WSL", WSL, "wsl", "Running", "WSL", ("Ubuntu",)),
    ]
    assert exec_in("Debian") not in full.programs.calls("wsl")


async def test_one_machine_of_several_accounts(host: Host) -> None:
    host.register([])
    host.computecore.document = json.dumps([system(A, Name="WEB", Id="web-7", State="Running", Owner="VMMS")])
    powershell(host, vm("Web", A, ""))

    assert await list_machines() == [Machine("Web", A, "powershell", "Running", "VMMS", ("web-7",))]


async def test_one_that_nobody_has_a_name_for(host: Host) -> None:
    host.register([])
    host.computecore.document = json.dumps([system(A), system(B)])
    powershell(host, vm("", A))

    machines = await list_machines()

    assert [(machine.name, machine.aliases) for machine in machines] == [(str(A), ()), (str(B), ())]
    assert list(map(str, machines)) == [f"{A}, Running", str(B)]


@pytest.mark.parametrize(
    ("sources", "names", "calls"),
    [
        (["wsl"], ["WSL"], (1, 0, 0)),
        (("hcs",), [str(WSL), str(A), "sandbox-1"], (0, 1, 0)),
        ({"powershell"}, ["Build", "web", "Web"], (0, 0, 1)),
        (["powershell", "wsl"], ["Build", "web", "Web", "WSL"], (1, 0, 1)),
    ],
)
async def test_only_some_are_asked(
    full: Host, sources: Any, names: list[str], calls: tuple[int, int, int]
) -> None:
    assert [machine.name for machine in await list_machines(sources=sources)] == names
    assert asked(full) == calls


async def test_there_are_none(host: Host) -> None:
    host.register([])
    powershell(host)

    assert await list_machines() == []


@pytest.mark.parametrize("fails", ["wsl", "powershell", "hcs"])
@pytest.mark.parametrize("script", ["say('garbage'); sys.exit(1)", "say('x' * 2**21)", "sys.exit(1)"])
async def test_one_that_fails_does_not_spoil_the_others(
    full: Host, caplog: pytest.LogCaptureFixture, fails: str, script: str
) -> None:
    if fails == "hcs":
        full.computecore.finished = 0x800706BA
    else:
        full.programs.add(fails, script)

    with caplog.at_level(logging.DEBUG, "aiohvsock"):
        names = {machine.name for machine in await list_machines()}

    # WSL's machine runs: the Host Compute Service knows it too, but not by name.
    expected = {"Build", "sandbox-1", "web", "Web", "WSL"}
    lost = {"wsl": {"WSL"}, "powershell": {"Build", "web", "Web"}, "hcs": {"sandbox-1"}}[fails]
    gained = {"wsl": {str(WSL)}, "powershell": {str(A)}, "hcs": set[str]()}[fails]
    assert names == expected - lost | gained
    (record,) = [each for each in caplog.records if each.name == "aiohvsock"]
    assert record.getMessage().startswith(f"machines: {fails}: ")


async def test_not_even_by_a_fault_of_ours(
    full: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fault() -> Answer:
        raise ZeroDivisionError("fault")

    monkeypatch.setitem(_survey.SOURCES, "powershell", fault)

    assert [machine.name for machine in await list_machines()] == [str(A), "sandbox-1", "WSL"]
    (record,) = [each for each in caplog.records if each.name == "aiohvsock"]
    assert record.exc_info is not None


async def test_nobody_can_be_asked_for_want_of_a_right(host: Host) -> None:
    host.register(["Ubuntu"])  # and there is no wsl.exe
    host.computecore.started = 0x8037011B

    with pytest.raises(HvPermissionError) as caught:
        await list_machines()

    text = str(caught.value)
    assert text.startswith(
        "[Errno 13] list machines failed: none was found; could not be asked: wsl: wsl is not"
    )
    assert "hcs: access is denied; powershell: it takes the same right" in text
    assert "group Hyper-V Administrators" in text
    assert "Add-LocalGroupMember -SID S-1-5-32-578 -Member '" in text
    assert not is_transient(caught.value)


async def test_nobody_can_be_asked_at_the_moment(host: Host) -> None:
    host.computecore.started = 0x800706BA

    with pytest.raises(HvConnectError, match="could not be asked: hcs: .*0x800706ba.*; try again") as caught:
        await list_machines(sources=["hcs"])

    assert is_transient(caught.value)


async def test_there_is_nobody_to_ask(host: Host) -> None:
    host.register(["Ubuntu"])
    host.computecore.started = 0x80370114

    with pytest.raises(
        HvUnsupportedError, match="no virtual machines here: wsl: wsl is not on the PATH; hcs: "
    ):
        await list_machines()


# -- one of them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "vm_id"),
    [
        ("WSL", WSL),
        ("wsl", WSL),
        ("ubuntu", WSL),
        ("UBUNTU", WSL),
        ("build", B),
        ("Sandbox-1", C),
        (str(B), B),
        (str(B).upper(), B),
        (f"{{{B}}}", B),
    ],
)
async def test_a_machine_by_name(full: Host, name: str, vm_id: uuid.UUID) -> None:
    assert (await find_machine(name)).vm_id == vm_id


async def test_not_only_ascii_has_two_cases(host: Host) -> None:
    host.register([])
    powershell(host, vm("Büro Straße", A))

    assert (await find_machine("BÜRO STRAßE")).vm_id == A


async def test_the_id_for_people_is_a_name_even_if_it_is_a_guid(host: Host) -> None:
    host.computecore.document = json.dumps([system(A, Id=str(B))])

    assert (await find_machine(str(B), sources=["hcs"])).vm_id == A


async def test_two_machines_of_one_name(full: Host) -> None:
    with pytest.raises(HvAddressError) as caught:
        await find_machine("WEB")

    assert str(caught.value) == (
        f"2 machines are called 'WEB'; write the id of one: web {uuid.UUID(int=1)}, Running; Web {A}, Running"
    )


async def test_no_machine_of_that_name(full: Host) -> None:
    with pytest.raises(HvAddressError) as caught:
        await find_machine("nobody")

    assert str(caught.value) == (
        f"no machine is called 'nobody'; there are: Build {B}, Off; sandbox-1 {C}, Running; "
        f"web {uuid.UUID(int=1)}, Running; Web {A}, Running; WSL (Ubuntu) {WSL}, Running; Debian (WSL, not running)"
    )
    assert not is_transient(caught.value)


async def test_an_id_of_no_machine(full: Host) -> None:
    with pytest.raises(HvAddressError, match="no machine is called 'dddddddd-"):
        await find_machine("dddddddd-1111-2222-3333-444455556666")


async def test_who_is_not_installed_is_named(host: Host) -> None:
    host.register([])
    host.computecore.started = 0x80370114

    with pytest.raises(HvAddressError) as caught:
        await find_machine("web")

    assert str(caught.value) == (
        "no machine is called 'web'; none was found; could not be asked: "
        "hcs: Windows' virtual machine platform is not installed; powershell: powershell is not on the PATH"
    )


async def test_a_distribution_that_is_stopped(full: Host) -> None:
    """As for a machine that boots: trying again helps."""
    with pytest.raises(HvConnectError) as caught:
        await find_machine("debian")

    assert caught.value.errno == errno.EHOSTUNREACH
    assert "find machine 'debian' failed: the WSL distribution Debian is not running" in str(caught.value)
    assert "wsl.exe --distribution Debian starts it" in str(caught.value)
    assert is_transient(caught.value)


async def test_a_machine_goes_before_a_stopped_distribution_of_its_name(full: Host) -> None:
    full.register(["Ubuntu", "Build"])

    assert (await find_machine("build")).vm_id == B


async def test_it_may_be_among_those_that_this_user_may_not_see(full: Host) -> None:
    full.computecore.finished = 0x8037011B

    assert (await find_machine("ubuntu")).vm_id == WSL
    with pytest.raises(HvPermissionError) as caught:
        await find_machine("web")

    assert f"there are: WSL (Ubuntu) {WSL}, Running; Debian (WSL, not running)" in str(caught.value)
    assert "Hyper-V Administrators" in str(caught.value)
    # It would take two seconds to say no as well.
    assert full.programs.calls("powershell") == []


async def test_powershell_alone_finds_out_itself(full: Host) -> None:
    powershell(full, member=False)

    with pytest.raises(HvPermissionError, match="powershell: access is denied"):
        await find_machine("web", sources=["powershell"])


async def test_who_has_not_answered_may_know_it(full: Host) -> None:
    """Even if a right is missing besides, which nobody may need: trying again can help."""
    full.programs.add("wsl", "say('Wsl/Service/0x8007274c'); sys.exit(1)")
    full.computecore.finished = 0x8037011B

    with pytest.raises(HvConnectError, match="wsl: .*0x8007274c.*hcs: access is denied") as caught:
        await find_machine("ubuntu")

    assert not isinstance(caught.value, HvPermissionError)
    assert is_transient(caught.value)


# -- addresses ---------------------------------------------------------------------------------------------


async def test_an_address_is_looked_up_when_it_is_used(full: Host) -> None:
    address = machine_address("ubuntu", 2761, max_age=0)

    assert await address() == HypervAddress(WSL, 2761)
    wsl(full, C)
    assert await address() == HypervAddress(C, 2761)


async def test_how_it_is_looked_up(full: Host) -> None:
    assert await machine_address("build", "HV Socket Demo", sources=["powershell"])() == HypervAddress(
        B, "HV Socket Demo"
    )
    assert asked(full) == (0, 0, 1)
    with pytest.raises(HvAddressError, match="no machine is called 'nobody'"):
        await machine_address("nobody", 2761)()


@pytest.mark.parametrize("text", [str(B), f"{{{B}}}".upper()])
async def test_the_address_of_an_id_asks_nobody(host: Host, text: str) -> None:
    assert await machine_address(text, 2761)() == HypervAddress(B, 2761)
    assert asked(host) == (0, 0, 0)


@pytest.mark.parametrize(
    ("name", "service", "text"),
    [
        ("ubuntu", 2761, "hvsock://vm:ubuntu:2761"),
        ("Büro 1/2", 2761, "hvsock://vm:B%C3%BCro%201%2F2:2761"),
        ("any", A, f"hvsock://vm:any/{A}"),
        ("web", str(A), f"hvsock://vm:web/{A}"),
        ("web", "HV Socket Demo", "hvsock://vm:web/HV%20Socket%20Demo"),
        ("web", "//any", None),
    ],
)
def test_its_text(name: str, service: Any, text: str | None) -> None:
    address = machine_address(name, service)

    if text is not None:
        assert str(address) == text
    assert str(address).startswith("hvsock://vm:")
    assert repr(address).startswith(f"MachineAddress(name={name!r}, service_id=")


def test_it_is_a_value() -> None:
    address = machine_address("ubuntu", 2761, max_age=5, timeout=None, sources=["powershell", "wsl"])

    assert address == MachineAddress(
        "ubuntu", HypervAddress("any", 2761).service_id, 5, None, ("wsl", "powershell")
    )
    assert hash(address) == hash(pickle.loads(pickle.dumps(address)))
    assert address != machine_address("ubuntu", 2762)


@pytest.mark.parametrize("name", ["", None, 5, B])
async def test_what_is_no_name(name: Any) -> None:
    with pytest.raises(HvAddressError, match="name of a machine must be a text, and not empty"):
        machine_address(name, 2761)
    with pytest.raises(HvAddressError, match="name of a machine must be a text, and not empty"):
        await find_machine(name)


async def test_a_name_that_cannot_be_printed() -> None:
    with pytest.raises(HvAddressError, match="surrogate"):
        machine_address("\ud800", 2761)
    with pytest.raises(HvAddressError, match="surrogate"):
        await find_machine("\udfff")


@pytest.mark.parametrize("service", [-1, 2**32, "2761", "", "{8636363d", None])
def test_what_is_no_service(service: Any) -> None:
    with pytest.raises(HvAddressError):
        machine_address("ubuntu", service)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_age": -1}, "max_age must be a number of seconds, or 0, not -1"),
        ({"max_age": float("nan")}, "max_age must be"),
        ({"timeout": 0}, "timeout must be a positive number of seconds, or None, not 0"),
        ({"timeout": -1.0}, "timeout must be"),
        ({"timeout": float("nan")}, "timeout must be"),
        ({"sources": []}, "sources must be some of wsl, hcs, powershell, processes, or None"),
        ({"sources": ["wsl", "wmi"]}, "sources must be"),
        ({"sources": "wsl"}, "sources must be"),
    ],
)
async def test_what_makes_no_sense(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        machine_address("ubuntu", 2761, **options)
    with pytest.raises(ValueError, match=text):
        await find_machine("ubuntu", **options)
    with pytest.raises(ValueError, match=text):
        await list_machines(**options)


# -- other systems -----------------------------------------------------------------------------------------


@elsewhere
async def test_a_linux_without_wsl(programs: Programs) -> None:
    hyperv: list[Source] = ["powershell", "wsl"]
    for ask in (
        list_machines(sources=hyperv),
        find_machine("ubuntu", sources=hyperv),
        machine_address("ubuntu", 2761, sources=hyperv)(),
        machine_address(str(B), 2761, sources=hyperv)(),
    ):
        with pytest.raises(
            HvUnsupportedError, match="wsl, powershell can be asked on .* by their CID"
        ) as caught:
            await ask
        assert caught.value.errno == errno.EAFNOSUPPORT


@elsewhere
async def test_inside_of_wsl(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest's agent can tell its host where it is."""
    monkeypatch.setattr(_survey, "_latest", {})
    monkeypatch.setenv("WSL_DISTRO_NAME", "Ubuntu")
    programs.add("wslinfo", SAY_ID)

    assert await list_machines() == [Machine("WSL", WSL, "wsl", "Running", "WSL", ("Ubuntu",))]
    assert await find_machine("ubuntu") == await find_machine("WSL")
    with pytest.raises(HvAddressError, match="hcs: the Host Compute Service is a part of Windows"):
        await find_machine("web")


def test_a_reason_that_is_told_often_does_not_grow(full: Host) -> None:
    full.computecore.started = 0x8037011B

    for _ in range(3):
        with pytest.raises(HvPermissionError):
            asyncio.run(list_machines(sources=["hcs"], max_age=60))

    (question,) = _survey._latest.values()
    outcome = question._task.result()
    assert isinstance(outcome, NoAnswer)
    assert outcome.denied
