"""The house as design has it: imports run one way, what is sans-IO does none, no file is too long."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

import aiohvsock

# What each module or folder may import directly; what those may, it may too. Nothing else may be imported.
STANDS_ON = {
    "exceptions": [],
    "addresses": ["exceptions"],
    "framing": ["_compiled", "addresses"],
    "protocol": ["framing"],
    "_log": [],
    "_compiled": [],
    "waiter": ["_compiled"],
    "platforms": ["addresses", "_log"],
    "transports": ["_compiled", "platforms"],
    "server": ["transports"],
    "listening": ["server"],
    "dialling": ["listening"],
    "endpoints": ["dialling"],
    "reader": ["waiter"],
    "streams": ["reader", "endpoints"],
    "messages": ["protocol", "endpoints", "waiter"],
    "": ["streams", "messages"],  # the package itself: the public names
    "testing": ["streams", "messages"],
    "hyperv": ["streams", "messages"],
    "contrib": ["streams", "messages"],
    "forward": ["streams", "messages"],
    "cli": ["testing", "hyperv", "contrib", "forward", ""],
    "__main__": ["cli"],
}
EDGES = {"testing", "hyperv", "contrib", "forward", "cli", "__main__"}
SANS_IO = {"exceptions", "addresses", "framing", "protocol"}
IO = {"asyncio", "socket", "ssl", "time"}
LONGEST = 500

Files = Mapping[str, str]
"""The package's files: path below the package, with slashes, and source."""


def package_files() -> dict[str, str]:
    root = Path(aiohvsock.__file__).parent
    return {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in sorted(root.rglob("*.py"))}


# -- reading imports ---------------------------------------------------------------------------------------


def module_name(path: str) -> str:
    """Return a file's module below the package, in dots; "" is the package itself."""
    return path.removesuffix(".py").replace("/", ".").removesuffix("__init__").removesuffix(".")


def part_of(module: str) -> str:
    return module.partition(".")[0]


def imports(files: Files, path: str) -> Iterator[str]:
    """Yield the full name of every module a file imports, wherever in it, the package's own as ``aiohvsock.x``."""
    known = {module_name(each) for each in files}
    package = path.split("/")[:-1]
    for node in ast.walk(ast.parse(files[path])):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=module, level=level):
                base = ["aiohvsock", *package[: len(package) - level + 1]] if level else []
                base += module.split(".") if module else []
                for alias in node.names:
                    full = ".".join([*base, alias.name])
                    submodule = full.removeprefix("aiohvsock.") in known
                    yield full if submodule else ".".join(base)


def own_imports(files: Files, path: str) -> set[str]:
    """Return the modules of the package that a file imports, below the package."""
    names = {name for name in imports(files, path) if part_of(name) == "aiohvsock"}
    return {name.removeprefix("aiohvsock").removeprefix(".") for name in names}


def foreign_imports(files: Files, path: str) -> set[str]:
    return {part_of(name) for name in imports(files, path)} - {"aiohvsock"}


def below(part: str) -> set[str]:
    """Return every part that a part may import."""
    found: set[str] = set()
    waiting = [part]
    while waiting:
        for each in STANDS_ON[waiting.pop()]:
            if each not in found:
                found.add(each)
                waiting.append(each)
    return found


# -- the checks: each yields the breaches it finds ---------------------------------------------------------


def directions(files: Files) -> Iterator[str]:
    for path in files:
        part = part_of(module_name(path))
        if part not in STANDS_ON:
            yield f"{path}: has no place in STANDS_ON"
            continue
        for name in sorted(own_imports(files, path)):
            target = part_of(name)
            if target != part and target not in below(part):
                yield f"{path}: imports {name or 'the package itself'}"


def sans_io(files: Files) -> Iterator[str]:
    paths = {module_name(path): path for path in files}
    for start, path in paths.items():
        if part_of(start) not in SANS_IO:
            continue
        ways = {start: start}  # how each module is reached
        for module in (waiting := [start]):
            for name in sorted(foreign_imports(files, paths[module]) & IO):
                yield f"{path}: imports {name} ({ways[module]})"
            for own in sorted(own_imports(files, paths[module])):
                if own in paths and own not in ways:
                    ways[own] = f"{ways[module]} -> {own}"
                    waiting.append(own)


def third_parties(files: Files) -> Iterator[str]:
    for path in files:
        if part_of(module_name(path)) not in EDGES:
            for name in sorted(foreign_imports(files, path) - sys.stdlib_module_names):
                yield f"{path}: imports {name}"


def lengths(files: Files) -> Iterator[str]:
    for path, source in files.items():
        if (lines := len(source.splitlines())) > LONGEST:
            yield f"{path}: {lines} lines"


CHECKS = [directions, sans_io, third_parties, lengths]


@pytest.mark.parametrize("check", CHECKS)
def test_the_package(check: Callable[[Files], Iterator[str]]) -> None:
    assert list(check(package_files())) == []


def test_the_package_was_read() -> None:
    files = package_files()

    assert {"__init__.py", "addresses.py", "framing/length_prefixed.py", "transports/selector.py"} < set(
        files
    )
    assert own_imports(files, "transports/selector.py") >= {"platforms", "transports.writing"}
    assert "socket" in foreign_imports(files, "transports/selector.py")


