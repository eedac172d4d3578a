from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import time
from typing import Any

import pytest

from aiohvsock import (
    Address,
    CloseCode,
    ConnectionClosed,
    ConnectionClosedOK,
    ConnectionLost,
    HvAddressError,
    HvConnectError,
    HvConnectionRefused,
    HvPermissionError,
    HvTimeout,
    HvUnsupportedError,
    HybridAddress,
    ProtocolError,
    Retry,
    connect,
    is_transient,
    serve,
    start_hv_server,
)

from ..conftest import Pair
from ..helpers import no_counterpart
from .peers import (
    Connection,
    Handler,
    Peer,
    close,
    data,
    echo,
    hello,
    of_ours,
    serving,
    turns,
    until,
)

QUICK = Retry(delay=0.01, max_delay=0.01)


# -- once --------------------------------------------------------------------------------------------------


async def test_awaited(address: Address) -> None:
    async with serving(echo, address):
        connection = await connect(address)
        await connection.send(b"hello")
        assert await connection.recv() == b"hello"
        async with connection as same:
            assert same is connection
        assert connection.closed
        await connection.wait_closed()


async def test_an_address_may_be_text(address: Address) -> None:
    async with serving(echo, str(address)), connect(str(address)) as connection:  # type: ignore[arg-type]
        await connection.send(b"hello")
        assert await connection.recv() == b"hello"


async def test_an_error_in_the_block_closes_the_connection(address: Address) -> None:
    async with serving(echo, address):
        with pytest.raises(ZeroDivisionError):
            async with connect(address) as connection:
                raise ZeroDivisionError
        assert connection.closed


async def test_one_may_be_used_several_times(address: Address) -> None:
    async with serving(echo, address):
        connecting = connect(address)
        first, second = await connecting, await connecting
        assert first is not second
        for connection in (first, second):
            await connection.send(b"hello")
            assert await connection.recv() == b"hello"
            await connection.close()
        for _ in range(2):
            async with connecting as connection:
                await connection.send(b"hello")
                assert await connection.recv() == b"hello"


async def test_nobody_listens(address: Address) -> None:
    with pytest.raises(HvConnectionRefused) as caught:
        await connect(address)
    assert caught.value.remote == address
    with pytest.raises(HvConnectionRefused):
        async with connect(address):
            pytest.fail("connected")


async def test_connecting_can_wait_for_the_server(address: Address) -> None:
    async def dial() -> Connection:
        return await connect(address, retry=QUICK)

    waiting = asyncio.create_task(dial())
    await turns(10)
    async with serving(echo, address):
        connection = await waiting
        await connection.send(b"hello")
        assert await connection.recv() == b"hello"
        await connection.close()


async def test_an_address_and_a_socket_are_too_much(address: Address, pair: Pair) -> None:
    ours, _ = pair()
    with pytest.raises(ValueError, match="at the same time"):
        await connect(address, sock=ours)
    with pytest.raises(ValueError, match="no address and sock"):
        await connect()
    with pytest.raises(ValueError, match="no address and sock"):
        await serve(echo)


async def test_an_address_that_has_no_counterpart_here() -> None:
    with pytest.raises(HvAddressError):
        await connect("hvsock://parent:2761/nonsense")
    with pytest.raises(HvAddressError):
        async for _ in connect("nonsense"):
            pytest.fail("connected")


async def test_a_peer_that_speaks_something_else(pair: Pair) -> None:
    ours, theirs = pair()
    peer = Peer(theirs)
    await peer.send(b"SSH-2.0-OpenSSH\r\n")
    peer.end()
    with pytest.raises(ConnectionLost, match="does not speak this protocol") as caught:
        await connect(sock=ours)
    assert caught.value.code == CloseCode.PROTOCOL_ERROR
    await peer.hello()
    assert (await peer.closed())[0] == 2


async def test_what_came_before_the_peers_close_can_be_received_however_soon_it_came(pair: Pair) -> None:
    """The hello, a message and the close in one read."""
    ours, theirs = pair()
    peer = Peer(theirs)
    await peer.send(hello(), data(b"one", b"two"), close(130, "that was all"))
    peer.end()
    connection = await connect(sock=ours)
    assert [message async for message in connection] == [b"one", b"two"]
    with pytest.raises(ConnectionClosedOK) as caught:
        await connection.recv()
    assert (caught.value.code, caught.value.reason) == (130, "that was all")
    await connection.close()


