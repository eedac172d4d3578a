"""What other programs do to the registry of Windows, done by its own reg.exe."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from aiohvsock import HvPermissionError

__all__ = ["add", "before_calls", "delete", "deny", "paste", "query"]


def _reg(*arguments: str) -> str:
    """Run reg.exe, and return what it says."""
    done = subprocess.run(["reg", *arguments], capture_output=True, check=True)
    return done.stdout.decode("cp850")


def add(key: str, **values: str) -> None:
    """Write a key as another program would; ``X="int:1"`` is a number."""
    if not values:
        _reg("add", rf"HKLM\{key}", "/f", "/reg:64")
    for name, value in values.items():
        kind = "REG_DWORD" if value.startswith("int:") else "REG_SZ"
        data = value.removeprefix("int:")
        _reg("add", rf"HKLM\{key}", "/v", name, "/t", kind, "/d", data, "/f", "/reg:64")


def query(key: str) -> dict[str, dict[str, str]]:
    """Return the values of all keys below a key."""
    found: dict[str, dict[str, str]] = {}
    for line in _reg("query", rf"HKLM\{key}", "/s", "/reg:64").splitlines():
        if line.startswith("HKEY_LOCAL_MACHINE"):
            values = found.setdefault(line.rpartition("\\")[2], {})
        elif line:
            name, _, data = line.strip().split("    ", 2)
            values[name] = data
    return found


def delete(key: str) -> None:
    _reg("delete", rf"HKLM\{key}", "/f", "/reg:64")


def before_calls(
    monkeypatch: pytest.MonkeyPatch, function: str, when: Callable[[Any], bool], key: str
) -> None:
    """Delete a key before the first call of a function of winreg whose second argument is as wanted."""
    module, name = function.split(".")
    real = getattr(importlib.import_module(module), name)
    deleted: list[str] = []

    def call(*arguments: Any) -> Any:
        if not deleted and when(arguments[1]):
            deleted.append(key)
            delete(key)
        return real(*arguments)

    monkeypatch.setattr(function, call)


def deny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let winreg refuse to write, as it does to who is no administrator."""

    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "Access is denied", None, 5)

    for function in ("CreateKeyEx", "DeleteKeyEx", "SetValueEx"):
        monkeypatch.setattr(f"winreg.{function}", refuse)


def paste(error: HvPermissionError) -> None:
    """Run the command at the end of an error."""
    _, says, command = str(error).partition("in a Command Prompt that is run as administrator")
    assert says
    # With nobody to answer a question.
    subprocess.run(f"cmd /c {command.partition(': ')[2]}", check=True, capture_output=True, input=b"")
