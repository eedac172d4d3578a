"""How fast aiohvsock is, as a share of what C reaches on the same machine in the same minute.

Run ``python -m benchmarks`` (or ``make bench``); ``--quick`` for a smoke run, ``--list`` for the contenders,
``--markdown`` for the README's tables of the last whole run.

==================  ====================================================================================
`contenders`        what is measured (workloads), on what (contenders), and the gates
`workloads/`        each workload's two ends, for every API; `c/` is the same in C
`worker`            the process a Python contender runs in; it tells the harness "ready", "go" and a result
`processes`         one measurement: a server and a client process, pinned, timed, killed when they hang
`competition`       rounds, shuffling, repetition of disturbed measurements, ratios
`report`            the table, the gates, the JSON
`markdown`          the tables of the README
==================  ====================================================================================

AF_UNIX stands in for the families of the package, so that the figures can be had on any Linux machine.
"""

from __future__ import annotations
