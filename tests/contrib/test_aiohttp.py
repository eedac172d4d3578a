from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from hashlib import sha256
from typing import Any

import aiohttp
import pytest
from aiohttp import ClientTimeout

from aiohvsock import (
    Address,
    HvAddressError,
    HvConnectError,
    HvTimeout,
    HybridAddress,
    Retry,
    create_hv_server,
)
from aiohvsock.addresses import to_address
from aiohvsock.contrib.aiohttp import HvConnector

from ..helpers import Recorder, no_counterpart
from ..test_listening import another
from .aiohttp_service import LARGE, MIB, SEEN, ask, contexts, serving, session, until

# -- requests ----------------------------------------------------------------------------------------------


async def test_many_requests_to_two_machines(address: Address) -> None:
    """Connections are kept, and each machine's apart."""
    machines = {"one": address, "two": another(address)}
    gate = asyncio.Semaphore(50)

    async def request(number: int) -> str:
        async with gate:
            name = "one" if number % 2 else "two"
            assert (await ask(client, f"http://{name}/"))["server"] == name
            return name

    async with (
        serving(machines["one"], "one") as one,
        serving(machines["two"], "two") as two,
        session(machines) as client,
    ):
        names = await asyncio.gather(*map(request, range(1000)))
        assert Counter(names) == {"one": 500, "two": 500}
        for runner in (one, two):
            seen = runner.app[SEEN]
            assert len(seen) == 500
            assert len(set(map(id, seen))) <= 50


async def test_a_server_that_is_restarted(address: Address) -> None:
    async with session(address) as client:
        for name in ("one", "two", "three"):
            async with serving(address, name):
                for _ in range(3):
                    assert (await ask(client))["server"] == name


async def test_websocket(address: Address) -> None:
    async with serving(address), session(address) as client, client.ws_connect("ws://vm/chat") as ws:
        for text in ("hello", "x" * 100_000):
            await ws.send_str(text)
            assert await ws.receive_str() == text.upper()
        peer = ws.get_extra_info("hv_peer")
        assert peer == address


async def chunks(count: int, size: int = MIB) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield bytes(size)


