"""A host and its virtual machines talk without a network: Hyper-V sockets, AF_VSOCK and hybrid vsock for asyncio.

Below, streams and transports with asyncio's own grammar: :func:`open_hv_connection`, :func:`start_hv_server`,
:func:`create_hv_connection`, :func:`create_hv_server`. Above, framed messages: :func:`connect`, :func:`serve`.
An address is a value or its text: ``vsock://2:2761``, ``hvsock://parent:2761``, ``vsock+unix:///run/vm.sock:2761``.
"""

from __future__ import annotations

from .addresses import (
    CID_ANY,
    CID_HOST,
    CID_LOCAL,
    PORT_ANY,
    VM_ID_ANY,
    VM_ID_BROADCAST,
    VM_ID_CHILDREN,
    VM_ID_LOOPBACK,
    VM_ID_PARENT,
    VM_ID_SILOHOST,
    Address,
    AddressLike,
    HybridAddress,
    HypervAddress,
    VsockAddress,
    parse_address,
    service_id,
    service_port,
)
from .dialling import Retry
from .endpoints import create_hv_connection, create_hv_server
from .exceptions import (
    ConnectionClosed,
    ConnectionClosedOK,
    ConnectionLost,
    FrameTooLarge,
    FramingError,
    HvAddressError,
    HvConnectError,
    HvConnectionRefused,
    HvError,
    HvPermissionError,
    HvTimeout,
    HvUnsupportedError,
    IncompleteFrame,
    LocalProtocolError,
    ProtocolError,
)
from .messages import ConnectionStats, MessageConnection, MessageServer, connect, is_transient, serve
from .protocol import CloseCode
from .server import HvServer
from .streams import open_hv_connection, start_hv_server

__all__ = [
    "CID_ANY",
    "CID_HOST",
    "CID_LOCAL",
    "PORT_ANY",
    "VM_ID_ANY",
    "VM_ID_BROADCAST",
    "VM_ID_CHILDREN",
    "VM_ID_LOOPBACK",
    "VM_ID_PARENT",
    "VM_ID_SILOHOST",
    "Address",
    "AddressLike",
    "CloseCode",
    "ConnectionClosed",
    "ConnectionClosedOK",
    "ConnectionLost",
    "ConnectionStats",
    "FrameTooLarge",
    "FramingError",
    "HvAddressError",
    "HvConnectError",
    "HvConnectionRefused",
    "HvError",
    "HvPermissionError",
    "HvServer",
    "HvTimeout",
    "HvUnsupportedError",
    "HybridAddress",
    "HypervAddress",
    "IncompleteFrame",
    "LocalProtocolError",
    "MessageConnection",
    "MessageServer",
    "ProtocolError",
    "Retry",
    "VsockAddress",
    "connect",
    "create_hv_connection",
    "create_hv_server",
    "is_transient",
    "open_hv_connection",
    "parse_address",
    "serve",
    "service_id",
    "service_port",
    "start_hv_server",
]

__version__ = "0.1.0.dev0"
