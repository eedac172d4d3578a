"""The three kinds of address, their text, and how one kind stands for another.

====================  ==================================  =================================================
value                 text                                native to
====================  ==================================  =================================================
`VsockAddress`        ``vsock://2:2761``                  Linux (AF_VSOCK)
`HypervAddress`       ``hvsock://parent:2761``            Windows (AF_HYPERV)
`HybridAddress`       ``vsock+unix:///run/vm.sock:2761``  hosts whose monitor offers a Unix socket instead
====================  ==================================  =================================================

A service that is registered on Windows has a name too, which an address has in its percent form:
``hvsock://any/HV%20Socket%20Demo``. It stays a name until the address is used there, and the registry is asked.

``str()`` and :func:`parse_address` round-trip. :func:`to_vsock` and :func:`to_hyperv` turn an address into
the one native to a system, so that one line of code runs unchanged in a Windows guest and a Linux guest.

Nothing here touches the operating system: every kind can be read and printed everywhere.
"""

from __future__ import annotations

import os
import posixpath
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import quote, unquote

from .exceptions import HvAddressError

__all__ = [
    "CID_ANY",
    "CID_HOST",
    "CID_LOCAL",
    "PORT_ANY",
    "VM_ID_ANY",
    "VM_ID_BROADCAST",
    "VM_ID_CHILDREN",
    "VM_ID_LOOPBACK",
    "VM_ID_PARENT",
    "VM_ID_SILOHOST",
    "Address",
    "AddressLike",
    "HybridAddress",
    "HypervAddress",
    "VsockAddress",
    "parse_address",
    "service_id",
    "service_port",
    "to_address",
    "to_hyperv",
    "to_service",
    "to_vsock",
]

# include/uapi/linux/vm_sockets.h
CID_LOCAL = 1
"""This machine itself. Needs Linux 5.6 and the vsock_loopback module; without it the packets leave for the host."""
CID_HOST = 2
"""The host, as a guest sees it."""
CID_ANY = 0xFFFFFFFF
"""For listening only: whatever CID this machine has."""
PORT_ANY = 0xFFFFFFFF
"""For listening only: a free port of the system's choice. Port 0 is an ordinary, privileged port."""

# hvsocket.h of the Windows SDK
VM_ID_ANY = uuid.UUID("00000000-0000-0000-0000-000000000000")
"""For listening only: any partition. It never matches WSL 2, whose exact VM id must be bound."""
VM_ID_BROADCAST = uuid.UUID("ffffffff-ffff-ffff-ffff-ffffffffffff")
VM_ID_CHILDREN = uuid.UUID("90db8b89-0d35-4f79-8ce9-49ea0ac8b7cd")
"""For listening only: the partitions below this one."""
VM_ID_LOOPBACK = uuid.UUID("e0e16197-dd56-4a10-9195-5ee7a155a838")
VM_ID_PARENT = uuid.UUID("a42e7cda-d03f-480c-9cc2-a4de20abb878")
"""The host, as a guest sees it."""
VM_ID_SILOHOST = uuid.UUID("36bd0c5c-7276-4223-88ba-7d03b654c568")

_CID_NAMES = {"local": CID_LOCAL, "host": CID_HOST, "any": CID_ANY}
_VM_ID_NAMES = {
    "any": VM_ID_ANY,
    "broadcast": VM_ID_BROADCAST,
    "children": VM_ID_CHILDREN,
    "loopback": VM_ID_LOOPBACK,
    "parent": VM_ID_PARENT,
    "silohost": VM_ID_SILOHOST,
}
_VM_ID_TEXT = {vm_id: name for name, vm_id in _VM_ID_NAMES.items()}

# HV_GUID_VSOCK_TEMPLATE: the port is the first field, the rest is fixed.
_TEMPLATE_TAIL = uuid.UUID("00000000-facb-11e6-bd58-64006a7986d3").int
_PORT_SHIFT = 96

# RFC 3986 lets these stand in a path as they are.
_SAFE = ":@!$&'()*+,;=~"

_GUID = re.compile(r"(\{)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(?(1)\})", re.IGNORECASE | re.ASCII)
# What nobody would call a service: to_service() has it in words.
_GUID_GONE_WRONG = re.compile(
    r"[{(]?\w{8}(-\w{4}){3}-\w{12}[)}]?|[0-9a-f-]{16,}|[0-9a-f-]*[{}][0-9a-f{}-]*|urn:uuid:.*",
    re.IGNORECASE | re.DOTALL,
)
# Control characters, line ends, and surrogates, which no UTF-8 has.
_NOT_IN_NAMES = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def service_id(port: int) -> uuid.UUID:
    """Return the service id that stands for a vsock port on Hyper-V.

    The template is ``HV_GUID_VSOCK_TEMPLATE`` of hvsocket.h, with the port in its first field.

    Raises:
        HvAddressError: unless 0 <= port < 2**32.
    """
    return uuid.UUID(int=_check_u32(port, "port") << _PORT_SHIFT | _TEMPLATE_TAIL)


