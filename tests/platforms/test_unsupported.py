from __future__ import annotations

import socket
import sys
from typing import Any

import pytest

from aiohvsock import HvUnsupportedError, HybridAddress, VsockAddress
from aiohvsock.platforms import Options, platform_for, unsupported

ADDRESS = VsockAddress(2, 5)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (unsupported.native, (ADDRESS,)),
        (unsupported.open_socket, (Options(),)),
        (unsupported.dial, (None, ADDRESS)),
        (unsupported.names, (None, ADDRESS)),
        (unsupported.local, (None,)),
        (unsupported.listen, (ADDRESS, Options())),
    ],
)
def test_each_function_says_what_is_needed(function: Any, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(HvUnsupportedError, match="needs Linux"):
        function(*arguments)
    with pytest.raises(HvUnsupportedError):
        unsupported.failure(OSError(), "connect", remote=None, local=None)


def test_other_systems_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert platform_for(ADDRESS) is unsupported
    monkeypatch.delattr(socket, "AF_UNIX", raising=False)
    assert platform_for(HybridAddress("/x", 5)) is unsupported
