"""Cancelling anything at any moment loses and doubles nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aiohvsock import (
    Address,
    ConnectionClosed,
    ConnectionClosedOK,
    ConnectionLost,
    HvTimeout,
    Retry,
    connect,
)

from ..conftest import Pair
from .peers import (
    Connection,
    Handler,
    Peer,
    blocked_by,
    data,
    deliver,
    echo,
    hello,
    in_callback,
    joined,
    numbered,
    serving,
    talking,
    turns,
    until,
)


async def _recv(connection: Connection) -> list[bytes]:
    return [await connection.recv()]


async def _recv_many(connection: Connection) -> list[bytes]:
    return await connection.recv_many()


async def _anext(connection: Connection) -> list[bytes]:
    return [await anext(connection)]


async def _loop(connection: Connection) -> list[bytes]:
    async for message in connection:
        return [message]
    raise AssertionError("it ended")


RECEIVE = [_recv, _recv_many, _anext, _loop]
Receive = Callable[[Connection], Awaitable[list[bytes]]]


@pytest.fixture(params=["C", "Python"])
def start(request: pytest.FixtureRequest) -> Callable[[Any], asyncio.Task[Any]]:
    """Starts tasks of asyncio's C implementation, or of that in Python."""
    kind: Any = asyncio.Task if request.param == "C" else asyncio.tasks._PyTask  # type: ignore[attr-defined]
    return lambda coroutine: kind(coroutine, loop=asyncio.get_running_loop())


# -- receiving ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("receive", RECEIVE)
async def test_in_the_turn_in_which_the_message_comes(
    pair: Pair, receive: Receive, start: Callable[[Any], asyncio.Task[Any]]
) -> None:
    """The message comes before it is cancelled, after, and after with a second read behind."""
    async with talking(pair) as (connection, _):
        numbers = iter(range(10**6))
        for order in range(30):
            task = start(receive(connection))
            await turns(1 + order % 2)
            expected = [b"%d" % next(numbers) for _ in range(2)]

            def happen(
                task: asyncio.Task[Any] = task, order: int = order, expected: list[bytes] = expected
            ) -> None:
                if order % 3:
                    task.cancel()
                deliver(connection, data(expected[0]))
                if order % 3 == 0:
                    task.cancel()
                if order % 3 == 2:
                    deliver(connection, data(expected[1]))

            await in_callback(happen)
            got: list[bytes] = []
            with contextlib.suppress(asyncio.CancelledError):
                got += await task
            assert bool(got) is (order % 3 == 0)
            expected = expected if order % 3 == 2 else expected[:1]
            while len(got) < len(expected):
                got += await connection.recv_many()
            assert got == expected


