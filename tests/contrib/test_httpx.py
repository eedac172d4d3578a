"""httpx and httpx2, against a server of aiohttp's on the same sockets."""

from __future__ import annotations

import asyncio
import functools
import sys
from collections import Counter
from collections.abc import AsyncIterator
from hashlib import sha256
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest

import aiohvsock.contrib.httpx
import aiohvsock.contrib.httpx2
from aiohvsock import Address, HvAddressError, HvConnectError, HvConnectionRefused, Retry, create_hv_server
from aiohvsock.addresses import to_address

from ..helpers import Recorder, no_counterpart
from ..test_listening import another
from .aiohttp_service import LARGE, MIB, SEEN, contexts, machine, serving, until
from .anyio_runs import BACKENDS, asyncio_elsewhere, on

LIBRARIES = {"httpx": (httpx, aiohvsock.contrib.httpx), "httpx2": (httpx2, aiohvsock.contrib.httpx2)}


class Library:
    """One of the two, and our transport for it."""

    def __init__(self, http: ModuleType, contrib: ModuleType) -> None:
        self.http: Any = http
        self.contrib: Any = contrib

    def client(self, address: Any, *, timeout: Any = 20.0, **options: Any) -> Any:
        return self.http.AsyncClient(transport=self.contrib.HvTransport(address, **options), timeout=timeout)


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Library:
    return Library(*LIBRARIES[request.param])


# -- requests ----------------------------------------------------------------------------------------------


async def test_a_request(library: Library, address: Address) -> None:
    async with serving(address), library.client(address) as client:
        answer = await client.get("http://vm/")
        assert answer.status_code == 200
        assert answer.json()["server"] == "one"
        assert answer.json()["host"] == "vm"
        assert answer.json()["remote"] == machine(to_address(answer.json()["peer"]))
        stream = answer.extensions["network_stream"]
        assert stream.get_extra_info("server_addr") == address
        assert type(stream.get_extra_info("client_addr")) is type(address)
        assert stream.get_extra_info("ssl_object") is None
        assert stream.get_extra_info("colour") is None


async def test_many_requests_to_two_machines(library: Library, address: Address) -> None:
    """Connections are kept, and each machine's apart."""
    machines = {"one": address, "TWO": another(address)}
    gate = asyncio.Semaphore(20)

    async def request(number: int) -> str:
        async with gate:
            name = "one" if number % 2 else "two"
            assert (await client.get(f"http://{name}/")).json()["server"] == name
            return name

    async with (
        serving(machines["one"], "one") as one,
        serving(machines["TWO"], "two") as two,
        library.client(machines) as client,
    ):
        names = await asyncio.gather(*map(request, range(200)))
        assert Counter(names) == {"one": 100, "two": 100}
        for runner in (one, two):
            seen = runner.app[SEEN]
            assert len(seen) == 100
            assert len(set(map(id, seen))) <= 20


async def test_a_server_that_is_restarted(library: Library, address: Address) -> None:
    async with library.client(address) as client:
        for _ in range(2):
            async with serving(address) as runner:
                for _ in range(2):
                    assert (await client.get("http://vm/")).status_code == 200
                seen = runner.app[SEEN]
                assert len(set(map(id, seen))) == 1


