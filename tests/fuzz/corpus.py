"""Run the inputs that the fuzzer starts from, once: for a checker of memory, under which fuzzing itself would take hours."""

from __future__ import annotations

import gc

from aiohvsock._compiled import speedups

from . import bare, native

__all__ = ["main"]


def main() -> None:
    if speedups is None:
        raise SystemExit("needs the compiled module: AIOHVSOCK_PURE=0, and a compiler")
    for target in (native, bare):
        inputs = list(target.seeds())
        for each in inputs:
            target.one_input(each)
        print(f"{target.__name__}: {len(inputs)} inputs")
    gc.collect()


if __name__ == "__main__":
    main()
