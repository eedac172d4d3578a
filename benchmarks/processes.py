"""One measurement: a server and a client process, pinned, timed, and killed when they hang."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from .contenders import Contender, Workload
from .machine import Ticks, cpu_time, pinned, resident
from .workloads.links import dialled

__all__ = ["Bench", "ContenderFailed", "Sample"]

_ROOT = Path(__file__).parent.parent

# Debug modes and allocator settings of the caller's environment would be measured instead of the contender.
_UNWANTED = (
    "AIOHVSOCK_PURE",
    "PYTHONASYNCIODEBUG",
    "PYTHONDEVMODE",
    "PYTHONMALLOC",
    "PYTHONTRACEMALLOC",
    "PYTHONPROFILEIMPORTTIME",
)
_UNWANTED_PREFIXES = ("MALLOC_", "GLIBC_TUNABLES", "COVERAGE_")


class ContenderFailed(Exception):
    """A contender's process died, hung, or said something unexpected."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement, and how far it is to be trusted."""

    value: float
    seconds: float
    steal: float
    """The share of the cores' time that the hypervisor took."""
    others: float
    """The share of it that went to processes other than the two."""
    cpu: float
    """CPU seconds that both processes used for each second."""
    tries: int = 1

    @property
    def disturbance(self) -> float:
        return self.steal + self.others


@dataclass(frozen=True, slots=True)
class Bench:
    """How measurements are made: where, for how long, and with which program as C."""

    baseline: Path
    cores: tuple[int, ...]
    """Those there are, one at least."""
    cores_together: int | None
    """How many a server and its client have, when not what the workload says."""
    seconds: float
    timeout: float

    def cores_for(self, workload: Workload) -> tuple[int, int]:
        """The server's core and the client's."""
        return self.cores[0], self.cores[: self.cores_together or workload.cores][-1]

    async def measure(self, contender: Contender, workload: Workload) -> Sample:
        """Run one contender once.

        Raises:
            ContenderFailed: its processes didn't do what they should; the message has what they wrote.
        """
        with tempfile.TemporaryDirectory(prefix="aiohvsock-bench-") as directory:
            logs = [Path(directory, "server.log"), Path(directory, "client.log")]
            try:
                async with asyncio.timeout(self.timeout):
                    return await self._measure(contender, workload, Path(directory, "s"), *logs)
            except (TimeoutError, ContenderFailed) as error:
                reason = str(error) or f"no result in {self.timeout:g} s"
                said = [f"{log.stem}: {text}" for log in logs if log.exists() and (text := _tail(log))]
                raise ContenderFailed("\n".join([reason, *said])) from error

    async def _measure(
        self, contender: Contender, workload: Workload, path: Path, server_log: Path, client_log: Path
    ) -> Sample:
        server_core, client_core = cores = self.cores_for(workload)
        serve, connect = (self._command(role, contender, workload, path) for role in ("server", "client"))
        async with _running(serve, contender, server_core, server_log) as server:
            await _expect(server, "ready")
            async with _running(connect, contender, client_core, client_log) as client:
                await _expect(client, "go")
                assert client.stdin is not None and server.stdin is not None
                pids = (server.pid, client.pid)
                memory = resident(server.pid) if workload.memory else 0.0
                start, ticks, used = time.perf_counter(), Ticks.read(cores), sum(map(cpu_time, pids))
                if workload.memory:
                    client.stdin.write(b"\n")
                result = json.loads(await _line(client))
                elapsed, used = time.perf_counter() - start, sum(map(cpu_time, pids)) - used
                after = Ticks.read(cores)
                if workload.memory:
                    await asyncio.sleep(0.1)  # the server may have things to put away
                    memory = resident(server.pid) - memory
                client.stdin.close()
                if await client.wait():
                    raise ContenderFailed(f"the client ended with status {client.returncode}")
            # The server's own end tells whether it was well all along.
            server.stdin.close()
            if await server.wait():
                raise ContenderFailed(f"the server ended with status {server.returncode}")
        return Sample(
            memory / result["count"]
            if workload.memory
            else result["count"] * workload.per_count / result["seconds"],
            result["seconds"],
            steal=after.stolen_since(ticks),
            others=after.others_since(ticks, used),
            cpu=used / elapsed,
        )

    def _command(self, role: str, contender: Contender, workload: Workload, path: Path) -> list[str]:
        # The processes' own alarm is later than the harness's timeout: it is for when the harness is gone.
        tail = [str(workload.size), str(int(self.timeout) + 5), str(self.seconds)]
        if contender.library == "c" or (role == "client" and workload.client_in_c):
            return [
                *(str(self.baseline), role, workload.name),
                contender.dialect if workload.client_in_c else contender.api,
                dialled(contender.library, str(path)),
                *tail,
                str(workload.connections),
            ]
        return [
            *(sys.executable, "-m", "benchmarks.worker", role, workload.name),
            *(contender.library, contender.api, contender.loop),
            str(path),
            *tail,
        ]


def _environment(contender: Contender) -> dict[str, str]:
    return {"AIOHVSOCK_PURE": "0" if contender.compiled else "1"} | {
        name: value
        for name, value in os.environ.items()
        if name not in _UNWANTED and not name.startswith(_UNWANTED_PREFIXES)
    }


@asynccontextmanager
async def _running(
    command: Sequence[str], contender: Contender, core: int, log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process pinned to `core`, dead when the block is left."""
    with log.open("wb") as stderr, pinned(core):
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            cwd=_ROOT,
            env=_environment(contender),
            start_new_session=True,  # Ctrl-C is for the harness, which ends its processes itself
        )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode().strip()
    if not line:
        raise ContenderFailed(f"process {process.pid} ended early")
    return line


async def _expect(process: asyncio.subprocess.Process, word: str) -> None:
    if (line := await _line(process)) != word:
        raise ContenderFailed(f"said {line!r} instead of {word!r}")


def _tail(log: Path, lines: int = 12) -> str:
    return "\n    ".join(log.read_text(errors="replace").splitlines()[-lines:])
