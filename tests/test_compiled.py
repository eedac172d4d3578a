"""Which inner loops run, those in C or those in Python; that they do the same, the whole suite shows in both modes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

WHICH = """
from aiohvsock import MessageConnection
from aiohvsock._compiled import speedups
print(speedups is not None, any(each.__module__ == "aiohvsock._speedups" for each in MessageConnection.__mro__))
"""


def which(pure: str | None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "AIOHVSOCK_PURE"}
    if pure is not None:
        environment["AIOHVSOCK_PURE"] = pure
    ended = subprocess.run(
        [sys.executable, "-c", WHICH], env=environment, capture_output=True, text=True, check=True
    )
    return ended.stdout.strip()


@pytest.mark.parametrize("value", ["1", "yes"])
def test_the_environment_switches_them_off(value: str) -> None:
    assert which(value) == "False False"


@pytest.mark.parametrize("value", [None, "", "0"])
def test_they_run_where_they_were_built(value: str | None) -> None:
    built = importlib.util.find_spec("aiohvsock._speedups") is not None
    assert which(value) == f"{built} {built}"


@pytest.mark.skipif(
    "AIOHVSOCK_BUILD" not in os.environ, reason="where a compiler may be missing: CI sets AIOHVSOCK_BUILD"
)
def test_ci_has_built_them() -> None:
    assert importlib.util.find_spec("aiohvsock._speedups") is not None
