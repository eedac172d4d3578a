"""Asking a program, or a call that blocks, beside the event loop.

Not by asyncio's subprocesses: the selector loop on Windows has none, and the other loops create a process in the
loop's own thread, where a virus scanner can hold it up for seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import IO, Any, NamedTuple, Self, TypeVar

__all__ = ["NoAnswer", "Output", "in_thread", "program", "run"]

T = TypeVar("T")

# Bytes of output taken: some ten thousand machines.
_LIMIT = 2**20

# Seconds for what has been killed to be gone, so that who cancels finds nothing left.
_GRACE = 5.0


class NoAnswer(Exception):
    """One who was asked knows nothing.

    Args:
        reason: why, for people.
        absent: what should know is not installed here, so that there is nothing to know.
        denied: this user has not the right.
    """

    def __init__(self, reason: str, *, absent: bool = False, denied: bool = False) -> None:
        super().__init__(reason)
        self.absent = absent
        self.denied = denied


class Output(NamedTuple):
    """What a program that has ended leaves."""

    status: int
    text: str
    errors: str

    def said(self) -> str:
        """Return it on one short line, for an error."""
        words = " ".join(f"{self.errors} {self.text}".split())
        return f"it said {words[:200]!r} and exited with {self.status}"


async def in_thread(work: Callable[[], T], *, name: str, stop: Callable[[], None] | None = None) -> T:
    """Call something that blocks, in a thread of its own that no end of the process waits for.

    Cancelling it calls ``stop``, which is to make the call return, and waits for that. Without ``stop`` the
    thread is left alone.
    """
    loop = asyncio.get_running_loop()
    outcome: Future[T] = Future()
    done = asyncio.Event()

    def main() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(done.set)

    threading.Thread(target=main, name=f"aiohvsock: {name}", daemon=True).start()
    try:
        await done.wait()
    except asyncio.CancelledError:
        if stop is not None:
            stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GRACE):
                    await done.wait()
        raise
    return outcome.result()


def program(name: str) -> str:
    """Return the path of a program, by its name without ``.exe``.

    Raises:
        NoAnswer: it is not there.
    """
    found = _search(name) if sys.platform == "win32" else shutil.which(name)
    if found is None:
        raise NoAnswer(f"{name} is not on the PATH", absent=True)
    return found


def _search(name: str) -> str | None:
    # Not shutil.which(): on Windows it looks into the current directory first, and anybody may have put a program there.
    # A 32-bit Python sees the real System32 as Sysnative only.
    folders = [os.path.join(os.environ.get("SystemRoot", r"C:\Windows"), "Sysnative"), *os.get_exec_path()]
    suffixes = os.environ.get("PATHEXT", ".COM;.EXE;.BAT;.CMD").split(";")
    for folder in folders:
        for suffix in suffixes:
            path = os.path.join(folder, name + suffix)
            if os.path.isabs(path) and os.path.isfile(path):
                return path
    return None


async def run(arguments: Sequence[str]) -> Output:
    """Run a program without input, and return what it has written when it has ended.

    Cancelling it kills the program and all it has started.

    Raises:
        NoAnswer: it cannot be started, or wrote more than a MiB.
    """
    child = _Child(arguments)
    try:
        return await in_thread(child.run, name=os.path.basename(arguments[0]), stop=child.kill)
    except OSError as error:
        raise NoAnswer(f"{arguments[0]} cannot be run: {error}") from error


class _Child:
    """A process and all it starts."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = arguments
        self._lock = threading.Lock()
        self._killed = False
        self._kill: Callable[[], None] | None = None

    def run(self) -> Output:
        with _started(self._arguments) as (process, kill):
            with self._lock:
                self._kill = kill
                if self._killed:
                    kill()
            errors = bytearray()
            reader = threading.Thread(target=lambda: errors.extend(self._read(process.stderr)), daemon=True)
            reader.start()
            text = self._read(process.stdout)
            reader.join()
            status = process.wait()
            with self._lock:
                self._kill = None
        if max(len(text), len(errors)) > _LIMIT:
            raise NoAnswer(f"{self._arguments[0]} wrote more than {_LIMIT >> 20} MiB")
        return Output(status, _decode(text), _decode(bytes(errors)))

    def _read(self, stream: IO[bytes] | None) -> bytes:
        assert stream is not None
        data = stream.read(_LIMIT + 1)
        if len(data) > _LIMIT:
            self.kill()
        return data

    def kill(self) -> None:
        with self._lock:
            self._killed = True
            if self._kill is not None:
                self._kill()


def _decode(data: bytes) -> str:
    # wsl.exe writes UTF-16 without a mark, unless it is new enough for WSL_UTF8; of what it says itself, the ends of lines
    # have the zeros.
    encoding = "utf-16-le" if b"\0" in data else "utf-8"
    return data.decode(encoding, "replace").removeprefix("\ufeff")


@contextlib.contextmanager
def _started(arguments: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], None]]]:
    """Start a process; give it, and what kills it and all it has started.

    Programs are often only the first of several: the wsl.exe of Windows starts the one that was installed from
    the Store, and to kill the first leaves the other.
    """
    if sys.platform == "win32":
        # Suspended until it belongs to the job: what it had started before would not.
        flags = subprocess.CREATE_NO_WINDOW | _CREATE_SUSPENDED
        with _Job() as job, _popen(arguments, creationflags=flags) as process:
            try:
                job.add(process)
                _resume(process)
            except BaseException:
                process.kill()
                raise

            def kill() -> None:
                job.kill()
                process.kill()

            yield process, kill
    else:
        with _popen(arguments, start_new_session=True) as process:

            def kill() -> None:
                # Until it has been waited for, nobody else has its number.
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)

            yield process, kill


def _popen(arguments: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"WSL_UTF8": "1"},
        **options,
    )


if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    _CREATE_SUSPENDED = 0x4  # winbase.h

    def _resume(process: subprocess.Popen[bytes]) -> None:
        # By the process: subprocess has closed the handle of its thread, which ResumeThread() wants. It is not documented;
        # psutil and others rest on it.
        resume = ctypes.WinDLL("ntdll").NtResumeProcess
        resume.argtypes = [wintypes.HANDLE]
        resume.restype = ctypes.c_long
        if status := resume(int(process._handle)):  # type: ignore[attr-defined]
            raise OSError(f"it cannot be resumed: NTSTATUS {status & 0xFFFFFFFF:#010x}")

    class _Job:
        """A job object, which a process and its descendants cannot leave."""

        def __init__(self) -> None:
            self._kernel = kernel = ctypes.WinDLL("kernel32", use_last_error=True)
            kernel.CreateJobObjectW.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
            kernel.CreateJobObjectW.restype = wintypes.HANDLE
            kernel.AssignProcessToJobObject.argtypes = [wintypes.HANDLE, wintypes.HANDLE]
            kernel.TerminateJobObject.argtypes = [wintypes.HANDLE, wintypes.UINT]
            kernel.CloseHandle.argtypes = [wintypes.HANDLE]
            self._handle = kernel.CreateJobObjectW(None, None)
            if not self._handle:
                raise ctypes.WinError(ctypes.get_last_error())

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *error: object) -> None:
            self._kernel.CloseHandle(self._handle)

        def add(self, process: subprocess.Popen[bytes]) -> None:
            # It fails for one that has ended already.
            self._kernel.AssignProcessToJobObject(self._handle, int(process._handle))  # type: ignore[attr-defined]

        def kill(self) -> None:
            self._kernel.TerminateJobObject(self._handle, 1)
