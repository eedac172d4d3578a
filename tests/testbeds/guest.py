"""A virtual machine started inside the `qemu` testbed: for the tests there, this machine is the host and that one the guest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from .job import Job, Verdict
from .kernel import GUEST_MODULES, find_kernel
from .vm import OUTPUT, find_qemu, qemu_arguments, write_initramfs

__all__ = ["Guest"]


class Guest:
    """A guest that runs one command; what the command prints is in `output`, and what it ever printed in `history`.

    Its root is this machine's tree, under a layer that forgets what is written. The methods block, so that one guest serves
    tests on different event loops; all but `start()` and the waiting ones return within milliseconds.

    Args:
        command: what it runs; again after each `reset()`.
        cid: its CID.
        memory: as QEMU takes it.
        echo: where what the command prints is copied to.
    """

    def __init__(
        self, command: Sequence[str], *, cid: int = 3, memory: str = "512M", echo: TextIO | None = None
    ) -> None:
        qemu, busybox = find_qemu()
        kernel = find_kernel()
        job = Job(command, testbed="guest", busybox=busybox, output=OUTPUT)

        self.cid = cid
        self.output = ""
        self.history = ""
        self._echo = echo
        self._changed = threading.Condition()
        self._token = job.token
        self._verdict = Verdict(job.token)
        self._process: subprocess.Popen[bytes] | None = None

        self._directory = tempfile.TemporaryDirectory(prefix="aiohvsock-guest-")
        self._log = Path(self._directory.name) / "console"
        initrd = Path(self._directory.name) / "initrd"
        write_initramfs(initrd, kernel, GUEST_MODULES, job, busybox, copied=loaded_files())
        self._arguments = [
            qemu,
            *("-accel", "kvm", "-cpu", "host", "-name", f"guest-{self.cid}"),
            *qemu_arguments(kernel, initrd, memory=memory),
            # vhost can miss what the guest sends in the moment of a pause: it has no queues then (vhost/vsock.c,
            # vhost_vsock_handle_tx_kick()), and does not look again. With event_idx the guest would never tell it
            # again, and all that it sends were stuck until it is reset; without, its next packet frees them.
            *("-device", f"vhost-vsock-pci,guest-cid={self.cid},event_idx=off"),
            *("-chardev", f"file,id=log,path={self._log}", "-serial", "chardev:log"),
            *("-qmp", "stdio"),
        ]

    @property
    def running(self) -> bool:
        """Whether it is switched on; a paused guest is."""
        return self._process is not None

    def start(self) -> None:
        """Switch it on; returns when QEMU runs, long before the command does."""
        assert not self.running
        self._ended = False
        self._forget_output()

        reading, writing = os.pipe()
        with open(writing, "wb", buffering=0):
            self._process = subprocess.Popen(
                [
                    *self._arguments,
                    *("-chardev", f"file,id=output,path=/dev/fd/{writing}", "-serial", "chardev:output"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[writing],
            )
        self._reader = threading.Thread(target=self._read_output, args=[reading], daemon=True)
        self._reader.start()

        try:
            self._receive()  # the greeting
            self._execute("qmp_capabilities")
        except BaseException:
            self.kill()
            raise

    def wait_for_output(self, text: str, timeout: float = 120) -> None:
        """Wait until the command has printed `text`, since the last start or reset."""
        self._wait(lambda: text in self.output, timeout, f"printing {text!r}")

    def wait(self, timeout: float = 120) -> int:
        """Wait until the command has ended, and return its exit status."""
        self._wait(lambda: self._verdict.status is not None, timeout, "a verdict")
        assert self._verdict.status is not None

        return self._verdict.status

    def pause(self) -> None:
        """Stop its processors and its clock; returns when they stand still."""
        self._execute("stop")

    def resume(self) -> None:
        self._execute("cont")

    def freeze(self) -> None:
        """Stop QEMU itself, as in a host that is suspended: the guest's clock runs on. Returns when it is so."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def reset(self) -> None:
        """Press the reset button; returns when that has happened, before the new boot."""
        self._forget_output()
        self._execute("system_reset", until="RESET")

    def kill(self) -> None:
        """End it with no warning, as if the host pulled the plug; returns when its process is gone."""
        process, self._process = self._process, None
        if process is None:
            return

        process.kill()
        process.communicate()
        self._reader.join()

    def close(self) -> None:
        """Kill it unless it is dead, and clean up."""
        self.kill()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def report(self) -> str:
        """What the command and the kernel said last, for a failing test."""
        log = self._log.read_text(errors="replace").splitlines()[-20:] if self._log.exists() else []

        return "\n".join(["-- output:", *self.output.splitlines()[-40:], "-- console:", *log])

    def _wait(self, happened: Callable[[], bool], timeout: float, what: str) -> None:
        deadline = time.monotonic() + timeout
        with self._changed:
            while not happened():
                if self._ended:
                    raise EOFError(f"the guest ended without {what}\n{self.report()}")
                if not self._changed.wait(deadline - time.monotonic()):
                    raise TimeoutError(f"the guest is not {what} within {timeout:g} s\n{self.report()}")

    def _forget_output(self) -> None:
        with self._changed:
            self.output = ""
            self._verdict = Verdict(self._token)

    def _read_output(self, fd: int) -> None:
        with open(fd, "rb", buffering=0) as console:
            while data := console.read(2**16):
                with self._changed:
                    text = self._verdict.feed(data).decode(errors="replace")
                    self.output += text
                    self.history += text
                    self._changed.notify_all()
                if self._echo is not None:
                    self._echo.write(text)
                    self._echo.flush()

        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _execute(self, command: str, *, until: str | None = None) -> None:
        """Run a QMP command, and wait for its answer and, if told so, for an event."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps({"execute": command}).encode() + b"\n")
        self._process.stdin.flush()

        answered, happened = False, until is None
        while not (answered and happened):
            message = self._receive()
            if "error" in message:
                raise RuntimeError(f"{command}: {message['error']}")
            answered |= "return" in message
            happened |= message.get("event") == until

    def _receive(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EOFError(f"QEMU has ended\n{self.report()}")

        message: dict[str, Any] = json.loads(line)
        return message


def loaded_files() -> set[Path]:
    """The files that this process has loaded.

    A guest that runs Python needs many of the same, and looking for one through two shared trees takes milliseconds.
    """
    modules = {
        getattr(module, name, None)
        for module in list(sys.modules.values())
        for name in ("__file__", "__cached__")
    }
    mapped = {
        line.split(maxsplit=5)[5] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line
    }
    return {Path(name).resolve() for name in modules | mapped if name is not None and os.path.isfile(name)}
