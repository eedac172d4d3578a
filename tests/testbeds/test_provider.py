"""The emulated AF_HYPERV answers as Windows does: the sources are named in the documentation of the library's Windows side."""

from __future__ import annotations

import contextlib
import ctypes
import select
import socket
import struct
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.platform != "win32":
    pytest.skip("needs Windows' CPython: make test-windows runs it under Wine", allow_module_level=True)

from . import provider
from .provider.testing import Made, error_of, making, outcome, service
from .provider.winsock import (
    GUID_SILOHOST,
    WSAEACCES,
    WSAEADDRINUSE,
    WSAEADDRNOTAVAIL,
    WSAEAFNOSUPPORT,
    WSAEALREADY,
    WSAECONNREFUSED,
    WSAEFAULT,
    WSAEINVAL,
    WSAEISCONN,
    WSAENETUNREACH,
    WSAENOPROTOOPT,
    WSAENOTCONN,
    WSAEOPNOTSUPP,
    WSAEPROTONOSUPPORT,
    WSAESOCKTNOSUPPORT,
    WSAETIMEDOUT,
    WSAEWOULDBLOCK,
    WinsockError,
    read_address,
)

LOOPBACK = socket.HV_GUID_LOOPBACK.lower()
CHILDREN = socket.HV_GUID_CHILDREN.lower()
PARENT = socket.HV_GUID_PARENT.lower()
ANY = socket.HV_GUID_WILDCARD
RAW = socket.HV_PROTOCOL_RAW
CONNECT_TIMEOUT = socket.HVSOCKET_CONNECT_TIMEOUT
CONNECTED_SUSPEND = socket.HVSOCKET_CONNECTED_SUSPEND


@pytest.fixture
def made() -> Iterator[Made]:
    with making() as made:
        yield made


# -- socket, bind, listen ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "protocol", "error"),
    [
        (socket.SOCK_DGRAM, RAW, WSAESOCKTNOSUPPORT),
        (socket.SOCK_STREAM, 0, WSAEPROTONOSUPPORT),
        (socket.SOCK_STREAM, socket.IPPROTO_TCP, WSAEPROTONOSUPPORT),
    ],
)
def test_there_are_streams_of_one_protocol_only(made: Made, kind: int, protocol: int, error: int) -> None:
    assert error_of(socket.socket, socket.AF_HYPERV, kind, protocol) == error


def test_other_families_are_left_alone(made: Made) -> None:
    ours, theirs = map(made.keep, socket.socketpair())
    ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ours.sendall(b"x")

    assert theirs.recv(1) == b"x"
    assert ours.getsockname() == theirs.getpeername()
    assert ours.getsockname()[0] == "127.0.0.1"


def test_an_address_is_bound_once(made: Made) -> None:
    first = made.unconnected()
    address = LOOPBACK, service()
    first.bind(address)

    assert error_of(made.unconnected().bind, address) == WSAEADDRINUSE
    assert error_of(first.bind, (LOOPBACK, service())) == WSAEINVAL
    made.unconnected().bind((ANY, address[1]))
    first.close()
    made.unconnected().bind(address)


@pytest.mark.parametrize("vm_id", [ANY, CHILDREN, LOOPBACK, str(GUID_SILOHOST)])
def test_what_can_be_bound(made: Made, vm_id: str) -> None:
    registered = made.registered()
    sock = made.unconnected()
    sock.bind((vm_id, registered))

    assert sock.getsockname() == (vm_id, registered)


def test_the_id_of_a_machine_can_be_bound_while_there_is_one(made: Made) -> None:
    registered = made.registered()
    vm_id = made.vm()
    made.unconnected().bind((vm_id, registered))
    provider.remove_vm(provider.directory(), vm_id)

    assert error_of(made.unconnected().bind, (vm_id, service())) == WSAEADDRNOTAVAIL
    assert error_of(made.unconnected().bind, (PARENT, service())) == WSAEADDRNOTAVAIL


