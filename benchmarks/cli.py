"""The command line."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import baseline, machine, markdown, report
from .competition import compete
from .contenders import WORKLOADS, select
from .processes import Bench

__all__ = ["main"]

_RESULTS = Path(__file__).with_name("results") / "latest.json"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure aiohvsock against C.")
    parser.add_argument(
        "--list", action="store_true", help="print the contenders, and which can't take part here"
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="contenders whose name (as --list prints it) has this text in it, or matches this glob; repeatable",
    )
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=0.8, help="one measurement takes about this, %(default)s"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one short round: does it run? The figures mean little"
    )
    parser.add_argument(
        "--cores",
        type=int,
        choices=[1, 2],
        help="for server and client together, instead of what each workload has: two for raw, one for the others",
    )
    parser.add_argument("--timeout", type=float, default=30.0, help="for one measurement, %(default)s s")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where the results are kept; default benchmarks/results/latest.json, if everything is measured",
    )
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="measure nothing, print the README's tables of the results kept",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report. 1 when a contender failed to run, 130 when interrupted, otherwise 0 whatever the figures."""
    parser = _parser()
    options = parser.parse_args(argv)
    contenders = select(options.only)
    if not contenders:
        parser.error(f"no contender matches {' '.join(options.only)}; see --list")
    if options.list:
        for contender in contenders:
            reason = contender.missing()
            print(contender.key + (f"  (not available here: {reason})" if reason else ""))
        return 0
    if options.markdown:
        try:
            print(markdown.as_markdown(report.read_json(options.json or _RESULTS)))
        except (OSError, KeyError) as error:
            parser.error(f"no results of this version to print ({error!r}); measure first")
        return 0
    if options.json is None and not options.only and not options.quick:
        options.json = _RESULTS
    if options.quick:
        options.rounds, options.seconds = 1, 0.05
    try:
        return asyncio.run(_run(options))
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130


async def _run(options: argparse.Namespace) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)

    machine.allow_descriptors()
    cores = sorted(os.sched_getaffinity(0))
    # The harness keeps off the core that is always measured.
    os.sched_setaffinity(0, set(cores[1:] or cores))

    with tempfile.TemporaryDirectory(prefix="aiohvsock-bench-") as scratch:
        try:
            program = baseline.build(Path(scratch))
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        bench = Bench(program, tuple(cores), options.cores, options.seconds, options.timeout)
        entries = await compete(bench, select(options.only), options.rounds, 1 if options.quick else 3, _say)

    results = report.Results(
        date=datetime.date.today().isoformat(),
        machine=machine.describe(),
        rounds=options.rounds,
        seconds=options.seconds,
        cores={workload.name: bench.cores_for(workload) for workload in WORKLOADS},
        entries=entries,
    )
    print(report.as_text(results))
    if options.json:
        report.write_json(options.json, results)
        print(f"\nwritten to {options.json}")
    return 1 if any(entry.failure for entry in entries) else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
