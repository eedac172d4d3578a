#!/bin/sh
# The suite on real AF_VSOCK, in User Mode Linux. Without it, on a developer's machine, the rest of the tests
# still counts, and the line it prints says what to install; CI accepts no such excuse.
# What touches no socket is not run once more.
# It is slow there: a test gets more time, and asyncio's debug mode was on in the other run.
AIOHVSOCK_KIND=vsock .venv/bin/python -m tests.testbeds.uml --timeout 1800 -- .venv/bin/python -m pytest -p no:cacheprovider -o timeout=60 -o asyncio_debug=false \
    --ignore tests/framing --ignore tests/fuzz --ignore tests/hyperv --ignore tests/test_protocol.py --ignore tests/test_protocol_vectors.py --ignore tests/test_protocol_runs.py \
    "$@"
status=$?
if [ "$status" = 2 ] && [ -z "${CI:-}" ] && ! .venv/bin/python -m tests.testbeds.uml -- true 2>/dev/null; then
    echo "NOT TESTED on AF_VSOCK: User Mode Linux is missing, see above" >&2
    exit 0
fi
exit "$status"
