"""A host with machines, as its programs and its Host Compute Service tell of them."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterable
from typing import Any

import pytest

from aiohvsock.hyperv import _wsl

from .computecore import Computecore
from .programs import Programs

KEY = r"SOFTWARE\aiohvsock tests\Lxss"
"""Not that of this user's own distributions: who deletes a key there deletes a distribution."""

LIST = ["--list", "--running", "--quiet"]
"""What wsl.exe is asked first."""

WSL = uuid.UUID("8636363d-c5f9-49aa-b507-3b83f98c0d14")
A, B, C = (uuid.UUID(f"{letter * 8}-1111-2222-3333-444455556666") for letter in "abc")


class Host:
    """A Windows host with all that knows of machines; elsewhere, this system passes for one."""

    def __init__(self, programs: Programs, computecore: Computecore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.programs = programs
        self.computecore = computecore
        self._monkeypatch = monkeypatch

    def register(self, distributions: Iterable[str]) -> None:
        """Set which WSL distributions there are."""
        if sys.platform == "win32":
            import winreg

            for number, name in enumerate(distributions):
                with winreg.CreateKey(winreg.HKEY_CURRENT_USER, f"{KEY}\\{{{number}}}") as key:
                    winreg.SetValueEx(key, "DistributionName", 0, winreg.REG_SZ, name)
        else:
            names = list(distributions)
            self._monkeypatch.setattr(_wsl, "registered_distributions", lambda: names)


def system(vm_id: uuid.UUID, **fields: Any) -> dict[str, Any]:
    return {"Id": str(vm_id).upper(), "SystemType": "VirtualMachine", "RuntimeId": str(vm_id), **fields}


def vm(name: str, vm_id: uuid.UUID, state: str = "Running") -> dict[str, Any]:
    return {"Name": name, "Id": str(vm_id), "State": state}


def powershell(host: Host, *vms: dict[str, Any], **fields: Any) -> None:
    """Make PowerShell print that."""
    answer = {"vms": vms, "error": "", "id": "", "member": True, **fields}
    host.programs.answer("powershell", {"-NoLogo": json.dumps(answer)})


def wsl(host: Host, vm_id: uuid.UUID) -> None:
    """Let Ubuntu run in a machine of that id, and nothing else."""
    host.programs.answer("wsl", {"--list": "Ubuntu\r\n", "--distribution Ubuntu": f"{vm_id}\n"})


def asked(host: Host) -> tuple[int, int, int]:
    """Return how often each source was asked."""
    lists = [call for call in host.programs.calls("wsl") if call == LIST]
    return len(lists), host.computecore.calls.count("create"), len(host.programs.calls("powershell"))
