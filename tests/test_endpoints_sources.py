"""Dialling a machine that has to be looked up: an async callable in the address' place."""

from __future__ import annotations

import asyncio
import contextlib
import errno

import pytest

from aiohvsock import Address, HvConnectError, connect, create_hv_connection

from .helpers import Recorder
from .messages.conftest import no_task_left
from .messages.peers import echo, serving
from .test_listening import DENIED, GONE, QUICK, UNSUPPORTED, Source, another, listening_on, often

__all__ = ["no_task_left", "often"]


async def test_each_attempt_asks_anew(address: Address) -> None:
    second = another(address)
    source = Source(GONE)
    attempt = asyncio.ensure_future(create_hv_connection(Recorder, source, retry=QUICK))
    await source.asked_again(3)
    await source.moved(second)  # where nobody listens
    async with listening_on(address):
        await source.asked_again(2)
        assert not attempt.done()
        source.where = str(address)
        transport, protocol = await attempt
        assert transport.get_extra_info("hv_peer") == address
        transport.close()
        await protocol.lost


async def test_no_machine_without_a_retry() -> None:
    source = Source(GONE)
    with pytest.raises(HvConnectError, match=str(GONE)) as caught:
        await create_hv_connection(Recorder, source)
    assert caught.value.errno == errno.EHOSTUNREACH
    assert caught.value.transient
    assert caught.value.__cause__ is GONE
    assert f"connect to {source} failed" in str(caught.value)
    assert source.asked == 1


@pytest.mark.parametrize("error", [UNSUPPORTED, DENIED, ZeroDivisionError("x")])
async def test_what_will_not_pass_ends_the_attempts(error: Exception) -> None:
    source = Source(error)
    with pytest.raises(type(error)) as caught:
        await create_hv_connection(Recorder, source, retry=QUICK)
    assert caught.value is error
    assert source.asked == 1


async def test_cancelled_while_it_is_asked() -> None:
    source = Source(asyncio.get_running_loop().create_future())
    attempt = asyncio.ensure_future(create_hv_connection(Recorder, source, retry=QUICK))
    await source.asked_again()
    attempt.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attempt
    assert source.cancelled == 1


async def test_connecting_again_and_again(address: Address) -> None:
    """Through moves of the machine, as when WSL starts again."""
    source = Source(address)
    seen: list[object] = []
    async with (
        serving(echo, source),  # type: ignore[arg-type]
        contextlib.aclosing(aiter(connect(source, retry=QUICK))) as connections,  # type: ignore[type-var]
    ):
        async for connection in connections:
            seen.append(connection.peer_address)
            await connection.send(b"hello")
            assert await connection.recv() == b"hello"
            if len(seen) == 3:
                break
            await source.moved(GONE)
            source.where = another(address, len(seen))
    assert len(set(seen)) == 3
    assert seen[0] == address