@pytest.mark.parametrize(
    ("name", "error"),
    [(b"\x22\0" + bytes(33), WSAEFAULT), (b"\x02\0" + bytes(34), WSAEAFNOSUPPORT), (b"", WSAEFAULT)],
)
def test_an_address_is_a_whole_sockaddr_hv(name: bytes, error: int) -> None:
    data = ctypes.create_string_buffer(name)

    # CPython gives no other.
    with pytest.raises(WinsockError) as raised:
        read_address(ctypes.addressof(data) if name else None, len(name))
    assert raised.value.code == error


def test_listening_needs_a_name(made: Made) -> None:
    assert error_of(made.unconnected().listen) == WSAEINVAL
    sock = made.unconnected()
    sock.settimeout(None)
    assert error_of(sock.accept) == WSAEINVAL


def test_a_service_between_machines_must_be_registered(made: Made) -> None:
    windows, wsl = made.vm("windows"), made.vm("wsl")

    assert error_of(made.unconnected().bind, (CHILDREN, service())) == WSAEACCES
    assert error_of(made.unconnected().bind, (windows, service())) == WSAEACCES
    assert error_of(made.unconnected().connect, (windows, service())) == WSAEACCES
    made.unconnected().bind((wsl, service()))
    with provider.inside(windows):
        assert error_of(made.unconnected().connect, (PARENT, service())) == WSAEACCES


# -- connect -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vm_id", [ANY, CHILDREN, socket.HV_GUID_BROADCAST, PARENT, service()])
def test_wildcards_and_strangers_cannot_be_dialled(made: Made, vm_id: str) -> None:
    assert error_of(made.unconnected().connect, (vm_id, service())) == WSAEADDRNOTAVAIL


def test_refused_where_nobody_listens(made: Made) -> None:
    registered = made.registered()
    bound = made.unconnected()
    bound.bind((LOOPBACK, service()))

    for address in [(LOOPBACK, service()), bound.getsockname(), (made.vm("windows"), registered)]:
        assert error_of(made.unconnected().connect, address) == WSAECONNREFUSED
        assert outcome(made.unconnected(), address) == WSAECONNREFUSED


def test_a_socket_can_try_again(made: Made) -> None:
    client = made.unconnected()
    listener = made.unconnected()
    listener.bind((LOOPBACK, service()))

    assert outcome(client, listener.getsockname()) == WSAECONNREFUSED
    listener.listen()
    assert outcome(client, listener.getsockname()) == 0
    assert made.accepted(listener).getpeername()[1] == client.getsockname()[1]


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize(("kind", "options"), [("linux", {}), ("off", {"error": WSAETIMEDOUT})])
def test_nobody_answers_until_the_time_is_up(
    made: Made,
    kind: provider.Kind,
    options: dict[str, int],
    blocking: bool,
) -> None:
    registered = made.registered()
    client = made.unconnected()
    client.settimeout(None)
    client.setsockopt(RAW, CONNECT_TIMEOUT, 300)
    address = made.vm(kind, **options), registered
    start = time.monotonic()

    if blocking:
        assert error_of(client.connect, address) == WSAETIMEDOUT
    else:
        assert outcome(client, address) == WSAETIMEDOUT
    assert 0.25 < time.monotonic() - start < 1.9


def test_a_connect_that_waits_goes_with_its_socket(made: Made) -> None:
    registered = made.registered()
    client = made.unconnected()
    client.setblocking(False)
    client.setsockopt(RAW, CONNECT_TIMEOUT, 300_000)
    address = made.vm("linux"), registered

    assert client.connect_ex(address) == WSAEWOULDBLOCK
    assert client.connect_ex(address) == WSAEALREADY
    assert error_of(client.getpeername) == WSAENOTCONN
    client.close()
    for thread in threading.enumerate():
        if thread.name == "AF_HYPERV connect":
            thread.join(5)
            assert not thread.is_alive()


def test_a_machine_that_is_off(made: Made) -> None:
    registered = made.registered()
    address = made.vm("off"), registered

    client = made.unconnected()
    client.settimeout(None)
    assert error_of(client.connect, address) == WSAENETUNREACH
    assert outcome(made.unconnected(), address) == WSAENETUNREACH


