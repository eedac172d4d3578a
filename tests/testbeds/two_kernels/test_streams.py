"""Bytes and messages between a host and its guest."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import sys

import pytest

import aiohvsock
from aiohvsock import CID_ANY, CID_HOST, PORT_ANY, HvConnectError, HvConnectionRefused, VsockAddress
from aiohvsock.platforms import linux

from . import agent
from .conftest import Agent

pytestmark = pytest.mark.timeout(300)  # the first test boots the guest

ANY = VsockAddress(CID_ANY, PORT_ANY)
LENGTH = 2**20


def port_of(server: aiohvsock.HvServer) -> int:
    assert isinstance(server.address, VsockAddress)
    return server.address.port


async def test_the_host_dials_the_guest(guest_agent: Agent) -> None:
    data = os.urandom(LENGTH)
    address = guest_agent.address(agent.ECHO)

    assert await agent.exchange(address, data) == {
        "peer": str(address),
        "length": LENGTH,
        "digest": hashlib.sha256(data).hexdigest(),
    }


async def test_the_guest_dials_the_host(guest_agent: Agent) -> None:
    peers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer.get_extra_info("hv_peer"))
        await agent.echo(reader, writer)

    async with await aiohvsock.start_hv_server(serve, ANY, allow=[guest_agent.guest.cid]) as server:
        answer = await guest_agent.ask("dial_echo", port=port_of(server), length=LENGTH)

    assert answer["result"]["length"] == LENGTH
    assert answer["result"]["digest"] == hashlib.sha256(bytes(LENGTH)).hexdigest()
    assert answer["result"]["peer"] == str(VsockAddress(CID_HOST, port_of(server)))
    assert [peer.cid for peer in peers] == [guest_agent.guest.cid]


async def test_a_guest_that_is_not_allowed_is_turned_away(
    guest_agent: Agent, caplog: pytest.LogCaptureFixture
) -> None:
    async with await aiohvsock.start_hv_server(agent.echo, ANY, allow=[guest_agent.guest.cid + 1]) as server:
        answer = await guest_agent.ask("read_to_the_end", port=port_of(server))

    assert answer == {"result": ""}
    assert "vsock://3:" in caplog.text


async def test_the_examples_in_two_halves(guest_agent: Agent) -> None:
    """They dial and listen on hvsock:// addresses, as they do between Windows machines."""
    host = await asyncio.create_subprocess_exec(
        sys.executable, str(agent.EXAMPLES / "echo_host.py"), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert host.stdout is not None
        assert await host.stdout.readline() == b"listening on vsock://any:2761\n"
        answer = await guest_agent.ask("run_example", name="echo_guest.py")
        assert answer["result"].splitlines() == [
            f"the host has said: {word}" for word in ("hello", "from", "a guest")
        ]
        assert (await host.stdout.readline()).startswith(b"a guest has called: vsock://3:")
    finally:
        host.kill()
        await host.communicate()


async def test_messages_from_the_host(guest_agent: Agent) -> None:
    messages = [os.urandom(length) for length in (0, 1, 100, 100_000, LENGTH)]

    async with aiohvsock.connect(guest_agent.address(agent.MESSAGES)) as connection:
        for message in messages:
            await connection.send(message)
            assert await connection.recv() == message


async def test_messages_from_the_guest(guest_agent: Agent) -> None:
    lengths = [0, 1, 100, 100_000]

    async with await aiohvsock.serve(agent.echo_messages, ANY) as server:
        assert await guest_agent.ask("dial_messages", port=port_of(server), lengths=lengths) == {
            "result": lengths
        }


async def test_many_connections_at_once(guest_agent: Agent) -> None:
    async def talk(number: int) -> bytes:
        async with aiohvsock.connect(guest_agent.address(agent.MESSAGES)) as connection:
            await connection.send(b"%d" % number)
            return await connection.recv()

    assert await asyncio.gather(*map(talk, range(50))) == [b"%d" % number for number in range(50)]


async def test_nobody_listens_in_the_guest(guest_agent: Agent) -> None:
    with pytest.raises(HvConnectionRefused) as caught:
        await aiohvsock.open_hv_connection(guest_agent.address(agent.NOBODY))

    assert caught.value.errno == errno.ECONNRESET


async def test_nobody_listens_on_the_host(guest_agent: Agent) -> None:
    server = await aiohvsock.start_hv_server(agent.echo, ANY)
    port = port_of(server)
    server.close()
    await server.wait_closed()

    answer = await guest_agent.ask("dial_echo", port=port, length=1)

    assert (answer["error"], answer["errno"]) == ("HvConnectionRefused", errno.ECONNRESET)


async def test_a_cid_that_no_guest_has() -> None:
    with pytest.raises(HvConnectError) as caught:
        await aiohvsock.open_hv_connection("vsock://77:7000")

    assert (type(caught.value), caught.value.errno) == (HvConnectError, errno.ENODEV)


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_the_guest_sees_the_host_go(guest_agent: Agent, how: str) -> None:
    """AF_VSOCK has no abort: whichever way the host goes, the guest sees an end, and what came before it."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        getattr(writer.transport, how)()

    async with await aiohvsock.start_hv_server(greet, ANY) as server:
        assert await guest_agent.ask("read_to_the_end", port=port_of(server)) == {"result": "bye"}


async def test_each_side_knows_its_cid(guest_agent: Agent) -> None:
    assert linux.local_cid() == CID_HOST
    assert await guest_agent.ask("local_cid") == {"result": guest_agent.guest.cid}
