from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from aiohvsock.hyperv import _asking, _guests, _hcs, _survey, _wsl

from .computecore import Computecore
from .host import KEY, WSL, A, B, C, Host, powershell, system, vm, wsl
from .proc import Proc
from .programs import Hanging, Programs, hanging

_ERROR_INTERNAL_ERROR = 1359


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """A folder of programs, alone on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(_asking, "_popen", partial(_start, _asking._popen))
    return Programs(tmp_path)


def _start(
    popen: Callable[..., subprocess.Popen[bytes]], *args: Any, **options: Any
) -> subprocess.Popen[bytes]:
    # Of a thousand processes, one or two die in Wine before they have begun.
    for _ in range(3):
        try:
            return popen(*args, **options)
        except OSError as error:
            if getattr(error, "winerror", None) != _ERROR_INTERNAL_ERROR:
                raise
    return popen(*args, **options)


@pytest_asyncio.fixture
async def hung(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Hanging]:
    """Counts the programs that hang."""
    async with hanging() as (found, port):
        monkeypatch.setenv("HANGING_PORT", str(port))
        yield found


@pytest.fixture
def computecore(monkeypatch: pytest.MonkeyPatch) -> Computecore:
    """Takes the place of computecore.dll."""
    found = Computecore()
    monkeypatch.setattr(_hcs, "library", lambda: (found, found.local_free))
    return found


@pytest.fixture
def host(programs: Programs, computecore: Computecore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(_survey, "_latest", {})
    monkeypatch.setattr(_wsl, "_LXSS", KEY)
    if sys.platform != "win32":
        programs.add("wslinfo", "")  # what tells that machines can be asked for here
        monkeypatch.setitem(_survey.SOURCES, "wsl", _wsl.ask_wsl_host)
    yield Host(programs, computecore, monkeypatch)
    if sys.platform == "win32":
        _delete(KEY)


@pytest.fixture
def full(host: Host) -> Host:
    """A host with all there is: WSL, a machine of somebody's, and three of Hyper-V's."""
    host.register(["Ubuntu", "Debian"])
    wsl(host, WSL)
    host.computecore.document = json.dumps(
        [
            system(WSL, Owner="WSL", State="Running"),
            system(A, Owner="VMMS", State="Running", Name=str(A)),
            system(C, Owner="Sandbox", State="Running", Id="sandbox-1"),
        ]
    )
    powershell(host, vm("Web", A), vm("Build", B, "Off"), vm("web", uuid.UUID(int=1)))
    return host


@pytest.fixture
def no_wsl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is remembered, and no wslinfo is on the PATH."""
    monkeypatch.setattr(_survey, "_latest", {})
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def proc(no_wsl: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Proc:
    found = Proc(tmp_path / "proc")
    monkeypatch.setattr(_guests, "_PROC", str(found.path))
    return found


def _delete(path: str) -> None:
    if sys.platform == "win32":
        import contextlib
        import winreg

        with contextlib.suppress(FileNotFoundError):
            with winreg.OpenKey(winreg.HKEY_CURRENT_USER, path) as key:
                names = [winreg.EnumKey(key, number) for number in range(winreg.QueryInfoKey(key)[0])]
            for name in names:
                _delete(f"{path}\\{name}")
            winreg.DeleteKey(winreg.HKEY_CURRENT_USER, path)
