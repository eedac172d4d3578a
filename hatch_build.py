"""Build the inner loops in C into a wheel, where there is a compiler; without one the wheel is pure Python.

The environment variable AIOHVSOCK_BUILD decides otherwise: ``pure`` builds none, ``compiled`` fails where it cannot.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
SOURCE = "aiohvsock/_speedups.pyx"
CHOICES = ("auto", "pure", "compiled")

# Without what is for debuggers, which is half of it.
_FLAGS = [] if sys.platform == "win32" else ["-O2", "-g0"]


class SpeedupsHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        choice = os.environ.get("AIOHVSOCK_BUILD") or "auto"
        if choice not in CHOICES:
            raise ValueError(f"AIOHVSOCK_BUILD must be one of {', '.join(CHOICES)}, not {choice!r}")
        if choice == "pure" or sys.implementation.name != "cpython":
            return
        # An editable install finds it beside its source.
        into = ROOT if version == "editable" else Path(self.directory) / "compiled"
        try:
            library = compile_speedups(into)
        except (Exception, SystemExit) as error:
            if choice == "compiled":
                raise
            self.app.display_warning(f"the inner loops are not compiled, and run in Python: {error}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"][str(library)] = f"aiohvsock/{library.name}"


def compile_speedups(into: Path) -> Path:
    """Compile the extension module below a directory; returns its file.

    Raises:
        Exception: there is no compiler, or Python's headers are missing.
    """
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    with tempfile.TemporaryDirectory() as temporary:
        extensions = cythonize(
            [Extension("aiohvsock._speedups", [str(ROOT / SOURCE)], extra_compile_args=_FLAGS)],
            build_dir=temporary,
            quiet=True,
        )
        distribution = Distribution({"name": "aiohvsock", "ext_modules": extensions})
        command: Any = distribution.get_command_obj("build_ext")
        command.build_lib = str(into)
        command.build_temp = temporary
        command.ensure_finalized()
        command.run()
        return Path(command.get_outputs()[0])
