from __future__ import annotations

import importlib
import importlib.resources
import inspect
import pkgutil
import re
import subprocess
import sys
import typing
from types import ModuleType

import pytest

import aiohvsock

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(aiohvsock.__path__, "aiohvsock.")
    # Importing the one runs it, and it offers nothing; the other is what modules in Python stand for.
    if module.name not in ("aiohvsock.__main__", "aiohvsock._speedups")
)

# design.md, sections 2, 3, 5 and 7.
NAMED_BY_THE_DESIGN = [
    "VsockAddress",
    "HypervAddress",
    "HybridAddress",
    "parse_address",
    "service_id",
    "service_port",
    "PORT_ANY",
    "create_hv_connection",
    "create_hv_server",
    "open_hv_connection",
    "start_hv_server",
    "Retry",
    "HvServer",
    "MessageConnection",
    "connect",
    "serve",
    "HvError",
    "HvAddressError",
    "HvUnsupportedError",
    "HvConnectError",
    "HvConnectionRefused",
    "HvTimeout",
    "HvPermissionError",
    "FramingError",
    "FrameTooLarge",
    "IncompleteFrame",
    "ProtocolError",
    "LocalProtocolError",
    "ConnectionClosed",
    "ConnectionClosedOK",
    "ConnectionLost",
]

# What it takes to write the above by name, and to annotate with it.
NAMED_BESIDES = [
    "Address",
    "AddressLike",
    "CID_ANY",
    "CID_HOST",
    "CID_LOCAL",
    "CloseCode",
    "ConnectionStats",
    "MessageServer",
    "VM_ID_ANY",
    "VM_ID_BROADCAST",
    "VM_ID_CHILDREN",
    "VM_ID_LOOPBACK",
    "VM_ID_PARENT",
    "VM_ID_SILOHOST",
    "is_transient",
]


def order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions: isort's order."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2, name)


@pytest.mark.parametrize("name", ["aiohvsock", *MODULES])
def test_every_module_lists_what_it_offers(name: str) -> None:
    module = importlib.import_module(name)

    assert isinstance(module.__all__, list)
    assert module.__all__ == sorted(set(module.__all__), key=order)
    assert [each for each in module.__all__ if not hasattr(module, each)] == []
    assert [each for each in module.__all__ if each.startswith("_")] == []


@pytest.mark.parametrize("name", MODULES)
def test_what_a_module_defines_and_does_not_list_is_private(name: str) -> None:
    module = importlib.import_module(name)
    defined = {
        each
        for each, value in vars(module).items()
        if getattr(value, "__module__", None) == name and getattr(value, "__qualname__", None) == each
    }

    # pytest finds a fixture by its name, and without pytest there is none to list.
    unlisted = defined - set(module.__all__) - {"hv_address"}
    assert [each for each in unlisted if not each.startswith("_")] == []


def test_the_package_offers_what_the_design_names() -> None:
    assert sorted(aiohvsock.__all__) == sorted([*NAMED_BY_THE_DESIGN, *NAMED_BESIDES])


def test_a_star_import_gives_what_is_listed() -> None:
    namespace: dict[str, object] = {}
    exec("from aiohvsock import *", namespace)  # noqa: S102  # it cannot be written in a function

    assert namespace.keys() - {"__builtins__"} == set(aiohvsock.__all__)


def test_nothing_else_of_the_package_is_public() -> None:
    public = {
        name
        for name, value in vars(aiohvsock).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }

    assert public - set(aiohvsock.__all__) == {"annotations"}


def test_the_version_is_one_that_packaging_tools_take() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?(\.dev\d+)?", aiohvsock.__version__)


def test_the_package_is_marked_as_typed() -> None:
    assert (importlib.resources.files("aiohvsock") / "py.typed").is_file()


@pytest.mark.parametrize("name", aiohvsock.__all__)
def test_annotations_can_be_resolved(name: str) -> None:
    # As documentation tools and dependency injectors do: what is imported for types only fails here.
    thing = getattr(aiohvsock, name)
    if isinstance(thing, type):
        for member in [thing, *(each for each in vars(thing).values() if inspect.isfunction(each))]:
            assert isinstance(typing.get_type_hints(member), dict)
    elif inspect.isfunction(thing):
        assert "return" in typing.get_type_hints(thing)
    else:
        assert thing is not None


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a statement loads in a fresh interpreter, where any warning is an error."""
    script = f"import sys; before = set(sys.modules); {statement}; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-bb", "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


def test_a_fresh_interpreter_imports_it_without_a_warning() -> None:
    loaded = loaded_by("import aiohvsock")
    # On Windows asyncio has tempfile.
    loaded -= loaded_by("import asyncio")

    assert {"aiohvsock", "aiohvsock.messages", "aiohvsock.streams"} <= loaded
    # The edges, and what only they need, are paid for by who uses them.
    edges = [f"aiohvsock.{edge}" for edge in ("cli", "contrib", "forward", "hyperv", "testing")]
    assert loaded & {*edges, "pytest", "uvloop", "argparse", "tempfile"} == set()


def test_every_module_imports_without_a_warning() -> None:
    loaded = loaded_by("; ".join(f"import {name}" for name in MODULES))

    assert set(MODULES) <= loaded
    assert "uvloop" not in loaded