@pytest.mark.parametrize("code", [6, 7])
async def test_a_peer_that_wants_nobody(pair: Pair, code: int) -> None:
    """Told at once or a moment later, depending on what came together: the same error either way."""
    for apart in (False, True):
        ours, theirs = pair()
        peer = Peer(theirs)
        await peer.send(hello(), b"" if apart else close(code, "go away"))

        async def use(sock: Any = ours) -> None:
            async with connect(sock=sock) as connection:
                await connection.recv()

        using = asyncio.create_task(use())
        await peer.hello()
        if apart:
            await turns(5)
            await peer.send(close(code, "go away"))
        peer.end()
        with pytest.raises(ConnectionLost, match="go away") as caught:
            await using
        assert caught.value.code == code


# -- which errors pass -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (HvConnectionRefused(errno.ECONNREFUSED, "connect", transient=True), True),
        (HvTimeout(errno.ETIMEDOUT, "connect", transient=True), True),
        (HvConnectError(errno.ENOENT, "connect", transient=True), True),
        (HvConnectError(errno.EPROTO, "connect"), False),
        (HvPermissionError(errno.EACCES, "connect"), False),
        (HvUnsupportedError("no"), False),
        (HvAddressError("no"), False),
        (ConnectionLost("lost"), True),
        (ConnectionClosedOK("closed", code=CloseCode.OK), False),
        (ConnectionClosedOK("closed", code=CloseCode.GOING_AWAY), True),
        (ConnectionLost("closed", code=CloseCode.PROTOCOL_ERROR), False),
        (ConnectionLost("closed", code=CloseCode.NO_COMMON_VERSION), False),
        (ConnectionLost("closed", code=CloseCode.MESSAGE_TOO_LARGE), False),
        (ConnectionLost("closed", code=CloseCode.INTERNAL_ERROR), True),
        (ConnectionLost("closed", code=CloseCode.NOT_ALLOWED), False),
        (ConnectionLost("closed", code=CloseCode.TRY_AGAIN_LATER), True),
        (ConnectionLost("closed", code=CloseCode.NO_HELLO), True),
        (ConnectionLost("closed", code=CloseCode.NO_ANSWER), True),
        (ConnectionLost("closed", code=10), False),
        (ConnectionClosedOK("closed", code=128), False),
        (ConnectionClosedOK("closed", code=255), False),
        (ProtocolError("no"), False),
        (OSError("no"), False),
        (ZeroDivisionError(), False),
    ],
    ids=lambda each: each if isinstance(each, bool) else f"{type(each).__name__}-{getattr(each, 'code', '')}",
)
def test_which_errors_pass(error: Exception, transient: bool) -> None:
    assert is_transient(error) is transient


# -- again and again ---------------------------------------------------------------------------------------


async def test_it_connects_again_after_the_service_was_restarted(address: Address) -> None:
    got: list[bytes] = []
    generation = 0

    async def handler(connection: Connection) -> None:
        await connection.send(b"%d" % generation)
        with contextlib.suppress(ConnectionClosed):
            await connection.recv()

    async def came(number: int) -> None:
        await until(lambda: b"%d" % number in got)

    async def use() -> None:
        async for connection in connect(address, retry=QUICK):
            with contextlib.suppress(ConnectionClosed):
                got.append(await connection.recv())
                await connection.recv()
            if len(got) == 3:
                assert connection.closed
                break

    using = asyncio.create_task(use())
    for generation in range(3):
        async with serving(handler, address, close_timeout=1.0) as server:
            await came(generation)
            # Properly, and then not.
            if generation == 1:
                server.abort_clients()
    await using
    assert got == [b"0", b"1", b"2"]


async def test_it_begins_before_the_service_does(address: Address) -> None:
    async def use() -> bytes:
        async for connection in connect(address, retry=QUICK):
            await connection.send(b"hello")
            return await connection.recv()
        raise AssertionError("it ended")

    using = asyncio.create_task(use())
    await turns(20)
    async with serving(echo, address) as server:
        assert await using == b"hello"
        await until(lambda: not server.connections)


@pytest.mark.parametrize("leave", ["break", "return", "error"])
async def test_leaving_the_loop_closes_the_connection(address: Address, leave: str) -> None:
    connections: list[Connection] = []

    async def use() -> None:
        async for connection in connect(address):
            connections.append(connection)
            match leave:
                case "break":
                    break
                case "return":
                    return
            raise ZeroDivisionError

    async with serving(echo, address) as server:
        if leave == "error":
            with pytest.raises(ZeroDivisionError):
                await use()
        else:
            await use()
        (connection,) = connections
        await connection.wait_closed()
        assert isinstance(connection.end, ConnectionClosedOK)
        await until(lambda: not server.connections)


async def test_going_round_closes_each_connection_before_the_next(address: Address) -> None:
    async with serving(echo, address):
        seen: list[Connection] = []
        async for connection in connect(address, retry=QUICK):
            assert all(each.closed for each in seen)
            seen.append(connection)
            await connection.send(b"hello")
            assert await connection.recv() == b"hello"
            if len(seen) == 3:
                break
            continue
        assert len(set(seen)) == 3
        await seen[-1].wait_closed()


