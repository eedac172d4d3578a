"""What boots the same tests on real kernels.

``uml``   User Mode Linux, an ordinary process: the real AF_VSOCK with its loopback, in 2 s::

              python -m tests.testbeds.uml -- python -m pytest

``qemu``  a virtual machine that is a vsock host and starts guests of its own (`guest`), all in software::

              python -m tests.testbeds.qemu -- python -m pytest tests/testbeds/two_kernels

A command runs on the host's tree and leaves no trace there. It finds the name of its testbed in AIOHVSOCK_TESTBED: only where
that is set may a test send anything over AF_VSOCK, for elsewhere CIDs 0, 1 and 2 can be a stranger's host.
"""

from __future__ import annotations
