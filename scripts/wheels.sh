#!/bin/sh
# Build the sdist, and from it a pure wheel and a compiled one; try each in an environment of its own, away from the tree.
set -eu
rm -rf dist
.venv/bin/python -m build --sdist --outdir dist >/dev/null
for kind in pure compiled; do
    AIOHVSOCK_BUILD=$kind .venv/bin/pip wheel -q --no-deps --wheel-dir dist dist/*.tar.gz
done
.venv/bin/twine check --strict dist/*

root=$PWD
for wheel in dist/*.whl; do
    directory=$(mktemp -d)
    "$root/.venv/bin/python" -m venv "$directory/venv"
    "$directory/venv/bin/pip" install -q --no-index "$root/$wheel"
    case $wheel in *-none-any.whl) compiled=False ;; *) compiled=True ;; esac
    (
        cd "$directory"
        venv/bin/python -c "from aiohvsock._compiled import speedups; assert (speedups is not None) is $compiled, speedups"
        venv/bin/python "$root/examples/hello.py"
        venv/bin/aiohvsock doctor >/dev/null
    )
    rm -r "$directory"
    echo "$wheel works as installed"
done