# -- each check notices a breach ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "breaches"),
    [
        ({"exceptions.py": "from .addresses import VsockAddress"}, ["exceptions.py: imports addresses"]),
        (
            {"exceptions.py": "from . import addresses", "addresses.py": ""},
            ["exceptions.py: imports addresses"],
        ),
        ({"exceptions.py": "from ._log import logger"}, ["exceptions.py: imports _log"]),
        ({"addresses.py": "import aiohvsock.framing.base"}, ["addresses.py: imports framing.base"]),
        ({"framing/base.py": "from ..protocol import x"}, ["framing/base.py: imports protocol"]),
        ({"framing/base.py": "from aiohvsock.server import x"}, ["framing/base.py: imports server"]),
        ({"protocol.py": "from . import VsockAddress"}, ["protocol.py: imports the package itself"]),
        ({"protocol.py": "import aiohvsock"}, ["protocol.py: imports the package itself"]),
        ({"platforms/linux.py": "from ..framing import Codec"}, ["platforms/linux.py: imports framing"]),
        ({"platforms/linux.py": "from ..transports import x"}, ["platforms/linux.py: imports transports"]),
        ({"transports/tls.py": "from ..server import HvServer"}, ["transports/tls.py: imports server"]),
        ({"server.py": "def f():\n    from .endpoints import x"}, ["server.py: imports endpoints"]),
        ({"endpoints.py": "from .streams import x"}, ["endpoints.py: imports streams"]),
        (
            {"endpoints.py": "if TYPE_CHECKING:\n    from .messages import x"},
            ["endpoints.py: imports messages"],
        ),
        ({"streams.py": "from .framing import x"}, ["streams.py: imports framing"]),
        ({"streams.py": "from .messages import x"}, ["streams.py: imports messages"]),
        ({"messages.py": "from .streams import x"}, ["messages.py: imports streams"]),
        ({"messages.py": "from .testing import x"}, ["messages.py: imports testing"]),
        ({"_log.py": "from .exceptions import x"}, ["_log.py: imports exceptions"]),
        ({"__init__.py": "from .testing import x"}, ["__init__.py: imports testing"]),
        ({"testing.py": "from .cli import main"}, ["testing.py: imports cli"]),
        ({"contrib/anyio.py": "from ..cli import main"}, ["contrib/anyio.py: imports cli"]),
        ({"contrib/anyio.py": "from .. import connect"}, ["contrib/anyio.py: imports the package itself"]),
        ({"helpers.py": ""}, ["helpers.py: has no place in STANDS_ON"]),
        # What is as it should be.
        ({"addresses.py": "from .exceptions import x"}, []),
        ({"framing/a.py": "from .base import x\nfrom ..exceptions import y", "framing/base.py": ""}, []),
        ({"framing/__init__.py": "from . import base\nfrom .base import x", "framing/base.py": ""}, []),
        ({"protocol.py": "from .framing import x"}, []),
        ({"server.py": "from ._log import logger\nfrom .addresses import x\nfrom .platforms import y"}, []),
        ({"messages.py": "from .framing import x\nfrom .server import y\nfrom .protocol import z"}, []),
        ({"cli/demo.py": "from .. import __version__\nfrom ..testing import x\nimport aiohvsock"}, []),
        ({"__init__.py": "from .messages import x\nfrom .streams import y\nfrom .addresses import z"}, []),
        ({"__main__.py": "from .cli import main"}, []),
    ],
)
def test_directions(files: Files, breaches: list[str]) -> None:
    assert list(directions(files)) == breaches


@pytest.mark.parametrize(
    ("files", "breaches"),
    [
        ({"exceptions.py": "import asyncio"}, ["exceptions.py: imports asyncio (exceptions)"]),
        ({"addresses.py": "import os, socket as s"}, ["addresses.py: imports socket (addresses)"]),
        (
            {"framing/a.py": "def f():\n    from ssl import SSLError"},
            ["framing/a.py: imports ssl (framing.a)"],
        ),
        (
            {"framing/__init__.py": "import asyncio.events"},
            ["framing/__init__.py: imports asyncio (framing)"],
        ),
        (
            {"protocol.py": "try:\n    import time\nexcept E:\n    pass"},
            ["protocol.py: imports time (protocol)"],
        ),
        (
            {
                "protocol.py": "from .clock import x",
                "clock.py": "from ._time import y",
                "_time.py": "import time",
            },
            ["protocol.py: imports time (protocol -> clock -> _time)"],
        ),
        (
            {"framing/a.py": "from .. import clock", "clock.py": "import time, socket"},
            [
                "framing/a.py: imports socket (framing.a -> clock)",
                "framing/a.py: imports time (framing.a -> clock)",
            ],
        ),
        ({"framing/a.py": "from . import b", "framing/b.py": "from . import a"}, []),
        ({"transports/selector.py": "import asyncio, socket, ssl, time"}, []),
        ({"addresses.py": "import os, uuid, urllib.parse\nfrom datetime import time"}, []),
    ],
)
def test_sans_io(files: Files, breaches: list[str]) -> None:
    assert list(sans_io(files)) == breaches


@pytest.mark.parametrize(
    ("files", "breaches"),
    [
        ({"server.py": "import uvloop"}, ["server.py: imports uvloop"]),
        ({"transports/x.py": "def f():\n    from anyio.abc import X"}, ["transports/x.py: imports anyio"]),
        ({"__init__.py": "import typing_extensions"}, ["__init__.py: imports typing_extensions"]),
        ({"server.py": "import asyncio\nfrom . import x\nfrom collections.abc import Sequence"}, []),
        (
            {
                "contrib/anyio.py": "import anyio",
                "testing.py": "import pytest",
                "cli/demo.py": "import uvloop",
            },
            [],
        ),
    ],
)
def test_third_parties(files: Files, breaches: list[str]) -> None:
    assert list(third_parties(files)) == breaches


@pytest.mark.parametrize(("lines", "breaches"), [(500, []), (501, ["server.py: 501 lines"])])
def test_lengths(lines: int, breaches: list[str]) -> None:
    assert list(lengths({"server.py": "pass\n" * lines})) == breaches


def test_no_part_stands_on_itself() -> None:
    assert [part for part in STANDS_ON if part in below(part)] == []
