#!/bin/sh
# The suite on Windows' own CPython, under Wine and with an AF_HYPERV of the tests: on 3.13 with each loop, on 3.12, the
# oldest that has these sockets, with Windows' default one. Without Wine, on a developer's machine, the rest of the
# tests still counts, and the line it prints says what to install; CI accepts no such excuse.
# What touches no socket is not run once more. A test gets more time, and asyncio's debug mode was on in the other run:
# Wine is slow to start processes and to look at files.
on() {
    python=$1
    shift
    AIOHVSOCK_KIND=hyperv .venv/bin/python -m tests.testbeds.wine --python "$python" --timeout 1800 -- \
        -m pytest -p no:cacheprovider -o timeout=60 -o asyncio_debug=false --ignore tests/framing --ignore tests/fuzz \
        --ignore tests/test_protocol.py --ignore tests/test_protocol_vectors.py --ignore tests/test_protocol_runs.py "$@"
}

on 3.13 "$@" &&
    AIOHVSOCK_LOOPS=proactor on 3.12 "$@" &&
    AIOHVSOCK_TESTBED_WINE=1 .venv/bin/python -m pytest -p no:cacheprovider tests/testbeds/test_wine.py
status=$?
if [ "$status" = 2 ] && [ -z "${CI:-}" ] && ! .venv/bin/python -m tests.testbeds.wine --no-provider -- -c pass 2>/dev/null; then
    echo "NOT TESTED on AF_HYPERV: Wine is missing, see above" >&2
    exit 0
fi
exit "$status"
