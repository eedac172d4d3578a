"""Hyper-V, which tells administrators and the members of Hyper-V Administrators.

Sources: the schema of compute systems in MicrosoftDocs/Virtualization-Documentation; Get-VM of the Hyper-V module.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ._asking import NoAnswer, Output, in_thread, program, run
from ._hcs import enumerate_systems
from ._machine import Answer, Machine, guid, real_id

__all__ = ["ask_hcs", "ask_powershell", "parse_systems", "parse_vms"]


async def ask_hcs() -> Answer:
    """Ask the Host Compute Service for what is running."""
    return Answer(parse_systems(await in_thread(enumerate_systems, name="hcs")))


def parse_systems(document: str) -> list[Machine]:
    """Return the machines in the result of HcsEnumerateComputeSystems.

    Raises:
        NoAnswer: it is not such a document.
    """
    machines = []
    for system in _objects(_parsed(document or "[]"), "HcsEnumerateComputeSystems"):
        # Containers are compute systems too. The Id is for people, unless it happens to be the RuntimeId.
        vm_id = real_id(system.get("RuntimeId"))
        if vm_id is None or system.get("SystemType") != "VirtualMachine":
            continue
        names = [name for key in ("Name", "Id") if (name := _text(system, key)) and guid(name) != vm_id]
        name, *aliases = dict.fromkeys(names or [str(vm_id)])
        state, owner = _text(system, "State"), _text(system, "Owner")
        machines.append(Machine(name, vm_id, "hcs", state, owner, tuple(aliases)))
    return machines


# -- PowerShell --------------------------------------------------------------------------------------------

# Neither a double quote nor a line end, so that no quoting of arguments can spoil it. A user without the right gets an
# error from some versions of Get-VM, and an empty list from others: so it tells whether the user is in one of the groups.
_SCRIPT = """
$ErrorActionPreference = 'Stop';
$ProgressPreference = 'SilentlyContinue';
$WarningPreference = 'SilentlyContinue';
try { [Console]::OutputEncoding = [Text.Encoding]::UTF8 } catch { };
$answer = @{ vms = @(); error = ''; id = ''; member = $true };
try {
    $user = [Security.Principal.WindowsPrincipal][Security.Principal.WindowsIdentity]::GetCurrent();
    $groups = 'S-1-5-32-544', 'S-1-5-32-578';
    $mine = @($groups | Where-Object { $user.IsInRole([Security.Principal.SecurityIdentifier]$_) });
    $answer.member = $mine.Count -gt 0
} catch { };
$fields = 'Name', @{ n = 'Id'; e = { [string]$_.Id } }, @{ n = 'State'; e = { [string]$_.State } };
try {
    $answer.vms = @(Get-VM | Select-Object $fields)
} catch {
    $answer.error = [string]$_.Exception.Message;
    $answer.id = [string]$_.FullyQualifiedErrorId
};
ConvertTo-Json -InputObject $answer -Depth 4 -Compress
"""


async def ask_powershell() -> Answer:
    """Ask Hyper-V's PowerShell module for Hyper-V's machines."""
    arguments = ["-NoLogo", "-NoProfile", "-NonInteractive", "-Command", " ".join(_SCRIPT.split())]
    return Answer(parse_vms(await run([program("powershell"), *arguments])))


def parse_vms(output: Output) -> list[Machine]:
    """Return the machines that the script has printed.

    Raises:
        NoAnswer: it has printed something else, or an error.
    """
    lines = output.text.split("\n")
    # What a module has to say comes before.
    answer = _parsed(next((line for line in reversed(lines) if line.strip()), ""))
    if not isinstance(answer, dict) or "vms" not in answer:
        raise NoAnswer(f"powershell: {output.said()}")
    error, error_id = _text(answer, "error"), _text(answer, "id") or ""
    if "CommandNotFound" in error_id:
        raise NoAnswer("the Hyper-V module of PowerShell is not installed", absent=True)
    vms = answer["vms"]
    # Windows PowerShell 5.1 wraps some arrays so.
    if isinstance(vms, dict) and "value" in vms:
        vms = vms["value"]
    if not vms:
        if "AccessDenied" in error_id or not answer.get("member", True):
            raise NoAnswer(error or "access is denied", denied=True)
        if error is not None:
            raise NoAnswer(error)
        return []
    machines = []
    for vm in _objects(vms, "Get-VM"):
        vm_id = real_id(vm.get("Id"))
        if vm_id is not None:
            name = _text(vm, "Name") or str(vm_id)
            machines.append(Machine(name, vm_id, "powershell", _text(vm, "State"), "VMMS"))
    return machines


def _parsed(document: str) -> Any:
    """Return what a JSON document means; None if it is none."""
    try:
        return json.loads(document)
    except ValueError:
        return None


def _objects(value: object, source: str) -> list[dict[str, object]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise NoAnswer(f"{source} returned no list of objects: {repr(value)[:200]}")
    return value


def _text(value: Mapping[str, object], key: str) -> str | None:
    text = value.get(key)
    return text if isinstance(text, str) and text else None