def service_port(service_id: uuid.UUID) -> int | None:
    """Return the vsock port a service id stands for, or None if it is not made from the template."""
    if service_id.int & ((1 << _PORT_SHIFT) - 1) != _TEMPLATE_TAIL:
        return None
    return service_id.int >> _PORT_SHIFT


def _check_u32(value: int, what: str) -> int:
    # CPython's own sockets take an out-of-range int modulo 2**32, in silence.
    if isinstance(value, bool) or not isinstance(value, int):
        raise HvAddressError(f"{what} must be an int, not {value!r}")
    if not 0 <= value < 1 << 32:
        # CPython does not print an int of more than 4300 digits.
        shown = value if value.bit_length() <= 128 else f"of {value.bit_length()} bits"
        raise HvAddressError(f"{what} {shown} is outside 0 ... 2**32-1")
    return value


@dataclass(frozen=True, slots=True)
class VsockAddress:
    """A port of a machine that AF_VSOCK names by its context id.

    Args:
        cid: 2 is the host, 1 this machine, :data:`CID_ANY` any (to listen), guests start at 3.
        port: 0 ... 2**32-1; ports below 1024 need CAP_NET_BIND_SERVICE, :data:`PORT_ANY` lets the
            system choose (to listen).

    Raises:
        HvAddressError: a number is not an int or out of range.

    Source: include/uapi/linux/vm_sockets.h, vsock(7).
    """

    cid: int
    port: int

    def __post_init__(self) -> None:
        _check_u32(self.cid, "CID")
        _check_u32(self.port, "port")

    def __str__(self) -> str:
        cid = "any" if self.cid == CID_ANY else str(self.cid)
        return f"vsock://{cid}:{_port_text(self.port)}"


@dataclass(frozen=True, slots=True, init=False)
class HypervAddress:
    """A service of a partition that Hyper-V names by GUIDs.

    Args:
        vm_id: a UUID, the text of one, or ``"parent"``, ``"children"``, ``"loopback"``, ``"any"``,
            ``"broadcast"``, ``"silohost"``.
        service_id: a UUID, the text of one, a port, which stands for the service id of
            :func:`service_id`, or the name of a service (:func:`to_service` tells which is which).

    Raises:
        HvAddressError: a part is none of these.

    Names are compared as they are written here, and without regard to case when they are looked up.

    Source: hvsocket.h of the Windows SDK.
    """

    vm_id: uuid.UUID
    service_id: uuid.UUID | str
    """A str is a name, to be looked up in the registry when the address is used on Windows."""

    def __init__(self, vm_id: uuid.UUID | str, service_id: uuid.UUID | str | int) -> None:
        if isinstance(vm_id, str):
            vm_id = _VM_ID_NAMES.get(_lower(vm_id)) or _parse_uuid(
                vm_id, f"VM id (a GUID, or one of {', '.join(_VM_ID_NAMES)})"
            )
        elif not isinstance(vm_id, uuid.UUID):
            raise HvAddressError(f"VM id must be a UUID or its text, not {vm_id!r}")
        object.__setattr__(self, "vm_id", vm_id)
        object.__setattr__(self, "service_id", to_service(service_id))

    def __str__(self) -> str:
        vm_id = _VM_ID_TEXT.get(self.vm_id) or str(self.vm_id)
        if isinstance(self.service_id, str):
            return f"hvsock://{vm_id}/{quote(self.service_id, safe=_SAFE)}"
        port = service_port(self.service_id)
        service = f"/{self.service_id}" if port is None else f":{_port_text(port)}"
        return f"hvsock://{vm_id}{service}"


