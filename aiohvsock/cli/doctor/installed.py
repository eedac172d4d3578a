"""What runs here, in which version."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import platform
import struct
import sys
import sysconfig
from collections.abc import Mapping

from ... import __version__
from ..._compiled import speedups, switched_off
from ...hyperv._asking import in_thread
from .findings import Finding, Findings, LoopFactory

__all__ = ["loops", "versions"]

# The first in which one direction can be closed alone (linuxkit/virtsock).
_HALF_CLOSE = 14393

_WINDOWS_11 = 22000

_FASTER = "winloop" if sys.platform == "win32" else "uvloop"


async def versions() -> Findings:
    """Find the versions of all that takes part."""
    return [
        *await in_thread(_versions, name="versions"),
        Finding("ok", "event loop", _name(asyncio.get_running_loop())),
        _faster(),
    ]


def loops() -> dict[str, LoopFactory]:
    """Return the event loops that are installed."""
    found: dict[str, LoopFactory] = {}
    if sys.platform == "win32":
        found["Proactor loop"] = asyncio.ProactorEventLoop
        found["selector loop"] = asyncio.SelectorEventLoop
    else:
        found["asyncio's loop"] = asyncio.new_event_loop
    with contextlib.suppress(ImportError):
        found[_FASTER] = importlib.import_module(_FASTER).new_event_loop
    return found


def _versions() -> Findings:
    # Not what `platform` says of Windows and its machine: that asks WMI, which can hang.
    python = f"{platform.python_implementation()} {platform.python_version()}, {struct.calcsize('P') * 8} bit"
    return [
        Finding("ok", "aiohvsock", __version__),
        _inner_loops(),
        Finding("ok", "Python", f"{python}, for {sysconfig.get_platform()}"),
        _windows() if sys.platform == "win32" else _unix(),
    ]


def _inner_loops() -> Finding:
    if speedups is not None:
        return Finding("ok", "inner loops", "compiled")
    why = "AIOHVSOCK_PURE is set" if switched_off() else "this installation has none that are compiled"
    return Finding("ok", "inner loops", f"in Python: {why}")


def _unix() -> Finding:
    distribution = ""
    with contextlib.suppress(OSError):
        distribution = f", {platform.freedesktop_os_release()['PRETTY_NAME']}"
    text = f"{platform.system()} {platform.release()} {platform.machine()}{distribution}"
    return Finding("ok", "system", text)


def _windows() -> Finding:
    if sys.platform != "win32":
        raise AssertionError("not Windows")
    import winreg

    found = sys.getwindowsversion()
    names = {}
    with winreg.OpenKey(
        winreg.HKEY_LOCAL_MACHINE,
        r"SOFTWARE\Microsoft\Windows NT\CurrentVersion",
        0,
        winreg.KEY_READ | winreg.KEY_WOW64_64KEY,
    ) as key:
        for name in ("ProductName", "DisplayVersion", "UBR"):
            with contextlib.suppress(FileNotFoundError):
                names[name] = str(winreg.QueryValueEx(key, name)[0])
    update = f".{names['UBR']}" if "UBR" in names else ""
    text = f"{_product(names, found.build)}, build {found.major}.{found.minor}.{found.build}{update}"
    if found.build < _HALF_CLOSE:
        cure = f"build {_HALF_CLOSE} or newer; before, an end of one direction does not arrive"
        return Finding("warn", "system", text, cure)
    return Finding("ok", "system", text)


def _product(names: Mapping[str, str], build: int) -> str:
    product = " ".join(names[name] for name in ("ProductName", "DisplayVersion") if name in names)
    if build >= _WINDOWS_11:
        # Its ProductName is still that of the one before.
        product = product.replace("Windows 10", "Windows 11", 1)
    return product or "Windows"


def _name(loop: asyncio.AbstractEventLoop) -> str:
    return f"{type(loop).__module__}.{type(loop).__qualname__}"


def _faster() -> Finding:
    try:
        module = importlib.import_module(_FASTER)
    except ImportError as error:
        return Finding("skip", _FASTER, f"not to be had ({error}); nothing needs it")
    return Finding("ok", _FASTER, getattr(module, "__version__", "of an unknown version"))
