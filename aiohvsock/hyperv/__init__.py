"""What a host of machines has besides sockets: Hyper-V's registry of services, and the machines by name.

:func:`register_service` lets a service of your own in between the host and its virtual machines, and gives it a
name that addresses can have: ``hvsock://any/HV%20Socket%20Demo``. Nothing here is done by connecting or listening.

:func:`find_machine` returns a machine by its name, with the id that addresses need, and :func:`machine_address` is an
address that follows a machine whose id changes. They find the guests of a Linux host, too, where :func:`local_cid` is
this machine's own CID.

For ``socket_options=``: ``(HV_PROTOCOL_RAW, HVSOCKET_HIGH_VTL, 1)`` reaches the highest virtual trust level of a
machine, ``(HV_PROTOCOL_RAW, HVSOCKET_CONTAINER_PASSTHRU, 1)`` a container behind it, on versions of Windows that know
them (hvsocket.h).
"""

from __future__ import annotations

from ..platforms.windows import HV_PROTOCOL_RAW, HVSOCKET_CONTAINER_PASSTHRU, HVSOCKET_HIGH_VTL
from .machines import Machine, MachineAddress, find_machine, list_machines, local_cid, machine_address
from .services import Service, find_service, list_services, register_service, unregister_service

__all__ = [
    "HVSOCKET_CONTAINER_PASSTHRU",
    "HVSOCKET_HIGH_VTL",
    "HV_PROTOCOL_RAW",
    "Machine",
    "MachineAddress",
    "Service",
    "find_machine",
    "find_service",
    "list_machines",
    "list_services",
    "local_cid",
    "machine_address",
    "register_service",
    "unregister_service",
]
