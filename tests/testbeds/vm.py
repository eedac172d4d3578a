"""What the two virtual machines have in common: QEMU's arguments, and an initramfs that makes the host's tree the root."""

from __future__ import annotations

import shlex
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from .job import HERE, Job, MissingTool, variables
from .kernel import Kernel

__all__ = ["OUTPUT", "find_qemu", "qemu_arguments", "write_initramfs"]

OUTPUT = "/dev/ttyS1"  # ttyS0 is the kernel's
QEMU = "qemu-system-x86_64"
# noearly: thousands of reads of the PCI configuration, each of them slow where a machine is emulated twice.
KERNEL_OPTIONS = "console=ttyS0 quiet panic=-1 random.trust_cpu=on mitigations=off pci=noearly"
PACKAGES = ("qemu-system-x86", "busybox-static")


def find_qemu() -> tuple[str, str]:
    """QEMU and busybox."""
    found = []
    for name in (QEMU, "busybox"):
        path = shutil.which(name)
        if path is None:
            raise MissingTool(name, *PACKAGES)
        found.append(path)

    return found[0], found[1]


def qemu_arguments(kernel: Kernel, initrd: Path, *, memory: str, writable: Sequence[Path] = ()) -> list[str]:
    """Everything but the accelerator, the processor, the consoles and what is special to one machine."""
    return [
        *("-M", "pc", "-m", memory),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-kernel", str(kernel.image), "-initrd", str(initrd)),
        *("-append", KERNEL_OPTIONS),
        *share("root", Path("/"), "readonly=on,multidevs=remap"),
        *(word for tag, path in shares(writable) for word in share(tag, path, "multidevs=remap")),
    ]


def share(tag: str, path: Path, options: str) -> tuple[str, ...]:
    quoted = str(path).replace(",", ",,")  # QEMU's own escape

    return (
        *("-fsdev", f"local,id={tag},path={quoted},security_model=none,{options}"),
        *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    )


def shares(writable: Iterable[Path]) -> list[tuple[str, Path]]:
    return [(f"writable{number}", path.resolve()) for number, path in enumerate(writable)]


def write_initramfs(
    file: Path, kernel: Kernel, modules: Sequence[str], job: Job, busybox: str, copied: Iterable[Path] = ()
) -> None:
    """Write the initramfs of a machine that runs a job; the files in `copied` it finds in memory instead of the shared tree."""
    tags = {path: tag for tag, path in shares(job.writable)}

    def share_writable(path: Path) -> str:
        quoted = shlex.quote(str(path))
        return (
            f"bb mkdir -p {quoted}; "
            f"bb mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 {tags[path]} {quoted}"
        )

    init = "\n".join(
        [
            "#!/bin/busybox sh",
            variables(busybox=busybox, modules=" ".join(modules), inside=job.script(share_writable)),
            (HERE / "vm.sh").read_text(),
        ]
    )
    with file.open("wb") as archive:
        write_cpio(
            archive,
            {
                "init": init.encode(errors="surrogateescape"),
                "bin/busybox": Path(busybox),
                "copied": None,
                "dev": None,
                **{f"modules/{name}.ko": kernel.module(name) for name in modules},
                **{f"copied{path.resolve()}": path for path in copied},
            },
        )


def write_cpio(archive: BinaryIO, files: Mapping[str, bytes | Path | None]) -> None:
    """Write a `newc` archive of files, with their content or as copies, and directories (None).

    The format is that of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    directories = dict.fromkeys(
        str(parent) for name in files for parent in reversed(PurePosixPath(name).parents[:-1])
    )

    for inode, (name, content) in enumerate({**directories, **files, "TRAILER!!!": b""}.items(), start=1):
        mode, mtime = stat.S_IFREG | 0o755, 0
        if content is None:
            mode, content = stat.S_IFDIR | 0o755, b""
        elif isinstance(content, Path):
            # Python trusts a .pyc only if the time of its source has not changed.
            mtime, content = int(content.stat().st_mtime), content.read_bytes()

        path = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, mtime, len(content), 0, 0, 0, 0, len(path), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields) + path
        archive.write(header + bytes(-len(header) % 4))
        archive.write(content + bytes(-len(content) % 4))
