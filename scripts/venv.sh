#!/bin/sh
# Make .venv with a pip that knows dependency groups. Debian keeps ensurepip in a package of its own.
set -eu
python=${1:-python3}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "aiohvsock needs Python 3.11 or newer; try: make PYTHON=python3.11 ..." >&2
    exit 1
}
"$python" -c 'import ensurepip' 2>/dev/null || sh "$(dirname "$0")/packages.sh" python3-venv
"$python" -m venv .venv || {
    rm -rf .venv
    echo "$python cannot make virtual environments; try: apt-get install python3-venv" >&2
    exit 1
}
.venv/bin/pip install -q --upgrade 'pip>=25.1'
