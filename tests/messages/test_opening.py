"""How a connection begins when the other side does something else meanwhile: it closes, goes away, or we give up."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aiohvsock import (
    Address,
    ConnectionClosedOK,
    ConnectionLost,
    HvConnectError,
    HvServer,
    HvTimeout,
    Retry,
    connect,
    is_transient,
    serve,
    start_hv_server,
)
from aiohvsock.framing import LengthPrefixed

from ..conftest import Pair
from .peers import NAME, Connection, Peer, close, contexts, data, echo, hello, serving, turns, until

# Seconds in which anything here happens, however busy the machine is.
LATE = 5.0

# What a peer says that has nothing but a greeting.
GREETING = hello() + data(b"2026", b"1123") + close()


@asynccontextmanager
async def saying(address: Address, wire: bytes) -> AsyncIterator[list[bytes]]:
    """Serve peers that say one thing, all at once, and hear the other out; give what each of them has heard."""
    heard: list[bytes] = []

    async def peer(reader: asyncio.StreamReader, writer: Any) -> None:
        writer.write(wire)
        heard.append(await reader.read())
        writer.close()

    async with ended(await start_hv_server(peer, address)):
        yield heard


@asynccontextmanager
async def ended(server: HvServer) -> AsyncIterator[None]:
    try:
        yield
    finally:
        server.close()
        server.abort_clients()
        await server.wait_closed()


# -- a peer that closes with its first words ---------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 200])
async def test_hello_messages_and_close_in_one_read(pair: Pair, code: int) -> None:
    ours, theirs = pair()
    peer = Peer(theirs)
    await peer.send(hello(), data(b"2026", b"1123"), close(code, "bye"))
    connection = await connect(sock=ours)
    assert [await connection.recv() for _ in range(2)] == [b"2026", b"1123"]
    with pytest.raises(ConnectionClosedOK, match="by the peer") as caught:
        await connection.recv()
    assert (caught.value.code, caught.value.reason) == (code, "bye")
    await peer.hello()
    assert await peer.closed() == (code, "")
    peer.kill()
    await connection.close()


async def test_hello_and_close_in_one_read(pair: Pair) -> None:
    ours, theirs = pair()
    await Peer(theirs).send(hello(), close())
    async with asyncio.timeout(LATE):
        connection = await connect(sock=ours)
        assert [message async for message in connection] == []
        theirs.close()
        await connection.wait_closed()


async def test_a_block_around_a_greeting(address: Address) -> None:
    async with saying(address, GREETING):
        connection: Connection
        for _ in range(2):
            async with connect(address, close_timeout=0.1) as connection:
                assert [message async for message in connection] == [b"2026", b"1123"]


async def test_a_reconnecting_loop_gets_greeting_after_greeting(address: Address) -> None:
    got: list[bytes] = []
    async with saying(address, GREETING) as heard:
        async for connection in connect(address, close_timeout=0.05, retry=Retry(0.01, 0.01)):
            got += [message async for message in connection]
            if len(got) >= 6:
                break
        await connection.close()
    assert got == [b"2026", b"1123"] * 3
    assert len(heard) == 3


async def test_a_service_that_greets_and_closes(address: Address) -> None:
    async def greet(connection: Connection) -> None:
        await connection.send_many([b"2026", b"1123"])

    async def client() -> list[bytes]:
        async with connect(address) as connection:
            return [message async for message in connection]

    async with serving(greet, address):
        assert await asyncio.gather(*(client() for _ in range(30))) == [[b"2026", b"1123"]] * 30


@pytest.mark.parametrize("open_timeout", [5.0, None])
async def test_a_peer_that_missed_our_hello_is_no_timeout_of_ours(
    address: Address, open_timeout: float | None
) -> None:
    async with saying(address, hello() + close(8, "the peer did not say hello in time")):
        with pytest.raises(ConnectionLost, match="did not say hello") as caught:
            async with connect(address, open_timeout=open_timeout, close_timeout=0.05) as connection:
                await connection.recv()
        assert caught.value.code == 8
        assert is_transient(caught.value)


async def test_a_peer_that_says_no_hello_is_one(address: Address) -> None:
    async with saying(address, b""):
        with pytest.raises(HvTimeout, match=r"within 0\.05 s"):
            await connect(address, open_timeout=0.05, close_timeout=0.05)


# -- TLS ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def dying_in_the_handshake(address: Address) -> AsyncIterator[None]:
    async def peer(reader: asyncio.StreamReader, writer: Any) -> None:
        await reader.read(10)
        writer.transport.abort()

    async with ended(await start_hv_server(peer, address)):
        yield


async def test_a_service_that_dies_in_the_handshake(address: Address) -> None:
    async with dying_in_the_handshake(address):
        with pytest.raises(HvConnectError) as caught:
            await connect(address, ssl=contexts()[1], server_hostname=NAME)
        assert caught.value.transient
        assert caught.value.remote == address
        assert str(address) in str(caught.value)
        assert caught.value.__cause__ is not None


async def test_a_reconnecting_loop_goes_on_after_one(address: Address) -> None:
    errors: list[Exception] = []

    def transient(error: Exception) -> bool:
        errors.append(error)
        return is_transient(error) and len(errors) < 3

    client = connect(
        address, ssl=contexts()[1], server_hostname=NAME, transient=transient, retry=Retry(0.01, 0.01)
    )
    async with dying_in_the_handshake(address):
        with pytest.raises(HvConnectError):
            async for _ in client:
                raise AssertionError("there is no connection")
    assert len(errors) == 3


# -- given up ----------------------------------------------------------------------------------------------

# What a peer has said by then. The second is refused, and waited for to read why.
SAID = {
    "nothing": b"",
    "another version": hello(version=9, oldest=9),
    "no hello": b"GET / HTTP/1.1\r\n",
    "busy": hello() + close(7, "busy"),
    "a greeting": GREETING,
}


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("close_timeout", [60.0, None])
async def test_cancelled_at_every_step(pair: Pair, said: str, close_timeout: float | None) -> None:
    for steps in range(12):
        ours, theirs = pair()
        theirs.send(SAID[said])
        await given_up(ours, theirs, steps, close_timeout)


async def given_up(
    ours: socket.socket, theirs: socket.socket, steps: int, close_timeout: float | None
) -> None:
    async def use() -> None:
        connection = await connect(sock=ours, close_timeout=close_timeout)
        connection.transport.abort()

    task = asyncio.create_task(use())
    await turns(steps)
    task.cancel()
    async with asyncio.timeout(LATE):
        await asyncio.wait([task])
        await turns(2)
        if steps:  # else it was never begun, and the socket is not its own
            assert ours.fileno() == -1
            await Peer(theirs).drained()
    if not task.cancelled():
        assert isinstance(task.exception(), (ConnectionLost, type(None)))


@pytest.mark.parametrize("close_timeout", [60.0, None])
@pytest.mark.parametrize("said", ["another version", "no hello"])
async def test_cancelled_while_a_peer_that_was_refused_is_heard_out(
    pair: Pair, said: str, close_timeout: float | None
) -> None:
    ours, theirs = pair()
    peer = Peer(theirs)
    await peer.send(SAID[said])
    task = asyncio.ensure_future(connecting(sock=ours, close_timeout=close_timeout))
    await peer.hello()
    assert (await peer.closed())[0] in (2, 3)
    await turns(3)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, LATE)
    await turns(2)
    assert ours.fileno() == -1
    await peer.ended()


async def connecting(*args: Any, **options: Any) -> Connection:
    return await connect(*args, **options)


@pytest.mark.parametrize("close_timeout", [60.0, None])
async def test_cancelled_while_one_that_was_dialled_is_heard_out(
    address: Address, close_timeout: float | None
) -> None:
    refused = asyncio.Event()
    gone = asyncio.Event()

    async def peer(reader: asyncio.StreamReader, writer: Any) -> None:
        writer.write(SAID["another version"])
        await reader.readexactly(24 + 8)
        refused.set()
        await reader.read()
        gone.set()
        writer.close()

    async with ended(await start_hv_server(peer, address)):
        task = asyncio.ensure_future(connecting(address, close_timeout=close_timeout))
        await refused.wait()
        await turns(3)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, LATE)
        await asyncio.wait_for(gone.wait(), LATE)


# -- what makes no sense is told at once -------------------------------------------------------------------


async def coroutine_function(*args: object) -> None:
    raise AssertionError("never called")


class Methods:
    async def method(self, *args: object) -> None:
        raise AssertionError("never called")


WRONG: list[tuple[str, object]] = [
    ("on_message", coroutine_function),
    ("on_message", Methods().method),
    ("on_message", functools.partial(coroutine_function, 1)),
    ("on_message", "x"),
    ("on_message", 5),
    ("codec", LengthPrefixed),
    ("codec", "x"),
    ("max_size", 1.5),
    ("max_size", "1"),
    ("heartbeat_timeout", float("inf")),
    ("heartbeat_timeout", float("nan")),
    ("heartbeat", float("nan")),
    ("heartbeat", "5"),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
async def test_wrong_settings(address: Address, name: str, value: object) -> None:
    options: Any = {name: value}
    with pytest.raises((TypeError, ValueError), match=name):
        connect(address, **options)
    with pytest.raises((TypeError, ValueError), match=name):
        await serve(echo, address, **options)
    async with serving(echo, address):  # nothing listens there
        pass


@pytest.mark.parametrize("value", [coroutine_function, Methods().method, "x", 3])
def test_wrong_transient(value: Any) -> None:
    with pytest.raises(TypeError, match="transient"):
        connect("vsock+unix:///nowhere.sock:1", transient=value)


@pytest.mark.parametrize("value", ["x", 5])
async def test_wrong_handlers(address: Address, value: Any) -> None:
    with pytest.raises(TypeError, match="handler"):
        await serve(value, address)
    async with serving(echo, address):
        pass


def test_a_coroutine_function_as_callback_is_a_type_error() -> None:
    wrong: Any = coroutine_function
    with pytest.raises(TypeError):
        connect("vsock+unix:///nowhere.sock:1", on_message=wrong)


# -- one object, used twice --------------------------------------------------------------------------------


async def test_two_blocks_at_once_over_one_object(address: Address) -> None:
    async with serving(echo, address) as server:
        client = connect(address)
        async with client as first:
            with pytest.raises(RuntimeError):
                async with client:
                    raise AssertionError("a second block was entered")
            await first.send(b"still there")
            assert await first.recv() == b"still there"
        assert first.closed
        async with client as second:
            assert second is not first
            await second.send(b"again")
            assert await second.recv() == b"again"
        await until(lambda: not server.connections)


async def test_two_tasks_that_enter_one_object_in_the_same_moment(address: Address) -> None:
    async with serving(echo, address) as server:
        client = connect(address)

        async def use() -> bytes:
            async with client as connection:
                await connection.send(b"x")
                return await connection.recv()

        outcome = await asyncio.gather(use(), use(), return_exceptions=True)
        assert sorted(type(each).__name__ for each in outcome) == ["RuntimeError", "bytes"]
        await until(lambda: not server.connections)
        assert await use() == b"x"


async def test_one_that_failed_can_be_entered_again(address: Address) -> None:
    client = connect(address)
    for _ in range(2):
        with pytest.raises(HvConnectError):
            async with client:
                raise AssertionError("nobody listens")
    async with serving(echo, address), client as connection:
        await connection.send(b"x")
        assert await connection.recv() == b"x"


async def test_a_socket_cannot_be_connected_again_and_again(pair: Pair) -> None:
    ours, theirs = pair()
    await Peer(theirs).send(hello())
    with pytest.raises(ValueError, match="sock"):
        async for _ in connect(sock=ours):
            raise AssertionError("there is only one")
