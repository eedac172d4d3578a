#!/bin/sh
# The suite on Windows' own CPython, under Wine and with an AF_HYPERV of the tests: the whole on 3.13; and on 3.12, the
# oldest that has these sockets, what touches them. Without Wine, on a developer's machine, the rest of the tests
# still counts, and the line it prints says what to install; CI accepts no such excuse.
# A test gets more time: Wine is slow to start processes.
on() {
    python=$1
    shift
    AIOHVSOCK_KIND=hyperv .venv/bin/python -m tests.testbeds.wine --python "$python" --timeout 3600 -- \
        -m pytest -p no:cacheprovider -o timeout=60 "$@"
}

on 3.13 "$@" &&
    on 3.12 tests/platforms tests/testbeds tests/transports \
        tests/test_endpoints.py tests/test_server.py tests/test_streams.py tests/messages/test_connection.py "$@" &&
    AIOHVSOCK_TESTBED_WINE=1 .venv/bin/python -m pytest -p no:cacheprovider tests/testbeds/test_wine.py
status=$?
if [ "$status" = 2 ] && [ -z "${CI:-}" ] && ! .venv/bin/python -m tests.testbeds.wine --no-provider -- -c pass 2>/dev/null; then
    echo "NOT TESTED on AF_HYPERV: Wine is missing, see above" >&2
    exit 0
fi
exit "$status"
