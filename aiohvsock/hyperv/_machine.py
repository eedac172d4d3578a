"""What is known of a virtual machine."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

__all__ = ["Answer", "Machine", "Source", "guid", "real_id"]

Source: TypeAlias = Literal["wsl", "hcs", "powershell", "processes"]

_GUID = re.compile(r"(\{)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(?(1)\})", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Machine:
    """A virtual machine of this host."""

    name: str
    """What people call it. The machine of WSL 2 is ``"WSL"``; one without a name goes by its id, on a Linux host by its
    monitor and process: ``"qemu-4711"``."""
    vm_id: uuid.UUID | None
    """What addresses call it; the RuntimeId, where there are several. Hyper-V's own machines keep theirs; that of
    WSL 2, and most of others, is a new one each time the machine starts. On a Linux host no address has it, and it is
    None for a machine that was given none."""
    source: Source
    """Who knew the name."""
    state: str | None = None
    """``"Running"``, ``"Off"``, ``"Paused"``, ``"Saved"``, ... as the source has it; None if it does not say."""
    owner: str | None = None
    """The program it belongs to: ``"WSL"``, ``"VMMS"`` (Hyper-V), ...; None if that is not known."""
    aliases: tuple[str, ...] = ()
    """Other names it is found by. WSL's are the distributions that run in it."""
    cid: int | None = None
    """Of a guest of a Linux host, its CID; None on Hyper-V. AF_VSOCK knows the guest by it unless it has a socket:
    many of those have the same one."""
    socket: str | None = None
    """Of a guest that is reached by hybrid vsock, the path of its monitor's socket; otherwise None."""

    def __str__(self) -> str:
        aliases = f" ({', '.join(self.aliases)})" if self.aliases else ""
        vm_id = f" {self.vm_id}" if self.vm_id is not None and guid(self.name) != self.vm_id else ""
        cid = f", CID {self.cid}" if self.cid is not None else ""
        socket = f" behind {self.socket}" if self.socket is not None else ""
        state = f", {self.state}" if self.state else ""
        return f"{self.name}{aliases}{vm_id}{cid}{socket}{state}"


class Answer(NamedTuple):
    """What a source knows."""

    machines: list[Machine]
    stopped: tuple[str, ...] = ()
    """Names of what has no id at present."""


def guid(text: str) -> uuid.UUID | None:
    """Return the UUID that a text stands for, with braces or without; None if it is something else."""
    return uuid.UUID(text) if _GUID.fullmatch(text) else None


def real_id(text: object) -> uuid.UUID | None:
    """Return the id of a machine that a source gives as text; None if it is none."""
    # Zeros are an address, that of any machine: they must not become one machine's.
    vm_id = guid(text) if isinstance(text, str) else None
    return vm_id if vm_id is not None and vm_id.int else None
