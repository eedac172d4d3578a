"""WSL, which tells any user the id of the machine that all distributions of that user run in.

Sources: src/linux/init/wslinfo.cpp and src/windows/common/WslClient.cpp of microsoft/WSL; issues 4607 (the
encoding of wsl.exe) and 5751 there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import uuid
from collections.abc import Iterable

from ..platforms.registry import same_name
from ._asking import NoAnswer, Output, program, run
from ._machine import Answer, Machine, real_id

__all__ = ["ask_wsl", "ask_wsl_host", "registered_distributions"]

# The exit status -1, as Windows has it: "There are no running distributions.", in the user's language, of a wsl.exe
# too old to be quiet. It is that of errors too, which name where it happened in every language: "Wsl/Service/0x8007274c".
_MINUS_ONE = 0xFFFFFFFF
_WSL_ERROR = re.compile(r"Wsl/|0x[0-9a-f]{8}", re.IGNORECASE)

_LXSS = r"SOFTWARE\Microsoft\Windows\CurrentVersion\Lxss"


async def ask_wsl() -> Answer:
    """Ask WSL, from its host or from inside a distribution, without starting anything that is stopped."""
    if sys.platform == "win32":
        return await ask_wsl_host()
    return await _ask_wsl_guest()


async def _ask_wsl_guest() -> Answer:
    vm_id = _vm_id(await run([program("wslinfo"), "--vm-id"]))
    name = os.environ.get("WSL_DISTRO_NAME")
    return Answer([] if vm_id is None else [_wsl_machine(vm_id, [name] if name else [])])


async def ask_wsl_host() -> Answer:
    # Without a distribution, or without WSL, wsl.exe would offer to install some, and wait a minute for a key.
    registered = registered_distributions()
    if not registered:
        return Answer([])
    wsl = program("wsl")
    # What is not running is not asked: wsl.exe would start it.
    running = _running(await run([wsl, "--list", "--running", "--quiet"]), registered)
    found: dict[uuid.UUID, list[str]] = {}
    failures: list[NoAnswer] = []

    async def ask(name: str) -> None:
        try:
            # Not the default distribution, which may be another one, and stopped.
            vm_id = _vm_id(await run([wsl, "--distribution", name, "--exec", "wslinfo", "--vm-id"]))
        except NoAnswer as error:
            failures.append(NoAnswer(f"{name}: {error}", absent=error.absent))
        else:
            if vm_id is not None:
                found.setdefault(vm_id, []).append(name)

    async with asyncio.TaskGroup() as group:
        for name in running:
            group.create_task(ask(name))
    # A distribution without wslinfo does no harm beside one that has it: they share the machine.
    if failures and not found:
        raise min(failures, key=lambda error: error.absent)
    stopped = tuple(name for name in registered if name not in running)
    return Answer([_wsl_machine(vm_id, sorted(names)) for vm_id, names in found.items()], stopped)


def _wsl_machine(vm_id: uuid.UUID, distributions: Iterable[str]) -> Machine:
    return Machine("WSL", vm_id, "wsl", "Running", "WSL", tuple(distributions))


def registered_distributions() -> list[str]:
    """Return the names of this user's WSL distributions, running or not."""
    names: list[str] = []
    if sys.platform == "win32":
        import winreg

        # One that is removed at this moment moves the rest: the next look-up has them.
        with contextlib.suppress(OSError), winreg.OpenKey(winreg.HKEY_CURRENT_USER, _LXSS) as key:
            for number in range(winreg.QueryInfoKey(key)[0]):
                with (
                    contextlib.suppress(FileNotFoundError),
                    winreg.OpenKey(key, winreg.EnumKey(key, number)) as distribution,
                ):
                    names.append(str(winreg.QueryValueEx(distribution, "DistributionName")[0]))
    return names


def _running(output: Output, registered: Iterable[str]) -> list[str]:
    if output.status not in (0, _MINUS_ONE) or (output.status and _WSL_ERROR.search(output.said())):
        raise NoAnswer(f"wsl.exe --list: {output.said()}")
    lines = [line.strip() for line in output.text.splitlines()]
    return [name for name in registered if any(same_name(name, line) for line in lines)]


def _vm_id(output: Output) -> uuid.UUID | None:
    """Return what ``wslinfo --vm-id`` has printed; None for WSL 1, which has no machine."""
    text = output.text.strip()
    if output.status == 0 and text == "wsl1":
        return None
    vm_id = real_id(text)
    if output.status == 0 and vm_id is not None:
        return vm_id
    said = f"wslinfo --vm-id: {output.said()}"
    if output.status and not _WSL_ERROR.search(said):
        raise NoAnswer(f"{said}; WSL knows it since 2025, and wsl.exe --update brings it", absent=True)
    raise NoAnswer(said)