async def test_streams_are_not_held_in_memory(address: Address) -> None:
    expected = sha256(bytes(LARGE)).hexdigest()
    async with serving(address), session(address) as client:
        await ask(client)
        tracemalloc.start()
        try:
            async with client.put("http://vm/digest", data=chunks(LARGE // MIB)) as answer:
                assert await answer.text() == expected
            seen = sha256()
            async with client.get("http://vm/zeros", params={"size": LARGE}) as answer:
                async for chunk in answer.content.iter_any():
                    seen.update(chunk)
            assert seen.hexdigest() == expected
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < LARGE / 4


# -- names of machines -------------------------------------------------------------------------------------


async def test_an_unknown_host(address: Address) -> None:
    async with session({"one": address, "Two": address}) as client:
        with pytest.raises(aiohttp.ClientConnectorDNSError, match=r"three.*known are: Two, one") as caught:
            await ask(client, "http://three/")
    assert isinstance(caught.value.os_error, HvConnectError)
    assert (caught.value.host, caught.value.port) == ("three", 80)


async def test_capitals(address: Address) -> None:
    async with serving(address), session({"WinDev": address}) as client:
        assert (await ask(client, "http://WinDev/"))["server"] == "one"


async def test_a_machine_that_is_elsewhere_now(address: Address) -> None:
    """The connections to where it was are not used any more, though it still answers there."""
    machines: dict[str, Address] = {"vm": address}
    elsewhere = another(address)
    async with (
        serving(address, "old") as old,
        serving(elsewhere, "new"),
        session(machines) as client,
    ):
        assert [(await ask(client))["server"] for _ in range(2)] == ["old", "old"]
        machines["vm"] = elsewhere
        assert [(await ask(client))["server"] for _ in range(2)] == ["new", "new"]
        await until(lambda: all(transport.is_closing() for transport in old.app[SEEN]))
        del machines["vm"]
        with pytest.raises(aiohttp.ClientConnectorDNSError):
            await ask(client)


async def give(address: Address | None) -> Address | None:
    await asyncio.sleep(0)
    return address


class Fickle(dict[str, Any]):
    """Never says the same twice."""

    def get(self, host: str, default: object = None) -> Any:
        return lambda: give(self[host])


async def test_a_mapping_that_is_never_the_same(address: Address) -> None:
    async with serving(address) as runner, session(Fickle(vm=address)) as client:
        for _ in range(3):
            await ask(client)
        seen = runner.app[SEEN]
        assert len(set(map(id, seen))) == 3


async def test_two_names_and_two_sessions_for_one_machine(address: Address) -> None:
    async with (
        serving(address) as runner,
        session({"a": address, "b": str(address)}) as first,
        session(address) as second,
    ):
        for client, host in ((first, "a"), (first, "b"), (second, "a"), (second, "b")) * 2:
            assert (await ask(client, f"http://{host}/"))["host"] == host
        seen = runner.app[SEEN]
        assert len(set(map(id, seen))) == 4


@pytest.mark.parametrize("wrap", [give, lambda address: address, lambda address: lambda: give(address)])
async def test_a_resolver(
    address: Address, wrap: Callable[[Address | None], Address | Awaitable[Address | None] | None]
) -> None:
    """At once, as an awaitable, or with an async callable, which is asked itself."""
    calls: list[tuple[str, int]] = []

    def resolve(host: str, port: int) -> object:
        calls.append((host, port))
        return wrap(address)

    async with serving(address), session(resolve) as client:
        for url in ("http://vm/", "http://vm/", "http://vm:2761/", "http://3/"):
            assert (await ask(client, url))["server"] == "one"
    assert calls == [("vm", 80), ("vm", 2761), ("3", 80)]


async def test_an_async_callable_is_an_address(address: Address) -> None:
    async with serving(address):
        for source in (lambda: give(address), {"vm": lambda: give(address)}):
            async with session(source) as client:
                assert (await ask(client))["server"] == "one"


def missing(host: str, port: int) -> Address:
    machines: dict[str, Address] = {}
    return machines[host]


def wrong(host: str, port: int) -> Address:
    return to_address(f"vsock://{host}")


def unreachable(host: str, port: int) -> Address:
    raise HvConnectError(5, "look up", remote=host)


@pytest.mark.parametrize(
    ("resolve", "words"),
    [
        (lambda host, port: None, "connect to vm failed: no machine is known by this name"),
        (lambda host, port: give(None), "connect to vm failed: no machine is known by this name"),
        (missing, r"connect to vm failed: .*KeyError\('vm'\)"),
        (wrong, r"connect to vm failed: .*no port after 'vm'"),
        (unreachable, "look up to vm failed"),
    ],
)
async def test_a_resolver_that_does_not_know(resolve: object, words: str) -> None:
    async with session(resolve) as client:
        with pytest.raises(aiohttp.ClientConnectorDNSError, match=words) as caught:
            await ask(client)
    assert isinstance(caught.value.os_error, HvConnectError)


async def test_what_a_resolver_does_wrong_is_not_hidden() -> None:
    async with session(lambda host, port: 1 / 0) as client:
        with pytest.raises(ZeroDivisionError):
            await ask(client)


def test_a_malformed_address() -> None:
    async def make() -> None:
        HvConnector("vm:80")

    with pytest.raises(HvAddressError, match="no scheme"):
        asyncio.run(make())


# -- what goes wrong ---------------------------------------------------------------------------------------


async def test_nobody_listens(address: Address) -> None:
    async with session(address) as client:
        with pytest.raises(aiohttp.ClientConnectorError) as caught:
            await ask(client)
    assert isinstance(caught.value.os_error, HvConnectError)
    assert caught.value.__cause__ is caught.value.os_error
    assert caught.value.os_error.remote == address
    assert str(address) in str(caught.value)


async def test_retry_waits_for_the_server(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="aiohvsock")
    async with session(address, retry=Retry(delay=0.01)) as client:
        asking = asyncio.create_task(ask(client))
        await until(lambda: "trying again" in caplog.text)
        async with serving(address):
            assert (await asking)["server"] == "one"


async def test_an_address_that_means_nothing_here() -> None:
    nowhere = no_counterpart(1)
    async with session(nowhere) as client:
        with pytest.raises(aiohttp.ClientConnectorError, match="has no counterpart") as caught:
            await ask(client)
    assert isinstance(caught.value.__cause__, HvAddressError)


@contextlib.contextmanager
def silent_monitor(directory: str) -> Iterator[HybridAddress]:
    """Yield the address of a monitor that takes every call and answers none."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/vm.sock")
        listener.listen()
        yield HybridAddress(f"{directory}/vm.sock", 80)


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": {"sock_connect": 0.05}},
        {"timeout": {"connect": 0.05}},
        {"timeout": {"sock_connect": 0.05}, "retry": Retry()},
        {"connect_timeout": 0.05},
    ],
)
async def test_a_monitor_that_does_not_answer(directory: str, options: dict[str, Any]) -> None:
    with silent_monitor(directory) as address:
        async with session(address, **options) as client:
            with pytest.raises(aiohttp.ConnectionTimeoutError) as caught:
                await ask(client)
        if "connect_timeout" in options:
            assert isinstance(caught.value.__cause__, HvTimeout)
            assert str(address) in str(caught.value.__cause__)


async def test_a_total_timeout(address: Address) -> None:
    async with serving(address), session(address) as client:
        with pytest.raises(TimeoutError):
            await ask(client, "http://vm/forever", timeout=ClientTimeout(total=0.05))
        assert (await ask(client))["server"] == "one"


async def test_a_resolver_that_takes_too_long() -> None:
    async def resolve(host: str, port: int) -> Address:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async with session(resolve, timeout={"sock_connect": 0.05}) as client:
        with pytest.raises(aiohttp.ConnectionTimeoutError):
            await ask(client)


async def test_cancelled_while_it_connects(directory: str) -> None:
    """The autouse fixture sees that no descriptor is left."""
    with silent_monitor(directory) as address:
        async with session(address) as client:
            for ticks in range(20):
                asking = asyncio.create_task(ask(client))
                for _ in range(ticks):
                    await asyncio.sleep(0)
                asking.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asking


@pytest.mark.parametrize("tls", [False, True])
async def test_cancelled_at_any_moment(address: Address, tls: bool) -> None:
    server, trusting, _ = contexts()
    async with (
        serving(address, ssl_context=server if tls else None),
        session(address, ssl=trusting, force_close=True) as client,
    ):
        for delay in range(20):
            asking = asyncio.create_task(ask(client, f"{'https' if tls else 'http'}://guest.example/forever"))
            await asyncio.sleep(delay / 2000)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking


async def test_a_closed_connector(address: Address) -> None:
    async with serving(address), session(address) as client:
        await ask(client)
    with pytest.raises(RuntimeError, match="closed"):
        await ask(client)


# -- TLS ---------------------------------------------------------------------------------------------------


async def test_tls(address: Address) -> None:
    server, trusting, fingerprint = contexts()
    async with serving(address, ssl_context=server) as runner:
        async with session(address, ssl=trusting) as client:
            assert (await ask(client, "https://guest.example/"))["server"] == "one"
            assert (await ask(client, "https://vm/", server_hostname="guest.example"))["server"] == "one"
            async with client.ws_connect("wss://guest.example/chat") as ws:
                await ws.send_str("hello")
                assert await ws.receive_str() == "HELLO"
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await ask(client, "https://host.example/")
        async with session(address) as client:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await ask(client, "https://guest.example/")
            for check in (trusting, False, aiohttp.Fingerprint(fingerprint)):
                assert (await ask(client, "https://guest.example/", ssl=check))["server"] == "one"
            with pytest.raises(aiohttp.ServerFingerprintMismatch) as caught:
                await ask(client, "https://guest.example/", ssl=aiohttp.Fingerprint(bytes(32)))
            assert (caught.value.host, caught.value.port) == ("guest.example", 443)
        for choice in (False, aiohttp.Fingerprint(fingerprint)):
            async with session(address, ssl=choice) as client:
                assert (await ask(client, "https://guest.example/"))["server"] == "one"
        async with session(address, ssl=aiohttp.Fingerprint(bytes(32))) as client:
            for asked in (True, False, trusting):
                with pytest.raises(aiohttp.ServerFingerprintMismatch):
                    await ask(client, "https://guest.example/", ssl=asked)
            assert runner.server is not None
            http = runner.server
            await until(lambda: not http.connections)


async def test_a_server_that_speaks_no_tls(address: Address) -> None:
    async with serving(address), session(address) as client:
        with pytest.raises(aiohttp.ClientConnectorError):
            await ask(client, "https://guest.example/")


async def test_a_tls_handshake_that_takes_too_long(address: Address) -> None:
    async with (
        await create_hv_server(Recorder, address) as server,
        session(address, timeout={"sock_connect": 0.1}) as client,
    ):
        with pytest.raises(aiohttp.ConnectionTimeoutError):
            await ask(client, "https://guest.example/")
        server.abort_clients()
