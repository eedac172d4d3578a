"""What the Host Compute Service and PowerShell print, and what becomes of it."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from typing import Any

import pytest

from aiohvsock.hyperv import Machine
from aiohvsock.hyperv._asking import NoAnswer, Output
from aiohvsock.hyperv._hyperv import ask_hcs, ask_powershell, parse_systems, parse_vms

from .computecore import Computecore
from .programs import Hanging, Programs

A, B = "8636363d-c5f9-49aa-b507-3b83f98c0d14", "a811a3d9-78e5-5a7d-ba56-4b799c99f150"
ID_A, ID_B = uuid.UUID(A), uuid.UUID(B)

# -- the Host Compute Service ------------------------------------------------------------------------------

# As a host has printed it: WSL's machine, and one that was never started.
LIVE = f"""[
    {{"Id":"{A.upper()}","SystemType":"VirtualMachine","Owner":"WSL","RuntimeId":"{A}","State":"Running"}},
    {{"Id":"vmlord-b961b644","SystemType":"VirtualMachine","Owner":"VMLord","RuntimeId":"{B}"}}
]"""


def test_what_a_host_has_printed() -> None:
    assert parse_systems(LIVE) == [
        Machine(A, ID_A, "hcs", "Running", "WSL"),
        Machine("vmlord-b961b644", ID_B, "hcs", None, "VMLord"),
    ]


@pytest.mark.parametrize(
    ("system", "name", "aliases"),
    [
        ({"Id": "web", "Name": "Web server"}, "Web server", ("web",)),
        ({"Id": "web", "Name": "web"}, "web", ()),
        ({"Id": "web", "Name": ""}, "web", ()),
        ({"Id": A, "Name": "web"}, "web", ()),
        # An Id that is a GUID, and not the one that sockets know.
        ({"Id": B}, B, ()),
        ({"Id": "{" + A.upper() + "}", "Name": A}, A, ()),
        ({"Id": None, "Name": 5}, A, ()),
        ({}, A, ()),
    ],
)
def test_the_names_of_a_system(system: dict[str, Any], name: str, aliases: tuple[str, ...]) -> None:
    (machine,) = parse_systems(json.dumps([{"SystemType": "VirtualMachine", "RuntimeId": A, **system}]))

    assert machine == Machine(name, ID_A, "hcs", aliases=aliases)


@pytest.mark.parametrize(
    "system",
    [
        {"SystemType": "Container", "RuntimeId": A},
        {"RuntimeId": A},
        {"SystemType": "VirtualMachine", "Id": A},
        {"SystemType": "VirtualMachine", "RuntimeId": None},
        {"SystemType": "VirtualMachine", "RuntimeId": "not a GUID"},
        # It would be the address of any machine.
        {"SystemType": "VirtualMachine", "RuntimeId": "00000000-0000-0000-0000-000000000000"},
    ],
)
def test_what_is_no_machine_is_left_out(system: dict[str, Any]) -> None:
    document = json.dumps([{"Id": "it", **system}, {"SystemType": "VirtualMachine", "RuntimeId": B}])

    assert [machine.vm_id for machine in parse_systems(document)] == [ID_B]


@pytest.mark.parametrize("document", ["[]", ""])
def test_no_systems(document: str) -> None:
    assert parse_systems(document) == []


@pytest.mark.parametrize(
    "document", ["{}", "null", "garbage", "[1]", '["x"]', "[[]]", '[{"Id"', '{"Error": 1}']
)
def test_what_is_no_list_of_systems(document: str) -> None:
    with pytest.raises(NoAnswer, match="HcsEnumerateComputeSystems returned no list of objects"):
        parse_systems(document)


async def test_the_service_is_asked_beside_the_loop(computecore: Computecore) -> None:
    computecore.document = LIVE
    computecore.go.clear()
    task = asyncio.create_task(ask_hcs())
    await asyncio.sleep(0.01)
    assert not task.done()

    computecore.go.set()

    assert [machine.vm_id for machine in (await task).machines] == [ID_A, ID_B]


async def test_a_service_that_hangs_is_left_alone(computecore: Computecore) -> None:
    computecore.go.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await ask_hcs()

    computecore.go.set()
    for thread in threading.enumerate():
        if thread.name == "aiohvsock: hcs":
            await asyncio.to_thread(thread.join)
    assert (computecore.calls[-1], computecore.leaked) == ("close", 0)


# -- PowerShell --------------------------------------------------------------------------------------------


def printed(text: str | dict[str, Any], *, status: int = 0, **fields: Any) -> Output:
    if isinstance(text, dict):
        text = json.dumps(text | fields) + "\r\n"
    return Output(status, text, "")


def found(vms: Any) -> dict[str, Any]:
    return {"id": "", "member": True, "vms": vms, "error": ""}


VM = {"Name": "Büro", "Id": A, "State": "Off"}


@pytest.mark.parametrize(
    "vms", [[VM], {"value": [VM], "Count": 1}], ids=["an array", "as Windows PowerShell 5.1 has some"]
)
def test_a_list_of_machines(vms: Any) -> None:
    assert parse_vms(printed(found(vms))) == [Machine("Büro", ID_A, "powershell", "Off", "VMMS")]


def test_what_is_said_before_does_no_harm() -> None:
    text = "WARNING: the module is of an older version\r\n\r\n" + json.dumps(found([VM])) + "\r\n\r\n"

    assert len(parse_vms(printed(text))) == 1


@pytest.mark.parametrize(
    ("vm", "machines"),
    [
        ({"Id": A}, [Machine(A, ID_A, "powershell", None, "VMMS")]),
        ({"Id": A, "Name": "", "State": 3}, [Machine(A, ID_A, "powershell", None, "VMMS")]),
        ({"Id": "{" + A.upper() + "}", "Name": "x"}, [Machine("x", ID_A, "powershell", None, "VMMS")]),
        ({"Name": "x"}, []),
        ({"Name": "x", "Id": "what?"}, []),
        ({"Name": "x", "Id": str(uuid.UUID(int=0))}, []),
    ],
)
def test_machines_that_are_not_all_there(vm: dict[str, Any], machines: list[Machine]) -> None:
    assert parse_vms(printed(found([vm]))) == machines


@pytest.mark.parametrize("vms", [[], None, {"value": [], "Count": 0}])
def test_no_machines(vms: Any) -> None:
    assert parse_vms(printed(found(vms))) == []


@pytest.mark.parametrize(
    ("fields", "text", "kind"),
    [
        # With the error that newer ones raise, or in silence, as older ones do.
        (
            {
                "error": "Sie haben nicht die Berechtigung",
                "id": "AccessDenied,Microsoft.HyperV.PowerShell.Commands.GetVM",
            },
            "Sie haben nicht",
            "denied",
        ),
        ({"member": False}, "access is denied", "denied"),
        ({"member": False, "error": "no", "id": "Unspecified"}, "no", "denied"),
        (
            {"error": "not recognized", "id": "CommandNotFoundException"},
            "module of PowerShell is not",
            "absent",
        ),
        ({"error": "the service is not running", "id": "Unspecified"}, "the service is not running", None),
    ],
)
def test_an_error(fields: dict[str, Any], text: str, kind: str | None) -> None:
    with pytest.raises(NoAnswer, match=text) as caught:
        parse_vms(printed(found([]), **fields))

    assert (caught.value.denied, caught.value.absent) == (kind == "denied", kind == "absent")


def test_who_gets_machines_has_the_right_whatever_the_groups() -> None:
    assert len(parse_vms(printed(found([VM]), member=False))) == 1


@pytest.mark.parametrize("text", ["", "garbage", "[]", "null", "{}", '{"vms"', "5", "\n\n"])
def test_what_is_no_answer(text: str) -> None:
    with pytest.raises(NoAnswer, match="powershell: it said .* and exited with 1"):
        parse_vms(printed(text, status=1))


@pytest.mark.parametrize("vms", ["x", 5, [5], [None], {"Name": "x"}])
def test_what_is_no_list_of_machines(vms: Any) -> None:
    with pytest.raises(NoAnswer, match="Get-VM returned no list of objects"):
        parse_vms(printed(found(vms)))


async def test_powershell_is_asked(programs: Programs) -> None:
    programs.add("powershell", f"say({json.dumps(found([VM]))!r})")

    answer = await ask_powershell()

    assert answer.machines == [Machine("Büro", ID_A, "powershell", "Off", "VMMS")]
    ((*options, script),) = programs.calls("powershell")
    assert options == ["-NoLogo", "-NoProfile", "-NonInteractive", "-Command"]
    # Neither quoting nor line ends can spoil it on its way.
    assert script.startswith("$ErrorActionPreference = 'Stop'; ")
    assert not set(script) & set('"\r\n')


async def test_there_is_no_powershell(programs: Programs) -> None:
    with pytest.raises(NoAnswer, match="powershell is not on the PATH") as caught:
        await ask_powershell()
    assert caught.value.absent


async def test_powershell_hangs(programs: Programs, hung: Hanging) -> None:
    programs.add("powershell", "hang()")
    task = asyncio.create_task(ask_powershell())
    await hung.reach(1)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    await hung.reach(0)
