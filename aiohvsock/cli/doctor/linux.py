"""AF_VSOCK on Linux: read off /proc and /sys.

Where no vsock_loopback is loaded every CID is another machine, the host or a stranger: then no socket is made at
all, which could besides make the kernel load a module.
"""

from __future__ import annotations

import socket
from pathlib import Path

from ...addresses import CID_LOCAL, Address, VsockAddress
from ...exceptions import HvPermissionError, HvUnsupportedError
from ...platforms import Options, linux
from .connecting import random_port
from .findings import Finding, Findings

__all__ = ["device", "family", "has_loopback", "loopback_address", "no_loopback", "transports"]

_PROC = Path("/proc")
_MODULES = Path("/sys/module")

_LOOPBACK = "vsock_loopback"
_TRANSPORTS = {
    "vmw_vsock_virtio_transport": "in a KVM guest",
    "hv_sock": "in a Hyper-V guest",
    "vmw_vsock_vmci_transport": "in a VMware guest",
    "vhost_vsock": "on a KVM host",
    _LOOPBACK: "for CID 1",
}
_LOAD = f"modprobe one of {', '.join(f'{name} ({where})' for name, where in _TRANSPORTS.items())}"


def family() -> Findings:
    """Find whether Python and the kernel have AF_VSOCK. Hybrid vsock needs neither, so nothing here is a failure."""
    if not hasattr(socket, "AF_VSOCK"):
        try:
            linux.open_socket(Options()).close()
        except HvUnsupportedError as error:
            return [Finding("warn", "Python", "it has no AF_VSOCK", error.strerror or "")]
    findings = [Finding("ok", "Python", "it has AF_VSOCK")]
    protocols = (_PROC / "net/protocols").read_text()
    if any(line.startswith("AF_VSOCK") for line in protocols.splitlines()):
        findings.append(Finding("ok", "kernel", "it has AF_VSOCK"))
    else:
        findings.append(Finding("warn", "kernel", "no AF_VSOCK is loaded", _LOAD))
    if "\nSeccomp:\t2" in (_PROC / "self/status").read_text():
        cure = "--address shows whether it does; a profile of its own for the container lets it through"
        findings.append(
            Finding("warn", "seccomp", "a filter is on, and Docker's own refuses AF_VSOCK sockets", cure)
        )
    return findings


def transports() -> Findings:
    """Find which modules carry AF_VSOCK here."""
    loaded = [f"{name} ({where})" for name, where in _TRANSPORTS.items() if (_MODULES / name).is_dir()]
    if not loaded:
        return [Finding("warn", "transports", "no module is loaded, or it is built in", _LOAD)]
    return [Finding("ok", "transports", ", ".join(loaded))]


def device() -> Findings:
    """Find the CID of this machine, by /dev/vsock."""
    try:
        cid = linux.local_cid()
    except HvUnsupportedError:
        return [Finding("warn", "local CID", "there is no /dev/vsock", _LOAD)]
    except HvPermissionError as error:
        return [Finding("warn", "local CID", "not known", error.hint)]
    return [Finding("ok", "local CID", "none, or a Hyper-V guest's" if cid is None else str(cid))]


def has_loopback() -> bool:
    """Tell whether CID 1 is this machine for certain. Touches no socket."""
    return (_MODULES / _LOOPBACK).is_dir()


def loopback_address() -> Address:
    return VsockAddress(CID_LOCAL, random_port())


def no_loopback() -> Findings:
    """Say why CID 1 was left alone."""
    text = "without vsock_loopback CID 1 is the host, or a stranger: it was not dialled"
    return [Finding("skip", "AF_VSOCK", text, f"modprobe {_LOOPBACK}")]
