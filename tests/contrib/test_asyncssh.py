"""asyncssh with itself; with OpenSSH's server it is in test_sshd.py."""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import os
from pathlib import Path
from typing import Any, cast

import asyncssh
import pytest

from aiohvsock import (
    Address,
    HvAddressError,
    HvConnectError,
    HvConnectionRefused,
    HvTimeout,
    Retry,
    VsockAddress,
    create_hv_connection,
    create_hv_server,
)
from aiohvsock.addresses import to_address
from aiohvsock.contrib.asyncssh import connect, connect_reverse, listen, listen_reverse

from ..descriptors import open_sockets
from ..helpers import Recorder, no_counterpart
from ..test_listening import Source, another
from .aiohttp_service import MIB, machine, until
from .ssh_service import (
    ZEROS,
    client_options,
    host_key,
    known,
    login,
    name_of,
    public,
    sent,
    server_options,
    serving,
    shell,
    user_key,
)
from .test_aiohttp import silent_monitor


async def ask(connection: asyncssh.SSHClientConnection, command: str, **options: Any) -> str:
    done = await connection.run(command, check=True, **options)
    assert isinstance(done.stdout, str)
    return done.stdout


# -- what it is for ----------------------------------------------------------------------------------------


async def test_a_command(address: Address) -> None:
    async with serving(address), login(address, at=str(address)) as connection:
        peer = to_address(await ask(connection, "who"))
        assert (type(peer), machine(peer)) == (type(address), machine(address))
        assert connection.get_extra_info("hv_peer") == address
        assert type(connection.get_extra_info("hv_local")) is type(address)
        assert connection.get_extra_info("peername") is None
        text = "hello\n" * (MIB // 6)
        assert await ask(connection, "shout", input=text) == text.upper()


async def test_files(address: Address, tmp_path: Path) -> None:
    data = os.urandom(3 * MIB)
    (tmp_path / "here").write_bytes(data)
    async with (
        serving(address, sftp_factory=True),
        login(address) as connection,
        connection.start_sftp_client() as sftp,
    ):
        await sftp.put(tmp_path / "here", tmp_path / "there")
        await sftp.get(tmp_path / "there", tmp_path / "back")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "back").read_bytes() == data


async def test_a_forwarded_port(address: Address) -> None:
    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    class Forwarding(asyncssh.SSHServer):
        def connection_requested(self, *asked: object) -> bool:
            return True

    service = await asyncio.start_server(shout, "127.0.0.1")
    port = service.sockets[0].getsockname()[1]
    async with serving(address, server_factory=Forwarding), login(address) as connection:
        reader, writer = await connection.open_connection("127.0.0.1", port)
        writer.write(b"hello")
        writer.write_eof()
        assert await reader.read() == b"HELLO"
        writer.close()
    service.close()
    await service.wait_closed()


async def test_it_is_awaited(address: Address) -> None:
    async with listen(address, **server_options(process_factory=shell)):
        connection = await connect(address, **client_options(address))
        assert await ask(connection, "who")
        connection.close()
        await connection.wait_closed()


async def test_a_callable_is_an_address(address: Address) -> None:
    source = Source(str(address))
    async with serving(address):
        connection = await connect(source, **client_options(address))
        assert await ask(connection, "who")
        connection.close()
        await connection.wait_closed()
    assert source.asked == 1


async def test_a_slow_reader(address: Address) -> None:
    """Makes the sender wait, and loses nothing."""
    async with (
        serving(address),
        login(address) as connection,
        connection.create_process("zeros", window=2**16) as process,
    ):
        got = len(await process.stdout.read(1))
        assert await ask(connection, "who")  # it has had its time
        assert 0 < len(sent) < ZEROS / 4
        while data := await process.stdout.read(2**16):
            got += len(data)
    assert got == ZEROS * 2**14


# -- the other way round -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "guest.example"])
async def test_reverse(address: Address, name: str) -> None:
    """Who is dialled logs in. Its key is looked for under its own name, unless told otherwise."""
    came: asyncio.Queue[asyncssh.SSHClientConnection] = asyncio.Queue()
    expected = f"{name or name_of(address)} {public(host_key())}".encode()
    options = client_options(address, known_hosts=expected)
    acceptor = await listen_reverse(address, name, acceptor=came.put, **options)
    async with connect_reverse(address, **server_options(process_factory=shell)) as dialled:
        connection = await came.get()
        assert dialled.get_extra_info("hv_peer") == address
        assert to_address(await ask(connection, "who")) == address
        assert machine(connection.get_extra_info("hv_peer")) == machine(address)
    acceptor.close()
    await acceptor.wait_closed()


async def test_reverse_with_a_stranger(address: Address) -> None:
    failed: asyncio.Queue[Exception | None] = asyncio.Queue()
    options = client_options(address, known_hosts=known(address, host_key(1)))
    acceptor = await listen_reverse(
        address, error_handler=lambda connection, error: failed.put_nowait(error), **options
    )
    with pytest.raises(asyncssh.Error):
        await connect_reverse(address, **server_options())
    assert isinstance(await failed.get(), asyncssh.HostKeyNotVerifiable)
    acceptor.close()
    await acceptor.wait_closed()


