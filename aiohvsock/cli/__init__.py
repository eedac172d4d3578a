"""The command line: ``aiohvsock demo`` and ``aiohvsock doctor``.

Data goes to stdout, words about it to stderr; the exit status is 0, 1 for a failure, 2 for a wrong call.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .. import __version__
from ..exceptions import HvError
from . import demo, doctor
from .output import OutputLost, without_output

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave the process with its exit status.

    Args:
        argv: the arguments, without the program's name; None is ``sys.argv[1:]``.

    Raises:
        SystemExit: always.
    """
    parser = argparse.ArgumentParser(
        prog="aiohvsock", description="A host and its virtual machines talk without a network."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo.add_parser(commands)
    doctor.add_parser(commands)
    arguments = parser.parse_args(argv)
    try:
        status = arguments.run(arguments)
    except KeyboardInterrupt:
        status = 130
    except HvError as error:
        print(f"aiohvsock: {error}", file=sys.stderr)
        status = 1
    except OutputLost as lost:
        without_output(lost)
        status = 1
    sys.exit(status)
