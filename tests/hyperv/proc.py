"""A /proc of our own."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from aiohvsock.hyperv import Machine

VSOCK = ("-device", "vhost-vsock-pci,guest-cid=3")


class Proc:
    """What /proc has of processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.root = path / "here"
        self.root.mkdir(parents=True)
        self._look(path / "self", self.root, self.root)

    def add(self, pid: int, *argv: str, root: Path | None = None, cwd: Path | None = None) -> Path:
        """Add a process, which sees the files that everybody sees unless it has a root of its own."""
        folder = self.path / str(pid)
        folder.mkdir()
        (folder / "cmdline").write_bytes(b"".join(os.fsencode(each) + b"\0" for each in argv))
        self._look(folder, root or self.root, cwd or root or self.root)
        return folder

    def _look(self, folder: Path, root: Path, cwd: Path) -> None:
        (folder / "ns").mkdir(parents=True)
        (folder / "ns" / "mnt").symlink_to(self.root)
        (folder / "root").symlink_to(root)
        (folder / "cwd").symlink_to(cwd)


def qemu(name: str, vm_id: uuid.UUID | None, cid: int, *aliases: str) -> Machine:
    return Machine(name, vm_id, "processes", owner="QEMU", aliases=aliases, cid=cid)
