"""Run a command in a virtual machine that is a vsock host: it can start virtual machines of its own.

    python -m tests.testbeds.qemu -- python -m pytest tests/testbeds/two_kernels

QEMU runs it in software, so it needs neither root nor a hypervisor. The host's tree is the root of the machine, under a layer
that forgets what is written.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from .job import DEFAULT_TIMEOUT, Job, main, supervise
from .kernel import HOST_MODULES, find_kernel
from .vm import OUTPUT, find_qemu, qemu_arguments, write_initramfs

__all__ = ["run"]


def run(
    command: Sequence[str],
    *,
    timeout: float = DEFAULT_TIMEOUT,
    memory: str = "2G",
    writable: Sequence[Path] = (),
    output: BinaryIO | None = None,
) -> int:
    """Run a command in a virtual machine with vhost-vsock and nested KVM and return its exit status.

    Args:
        timeout: seconds, the boot included.
        memory: of the machine, as QEMU takes it.
        writable: directories that are shared read-write.
        output: where the command's output goes; None for standard output.

    Raises:
        MissingTool: QEMU or busybox is not installed, or Debian's kernel cannot be downloaded.
    """
    qemu, busybox = find_qemu()
    kernel = find_kernel()
    job = Job(command, testbed="qemu", busybox=busybox, output=OUTPUT, writable=writable)

    with tempfile.TemporaryDirectory(prefix="aiohvsock-qemu-") as name:
        log = Path(name) / "console"
        initrd = Path(name) / "initrd"
        write_initramfs(initrd, kernel, HOST_MODULES, job, busybox)

        with log.open("wb") as log_file:
            machine = subprocess.Popen(
                [
                    qemu,
                    *("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-no-reboot"),
                    *qemu_arguments(kernel, initrd, memory=memory, writable=writable),
                    *("-chardev", "file,id=log,path=/dev/fd/2", "-serial", "chardev:log", "-serial", "stdio"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log_file,
                bufsize=0,
                start_new_session=True,
            )
        assert machine.stdout is not None
        with machine.stdout as console:
            return supervise(machine, console, job.token, log=log, timeout=timeout, output=output)


if __name__ == "__main__":
    sys.exit(main("python -m tests.testbeds.qemu", run, memory="2G"))
