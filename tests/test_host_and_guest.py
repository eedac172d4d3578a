"""The examples in two halves, between two partitions: here on AF_HYPERV, in tests/testbeds/two_kernels on AF_VSOCK."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

if sys.platform != "win32":
    pytest.skip("needs AF_HYPERV between two partitions: make test-windows has them", allow_module_level=True)

from aiohvsock.hyperv import register_service, unregister_service

from .testbeds import provider

EXAMPLES = Path(__file__).parents[1] / "examples" / "host_and_guest"

pytestmark = pytest.mark.skipif(
    "AIOHVSOCK_PROVIDER" not in os.environ, reason="needs a guest: make test-windows has one"
)


def start(example: str, partition: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / example)],
        env={**os.environ, "AIOHVSOCK_PARTITION": partition},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_echo(timeout: float = 15.0) -> None:
    vm_id = str(uuid.uuid4())
    provider.declare_vm(os.environ["AIOHVSOCK_PROVIDER"], vm_id, "windows")
    register_service("aiohvsock test: echo", 2761)
    host = start("echo_host.py", "host")
    try:
        assert host.stdout is not None
        assert host.stdout.readline() == "listening on hvsock://any:2761\n"
        guest = start("echo_guest.py", vm_id)
        said, _ = guest.communicate(timeout=timeout)
        assert said.splitlines() == [f"the host has said: {word}" for word in ("hello", "from", "a guest")]
        assert guest.returncode == 0
        assert host.stdout.readline().startswith(f"a guest has called: hvsock://{vm_id}/")
    finally:
        host.kill()
        host.communicate()
        unregister_service(2761)
