"""Run a command on a Linux kernel of its own, as an ordinary process: User Mode Linux with the vsock loopback.

    python -m tests.testbeds.uml -- python -m pytest

The host's tree is the root of the machine, under a layer that forgets what is written. CIDs 1 and 2 are the machine's own
loopback: nothing that the command sends can leave it. Needs neither root nor a hypervisor.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from .job import DEFAULT_TIMEOUT, HERE, Job, MissingTool, main, supervise, variables

__all__ = ["run"]

PACKAGES = ("user-mode-linux", "busybox-static")
MODULES = Path("/usr/lib/uml/modules")
VSOCK_MODULES = ("vsock", "vmw_vsock_virtio_transport_common", "vsock_loopback", "vsock_diag")


def run(
    command: Sequence[str],
    *,
    timeout: float = DEFAULT_TIMEOUT,
    memory: str = "1G",
    writable: Sequence[Path] = (),
    output: BinaryIO | None = None,
) -> int:
    """Run a command in User Mode Linux with AF_VSOCK loopback and return its exit status.

    Args:
        timeout: seconds, the boot included.
        memory: of the machine, as the kernel's ``mem=`` takes it.
        writable: directories that are shared read-write.
        output: where the command's output goes; None for standard output.

    Raises:
        MissingTool: User Mode Linux, its modules or busybox are not installed.
    """
    kernel, modules, busybox = find_tools()
    job = Job(command, testbed="uml", busybox=busybox, output="/dev/tty1", writable=writable)

    with tempfile.TemporaryDirectory(prefix="aiohvsock-uml-") as name:
        directory = Path(name)
        log = directory / "console"
        init = directory / "init"
        init.write_text(init_script(job, modules, busybox))
        init.chmod(0o755)

        reading, writing = os.pipe()
        with open(reading, "rb", buffering=0) as console:
            with open(writing, "wb", buffering=0) as machine_console, log.open("wb") as log_file:
                machine = subprocess.Popen(
                    [
                        kernel,
                        f"mem={memory}",
                        "rootfstype=hostfs",
                        "root=/dev/root",
                        "ro",
                        f'init="{init}"',
                        f"uml_dir={directory}",
                        "umid=machine",
                        "quiet",
                        "con=null",
                        "con0=null,fd:1",
                        f"con1=null,fd:{machine_console.fileno()}",
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=subprocess.STDOUT,
                    pass_fds=[machine_console.fileno()],
                    start_new_session=True,
                    env={**os.environ, "TMPDIR": memory_directory()},
                )

            return supervise(machine, console, job.token, log=log, timeout=timeout, output=output)


def init_script(job: Job, modules: Path, busybox: str) -> str:
    def share_writable(path: Path) -> str:
        quoted = shlex.quote(str(path))
        return f"bb mkdir -p {quoted}; bb mount -t hostfs -o {quoted} hostfs {quoted}"

    return "\n".join(
        [
            f"#!{busybox} sh",
            variables(
                busybox=busybox,
                modules=str(modules),
                vsock_modules=" ".join(VSOCK_MODULES),
                inside=job.script(share_writable),
            ),
            (HERE / "uml.sh").read_text(),
        ]
    )


def find_tools() -> tuple[str, Path, str]:
    """The kernel, the directory of its modules, and busybox."""
    kernel = shutil.which("linux.uml")
    if kernel is None:
        raise MissingTool("linux.uml", *PACKAGES)

    busybox = shutil.which("busybox")
    if busybox is None:
        raise MissingTool("busybox", *PACKAGES)

    version = subprocess.run([kernel, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    modules = MODULES / version
    if not (modules / "kernel/net/vmw_vsock/vsock_loopback.ko").exists():
        raise MissingTool(f"vsock_loopback.ko for {kernel} ({version})", *PACKAGES)

    return kernel, modules, busybox


def memory_directory() -> str:
    """Where the kernel keeps the file that is its memory: in memory, unless a container made that too small."""
    shared_memory = Path("/dev/shm")
    if shared_memory.is_dir() and shutil.disk_usage(shared_memory).free > 2**30:
        return str(shared_memory)

    return tempfile.gettempdir()


if __name__ == "__main__":
    sys.exit(main("python -m tests.testbeds.uml", run, memory="1G"))