async def test_large_bodies_are_streamed(library: Library, address: Address) -> None:
    async def body() -> AsyncIterator[bytes]:
        for number in range(LARGE // MIB):
            yield bytes([number]) * MIB

    expected = sha256(b"".join(bytes([number]) * MIB for number in range(LARGE // MIB))).hexdigest()
    async with serving(address), library.client(address) as client:
        assert (await client.put("http://vm/digest", content=body())).text == expected
        got = 0
        async with client.stream("GET", f"http://vm/zeros?size={LARGE}") as answer:
            async for chunk in answer.aiter_bytes():
                got += len(chunk)
        assert got == LARGE
        # Not read to its end, it is given up.
        async with client.stream("GET", f"http://vm/zeros?size={LARGE}") as answer:
            async for _ in answer.aiter_bytes():
                break


async def test_tls(library: Library, address: Address) -> None:
    server, client_context, _ = contexts()
    async with serving(address, ssl_context=server):
        async with library.client(address, verify=client_context) as client:
            for _ in range(2):
                answer = await client.get("https://guest.example/")
                assert answer.json()["server"] == "one"
            assert answer.extensions["network_stream"].get_extra_info("ssl_object") is not None
            with pytest.raises(library.http.ConnectError, match=r"another\.example|doesn't match|not valid"):
                await client.get("https://another.example/")
        # There httpx2 asks the system, by truststore, and Wine's accepts any authority.
        if library.http is not httpx2 or sys.platform != "win32":
            async with library.client(address) as client:
                with pytest.raises(library.http.ConnectError, match="certificate"):
                    await client.get("https://guest.example/")
        async with library.client(address, verify=False) as client:
            assert (await client.get("https://guest.example/")).status_code == 200


@pytest.mark.parametrize("way", ["resolver", "async resolver", "address source", "mapping of sources"])
async def test_who_gives_the_address(library: Library, address: Address, way: str) -> None:
    asked = []

    def resolver(host: str, port: int) -> Address | None:
        asked.append((host, port))
        return address if host == "vm" else None

    async def async_resolver(host: str, port: int) -> Address | None:
        return resolver(host, port)

    async def source() -> str:
        asked.append(("vm", 80))
        return str(address)

    ways: dict[str, Any] = {
        "resolver": resolver,
        "async resolver": async_resolver,
        "address source": source,
        "mapping of sources": {"vm": source},
    }
    async with serving(address), library.client(ways[way]) as client:
        for _ in range(2):
            assert (await client.get("http://vm/")).status_code == 200
        assert asked == [("vm", 80)]
        if way != "address source":
            with pytest.raises(
                library.http.ConnectError, match="'?other'?.*no machine is known by this name"
            ):
                await client.get("http://other/")


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_on_every_backend(backend: str, name: str, address: Address) -> None:
    library = Library(*LIBRARIES[name])

    async def serve(ready: Any, stop: asyncio.Event) -> None:
        async with serving(address):
            ready()
            await stop.wait()

    async def main() -> None:
        async with asyncio_elsewhere(serve), library.client(address) as client:
            for _ in range(2):
                assert (await client.get("http://vm/")).json()["server"] == "one"
            with pytest.raises(library.http.ReadTimeout):
                await client.get("http://vm/forever", timeout=0.05)

    on(backend, functools.partial(main))


# -- what goes wrong ---------------------------------------------------------------------------------------


async def test_nobody_listens(library: Library, address: Address) -> None:
    async with library.client(address) as client:
        with pytest.raises(library.http.ConnectError) as caught:
            await client.get("http://vm/")
        assert isinstance(caught.value.__cause__, HvConnectionRefused)
        assert str(address) in str(caught.value)
        assert caught.value.request.url.host == "vm"


async def test_it_waits_for_a_service_that_starts(library: Library, address: Address) -> None:
    async with library.client(address, retry=Retry(delay=0.01)) as client:
        asking = asyncio.create_task(client.get("http://vm/"))
        async with serving(address):
            assert (await asking).status_code == 200
    async with library.client(address, retry=Retry(), timeout=0.05) as client:
        with pytest.raises(library.http.ConnectTimeout):
            await client.get("http://vm/")


@pytest.mark.parametrize("timeout", [None, 10])
@pytest.mark.parametrize("retry", [None, Retry()])
async def test_a_resolver_that_is_out_of_time(
    library: Library, retry: Retry | None, timeout: float | None
) -> None:
    async def resolve(host: str, port: int) -> Address:
        raise TimeoutError

    async with library.client(resolve, retry=retry, timeout=timeout) as client:
        with pytest.raises(library.http.ConnectTimeout, match=r"^TimeoutError\(\)$"):
            await client.get("http://vm/")


async def test_no_answer(library: Library, address: Address) -> None:
    async with serving(address) as runner, library.client(address) as client:
        with pytest.raises(library.http.ReadTimeout, match=r"^read: not done within 0\.05 s$"):
            await client.get("http://vm/forever", timeout=0.05)
        (transport,) = runner.app[SEEN]
        await until(transport.is_closing)


async def test_a_server_that_takes_nothing(library: Library, address: Address) -> None:
    class Paused(Recorder):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()
            made.append(transport)

    made: list[Any] = []
    async with await create_hv_server(Paused, address), library.client(address) as client:
        with pytest.raises(library.http.WriteTimeout, match=r"^write: not done within 0\.1 s$"):
            await client.put("http://vm/", content=bytes(LARGE), timeout=0.1)
        for transport in made:
            transport.abort()


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"])
async def test_a_server_that_dies(library: Library, address: Address, sent: bytes) -> None:
    class Dying(Recorder):
        def data_received(self, data: bytes) -> None:
            assert self.transport is not None
            self.transport.write(sent)
            self.transport.close()

    async with await create_hv_server(Dying, address), library.client(address) as client:
        with pytest.raises((library.http.RemoteProtocolError, library.http.ReadError)) as caught:
            await client.get("http://vm/")
        assert caught.value.request.url.host == "vm"


async def test_cancelled_in_every_turn(library: Library, address: Address) -> None:
    async with serving(address), library.client(address, max_keepalive_connections=0) as client:
        for turns in range(60):
            asking = asyncio.create_task(client.get("http://vm/"))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])
        assert (await client.get("http://vm/")).status_code == 200


@pytest.mark.parametrize(("address", "words"), [("vsock://", "vsock://"), ("http://vm", "scheme")])
def test_a_malformed_address(library: Library, address: object, words: str) -> None:
    with pytest.raises(HvAddressError, match=words):
        library.contrib.HvTransport(address)


async def test_an_address_of_another_system(library: Library) -> None:
    async with library.client(no_counterpart(1)) as client:
        with pytest.raises(library.http.ConnectError) as caught:
            await client.get("http://vm/")
        assert isinstance(caught.value.__cause__, HvAddressError)


async def test_what_a_resolver_does_wrong_is_not_hidden(library: Library) -> None:
    def resolver(host: str, port: int) -> None:
        raise ZeroDivisionError("ours")

    async with library.client(resolver) as client:
        with pytest.raises(ZeroDivisionError, match="ours"):
            await client.get("http://vm/")

    def failing(host: str, port: int) -> None:
        raise HvConnectError(5, "look up", remote=host)

    async with library.client(failing) as client:
        with pytest.raises(library.http.ConnectError, match="look up"):
            await client.get("http://vm/")