def test_a_machine_stops_and_starts(made: Made) -> None:
    vm_id, registered = made.vm(), made.registered()
    provider.declare_vm(provider.directory(), vm_id, "off")
    assert outcome(made.unconnected(), (vm_id, registered)) == WSAENETUNREACH

    provider.declare_vm(provider.directory(), vm_id)
    with provider.inside(vm_id):
        listener = made.listener(ANY, registered)
    made.connected((vm_id, registered))
    assert made.accepted(listener).getpeername()[0] == PARENT


def test_no_second_connect(made: Made) -> None:
    client, _ = made.pair()
    peer = client.getpeername()

    assert error_of(client.connect, (LOOPBACK, service())) == WSAEISCONN
    assert client.getpeername() == peer
    assert error_of(client.listen) == WSAEISCONN
    listener = made.listener()
    assert error_of(listener.connect, listener.getsockname()) == WSAEINVAL


def test_a_client_may_be_bound_first(made: Made) -> None:
    listener = made.listener()
    client = made.unconnected()
    client.bind((ANY, ANY))
    client.connect(listener.getsockname())

    assert made.accepted(listener).getpeername()[1] == client.getsockname()[1] != ANY


# -- names, accept -----------------------------------------------------------------------------------------------


def test_names(made: Made) -> None:
    listener = made.listener()
    client = made.unconnected()
    assert error_of(client.getsockname) == WSAEINVAL
    assert error_of(client.getpeername) == WSAENOTCONN
    client.connect(listener.getsockname())
    accepted = made.accepted(listener)

    vm_id, service_id = client.getsockname()
    assert vm_id == CHILDREN
    assert client.getpeername() == listener.getsockname()
    assert accepted.getpeername() == (LOOPBACK, service_id)
    assert accepted.getsockname()[0] not in (LOOPBACK, CHILDREN, ANY)
    client.close()
    assert accepted.recv(1) == b""
    assert accepted.getpeername() == (LOOPBACK, service_id)


def test_accepting_without_blocking(made: Made) -> None:
    listener = made.listener()
    listener.setblocking(False)
    assert error_of(listener.accept) == WSAEWOULDBLOCK
    client = made.unconnected()
    client.connect(listener.getsockname())
    assert select.select([listener], [], [], 10)[0] == [listener]

    made.accepted(listener).sendall(b"x")
    assert client.recv(1) == b"x"


def test_a_stranger_on_the_port_below_is_not_accepted(made: Made) -> None:
    listener = made.listener()
    # The name that TCP has for it.
    with _below(listener) as address, socket.create_connection(address):
        client = made.unconnected()
        client.connect(listener.getsockname())
        assert made.accepted(listener).getpeername()[1] == client.getsockname()[1]


@contextlib.contextmanager
def _below(sock: socket.socket) -> Iterator[tuple[str, int]]:
    [port] = [
        int(path.name.rsplit("_", 1)[1])
        for path in (Path(provider.directory()) / "listeners").iterdir()
        if uuid.UUID(sock.getsockname()[1]).hex in path.name and path.name.count("_") == 3
    ]
    yield "127.0.0.1", port


@pytest.mark.parametrize(
    ("kind", "vm_id", "taken"),
    [
        ("windows", ANY, True),
        ("windows", CHILDREN, True),
        ("linux", ANY, True),
        ("wsl", ANY, False),
        ("wsl", CHILDREN, False),
        ("wsl", None, True),
        ("windows", None, True),
        ("windows", LOOPBACK, False),
    ],
)
def test_whom_a_listener_on_the_host_takes(
    made: Made,
    kind: provider.Kind,
    vm_id: str | None,
    taken: bool,
) -> None:
    registered = made.registered()
    guest = made.vm(kind)
    listener = made.listener(vm_id or guest, registered)
    with provider.inside(guest):
        client = made.unconnected()
    client.setsockopt(RAW, CONNECT_TIMEOUT, 100)

    if not taken:
        refusal = WSAECONNREFUSED if kind == "windows" else WSAETIMEDOUT
        assert outcome(client, (PARENT, registered)) == refusal
        return
    client.connect((PARENT, registered))
    peer_vm, peer_service = made.accepted(listener).getpeername()
    assert peer_vm == guest
    assert peer_service.endswith("-facb-11e6-bd58-64006a7986d3") == (kind != "windows")