@dataclass(frozen=True, slots=True, init=False)
class HybridAddress:
    """A port behind the Unix socket of a virtual machine monitor: Firecracker, Cloud Hypervisor, OpenVMM, ...

    Dialling connects to ``path`` and asks the monitor for the port (``CONNECT <port>``); listening binds
    ``<path>_<port>``, where the monitor delivers what the guest dials.

    Args:
        path: the monitor's Unix socket, absolute.
        port: 0 ... 2**32-1; or the UUID, or its text, of a service id (OpenVMM). The service id of a
            port becomes that port. :data:`PORT_ANY` stands for an unknown port, in the address of a peer.

    Raises:
        HvAddressError: the path is not absolute, or a part is malformed.

    Source: docs/vsock.md of Firecracker; support/hybrid_vsock of OpenVMM.
    """

    path: str
    port: int | uuid.UUID

    def __init__(self, path: str | os.PathLike[str], port: int | uuid.UUID | str) -> None:
        if isinstance(path, os.PathLike):
            path = os.fspath(path)
        if not isinstance(path, str):
            raise HvAddressError(f"path must be str or a path object, not {path!r}")
        try:
            # So that one file has one address: surrogates can spell a character.
            path = path.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise HvAddressError(f"path {path!r} has a character that stands for no bytes") from None
        if not posixpath.isabs(path):
            raise HvAddressError(
                f"path {path!r} is not absolute; os.path.abspath() makes it so, and it then survives os.chdir()"
            )
        if path.endswith("/") or "\0" in path:
            raise HvAddressError(f"path {path!r} cannot be that of a socket")
        number = service_port(service := _service(port))
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "port", service if number is None else number)

    def __str__(self) -> str:
        path = quote(self.path, safe=f"/{_SAFE}", errors="surrogateescape")
        port = _port_text(self.port) if isinstance(self.port, int) else self.port
        return f"vsock+unix://{path}:{port}"


Address: TypeAlias = VsockAddress | HypervAddress | HybridAddress
AddressLike: TypeAlias = VsockAddress | HypervAddress | HybridAddress | str
"""What every function that takes an address accepts: the value or its text."""


def parse_address(text: str) -> Address:
    """Return the address that a text like ``vsock://2:2761`` stands for.

    Raises:
        HvAddressError: the text is malformed; the message names the part at fault.
    """
    if not isinstance(text, str):
        raise HvAddressError(f"an address must be text, or one of the address values, not {text!r}")
    scheme, separator, rest = text.partition("://")
    parser = _PARSERS.get(_lower(scheme))
    if not separator or parser is None:
        fault = f"unknown scheme {scheme!r}" if separator else "no scheme"
        raise HvAddressError(
            f"{text!r}: {fault}; write vsock://CID:PORT, hvsock://VM:PORT, hvsock://VM/SERVICE-GUID "
            "or vsock+unix:///PATH:PORT"
        )
    try:
        return parser(rest)
    except HvAddressError as error:
        raise HvAddressError(f"{text!r}: {error}") from None


def to_address(address: AddressLike) -> Address:
    """Return an address as a value: text is parsed, a value is returned as it is."""
    if isinstance(address, Address):
        return address
    return parse_address(address)


def to_service(service: uuid.UUID | str | int) -> uuid.UUID | str:
    """Return a service as an address has it: its UUID, or its name.

    Text in the form of a GUID is one, in any case, in braces or without; any other is a name, unless it can
    only be a mistake. Digits alone are a port in the wrong place. A GUID gone wrong is what has its form
    8-4-4-4-12, is made of 16 or more hexadecimal digits and hyphens, or of fewer and a brace, or begins with
    ``urn:uuid:``.

    Args:
        service: a UUID, the text of one, a port, or a name: not empty, without control characters, line ends
            and spaces around it.

    Raises:
        HvAddressError: it is none of these; the text names the fault.
    """
    if not isinstance(service, str) or _GUID.fullmatch(service):
        return _service(service)
    if not service:
        fault = "it is empty"
    elif service.isdigit():
        fault = f"a port is an int, and in text it is written hvsock://VM:{service}"
    elif _GUID_GONE_WRONG.fullmatch(service):
        fault = "a GUID has 8-4-4-4-12 hexadecimal digits, in braces or without"
    elif _NOT_IN_NAMES.search(service):
        fault = "it has a control character or a line end"
    elif service != service.strip():
        fault = "it begins or ends with a space"
    else:
        return service
    raise HvAddressError(f"{service!r} is not a service id or name: {fault}")


def _parse_vsock(rest: str) -> VsockAddress:
    cid, separator, port = rest.partition(":")
    if not separator:
        raise HvAddressError(f"no port after {cid!r}: write vsock://{cid or 'any'}:PORT")
    cid = _lower(cid) or "any"
    return VsockAddress(
        _CID_NAMES[cid] if cid in _CID_NAMES else _parse_int(cid, f"CID (or one of {', '.join(_CID_NAMES)})"),
        _parse_port(port),
    )


