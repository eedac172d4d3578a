"""Finding virtual machines by name.

Hyper-V knows a machine by an id, a Linux host by a CID or a socket, and people know it by a name. WSL 2 gets a new id
each time it starts: so an id is not for keeping, and :func:`machine_address` is an address that looks it up whenever it
is used.
"""

from __future__ import annotations

import errno
import sys
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from ..addresses import VM_ID_ANY, Address, HybridAddress, HypervAddress, VsockAddress, to_vsock
from ..exceptions import HvAddressError, HvConnectError, HvError, HvPermissionError, HvUnsupportedError
from ..platforms import linux
from ..platforms.registry import same_name
from ._machine import Machine, Source, guid
from ._rights import how_to_get_it
from ._survey import Options, Survey, on_hyperv, survey

__all__ = [
    "Machine",
    "MachineAddress",
    "Source",
    "find_machine",
    "list_machines",
    "local_cid",
    "machine_address",
]

DEFAULT_MAX_AGE = 2.0
DEFAULT_TIMEOUT = 15.0


async def list_machines(
    *,
    max_age: float = DEFAULT_MAX_AGE,
    timeout: float | None = DEFAULT_TIMEOUT,
    sources: Iterable[Source] | None = None,
) -> list[Machine]:
    """Return the virtual machines that can be found, by name.

    Nothing that is stopped is started. Cancelling it kills the programs that were asked.

    Args:
        max_age: seconds; what somebody in this process has been told since then is told again. 0 asks anew.
        timeout: seconds for each source; None waits as long as it takes.
        sources: whom to ask, of ``"wsl"``, ``"hcs"`` and ``"powershell"``, which are asked on Windows and in a WSL
            distribution, and ``"processes"``, which is asked on other Linux; None is everybody there. ``["wsl"]`` is
            quick, and all that WSL needs. One that cannot be asked is left out, unless nobody can.

    Raises:
        ValueError: an argument makes no sense.
        HvUnsupportedError: those sources are not for this system, or it has no virtual machines.
        HvPermissionError: nobody could be asked, for want of a right.
        HvConnectError: nobody could be asked; trying again can help.
    """
    found = await survey(Options.checked(max_age, timeout, sources))
    if not found.answered:
        raise _refusal("list machines", found) or HvUnsupportedError(
            errno.EAFNOSUPPORT, f"there are no virtual machines here: {found.excuses()}"
        )
    return found.machines


async def find_machine(
    name: str,
    *,
    max_age: float = DEFAULT_MAX_AGE,
    timeout: float | None = DEFAULT_TIMEOUT,
    sources: Iterable[Source] | None = None,
) -> Machine:
    """Return a virtual machine by its name.

    Args:
        name: what it is called, in any case; ``"WSL"`` or one of its running distributions; on a Linux host its monitor
            and process, ``"qemu-4711"``; or the text of a GUID.
        max_age, timeout, sources: as in :func:`list_machines`.

    Raises:
        ValueError: an argument makes no sense.
        HvAddressError: no machine has that name, or several; the text lists them.
        HvConnectError: it is a WSL distribution that is not running, or somebody who may know it gave no answer;
            trying again can help.
        HvPermissionError: those who may know it were not to be asked; the text tells how to get the right.
        HvUnsupportedError: those sources are not for this system.
    """
    _check_name(name)
    found = await survey(Options.checked(max_age, timeout, sources))
    vm_id = guid(name)
    machines = [
        each
        for each in found.machines
        if (vm_id is not None and each.vm_id == vm_id) or _is_called(each, name)
    ]
    if not machines:
        raise _not_found(name, found)
    if len(machines) > 1:
        unlike = "another name" if any(each.cid is not None for each in machines) else "the id"
        raise HvAddressError(
            f"{len(machines)} machines are called {name!r}; write {unlike} of one: {'; '.join(map(str, machines))}"
        )
    return machines[0]


@dataclass(frozen=True, slots=True)
class MachineAddress:
    """An address that is looked up when it is used; :func:`machine_address` makes it.

    Calling it gives the address of the moment, in which a name has become an id. Its text is for people: it names the
    machine, and :func:`~aiohvsock.parse_address` does not take it.
    """

    name: str
    service_id: uuid.UUID | str
    max_age: float = DEFAULT_MAX_AGE
    timeout: float | None = DEFAULT_TIMEOUT
    sources: tuple[Source, ...] | None = None

    async def __call__(self) -> Address:
        """Return the address of the machine as it is now; on Hyper-V, a GUID is taken as it is.

        Raises: as :func:`find_machine`; :exc:`HvAddressError` too for a service that is no port, of a guest that
            has a CID.
        """
        vm_id = guid(self.name)
        if vm_id is not None and "processes" not in (self.sources or ()) and on_hyperv():
            return HypervAddress(vm_id, self.service_id)
        machine = await find_machine(
            self.name, max_age=self.max_age, timeout=self.timeout, sources=self.sources
        )
        return _address(machine, self.service_id)

    def __str__(self) -> str:
        any_machine = HypervAddress(VM_ID_ANY, self.service_id)
        return str(any_machine).replace("//any", f"//vm:{quote(self.name, safe='')}", 1)