async def test_it_waits_longer_each_time(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="aiohvsock")
    errors: list[Exception] = []

    def transient(error: Exception) -> bool:
        errors.append(error)
        return len(errors) < 5

    start = time.perf_counter()
    with pytest.raises(HvConnectionRefused):
        async for _ in connect(
            address, retry=Retry(delay=0.02, max_delay=0.08, factor=2, jitter=0), transient=transient
        ):
            pytest.fail("connected")
    assert 0.2 < time.perf_counter() - start < 0.22 + 3
    # The hook sees every one of them.
    assert len(errors) == 5
    assert all(isinstance(error, HvConnectionRefused) for error in errors)
    lines = [record.getMessage() for record in of_ours(caplog, logging.INFO)]
    assert lines[0::2] == [str(error) for error in errors[:4]]
    assert lines[1::2] == [f"connecting to {address} again in {wait} s" for wait in (0.0, 0.0, 0.1, 0.1)]


async def test_a_service_that_takes_a_connection_and_fails_at_once_is_not_flooded(address: Address) -> None:
    waits: list[float] = []

    async def handler(connection: Connection) -> None:
        raise ConnectionResetError  # logged, and told as an internal error

    async with serving(handler, address):
        before = time.perf_counter()
        async for connection in connect(address, retry=Retry(delay=0.02, max_delay=0.16, factor=2, jitter=0)):
            now = time.perf_counter()
            waits.append(now - before)
            with pytest.raises(ConnectionLost) as caught:
                await connection.recv()
            assert caught.value.code == 5
            before = time.perf_counter()
            if len(waits) == 5:
                break
        await connection.wait_closed()
    for wait, least in zip(waits[1:], [0.02, 0.04, 0.08, 0.16], strict=True):
        assert wait >= least - 0.002


async def test_one_that_lasted_was_a_good_one(address: Address) -> None:
    """After it the waits begin anew."""
    waits: list[float] = []
    async with serving(echo, address):
        before = 0.0
        async for connection in connect(address, retry=Retry(delay=0.01, max_delay=0.1, factor=10, jitter=0)):
            waits.append(time.perf_counter() - before)
            if len(waits) == 4:
                break
            await asyncio.sleep(0.15)
            await connection.close()
            before = time.perf_counter()
        await connection.wait_closed()
    assert min(waits[1:]) < 0.09
    assert all(wait >= 0.008 for wait in waits[1:])


async def test_it_stops_at_an_error_that_does_not_pass(directory: str) -> None:
    # A directory is no socket.
    with pytest.raises(HvConnectError) as caught:
        async for _ in connect(HybridAddress(directory, 1), retry=QUICK):
            pytest.fail("connected")
    assert not caught.value.transient


async def test_it_stops_at_a_peer_that_speaks_something_else(address: Address) -> None:
    async with await start_hv_server(_speaks_ssh, address):
        with pytest.raises(ConnectionLost, match="does not speak this protocol"):
            async for _ in connect(address, retry=QUICK):
                pytest.fail("connected")


async def _speaks_ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH\r\n")
    writer.write_eof()
    await reader.read()
    writer.close()


async def test_a_socket_is_good_for_one_connection(pair: Pair) -> None:
    ours, _ = pair()
    with pytest.raises(ValueError, match="connects once"):
        async for _connection in connect(sock=ours, retry=QUICK):
            pytest.fail("connected")


async def test_what_the_hook_raises_ends_it(address: Address) -> None:
    def transient(error: Exception) -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async for _ in connect(address, transient=transient):
            pytest.fail("connected")


async def test_an_address_nobody_can_dial_ends_it() -> None:
    with pytest.raises(HvAddressError):
        async for _ in connect(no_counterpart(1), retry=QUICK):
            pytest.fail("connected")


async def test_a_callback_while_it_connects_again(address: Address) -> None:
    got: list[tuple[Connection, bytes]] = []

    async def handler(connection: Connection) -> None:
        await connection.send(b"welcome")

    async with serving(handler, address):
        rounds: list[Connection] = []
        async for connection in connect(address, on_message=lambda *each: got.append(each), retry=QUICK):
            rounds.append(connection)
            await connection.wait_closed()
            if len(rounds) == 3:
                break
    assert got == [(connection, b"welcome") for connection in rounds]


async def test_what_is_logged_of_a_connection(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="aiohvsock")
    handler = Handler()
    async with serving(handler, address):
        async with connect(address) as client:
            await client.send(b"secret")
            server = await handler.connection()
        await server.wait_closed()
        handler.released.set()
        await turns(3)
    lines = [record.getMessage() for record in of_ours(caplog, logging.DEBUG)]
    assert sorted(lines) == sorted([f"{client}: connected", f"{server}: accepted", f"{server}: gone"])
