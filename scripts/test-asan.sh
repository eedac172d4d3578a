#!/bin/sh
# The inner loops in C under AddressSanitizer: the fuzzer's corpus, and the tests that feed the decoder and the connection.
# Then the corpus once more, under its leak checker: what is left at the end must not be.
set -eu
into=$PWD/.cache/asan
rm -rf "$into" && mkdir -p "$into"
git ls-files -z aiohvsock tests docs examples README.md pyproject.toml hatch_build.py | xargs -0 cp --parents -t "$into"
cd "$into"
python=$OLDPWD/.venv/bin/python
export CFLAGS="-fsanitize=address -fno-omit-frame-pointer" LDFLAGS="-fsanitize=address"
"$python" -c "import hatch_build, pathlib; hatch_build.compile_speedups(pathlib.Path.cwd())"

# Python's own allocator would hide what is read or written beside an object. The first run looks for no leaks: pytest has its own.
export PYTHONMALLOC=malloc AIOHVSOCK_PURE=0
ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD=$(gcc -print-file-name=libasan.so) AIOHVSOCK_KIND=hybrid \
    "$python" -m pytest -p no:cacheprovider -o timeout=120 -o asyncio_debug=false -q \
    tests/fuzz tests/framing/test_room.py tests/test_waiter.py tests/test_protocol.py tests/test_protocol_runs.py tests/messages
ASAN_OPTIONS=detect_leaks=1 LD_PRELOAD=$(gcc -print-file-name=libasan.so) "$python" -m tests.fuzz.corpus
