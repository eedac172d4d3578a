"""What the provider knows of its sockets."""

from __future__ import annotations

import sys
import threading

if sys.platform != "win32":
    raise ImportError("there is no Winsock here")

from uuid import UUID

from .options import Options
from .table import Claim, Connection
from .winsock import Address

__all__ = ["Socket", "Sockets"]


class Socket:
    """A socket of the family; below it is a TCP socket with the same handle.

    Args:
        partition: HOST, or the virtual machine that it is in.
    """

    def __init__(self, partition: UUID) -> None:
        self.partition = partition
        self.options = Options()
        self.blocking = True
        self.local: Address | None = None
        self.peer: Address | None = None
        self.vm_id: UUID | None = None
        """The virtual machine at one end of the connection; None on loopback."""

        self.claim: Claim | None = None

        self.error = 0
        """With what the connect under way will fail."""
        self.waiting: threading.Timer | None = None
        """Lets it fail once its time is up."""
        self.closed = threading.Event()

        self.connected = False
        self.connection: Connection | None = None
        self.overlapped = False
        """Read or written by overlapped operations."""
        self.breaks_pipe = False
        """The next end reads as ERROR_BROKEN_PIPE."""

    @property
    def was_reset(self) -> bool:
        return self.connection is not None and self.connection.was_reset

    def release(self) -> None:
        """Give back what it has beside its handle."""
        self.closed.set()
        if self.waiting is not None:
            self.waiting.cancel()
        if self.claim is not None:
            self.claim.release()


Sockets = dict[int, Socket]
"""By their handles, which the system uses again once they are closed."""
