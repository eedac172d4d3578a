"""Two kernels and a virtio-vsock device between them: these tests run on the host, `agent` runs in the guest."""

from __future__ import annotations
