from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from aiohvsock.hyperv import _hcs, _survey, _wsl

from .computecore import Computecore
from .programs import Hanging, Programs, hanging

# Not that of this user's own distributions: who deletes a key there deletes a distribution.
_KEY = r"SOFTWARE\aiohvsock tests\Lxss"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """A folder of programs, alone on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return Programs(tmp_path)


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
                with winreg.CreateKey(winreg.HKEY_CURRENT_USER, f"{_KEY}\\{{{number}}}") as key:
                    winreg.SetValueEx(key, "DistributionName", 0, winreg.REG_SZ, name)
        else:
            names = list(distributions)
            self._monkeypatch.setattr(_wsl, "registered_distributions", lambda: names)


@pytest.fixture
def host(programs: Programs, computecore: Computecore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(_survey, "_latest", {})
    monkeypatch.setattr(_wsl, "_LXSS", _KEY)
    if sys.platform != "win32":
        programs.add("wslinfo", "")  # what tells that machines can be asked for here
        monkeypatch.setitem(_survey.SOURCES, "wsl", _wsl.ask_wsl_host)
    yield Host(programs, computecore, monkeypatch)
    if sys.platform == "win32":
        _delete(_KEY)


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
