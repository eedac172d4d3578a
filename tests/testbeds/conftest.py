"""Which of these tests belong on this machine: told by the testbed itself, never found out by probing."""

from __future__ import annotations

import os
import sys

testbed = os.environ.get("AIOHVSOCK_TESTBED")

collect_ignore = []
if sys.platform != "linux":
    collect_ignore.append("test_job.py")
if sys.platform != "linux" or testbed is not None:
    collect_ignore.append("test_uml.py")  # a testbed starts no testbed
if testbed != "qemu":
    collect_ignore.append("two_kernels")
