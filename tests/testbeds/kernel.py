"""Debian's kernel, for the virtual machines: downloaded and unpacked into the repository, not installed."""

from __future__ import annotations

import lzma
import shutil
import struct
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .job import HERE, MissingTool

__all__ = ["Kernel", "find_kernel"]

CACHE = HERE.parents[1] / ".cache/testbeds"
METAPACKAGE = "linux-image-amd64"  # the `cloud` flavour has no 9p

# In the order of insertion: nothing here needs one that comes later.
ROOT_MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "netfs",
    "fscache",
    "9pnet",
    "9pnet_virtio",
    "9p",
    "overlay",
)
VSOCK_MODULES = ("vsock", "vmw_vsock_virtio_transport_common")
GUEST_MODULES = (*ROOT_MODULES, *VSOCK_MODULES, "vmw_vsock_virtio_transport")
HOST_MODULES = (
    *ROOT_MODULES,
    *VSOCK_MODULES,
    "vsock_loopback",
    "vhost_iotlb",
    "vhost",
    "vhost_vsock",
    "irqbypass",
    "kvm",
    "ccp",
    "kvm-amd",  # the processor that QEMU emulates has AMD's extensions
)
MODULES = tuple(dict.fromkeys((*GUEST_MODULES, *HOST_MODULES)))


@dataclass(frozen=True, slots=True)
class Kernel:
    """A directory with the kernel and its modules, without their tree."""

    directory: Path

    @property
    def image(self) -> Path:
        return self.directory / "kernel"

    def module(self, name: str) -> bytes:
        return (self.directory / f"{name}.ko").read_bytes()


def find_kernel() -> Kernel:
    """The cached kernel, or a fresh one from Debian's archive.

    Raises:
        MissingTool: there is none, and apt cannot download one.
    """
    cached = sorted(CACHE.glob("linux-image-*/kernel"), key=lambda path: path.stat().st_mtime)
    if cached:
        return Kernel(cached[-1].parent)

    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise MissingTool("apt, and with it Debian's kernel,", "apt", "dpkg")

    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as name:
        directory = Path(name)
        package = download(directory)
        unpacked = directory / "kernel"
        unpacked.mkdir()
        unpack(package, unpacked)

        # Last, in one step: a directory with this name is complete.
        return Kernel(unpacked.rename(CACHE / package.stem))


def download(directory: Path) -> Path:
    depends = subprocess.run(
        ["apt-cache", "depends", "--important", METAPACKAGE], capture_output=True, text=True, check=False
    ).stdout
    names = [line.split()[-1] for line in depends.splitlines() if "Depends: linux-image-" in line]
    if not names:
        raise MissingTool(f"{METAPACKAGE} in apt's lists (apt-get update)", METAPACKAGE)

    # apt's own user may not write here; nothing is installed.
    command = ["apt-get", "--quiet", "-o", "APT::Sandbox::User=", "download", names[0]]
    if subprocess.run(command, cwd=directory, stdout=subprocess.DEVNULL, check=False).returncode != 0:
        raise MissingTool(f"{names[0]}, which could not be downloaded,", METAPACKAGE)

    return next(directory.glob("*.deb"))


def unpack(package: Path, directory: Path) -> None:
    wanted = {"kernel", *MODULES}

    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as dpkg:
        assert dpkg.stdout is not None
        with tarfile.open(fileobj=dpkg.stdout, mode="r|") as archive:
            for member in archive:
                path = Path(member.name)
                module, ko, compressed = path.name.partition(".ko")
                name = "kernel" if path.match("boot/vmlinuz-*") else module if ko else ""
                if name not in wanted:
                    continue

                source = archive.extractfile(member)
                assert source is not None
                content = source.read()
                if name == "kernel":
                    (directory / name).write_bytes(uncompressed(content))
                else:
                    (directory / f"{name}.ko").write_bytes(
                        lzma.decompress(content) if compressed else content
                    )
                wanted.discard(name)

    if wanted:
        raise RuntimeError(f"{package.name} lacks {', '.join(sorted(wanted))}")


def uncompressed(image: bytes) -> bytes:
    """The kernel inside a compressed image: a machine that is emulated twice takes long to decompress it by itself.

    The fields are those of the kernel's Documentation/x86/boot.rst. What is not compressed with xz is left as it is; QEMU
    starts both.
    """
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[(setup_sectors + 1) * 512 + offset :][:length]

    if not payload.startswith(b"\xfd7zXZ\0"):
        return image

    return lzma.LZMADecompressor().decompress(payload)  # the uncompressed length follows the stream
