"""The process that fuzzes: atheris, with coverage of the package and of nothing else.

``python -m tests.fuzz.engine TARGET [arguments of libFuzzer]``, as the command line starts it.
"""

from __future__ import annotations

import sys

import atheris

from .inputs import load


def main(name: str, *arguments: str) -> None:
    with atheris.instrument_imports(include=["aiohvsock"]):
        target = load(name)

    def one_input(data: bytes) -> None:
        target.one_input(data)

    atheris.Setup([sys.argv[0], *arguments], one_input)
    atheris.Fuzz()  # exits


if __name__ == "__main__":
    main(*sys.argv[1:])
