from __future__ import annotations

import asyncio
import gc
import os
import socket
import time

import pytest

from aiohvsock import (
    Address,
    ConnectionClosedOK,
    ConnectionLost,
    ConnectionStats,
    HybridAddress,
    LocalProtocolError,
    connect,
)

from ..conftest import Pair
from .peers import (
    DATA,
    PING,
    SCRATCH,
    Connection,
    Handler,
    blocked_by,
    close,
    data,
    dialling,
    echo,
    frame,
    hello,
    joined,
    numbered,
    pong,
    serving,
    talking,
    turns,
    until,
)

LIMIT = 3 * 2**20

# One of each kind: empty, joined to its header, written in pieces, received in place, as long as may be.
PAYLOADS = [
    b"",
    b"a",
    b"bc" * 1000,
    os.urandom(31 * 1024),
    b"",
    os.urandom(33 * 1024),
    b"between",
    os.urandom(SCRATCH - 8),
    os.urandom(SCRATCH + 1),
    b"",
    b"",
    os.urandom(2**20),
    b"x",
    os.urandom(LIMIT),
    b"end",
]


# -- messages both ways ------------------------------------------------------------------------------------


async def test_messages_of_every_size(address: Address) -> None:
    async with (
        serving(echo, address, max_size=LIMIT),
        connect(address, max_size=LIMIT) as connection,
    ):
        for payload in PAYLOADS:
            await connection.send(payload)
            assert await connection.recv() == payload


@pytest.mark.parametrize("how", ["send", "send_many"])
@pytest.mark.parametrize("receive", ["recv", "recv_many", "async for"])
async def test_large_and_small_ones_between_each_other_both_ways_at_once(
    address: Address, how: str, receive: str
) -> None:
    async def speak(connection: Connection) -> None:
        if how == "send_many":
            await connection.send_many(PAYLOADS)
        else:
            for payload in PAYLOADS:
                await connection.send(payload)

    async def listen(connection: Connection) -> list[bytes]:
        got: list[bytes] = []
        match receive:
            case "recv":
                got = [await connection.recv() for _ in PAYLOADS]
            case "recv_many":
                while len(got) < len(PAYLOADS):
                    got += await connection.recv_many()
            case _:
                async for message in connection:
                    got.append(message)
                    if len(got) == len(PAYLOADS):
                        break
        return got

    async with joined(address, max_size=LIMIT, server={"max_size": LIMIT}) as ends:
        async with asyncio.TaskGroup() as group:
            for end in ends:
                group.create_task(speak(end))
            listening = [group.create_task(listen(end)) for end in ends]
        for task in listening:
            got = task.result()
            assert got == PAYLOADS
            assert all(type(message) is bytes for message in got)


async def test_callbacks_at_both_ends(address: Address) -> None:
    """The client sends more than both buffers hold, and goes on hearing the answers: or both would wait for ever."""
    got: list[bytes] = []
    done = asyncio.Event()

    def answer(connection: Connection, message: bytes) -> None:
        connection.send_nowait(message)

    def note(connection: Connection, message: bytes) -> None:
        got.append(message)
        if len(got) == len(PAYLOADS):
            done.set()

    async with (
        serving(None, address, on_message=answer, max_size=LIMIT),
        connect(address, on_message=note, max_size=LIMIT, close_timeout=1.0) as connection,
        asyncio.timeout(10),
    ):
        for payload in PAYLOADS:
            await connection.send(payload)
        await done.wait()
    assert got == PAYLOADS


async def test_both_sides_may_speak_at_once(address: Address) -> None:
    count, size = 400, 5000

    async def handler(connection: Connection) -> None:
        for message in numbered(count, size):
            await connection.send(message)
        got = [await connection.recv() for _ in range(count)]
        await connection.send(b"right" if got == numbered(count, size) else b"wrong")

    async def speak(connection: Connection) -> None:
        for message in numbered(count, size):
            await connection.send(message)

    async with serving(handler, address), connect(address) as connection, asyncio.TaskGroup() as group:
        group.create_task(speak(connection))
        assert [message async for message in connection] == [*numbered(count, size), b"right"]


async def test_iteration_ends_when_the_peer_closes(address: Address) -> None:
    async def handler(connection: Connection) -> None:
        await connection.send_many(numbered(10))

    async with serving(handler, address), connect(address) as connection:
        assert [message async for message in connection] == numbered(10)
        assert [message async for message in connection] == []
        assert connection.closed