def test_a_wildcard_takes_loopback_but_the_exact_id_is_preferred(made: Made) -> None:
    wildcard = made.listener(ANY)
    service_id = wildcard.getsockname()[1]
    made.unconnected().connect((LOOPBACK, service_id))
    assert made.accepted(wildcard).getpeername()[0] == LOOPBACK

    exact = made.listener(LOOPBACK, service_id)
    made.unconnected().connect((LOOPBACK, service_id))
    made.accepted(exact)


def test_a_guest_is_dialled_by_its_id_and_sees_its_parent(made: Made) -> None:
    registered = made.registered()
    guest = made.vm()
    with provider.inside(guest):
        listener = made.listener(PARENT, registered)
    client = made.unconnected()
    client.connect((guest, registered))

    assert client.getpeername() == (guest, registered)
    assert made.accepted(listener).getpeername() == (PARENT, client.getsockname()[1])
    # One guest reaches neither another nor, on loopback, the host.
    with provider.inside(made.vm()):
        assert error_of(made.unconnected().connect, (guest, registered)) == WSAEADDRNOTAVAIL
        assert error_of(made.unconnected().connect, (LOOPBACK, registered)) == WSAECONNREFUSED


# -- options -----------------------------------------------------------------------------------------------------


def test_options_are_kept_and_not_inherited(made: Made) -> None:
    listener = made.listener()
    listener.setsockopt(RAW, CONNECTED_SUSPEND, 1)
    client = made.unconnected()
    client.setsockopt(RAW, CONNECT_TIMEOUT, 300_000)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    client.connect(listener.getsockname())
    accepted = made.accepted(listener)

    assert provider.options_of(client) == {
        (RAW, CONNECT_TIMEOUT): 300_000,
        (socket.SOL_SOCKET, socket.SO_SNDBUF): 65536,
    }
    assert client.getsockopt(RAW, CONNECT_TIMEOUT) == 300_000
    assert provider.options_of(listener.fileno()) == {(RAW, CONNECTED_SUSPEND): 1}
    assert provider.options_of(accepted) == {}
    assert accepted.getsockopt(RAW, CONNECTED_SUSPEND) == 0
    assert accepted.getsockopt(RAW, CONNECT_TIMEOUT) == 2000


@pytest.mark.parametrize(
    ("level", "option", "value", "error"),
    [
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1, WSAENOPROTOOPT),
        (socket.IPPROTO_IP, socket.IP_TTL, 1, WSAENOPROTOOPT),
        (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1, WSAENOPROTOOPT),
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1, WSAENOPROTOOPT),
        (RAW, 3, 1, WSAENOPROTOOPT),
        (RAW, CONNECT_TIMEOUT, 300_001, WSAEINVAL),
        (RAW, CONNECT_TIMEOUT, -1, WSAEINVAL),
        (RAW, CONNECT_TIMEOUT, b"\1", WSAEINVAL),
        (RAW, CONNECTED_SUSPEND, bytes(8), WSAEINVAL),
    ],
)
def test_options_that_are_refused(
    made: Made, level: int, option: int, value: int | bytes, error: int
) -> None:
    assert error_of(made.unconnected().setsockopt, level, option, value) == error


def test_the_time_for_a_connect_is_set_before(made: Made) -> None:
    client, _ = made.pair()

    assert error_of(client.setsockopt, RAW, CONNECT_TIMEOUT, 1000) == WSAEINVAL


def test_what_every_socket_has(made: Made) -> None:
    sock = made.unconnected()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("HH", 1, 0))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)

    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
    so_protocol_infow = 0x2005
    info = sock.getsockopt(socket.SOL_SOCKET, so_protocol_infow, 628)
    assert struct.unpack_from("<i", info, 76) == (socket.AF_HYPERV,)
    assert struct.unpack_from("<i", info, 92) == (RAW,)
    assert error_of(sock.dup) == WSAEOPNOTSUPP
