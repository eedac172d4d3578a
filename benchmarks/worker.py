"""The process a Python contender's server or client runs in. Started by `processes`."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable

from .workloads import connect, serve
from .workloads.ends import measure


async def _connect(options: argparse.Namespace) -> None:
    run = await connect(options.workload, options.library, options.api, options.path, options.size)
    await measure(run, options.seconds)
    # The harness reads the CPU time of both processes first, and then ends the client before the server.
    sys.stdin.read()


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return asyncio.SelectorEventLoop


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.worker")
    parser.add_argument("role", choices=["server", "client"])
    for name in ("workload", "library", "api", "loop", "path"):
        parser.add_argument(name)
    parser.add_argument("size", type=int)
    parser.add_argument("deadline", type=int)
    parser.add_argument("seconds", type=float)
    options = parser.parse_args()

    signal.alarm(options.deadline)  # so that nothing is left behind when the harness is killed
    with asyncio.Runner(loop_factory=_loop_factory(options.loop)) as runner:
        if options.role == "server":
            runner.run(serve(options.workload, options.library, options.api, options.path))
        else:
            runner.run(_connect(options))


if __name__ == "__main__":
    main()
