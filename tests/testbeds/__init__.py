"""What boots the same tests on real kernels: User Mode Linux, and a QEMU virtual machine with another inside it."""

from __future__ import annotations
