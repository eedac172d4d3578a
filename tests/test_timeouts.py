"""A test that hangs is one failure, and the run goes on: on each loop, and in Python without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import LOOPS

CONFTEST = """
from tests.conftest import pytest_asyncio_loop_factories
from tests.timeouts import pytest_timeout_set_timer
"""

TESTS = """
import asyncio, pytest

async def test_that_waits_for_ever():
    await asyncio.Event().wait()

async def test_whose_callback_never_ends():
    def callback():
        while True:
            pass
    asyncio.get_running_loop().call_soon(callback)
    await asyncio.Event().wait()

def test_that_never_ends():
    while True:
        pass

@pytest.mark.parametrize("number", range(3))
def test_that_comes_after_it(number):
    pass
"""


@pytest.mark.timeout(60)
def test_a_hanging_test_ends_alone(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_it.py").write_text(TESTS)
    options = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function", "--timeout=1"]

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "--rootdir", tmp_path, tmp_path],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )

    assert f"{2 * len(LOOPS) + 1} failed, 3 passed" in done.stdout, done.stdout + done.stderr
    assert done.stdout.count("TimedOut: Timeout") >= 2 * len(LOOPS) + 1
