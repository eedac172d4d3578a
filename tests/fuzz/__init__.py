"""Fuzzing what reads bytes from a peer: ``make fuzz``, or ``python -m tests.fuzz --help``.

A target is a module with ``one_input(data, tell)``, which makes a talk of any bytes, lets the real thing and a slow
reference have it, and raises where they differ; and with ``seeds()``, talks to begin with. They need no fuzzer: the
tests run them too.
"""

from __future__ import annotations
