"""The guests of a Linux host, as the command lines of their monitors tell of them. Any user may read those.

Sources: proc(5); qemu(1), and the command lines that libvirt makes for it; docs/vsock.md and docs/jailer.md of
Firecracker; docs/vsock.md of Cloud Hypervisor.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from ..addresses import CID_ANY, CID_HOST, HybridAddress
from ..exceptions import HvAddressError
from ._asking import NoAnswer, in_thread
from ._machine import Answer, Machine, real_id

__all__ = ["ask_processes"]

_PROC = "/proc"

# Bytes of a command line, or of a file that it names. libvirt's are some ten thousand.
_LIMIT = 2**20

# Windows, which has no /proc either, does not know it.
_NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)

_QEMU = re.compile(r"qemu-(system-.+|kvm)|kvm")
# As QEMU reads a number, but for the octal ones, which nobody means.
_NUMBER = re.compile(r"0x[0-9a-f]{1,8}|0|[1-9][0-9]{0,9}", re.IGNORECASE | re.ASCII)


async def ask_processes() -> Answer:
    """Look through the processes that run. Nothing is asked of them."""
    # The kernel can hold up who reads a command line, for as long as that process changes its memory.
    return Answer(await in_thread(lambda: list(_machines()), name="processes"))


def _machines() -> Iterator[Machine]:
    try:
        pids = [name for name in os.listdir(_PROC) if name.isdigit()]
    except OSError as error:
        raise NoAnswer(f"there is no {_PROC} to look into, which Linux has", absent=True) from error
    for pid in pids:
        try:
            machine = _machine(pid)
        except (OSError, HvAddressError, ValueError, RecursionError):
            # It has ended meanwhile, or this user may not look at it, or what it was told is no machine's.
            continue
        if machine is not None:
            yield machine


def _machine(pid: str) -> Machine | None:
    """Return the machine that a process runs.

    Raises:
        OSError, HvAddressError, ValueError, RecursionError: it cannot be found out.
    """
    first, *arguments = os.fsdecode(_read(f"{_PROC}/{pid}/cmdline")).removesuffix("\0").split("\0")
    program = first.rpartition("/")[2]
    if _QEMU.fullmatch(program):
        return _qemu(pid, arguments)
    # The jailer lets it be called anything with its name in it.
    if "firecracker" in program:
        return _firecracker(pid, arguments)
    if program.startswith("cloud-hypervisor"):
        return _cloud_hypervisor(pid, arguments)
    return None


def _read(path: str) -> bytes:
    # What is named by a process may be a pipe, in which nobody ever writes, or a device, which minds being opened.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is no file")
    with open(path, "rb", opener=lambda path, flags: os.open(path, flags | _NONBLOCK)) as file:
        data = file.read(_LIMIT + 1)
    if len(data) > _LIMIT:
        raise ValueError(f"{path} is too large")
    return data


def _made(pid: str, name: str, *, owner: str, cid: int, socket: str | None = None, uuid: str = "") -> Machine:
    # Names are shown on terminals, and anybody can have chosen them.
    name = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name)
    by_process = f"{owner.lower().replace(' ', '-')}-{pid}"
    return Machine(
        name or by_process,
        real_id(uuid),
        "processes",
        owner=owner,
        aliases=(by_process,) if name else (),
        cid=cid,
        socket=socket,
    )


# -- QEMU, and libvirt, which runs it ----------------------------------------------------------------------


def _qemu(pid: str, arguments: Sequence[str]) -> Machine | None:
    cids = [cid for text in _values(arguments, "-device") if (cid := _guest_cid(text)) is not None]
    if not cids:
        return None
    names: dict[str, str] = {}
    for text in _values(arguments, "-name"):
        names |= _keys(text, "guest")
    uuid = "".join(_values(arguments, "-uuid")[-1:])
    return _made(pid, names.get("guest", ""), owner="QEMU", cid=cids[-1], uuid=uuid)


def _guest_cid(text: str) -> int | None:
    """Return the CID that the value of ``-device`` gives to a guest; None if it is another device, or malformed."""
    try:
        device = json.loads(text) if text.startswith("{") else _keys(text, "driver")
        # Not vhost-user-vsock, whose CID only its daemon knows, and which AF_VSOCK does not reach.
        if str(device.get("driver")).startswith("vhost-vsock-"):
            return _cid(device["guest-cid"])
    except (KeyError, ValueError, RecursionError):
        pass
    return None


# -- Firecracker and Cloud Hypervisor ----------------------------------------------------------------------


def _firecracker(pid: str, arguments: Sequence[str]) -> Machine | None:
    files = _values(arguments, "--config-file")
    if not files:
        return None
    match json.loads(_read(_as_seen(pid, files[-1]))):
        case {"vsock": {"guest_cid": cid, "uds_path": str(path)}}:
            name = (_values(arguments, "--id") or ["anonymous-instance"])[-1]
            return _made(pid, name, owner="Firecracker", cid=_cid(cid), socket=_socket(pid, path))
    return None


def _cloud_hypervisor(pid: str, arguments: Sequence[str]) -> Machine | None:
    values = _values(arguments, "--vsock")
    match dict(each.partition("=")[::2] for each in "".join(values[-1:]).split(",")):
        case {"cid": cid, "socket": path}:
            return _made(pid, "", owner="Cloud Hypervisor", cid=_cid(cid), socket=_socket(pid, path))
    return None


def _socket(pid: str, path: str) -> str:
    return HybridAddress(_as_seen(pid, path), 0).path


def _as_seen(pid: str, path: str) -> str:
    """Return, of a path as a process has it, the one that leads there from here."""
    if not path:
        raise ValueError("an empty path leads nowhere")
    folder = f"{_PROC}/{pid}"
    try:
        # In a jail, or in a container, the same path leads elsewhere.
        elsewhere = not all(
            os.path.samefile(f"{folder}/{each}", f"{_PROC}/self/{each}") for each in ("root", "ns/mnt")
        )
    except OSError:
        # Another user's. Most are in no jail; but where it stands is not to be guessed.
        if not path.startswith("/"):
            raise
        elsewhere = False
    if path.startswith("/"):
        return f"{folder}/root{path}" if elsewhere else path
    return str(PurePosixPath(f"{folder}/cwd" if elsewhere else os.readlink(f"{folder}/cwd"), path))


# -- command lines -----------------------------------------------------------------------------------------


def _values(arguments: Sequence[str], option: str) -> list[str]:
    """Return what is given with an option: the last is what counts."""
    found: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        # QEMU's may be written with two hyphens as well.
        if name not in (option, f"-{option}"):
            continue
        if not equals:
            value = next(rest, "")
        found.append(value)
    return found


def _keys(text: str, first: str) -> dict[str, str]:
    """Read a list of QEMU's, ``a,key=b``; ``first`` is the key of what comes first without one."""
    keys: dict[str, str] = {}
    # A comma that belongs to a value is written twice; and no command line has a NUL.
    for number, each in enumerate(text.replace(",,", "\0").split(",")):
        key, equals, value = each.partition("=")
        if equals and "\0" not in key:
            keys[key] = value.replace("\0", ",")
        elif number == 0:
            keys[first] = each.replace("\0", ",")
    return keys


def _cid(value: object) -> int:
    """Return the CID of a guest.

    Raises:
        ValueError: it is none.
    """
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = int(value, 0)
    if not isinstance(value, int) or not CID_HOST < value < CID_ANY:
        raise ValueError(f"{value!r} is not the CID of a guest")
    return value
