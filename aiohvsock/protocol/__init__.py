"""Message protocols as state machines: bytes in, messages and bytes out.

:class:`NativeProtocol` is our own, specified in ``docs/protocol.md``; :class:`BareProtocol` has the same methods
for a codec without all that. Neither knows a socket, an event loop, or a clock but the one it is given: whoever
drives them gives them what came (``receive()``), writes what ``data_to_send()`` returns, looks at ``events``, and
calls ``on_timer()`` when ``timer`` has come.
"""

from __future__ import annotations

from .bare import BareProtocol
from .base import MessageProtocol
from .events import CloseCode, Closed, Event, Failed, Frame, Opened, Pong
from .hello import MAX_MESSAGE, VERSION, Hello
from .native import NativeProtocol

__all__ = [
    "MAX_MESSAGE",
    "VERSION",
    "BareProtocol",
    "CloseCode",
    "Closed",
    "Event",
    "Failed",
    "Frame",
    "Hello",
    "MessageProtocol",
    "NativeProtocol",
    "Opened",
    "Pong",
]
