"""The demo between two kernels: the host agent here, the guest agent in a guest. Runs inside the `qemu` testbed.

python -m tests.testbeds.qemu -- python -m tests.testbeds.demo_vm
"""

from __future__ import annotations

import subprocess
import sys

from .guest import Guest

ADDRESS = "vsock://host:2761"
DEMO = [sys.executable, "-m", "aiohvsock", "demo", "--role"]


def main() -> int:
    with Guest([*DEMO, "guest", ADDRESS], echo=sys.stdout) as guest:
        guest.start()
        # The agents give up after some seconds, and a guest that is emulated takes long to start Python.
        guest.wait_for_output("calling")
        host = subprocess.Popen([*DEMO, "host", "vsock://any:2761"])
        try:
            return max(guest.wait(), abs(host.wait(timeout=30)))
        finally:
            host.kill()
            host.wait()


if __name__ == "__main__":
    sys.exit(main())