def _parse_hyperv(rest: str) -> HypervAddress:
    # A name or GUID has neither ':' nor '/', so the first of them ends the VM id.
    for index, character in enumerate(rest):
        if character == ":":
            return HypervAddress(rest[:index], _parse_port(rest[index + 1 :]))
        if character == "/":
            return HypervAddress(rest[:index], _unquote_service(rest[index + 1 :]))
    raise HvAddressError(
        f"no port or service id after {rest!r}: write hvsock://VM:PORT or hvsock://VM/SERVICE-GUID"
    )


def _unquote_service(text: str) -> str:
    if "/" in text:
        raise HvAddressError(f"{text!r} is not a service id or name: a slash in a name is written %2F")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise HvAddressError(f"{text!r} is not a service id or name: its percent form is not UTF-8") from None


def _parse_hybrid(rest: str) -> HybridAddress:
    path, separator, port = rest.rpartition(":")
    if not separator:
        raise HvAddressError(f"no port after the path {rest!r}: write vsock+unix://{rest}:PORT")
    path = unquote(path, errors="surrogateescape")
    # A GUID has hyphens, and no decimal port has.
    return HybridAddress(path, port if "-" in port else _parse_port(port))


_PARSERS: dict[str, Callable[[str], Address]] = {
    "vsock": _parse_vsock,
    "hvsock": _parse_hyperv,
    "vsock+unix": _parse_hybrid,
}


def _parse_port(text: str) -> int:
    return PORT_ANY if _lower(text) == "any" else _parse_int(text, "port")


def _lower(text: str) -> str:
    # str.lower() makes an ordinary "k" of the Kelvin sign.
    return text.lower() if text.isascii() else text


def _parse_int(text: str, what: str) -> int:
    # int() would also take signs, spaces, underscores and other scripts' digits.
    if not (text.isascii() and text.isdigit()) or len(text) > 10:
        raise HvAddressError(f"{what} must be a decimal number below 2**32, not {text!r}")
    return int(text)


def _parse_uuid(text: str, what: str) -> uuid.UUID:
    # uuid.UUID() would also take underscores and other scripts' digits, and hyphens anywhere.
    if not _GUID.fullmatch(text):
        raise HvAddressError(f"{text!r} is not a {what}")
    return uuid.UUID(text)


def _service(service: uuid.UUID | str | int) -> uuid.UUID:
    if isinstance(service, uuid.UUID):
        return service
    if isinstance(service, str):
        return _parse_uuid(service, "service id (a GUID)")
    return service_id(service)


def _port_text(port: int) -> str:
    return "any" if port == PORT_ANY else str(port)


_TO_CID = {
    VM_ID_PARENT: CID_HOST,
    VM_ID_LOOPBACK: CID_LOCAL,
    VM_ID_ANY: CID_ANY,
    VM_ID_CHILDREN: CID_ANY,
}
_TO_VM_ID = {CID_HOST: VM_ID_PARENT, CID_LOCAL: VM_ID_LOOPBACK, CID_ANY: VM_ID_ANY}


def to_vsock(address: VsockAddress | HypervAddress) -> VsockAddress:
    """Return the AF_VSOCK address that means the same.

    Raises:
        HvAddressError: there is none: another VM's id, a service id that is not made from a port, or a name.
    """
    if isinstance(address, VsockAddress):
        return address
    cid = _TO_CID.get(address.vm_id)
    if cid is None:
        raise HvAddressError(
            f"{address} has no counterpart on Linux, where a VM is named by its CID: "
            "only parent, loopback, children and any have one"
        )
    if isinstance(address.service_id, str):
        raise HvAddressError(
            f"{address} has no counterpart on Linux: names of services are looked up on Windows; write the port"
        )
    port = service_port(address.service_id)
    if port is None:
        raise HvAddressError(
            f"{address} has no counterpart on Linux: service id {address.service_id} "
            "is not made from a port (PORT-facb-11e6-bd58-64006a7986d3)"
        )
    return VsockAddress(cid, port)


def to_hyperv(address: VsockAddress | HypervAddress) -> HypervAddress:
    """Return the AF_HYPERV address that means the same.

    Raises:
        HvAddressError: there is none: a guest's CID, or the port :data:`PORT_ANY`.
    """
    if isinstance(address, HypervAddress):
        return address
    vm_id = _TO_VM_ID.get(address.cid)
    if vm_id is None:
        raise HvAddressError(
            f"{address} has no counterpart on Windows, where a VM is named by its VM id: "
            "only CID 1 (loopback), 2 (parent) and any have one"
        )
    if address.port == PORT_ANY:
        raise HvAddressError(f"{address} has no counterpart on Windows, which chooses no free service id")
    return HypervAddress(vm_id, address.port)