# -- whose key it is ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{name} {other}", "guest.example {right}", "* {other}"])
@pytest.mark.parametrize("asked", [False, True])
async def test_a_key_that_is_not_known(address: Address, text: str, asked: bool) -> None:
    """Is refused, whether the address is known beforehand or not."""
    lines = text.format(name=name_of(address), right=public(host_key()), other=public(host_key(1)))
    source = Source(address)
    async with serving(address):
        with pytest.raises(asyncssh.HostKeyNotVerifiable, match=f"not trusted for host {name_of(address)}"):
            await connect(source if asked else address, **client_options(address, known_hosts=lines.encode()))


def hashed(name: str) -> str:
    """Hash a name as OpenSSH does with HashKnownHosts."""
    salt = bytes(20)
    digest = hmac.digest(salt, name.encode(), "sha1")
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()}"


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("{name} {right}", {}),
        ("other,{name} {right}", {}),
        ("{pattern} {right}", {}),
        ("guest.example {right}", {"host": "guest.example"}),
        ("[guest.example]:2222 {right}", {"host": "guest.example", "port": 2222}),
        ("guest.example {right}", {"host": "guest.example", "port": 2222}),
        ("web {right}", {"host_key_alias": "web"}),
        ("{hashed} {right}", {}),
    ],
)
async def test_a_key_that_is_known(address: Address, text: str, options: dict[str, Any]) -> None:
    name = name_of(address)
    lines = text.format(
        name=name, pattern=name.partition("/")[0] + "/*", hashed=hashed(name), right=public(host_key())
    )
    async with (
        serving(address),
        login(address, known_hosts=lines.encode(), **options) as connection,
    ):
        assert await ask(connection, "who")