@pytest.mark.parametrize("receive", RECEIVE)
async def test_at_any_point_of_a_stream(address: Address, receive: Receive) -> None:
    expected = numbered(300)
    async with joined(address) as (connection, sender):
        got: list[bytes] = []
        cancelled = 0
        for number, message in enumerate(expected):
            task = asyncio.ensure_future(receive(connection))
            await turns(number % 3)
            await sender.send(message)
            await turns(number // 3 % 7)
            task.cancel()
            try:
                got += await task
            except asyncio.CancelledError:
                cancelled += 1
        while len(got) < len(expected):
            got += await receive(connection)
        assert got == expected
        assert cancelled


@pytest.mark.parametrize("receive", RECEIVE)
@pytest.mark.parametrize("limiter", ["wait_for", "timeout"])
async def test_with_hardly_any_time_against_a_steady_sender(
    address: Address, receive: Receive, limiter: str
) -> None:
    count = 300
    async with joined(address) as (connection, sender):

        async def speak() -> None:
            for message in numbered(count):
                await sender.send(message)
                await asyncio.sleep(0.0005)

        speaking = asyncio.create_task(speak())
        got: list[bytes] = []
        timeouts = 0
        while len(got) < count:
            try:
                if limiter == "wait_for":
                    # Before 3.12 it can throw away what it has when it is cancelled itself, which it is not here.
                    got += await asyncio.wait_for(receive(connection), 0.0004)
                else:
                    async with asyncio.timeout(0.0004):
                        got += await receive(connection)
            except TimeoutError:
                timeouts += 1
        assert got == numbered(count)
        assert timeouts
        await speaking


async def test_with_no_time_at_all(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await connection.recv()
        await peer.send(data(b"hello"))
        assert await connection.recv() == b"hello"


@pytest.mark.parametrize("cut", [1, 8, 9, 20_000, 2**20])
async def test_inside_a_message(pair: Pair, cut: int) -> None:
    async with talking(pair) as (connection, peer):
        wire = data(bytes(2**20))
        sending = asyncio.create_task(peer.send(wire[:cut]))
        task = asyncio.create_task(connection.recv())
        await sending
        await until(lambda: connection.stats.bytes_received == len(hello()) + cut)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        sending = asyncio.create_task(peer.send(wire[cut:], data(b"behind")))
        assert await connection.recv() == bytes(2**20)
        assert await connection.recv() == b"behind"
        await sending


async def test_as_the_connection_ends(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        task = asyncio.create_task(connection.recv())
        await turns()
        connection.start_closing()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ConnectionClosedOK):
            await connection.recv()
        await peer.answer_close()


# -- sending -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [False, True])
async def test_a_send_that_waits(pair: Pair, many: bool) -> None:
    async with talking(pair) as (connection, peer):
        count, blocked = await blocked_by(connection, bytes(60_000))
        blocked.cancel()
        for steps in range(8):
            message = b"%d" % steps
            task = asyncio.create_task(connection.send_many([message]) if many else connection.send(message))
            await turns(steps)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        receiving = asyncio.create_task(peer.messages(count))
        await connection.send(b"end")
        assert await receiving == [bytes(60_000)] * (count - 1) + [b"end"]


async def has_room(connection: Connection) -> None:
    await until(lambda: connection.transport.get_write_buffer_size() < 64 * 1024)


async def test_a_send_as_room_comes(pair: Pair) -> None:
    """It is sent or cancelled, never both nor neither."""
    for steps in range(12):
        async with talking(pair) as (connection, peer):
            count, blocked = await blocked_by(connection, bytes(60_000))
            receiving = asyncio.create_task(peer.messages(count - 1))
            await has_room(connection)
            await turns(steps)
            blocked.cancel()
            sent = True
            try:
                await blocked
            except asyncio.CancelledError:
                sent = False
            await connection.send(b"end")
            await receiving
            assert await peer.messages(1 + sent) == [bytes(60_000)] * sent + [b"end"]


async def test_a_send_before_it_began(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        for coroutine in (connection.send(b"hello"), connection.send_many([b"hello"])):
            task = asyncio.create_task(coroutine)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await connection.send(b"end")
        assert await peer.messages(1) == [b"end"]


# -- closing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
async def test_close_cancelled_cuts_the_connection_off(pair: Pair, steps: int) -> None:
    async with talking(pair) as (connection, peer):
        task = asyncio.create_task(connection.close(140, "why"))
        await turns(1 + steps)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await connection.wait_closed()
        with pytest.raises(ConnectionLost):
            await connection.recv()
        assert await peer.closed() == (140, "why")
        await peer.ended()


async def test_close_cancelled_before_it_began_does_nothing(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        task = asyncio.create_task(connection.close())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not connection.closed
        await connection.send(b"goes on")
        assert await peer.messages(1) == [b"goes on"]


async def test_one_of_several_that_close(pair: Pair) -> None:
    """It had no time to wait, so nobody has."""
    async with talking(pair) as (connection, _):
        closing = [asyncio.create_task(connection.close()) for _ in range(3)]
        await turns(2)
        closing[1].cancel()
        await asyncio.wait(closing)
        assert closing[1].cancelled()
        assert not closing[0].cancelled()
        await closing[0]
        await closing[2]


async def test_the_end_of_a_block(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        started = asyncio.Event()

        async def use() -> None:
            async with connection:
                started.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(use())
        await started.wait()
        task.cancel()
        assert await peer.answer_close() == (0, "")
        with pytest.raises(asyncio.CancelledError):
            await task
        await connection.wait_closed()


async def test_waiting_for_the_end_changes_nothing(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        waiting = [asyncio.create_task(connection.wait_closed()) for _ in range(2)]
        await turns()
        waiting[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        assert not connection.closed
        await connection.send(b"hello")
        assert await peer.messages(1) == [b"hello"]
        assert not waiting[1].done()
        connection.start_closing()
        await peer.answer_close()
        await waiting[1]


# -- connecting --------------------------------------------------------------------------------------------


async def _connected(address: Address) -> Connection:
    return await connect(address, retry=Retry())


async def test_connecting_at_every_step(address: Address) -> None:
    handler = Handler()
    async with serving(handler, address) as server:
        for steps in range(30):
            task = asyncio.create_task(_connected(address))
            await turns(steps)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await task).close()
        handler.released.set()
        await until(lambda: not server.connections)
    async with serving(echo, address), connect(address) as connection:
        await connection.send(b"still there")
        assert await connection.recv() == b"still there"


async def _over(sock: Any, **options: Any) -> Connection:
    return await connect(sock=sock, **options)


async def test_waiting_for_the_hello(pair: Pair) -> None:
    ours, theirs = pair()
    peer = Peer(theirs)
    task = asyncio.create_task(_over(ours))
    await peer.hello()
    await turns(3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await peer.ended()


@pytest.mark.parametrize("steps", range(6))
async def test_as_the_hello_comes(pair: Pair, steps: int) -> None:
    ours, theirs = pair()
    peer = Peer(theirs)
    task = asyncio.create_task(_over(ours))
    await peer.hello()
    await peer.send(hello())
    await turns(steps)
    task.cancel()
    try:
        connection = await task
    except asyncio.CancelledError:
        await peer.ended()
    else:
        theirs.close()
        await connection.close()


async def test_while_a_peer_that_broke_the_rules_is_heard_out(pair: Pair) -> None:
    """connect() waits a moment for the peer to read why; that, too, can be cut short."""
    ours, theirs = pair()
    peer = Peer(theirs)
    await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    task = asyncio.create_task(_over(ours))
    await peer.hello()
    await peer.closed()
    await turns(3)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns(2)
    assert ours.fileno() == -1, "the socket is still open"


async def test_under_a_timeout_of_ones_own(pair: Pair) -> None:
    """It is told from ours by its type."""
    ours, _theirs = pair()
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.02):
            await connect(sock=ours)
    assert not isinstance(caught.value, HvTimeout)


async def test_a_reconnecting_loop_in_each_of_its_states(address: Address) -> None:
    """Cancelled while it dials, waits to try again, and in its body."""
    connections: list[Connection] = []

    async def loop(**options: Any) -> None:
        async for connection in connect(**options):
            connections.append(connection)
            with contextlib.suppress(ConnectionClosed):
                await connection.recv()

    # Nobody listens: it dials, and sleeps.
    for steps in (0, 1, 2, 5, 20, 50):
        task = asyncio.create_task(loop(address=address, retry=Retry(delay=0.001, max_delay=0.001)))
        await turns(steps)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    task = asyncio.create_task(loop(address=address, retry=Retry(delay=100.0, max_delay=100.0)))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    # In the body.
    assert connections == []
    async with serving(echo, address):
        task = asyncio.create_task(loop(address=address))
        await until(lambda: connections)
        await turns(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await connections[0].wait_closed()


async def test_serve_forever(address: Address) -> None:
    ended: list[str] = []

    async def handler(connection: Connection) -> None:
        await connection.send(b"welcome")
        with contextlib.suppress(ConnectionClosedOK):
            await connection.recv()
        ended.append("ended")

    async with serving(handler, address) as server:
        task = asyncio.create_task(server.serve_forever())
        async with connect(address) as connection:
            assert await connection.recv() == b"welcome"
            task.cancel()
            with pytest.raises(ConnectionClosedOK) as caught:
                await connection.recv()
            assert caught.value.code == 1
            with pytest.raises(asyncio.CancelledError):
                await task
        assert ended == ["ended"]
        assert not server.connections
        assert not server.is_serving()