async def test_a_handlers_iteration_ends_when_the_client_closes(address: Address) -> None:
    got: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()

    async def handler(connection: Connection) -> None:
        got.set_result([message async for message in connection])

    async with serving(handler, address):
        async with connect(address) as connection:
            await connection.send_many(numbered(10, 1000))
        assert await got == numbered(10, 1000)


# -- what it is --------------------------------------------------------------------------------------------


async def test_the_addresses_of_both_ends(address: Address) -> None:
    handler = Handler()
    async with serving(handler, address) as server, connect(address) as connection:
        served = await handler.connection()
        assert connection.peer_address == server.address == served.local_address == address
        assert connection.local_address is not None
        assert served.peer_address is not None
        if isinstance(address, HybridAddress):
            assert isinstance(served.peer_address, HybridAddress)
            assert served.peer_address.path == address.path
        assert str(connection) == f"{connection.local_address} to {address}"
        assert repr(connection) == f"<MessageConnection {connection}, open>"
        assert str(served) in repr(served)
        assert not connection.closed
        assert connection.end is None
        assert connection.transport.get_extra_info("hv_peer") == address
        handler.released.set()
    assert connection.closed
    assert repr(connection) == f"<MessageConnection {connection}, closed>"


async def test_a_socket_of_a_foreign_family() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pair() -> tuple[socket.socket, socket.socket]:
            ours = socket.create_connection(listener.getsockname())
            theirs, _ = listener.accept()
            theirs.setblocking(False)
            return ours, theirs

        async with talking(pair) as (connection, peer):
            assert connection.peer_address is None
            assert connection.local_address is None
            assert "None" in repr(connection)
            await connection.send(b"hello")
            assert await peer.messages(1) == [b"hello"]


async def test_a_listening_socket_of_ones_own(directory: str) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(f"{directory}/socket")
    async with serving(echo, sock=listener):
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.connect(f"{directory}/socket")
        async with connect(sock=ours) as connection:
            await connection.send(b"hello")
            assert await connection.recv() == b"hello"


# -- figures -----------------------------------------------------------------------------------------------


async def test_stats(pair: Pair) -> None:
    before = time.time()
    async with talking(pair) as (connection, peer):
        opened = connection.stats
        assert opened == ConnectionStats(0, 0, 0, len(hello()), 0, opened.opened_at)
        assert before <= opened.opened_at <= time.time()

        # Each way of sending.
        await connection.send(b"1")
        connection.send_nowait(b"22")
        await connection.send_many([b"", b"333", bytes(40_000), b"4444"])
        await connection.send(bytes(50_000))
        sent = [1, 2, 0, 3, 40_000, 4, 50_000]
        assert [len(message) for message in await peer.messages(len(sent))] == sent
        stats = connection.stats
        assert stats.messages_sent == len(sent)
        assert stats.bytes_sent == sum(sent) + 8 * len(sent)

        # Each way of coming.
        wire = data(b"one", b"", bytes(300_000), b"two")
        sending = asyncio.create_task(peer.send(wire, frame(0xFF, b"ignored"), pong()))
        got = [await connection.recv()]
        while len(got) < 4:
            got += await connection.recv_many()
        await sending
        await until(lambda: connection.stats.bytes_received == len(hello()) + len(wire) + 15 + 8)
        stats = connection.stats
        assert stats.messages_received == 4
        assert stats.opened_at == opened.opened_at
        assert stats.pings_sent == 0


