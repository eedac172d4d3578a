"""Messages over a VM socket: connect, serve, send, receive."""

from __future__ import annotations

from .client import connect, is_transient
from .connection import ConnectionStats, MessageConnection
from .service import MessageServer, serve

__all__ = ["ConnectionStats", "MessageConnection", "MessageServer", "connect", "is_transient", "serve"]
