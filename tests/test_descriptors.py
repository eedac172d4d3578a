from __future__ import annotations

import contextlib
import gc
import os
import socket

from .descriptors import open_sockets


def test_sockets_are_found_whoever_owns_them() -> None:
    before = open_sockets()
    a, b = socket.socketpair()
    handle = a.detach()
    assert len(open_sockets() - before) == 2
    b.close()
    assert len(open_sockets() - before) == 1
    socket.close(handle)
    assert open_sockets() == before


def test_what_is_no_socket_does_not_count() -> None:
    before = open_sockets()
    with contextlib.ExitStack() as files:
        for _ in range(200):
            files.enter_context(open(os.devnull))
        assert open_sockets() == before
        # One with a number far from all others.
        with socket.socket():
            assert len(open_sockets() - before) == 1
    gc.collect()
    assert open_sockets() == before