async def test_a_message_counts_as_received_when_it_is_whole(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        await peer.send(data(b"one") + data(b"two")[:-1])
        await until(lambda: connection.stats.bytes_received == len(hello()) + 21)
        assert connection.stats.messages_received == 1
        await peer.send(b"o")
        await until(lambda: connection.stats.messages_received == 2)


# -- ping --------------------------------------------------------------------------------------------------


async def test_ping(address: Address) -> None:
    async with joined(address) as (client, server):
        for connection in (client, server):
            assert connection.latency is None
            start = time.perf_counter()
            seconds = await connection.ping()
            assert 0 <= seconds <= time.perf_counter() - start + 0.01  # uvloop's clock counts milliseconds
            assert connection.latency == pytest.approx(seconds, abs=0.01)
            assert connection.stats.pings_sent == 1


async def test_a_ping_leaves_behind_what_was_sent_before_it(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        for number in range(3):
            connection.send_nowait(b"%d" % number)
        asking = asyncio.create_task(connection.ping())
        await turns()
        connection.send_nowait(b"3")
        kinds = [(await peer.frame())[0] for _ in range(5)]
        assert kinds == [DATA, DATA, DATA, PING, DATA]
        asking.cancel()
        await asyncio.wait([asking])


async def test_an_answer_answers_the_pings_before_it(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        asking = [asyncio.create_task(connection.ping()) for _ in range(3)]
        asked = [await peer.frames_of(PING) for _ in range(3)]
        assert len(set(asked)) == 3
        await peer.send(pong(asked[1]))
        await asking[0]
        await asking[1]
        await turns(3)
        assert not asking[2].done()
        await peer.send(pong(b"nobody asked"), pong(b""), pong(asked[0]), data(b"behind it"))
        assert await connection.recv() == b"behind it"
        assert not asking[2].done()
        await peer.send(pong(asked[2]))
        await asking[2]


async def test_a_ping_cancelled_changes_nothing(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        asking = asyncio.create_task(connection.ping())
        asked = await peer.frames_of(PING)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await peer.send(pong(asked), data(b"hello"))
        assert await connection.recv() == b"hello"
        assert connection.latency is not None  # the answer came all the same
        asking = asyncio.create_task(connection.ping())
        await peer.send(pong(await peer.frames_of(PING)))
        assert await asking >= 0


async def test_a_ping_cancelled_as_its_answer_comes(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        for steps in range(5):
            asking = asyncio.create_task(connection.ping())
            await peer.send(pong(await peer.frames_of(PING)))
            await turns(steps)
            asking.cancel()
            await asyncio.wait([asking])
        asking = asyncio.create_task(connection.ping())
        await peer.send(pong(await peer.frames_of(PING)))
        await asking


@pytest.mark.parametrize("end", ["closed by the peer", "lost", "closed here"])
async def test_a_ping_that_is_not_answered_any_more(pair: Pair, end: str) -> None:
    async with talking(pair) as (connection, peer):
        asking = [asyncio.create_task(connection.ping()) for _ in range(2)]
        await peer.frames_of(PING)
        match end:
            case "closed by the peer":
                await peer.send(close())
            case "lost":
                peer.end()
            case _:
                connection.start_closing()
        for task in asking:
            with pytest.raises(ConnectionLost if end == "lost" else ConnectionClosedOK):
                await task
        with pytest.raises(ConnectionLost if end == "lost" else ConnectionClosedOK):
            await connection.ping()


async def test_a_ping_cancelled_as_the_connection_ends(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        asking = asyncio.create_task(connection.ping())
        await peer.frames_of(PING)
        asking.cancel()
        connection.start_closing()
        with pytest.raises(asyncio.CancelledError):
            await asking


async def test_pings_leave_nothing_behind(address: Address) -> None:
    async with joined(address) as (client, _):

        def futures() -> int:
            gc.collect()
            return sum(isinstance(each, asyncio.Future) for each in gc.get_objects())

        await client.ping()
        before = futures()
        for _ in range(50):
            await client.ping()
        assert futures() <= before + 5


async def test_a_ping_waits_for_room(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        _, blocked = await blocked_by(connection, bytes(60_000))
        asking = asyncio.create_task(connection.ping())
        await turns(3)
        await peer.send(pong(await peer.frames_of(PING)))
        await asking
        await blocked


async def test_pings_are_answered_also_while_nobody_receives(address: Address) -> None:
    async with joined(address) as (client, server):
        await client.send(b"nobody takes it")
        assert await client.ping() >= 0
        assert await server.recv() == b"nobody takes it"


async def test_the_peers_pings_are_answered_with_their_payload(pair: Pair) -> None:
    async with talking(pair) as (connection, peer):
        for payload in (b"", b"x", bytes(64)):
            await peer.send(frame(PING, payload))
            assert await peer.frame() == (2, payload)
        # Those that come together by the last one.
        await peer.send(frame(PING, b"1"), data(b"hello"), frame(PING, b"2"))
        assert await connection.recv() == b"hello"
        assert await peer.frame() == (2, b"2")


async def test_before_the_hello_nothing_can_be_sent(address: Address) -> None:
    """Only a server's own list has connections that have not come so far."""
    handler = Handler()
    handler.released.set()
    async with serving(handler, address) as server:
        with dialling(address) as peer:
            await until(lambda: server.connections)
            (connection,) = server.connections
            for call in (connection.send(b"x"), connection.send_many([b"x"]), connection.ping()):
                with pytest.raises(LocalProtocolError, match="before the peer's hello"):
                    await call
            await peer.send(hello())
            await peer.hello()
            await until(lambda: connection.stats.bytes_received)
            await connection.send(b"now")
            assert await peer.messages(1) == [b"now"]