def _address(machine: Machine, service_id: uuid.UUID | str) -> Address:
    if machine.socket is not None:
        return HybridAddress(machine.socket, service_id)
    if machine.cid is not None:
        return VsockAddress(machine.cid, to_vsock(HypervAddress(VM_ID_ANY, service_id)).port)
    assert machine.vm_id is not None  # Hyper-V knows machines by nothing else
    return HypervAddress(machine.vm_id, service_id)


def machine_address(
    name: str,
    service: uuid.UUID | str | int,
    *,
    max_age: float = DEFAULT_MAX_AGE,
    timeout: float | None = DEFAULT_TIMEOUT,
    sources: Iterable[Source] | None = None,
) -> MachineAddress:
    """Return an address that finds its machine by name whenever it is used: ``await machine_address("ubuntu", 2761)()``.

    Args:
        name: as in :func:`find_machine`. On Hyper-V, the text of a GUID is the id itself, and nobody is asked.
        service: as in :class:`~aiohvsock.HypervAddress`; for a guest of a Linux host, its port.
        max_age, timeout, sources: as in :func:`list_machines`.

    Raises:
        ValueError: an argument makes no sense.
        HvAddressError: the name is empty, or the service malformed. Whether there is such a machine is not
            looked up yet.
    """
    _check_name(name)
    options = Options.checked(max_age, timeout, sources)
    service_id = HypervAddress(VM_ID_ANY, service).service_id
    return MachineAddress(name, service_id, max_age, timeout, None if sources is None else options.sources)


def local_cid() -> int | None:
    """Return the CID by which others know this machine; None if it has none that it knows of. Connects to nobody.

    A guest gets its own, a host without one 2. It can change when a VM is restored or migrated, and is not known in
    Hyper-V guests.

    Raises:
        HvUnsupportedError: this is Windows, or there is no /dev/vsock: the module is not loaded.
        HvPermissionError: /dev/vsock is not readable for this user.
    """
    if sys.platform == "win32":
        raise HvUnsupportedError(
            errno.EAFNOSUPPORT, "Windows has no CIDs; a Hyper-V guest reaches its host as hvsock://parent"
        )
    return linux.local_cid()


# -- arguments ---------------------------------------------------------------------------------------------


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name:
        raise HvAddressError(f"the name of a machine must be a text, and not empty, not {name!r}")
    if any("\ud800" <= each <= "\udfff" for each in name):
        raise HvAddressError(f"{name!r} is not the name of a machine: it has a surrogate, which no UTF-8 has")


def _is_called(machine: Machine, name: str) -> bool:
    return any(same_name(each, name) for each in (machine.name, *machine.aliases))


# -- errors ------------------------------------------------------------------------------------------------


def _not_found(name: str, found: Survey) -> HvError:
    operation = f"find machine {name!r}"
    for distribution in found.stopped:
        if same_name(distribution, name):
            return HvConnectError(
                errno.EHOSTUNREACH,
                operation,
                detail=f"the WSL distribution {distribution} is not running",
                hint=f"wsl.exe --distribution {distribution} starts it",
                transient=True,
            )
    return _refusal(operation, found) or HvAddressError(
        f"no machine is called {name!r}; {_known(found)}"
        + (f"; could not be asked: {found.excuses()}" if found.failures else "")
    )


def _known(found: Survey) -> str:
    there = [*map(str, found.machines), *(f"{name} (WSL, not running)" for name in found.stopped)]
    return f"there are: {'; '.join(there)}" if there else "none was found"


def _refusal(operation: str, found: Survey) -> HvError | None:
    """Return the error for want of an answer; None if everybody has answered who is there to answer."""
    detail = f"{_known(found)}; could not be asked: {found.excuses()}"
    # Trying again can bring what the missing right is not needed for.
    if any(not error.absent and not error.denied for error in found.failures.values()):
        return HvConnectError(errno.EAGAIN, operation, detail=detail, hint="try again", transient=True)
    if any(error.denied for error in found.failures.values()):
        return HvPermissionError(errno.EACCES, operation, detail=detail, hint=how_to_get_it())
    return None
