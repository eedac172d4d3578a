from __future__ import annotations

import socket
import sys

import pytest

from ..conftest import Pair


@pytest.fixture
def pair(pair: Pair) -> Pair:
    """Those of all tests; where the system's buffers grow as they fill, they are kept small, to be full some time."""
    if sys.platform != "win32":
        return pair

    def make() -> tuple[socket.socket, socket.socket]:
        made = pair()
        for sock in made:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, 64 * 1024)
        return made

    return make