async def test_the_users_own_files(address: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """known_hosts is asked without being told to, and so is the configuration, for the machine's name."""
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    async with serving(address):
        with pytest.raises(asyncssh.HostKeyNotVerifiable):
            await connect(address, client_keys=[user_key()], username="me")
        (tmp_path / ".ssh" / "known_hosts").write_bytes(known(address))
        (tmp_path / ".ssh" / "config").write_text(
            f"Host {name_of(address).partition('/')[0]}/*\nUser somebody\n"
        )
        async with connect(address, client_keys=[user_key()]) as connection:
            assert connection.get_extra_info("username") == "somebody"


async def test_a_user_that_is_not_known(address: Address) -> None:
    async with serving(address):
        with pytest.raises(asyncssh.PermissionDenied):
            await connect(address, **client_options(address, client_keys=[host_key(2)]))


async def test_a_key_for_some_places_only(address: Address) -> None:
    """A machine has no IP address: what is for some of these lets nobody in."""
    keys = asyncssh.import_authorized_keys(f'from="*,0.0.0.0/0" {public(user_key())}')
    async with serving(address, authorized_client_keys=keys):
        with pytest.raises(asyncssh.Error):
            await connect(address, **client_options(address))


# -- who may come ------------------------------------------------------------------------------------------


async def test_who_is_not_allowed(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[Address] = []

    def nobody(peer: Address) -> bool:
        asked.append(peer)
        return False

    async with serving(address, allow=nobody):
        with pytest.raises((asyncssh.ConnectionLost, ConnectionError)):
            await connect(address, **client_options(address))
    assert {machine(peer) for peer in asked} == {machine(address)}
    assert "not allowed" in caplog.text


async def test_who_is_allowed(address: Address) -> None:
    name: str | int = machine(address)
    if isinstance(address, VsockAddress):
        name = int(name)
    async with serving(address, allow=[name]), login(address) as connection:
        assert await ask(connection, "who")


async def test_max_connections(address: Address) -> None:
    served: list[object] = []

    class Server(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            served.append(conn)

    async with serving(address, server_factory=Server, max_connections=1):
        async with login(address) as first:
            waiting = asyncio.create_task(connect(address, **client_options(address)).__aenter__())
            for _ in range(10):  # there would have been time for it
                assert await ask(first, "who")
            assert len(served) == 1
        second = await waiting
        assert len(served) == 2
        second.close()
        await second.wait_closed()


async def test_what_listens(address: Address) -> None:
    elsewhere = another(address)
    async with serving([address, no_counterpart(1), elsewhere]) as acceptor:
        assert acceptor.addresses == (address, elsewhere)
        assert acceptor.is_serving()
        for each in (address, elsewhere):
            async with login(each) as connection:
                assert await ask(connection, "who")
        with pytest.raises(HvConnectError, match="listen"):
            await listen(address, **server_options())
    with pytest.raises(ConnectionRefusedError):
        await connect(address, **client_options(address))


async def test_the_server_closes_its_connections(address: Address) -> None:
    async with serving(address) as acceptor, login(address) as connection:
        process = await connection.create_process("sleep")
        assert await process.stdout.readline() == "asleep\n"
        acceptor.close_clients()
        await connection.wait_closed()
        assert (await process.wait()).exit_status is None


# -- what goes wrong ---------------------------------------------------------------------------------------


async def test_nobody_listens(address: Address) -> None:
    for function in (connect, connect_reverse):
        with pytest.raises(ConnectionRefusedError) as caught:
            await function(address, config=None)
        assert isinstance(caught.value, HvConnectionRefused)
        assert caught.value.remote == address


async def test_retry(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="aiohvsock")
    patient = connect(address, retry=Retry(delay=0.001), **client_options(address))
    asking = asyncio.create_task(patient.__aenter__())
    await until(lambda: "trying again" in caplog.text)
    async with serving(address):
        connection = await asking
        assert await ask(connection, "who")
        connection.close()
        await connection.wait_closed()
    with pytest.raises(TimeoutError):
        await connect(address, retry=Retry(delay=0.001), connect_timeout=0.05, **client_options(address))


@pytest.mark.parametrize("function", [connect, connect_reverse])
async def test_no_answer(directory: str, function: Any) -> None:
    with silent_monitor(directory) as address, pytest.raises(TimeoutError):
        await function(address, connect_timeout=0.05, config=None)


async def test_an_attempt_ends_by_itself(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiohvsock.contrib.asyncssh._ATTEMPT", 0.05)
    with silent_monitor(directory) as address, pytest.raises(HvTimeout):
        await connect(address, config=None)


async def test_a_server_that_says_nothing(address: Address) -> None:
    async with await create_hv_server(Recorder, address) as server:
        with pytest.raises(TimeoutError):
            await connect(address, connect_timeout=0.05, **client_options(address))
        server.abort_clients()


async def test_a_server_that_speaks_something_else(address: Address) -> None:
    class Other(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            assert self.transport is not None
            self.transport.write(b"\x00" * 100_000)

    async with await create_hv_server(Other, address):
        with pytest.raises((asyncssh.DisconnectError, ConnectionError)):
            await connect(address, **client_options(address))


async def test_a_factory_that_fails(address: Address) -> None:
    """Its error comes out, and no descriptor is left."""
    async with serving(address):
        with pytest.raises(ZeroDivisionError):
            await connect(address, client_factory=lambda: 1 / 0, **client_options(address))


async def test_a_server_that_dies(address: Address) -> None:
    """While a command runs; the others do not notice."""
    connections: list[asyncssh.SSHServerConnection] = []

    class Server(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            connections.append(conn)

    async with (
        serving(address, server_factory=Server),
        login(address) as connection,
        login(address) as other,
    ):
        process = await connection.create_process("sleep")
        assert await process.stdout.readline() == "asleep\n"
        connections[0].abort()
        await connection.wait_closed()
        with pytest.raises(asyncssh.ConnectionLost):
            await process.stdout.readline()
        assert await ask(other, "who")


async def test_peers_that_are_none(address: Address) -> None:
    """One that dies amid its key exchange, and one that says something else; the next is served."""
    async with serving(address):
        for data in (b"SSH-2.0-x\r\n\x00\x00\x05", b"GET / HTTP/1.1\r\n\r\n" * 2000):
            transport, protocol = await create_hv_connection(Recorder, address)
            await protocol.received(8)
            transport.write(data)
            if data.startswith(b"SSH"):
                transport.abort()
            await protocol.lost
        async with login(address) as connection:
            assert await ask(connection, "who")


async def test_a_peer_that_says_nothing(address: Address) -> None:
    async with serving(address, login_timeout=0.05):
        _, protocol = await create_hv_connection(Recorder, address)
        await protocol.lost


async def test_addresses_are_checked() -> None:
    with pytest.raises(HvAddressError, match="no scheme"):
        connect("vm:22")
    with pytest.raises(HvAddressError, match="counterpart"):
        connect(no_counterpart(1))
    with pytest.raises(HvAddressError, match="no scheme"):
        await listen("vm:22", **server_options())


@pytest.mark.parametrize("function", [connect, connect_reverse, listen, listen_reverse])
@pytest.mark.parametrize("option", ["sock", "tunnel", "colour"])
async def test_unknown_options(function: Any, option: str) -> None:
    with pytest.raises(TypeError, match=option):
        await function("vsock://2:22", config=None, **{option: cast("Any", None)})


async def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="connect_timeout"):
        connect("vsock://2:22", connect_timeout=-1)
    with pytest.raises(ValueError, match="max_connections"):
        await listen("vsock://any:22", max_connections=0, **server_options())


@pytest.mark.parametrize("reverse", [False, True])
async def test_cancelled_at_any_moment(address: Address, reverse: bool) -> None:
    function: Any = connect_reverse if reverse else connect
    server: Any = listen_reverse if reverse else listen
    options = [server_options(process_factory=shell), client_options(address)]
    acceptor = await server(address, **options[reverse])

    async def once() -> None:
        async with function(address, **options[not reverse]):
            pass

    await once()
    before = open_sockets()
    cancelled = 0
    for turns in range(0, 120, 4):
        pending = asyncio.create_task(once())
        for _ in range(turns):
            await asyncio.sleep(0)
        pending.cancel()
        await asyncio.wait([pending])
        cancelled += pending.cancelled()
    assert cancelled
    await until(lambda: open_sockets() <= before)
    acceptor.close()
    await acceptor.wait_closed()
