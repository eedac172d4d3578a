"""Every Python block of the README and the docs runs as printed."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Of trio, the run loop itself does not start under Wine 8, which has no SIO_BSP_HANDLE_SELECT.
LINUX_ONLY = re.compile("add_signal_handler|start_unix_server|trio")
BLOCKS = [
    pytest.param(
        block,
        id=f"{document.name}-{number}",
        marks=[pytest.mark.linux] if LINUX_ONLY.search(block) else [],
    )
    for document in DOCUMENTS
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", document.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    )
]
# Those in two halves need two machines: tests/test_host_and_guest.py, tests/testbeds/two_kernels.
EXAMPLES = [
    pytest.param(
        path, id=path.name, marks=[pytest.mark.linux] if LINUX_ONLY.search(path.read_text("utf-8")) else []
    )
    for path in sorted((ROOT / "examples").glob("*.py"))
]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", *arguments], check=False, capture_output=True, text=True
    )
    # What asyncio's debug mode says of a slow machine: a callback took over 100 ms.
    done.stderr = re.sub(r"^Executing <.* took \d+\.\d+ seconds\n", "", done.stderr, flags=re.MULTILINE)
    return done


@pytest.mark.parametrize("block", BLOCKS)
def test_block_runs(block: str, tmp_path: Path) -> None:
    script = tmp_path / "test_block.py"
    script.write_text(block, "utf-8")
    if any(
        isinstance(node, ast.AsyncFunctionDef) and node.name.startswith("test_")
        for node in ast.parse(block).body
    ):
        settings = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")
        done = python(
            "-m", "pytest", "-q", "-p", "no:cacheprovider", *settings, "--rootdir", str(tmp_path), str(script)
        )
        assert "1 passed" in done.stdout, done.stdout + done.stderr
    else:
        done = python(str(script))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs(example: Path) -> None:
    done = python(str(example))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout


def test_the_readme_shows_its_first_example_as_it_is() -> None:
    """examples/hello.py is the first block, with the annotations that a checker wants."""
    first = re.search(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert first is not None
    example = (ROOT / "examples" / "hello.py").read_text("utf-8")
    for line in ("async for message in connection:", 'await connection.send(b"you said: " + message)'):
        assert line in first[1]
        assert line in example


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
