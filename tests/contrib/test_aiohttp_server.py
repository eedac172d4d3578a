from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import aiohttp
import pytest
from aiohttp import web

from aiohvsock import (
    Address,
    HvAddressError,
    HvConnectError,
    HybridAddress,
    HypervAddress,
    open_hv_connection,
)
from aiohvsock.addresses import to_address
from aiohvsock.contrib.aiohttp import HvSite, run_app

from ..helpers import no_counterpart
from ..test_listening import another
from .aiohttp_service import LARGE, MIB, SEEN, application, ask, contexts, machine, serving, session, until

# -- who asks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
async def test_remote_names_the_machine(address: Address, tls: bool) -> None:
    server, trusting, _ = contexts()
    async with (
        serving(address, ssl_context=server if tls else None) as runner,
        session(address, ssl=trusting) as client,
    ):
        answer = await ask(client, f"{'https' if tls else 'http'}://guest.example/")
        assert answer["remote"] == machine(address)
        assert type(runner.app[SEEN][0].get_extra_info("hv_peer")) is type(address)
        assert machine(to_address(answer["peer"])) == machine(address)


async def test_the_access_log_names_the_machine(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="aiohttp.access")
    async with serving(address), session(address) as client:
        await ask(client)
    assert caplog.records[-1].getMessage().startswith(machine(address))


async def test_who_is_not_allowed(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[Address] = []

    def nobody(peer: Address) -> bool:
        asked.append(peer)
        return False

    async with serving(address, allow=nobody) as runner, session(address) as client:
        with pytest.raises(aiohttp.ClientConnectionError):
            await ask(client)
        assert runner.app[SEEN] == []
    assert {machine(peer) for peer in asked} == {machine(address)}
    assert "not allowed" in caplog.text


async def test_who_is_allowed_by_what_remote_says(address: Address) -> None:
    name: str | int = machine(address)
    if not isinstance(address, (HybridAddress, HypervAddress)):
        name = int(name)
    async with serving(address, allow=[name]), session(address) as client:
        assert (await ask(client))["remote"] == str(name)


@pytest.mark.parametrize("tls", [False, True])
async def test_file_response(address: Address, tmp_path: Path, tls: bool) -> None:
    data = os.urandom(3 * MIB + 1)
    path = tmp_path / "file.bin"
    path.write_bytes(data)
    server, trusting, _ = contexts()
    url = f"{'https' if tls else 'http'}://guest.example/file"
    async with (
        serving(address, ssl_context=server if tls else None),
        session(address, ssl=trusting) as client,
    ):
        async with client.get(url, params={"path": str(path)}) as answer:
            assert answer.status == 200
            assert await answer.read() == data
        headers = {"Range": f"bytes=1000-{2 * MIB}"}
        async with client.get(url, params={"path": str(path)}, headers=headers) as answer:
            assert answer.status == 206
            assert await answer.read() == data[1000 : 2 * MIB + 1]


# -- the site ----------------------------------------------------------------------------------------------


async def test_the_name_of_a_site(address: Address) -> None:
    runner = web.AppRunner(application(), tcp_keepalive=False)
    with pytest.raises(RuntimeError, match="setup"):
        HvSite(runner, address)
    await runner.setup()
    with pytest.raises(HvAddressError, match="no scheme"):
        HvSite(runner, "vm:80")
    site = HvSite(runner, str(address))
    assert (site.name, site.server) == (str(address), None)
    elsewhere = another(address)
    both = HvSite(runner, (each for each in (elsewhere, no_counterpart(1))))
    await site.start()
    await both.start()
    assert site.server is not None and both.server is not None
    assert (site.name, site.server.address) == (str(address), address)
    assert (both.name, both.server.addresses) == (
        str(elsewhere),
        (elsewhere,),
    )  # the other means nothing here
    assert len(runner.addresses) == 2
    await site.stop()
    async with session({"a": address, "b": elsewhere}) as client:
        with pytest.raises(aiohttp.ClientConnectorError):
            await ask(client, "http://a/")
        await ask(client, "http://b/")
    await runner.cleanup()


async def test_an_address_that_is_taken(address: Address) -> None:
    async with serving(address) as runner:
        with pytest.raises(HvConnectError):
            await HvSite(runner, address).start()


async def test_max_connections(address: Address) -> None:
    async with (
        serving(address, max_connections=1) as runner,
        session(address) as first,
        session(address) as second,
    ):
        held = asyncio.create_task(ask(first, "http://vm/forever"))
        await until(lambda: runner.app[SEEN])
        waiting = asyncio.create_task(ask(second))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        held.cancel()
        assert (await waiting)["server"] == "one"


# -- run_app -----------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio, sys
from aiohttp import web
from aiohvsock.contrib.aiohttp import run_app

started = asyncio.Event()

async def slow(request):
    print("asked", flush=True)
    await asyncio.sleep(float(request.query["delay"]))
    return web.Response(text="done")

async def stopping(app):
    print("stopping", flush=True)

async def cleaned(app):
    print("cleaned up", flush=True)

async def make():
    app = web.Application()
    app.add_routes([web.get("/slow", slow)])
    app.on_shutdown.append(stopping)
    app.on_cleanup.append(cleaned)
    return app

loop = None
if "uvloop" in sys.argv:
    import uvloop
    loop = uvloop.new_event_loop()
run_app(make(), sys.argv[1].split(), shutdown_timeout=float(sys.argv[2]), loop=loop)
print("the end")
"""


@contextlib.contextmanager
def program(address: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a service in another process, until it serves."""
    command = [sys.executable, "-u", "-X", "dev", "-W", "error", "-c", PROGRAM]
    # A shell starts what runs in the background with SIGINT ignored, and that is inherited.
    shell = ["env", "--default-signal=INT"] if sys.platform != "win32" else []
    with subprocess.Popen(
        [*shell, *command, address, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return await asyncio.to_thread(process.stdout.readline)


@pytest.mark.linux
@pytest.mark.timeout(60)
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_run_app_ends_at_a_signal(address: Address, stop: signal.Signals, loop: str) -> None:
    """What was asked is answered first."""
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    elsewhere = another(address)
    with program(f"{address} {elsewhere}", 10, loop) as process:
        assert await said(process) == f"======== Running on {address}, {elsewhere} ========\n"
        assert await said(process) == "(Press CTRL+C to quit)\n"
        async with session({"a": address, "b": elsewhere}) as client:
            asking = [
                asyncio.create_task(client.get(f"http://{host}/slow", params={"delay": "0.3"}))
                for host in ("a", "b")
            ]
            for _ in asking:
                assert await said(process) == "asked\n"
            process.send_signal(stop)
            for each in asking:
                async with await each as answer:
                    assert await answer.text() == "done"
        output, errors = await asyncio.to_thread(process.communicate)
    assert output == "stopping\ncleaned up\nthe end\n"
    assert [line for line in errors.splitlines() if "GET /slow" not in line and "took" not in line] == []
    assert errors.count('"GET /slow?delay=0.3 HTTP/1.1" 200') == 2  # the access log, as in debug mode
    assert process.returncode == 0


@pytest.mark.linux
@pytest.mark.timeout(60)
@pytest.mark.parametrize(("timeout", "signals"), [(0.1, 1), (60, 2)])
async def test_run_app_does_not_wait_for_ever(address: Address, timeout: float, signals: int) -> None:
    """After the timeout, and at the second signal, it ends."""
    with program(str(address), timeout) as process:
        assert "Running" in await said(process)
        await said(process)
        async with session(address) as client:
            asking = asyncio.create_task(client.get("http://vm/slow", params={"delay": "60"}))
            assert await said(process) == "asked\n"
            process.send_signal(signal.SIGINT)
            assert await said(process) == "stopping\n"
            if signals == 2:
                process.send_signal(signal.SIGINT)
            with pytest.raises(aiohttp.ClientError):
                await asking
        output, _ = await asyncio.to_thread(process.communicate)
    assert output.endswith("the end\n")
    assert process.returncode == 0


def leave() -> NoReturn:
    raise web.GracefulExit


@contextlib.asynccontextmanager
async def in_a_thread(
    app: web.Application, address: Address, **options: Any
) -> AsyncIterator[tuple[asyncio.AbstractEventLoop, list[str]]]:
    """Yield the loop of an application that runs, and what it has printed; wait for its end."""
    printed: list[str] = []
    running = threading.Event()
    loop = asyncio.new_event_loop()

    def note(*words: str) -> None:
        printed.extend(words)
        running.set()

    options |= {"print": note, "handle_signals": False, "access_log": None, "loop": loop}
    thread = threading.Thread(target=run_app, args=(app, address), kwargs=options)
    thread.start()
    try:
        await asyncio.to_thread(running.wait)
        yield loop, printed
    finally:
        await asyncio.to_thread(thread.join)
    assert loop.is_closed()


async def test_run_app_in_a_thread(address: Address) -> None:
    """With TLS, and until a handler leaves."""
    server, trusting, _ = contexts()
    app = application()

    async def stop(request: web.Request) -> web.Response:
        asyncio.get_running_loop().call_later(0.01, leave)
        return web.Response(text=request.remote)

    app.add_routes([web.get("/stop", stop)])
    options = {"ssl_context": server, "allow": lambda peer: True}
    async with (
        in_a_thread(app, address, **options) as (_, printed),
        session(address, ssl=trusting) as client,
        client.get("https://guest.example/stop") as answer,
    ):
        assert await answer.text() == machine(address)
    assert printed == [f"======== Running on {address} ========\n(Press CTRL+C to quit)"]


async def test_run_app_does_not_leave_open_who_does_not_read(address: Address) -> None:
    async with in_a_thread(application(), address, shutdown_timeout=0.01) as (loop, _):
        reader, writer = await open_hv_connection(address)
        writer.write(b"GET /zeros?size=%d HTTP/1.1\r\nHost: vm\r\n\r\n" % LARGE)
        await reader.readexactly(1)
        loop.call_soon_threadsafe(leave)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def test_run_app_where_cleaning_up_fails(address: Address) -> None:
    async def fail(app: web.Application) -> None:
        raise ZeroDivisionError

    async def make() -> web.Application:
        app = application()
        app.on_cleanup.append(fail)
        return app

    def stop(*words: str) -> None:
        raise web.GracefulExit

    with pytest.raises(ZeroDivisionError):
        run_app(make(), address, print=stop, handle_signals=False)


def test_run_app_where_it_cannot_listen() -> None:
    cleaned: list[web.Application] = []

    async def clean(app: web.Application) -> None:
        cleaned.append(app)

    app = application()
    app.on_cleanup.append(clean)
    with pytest.raises(HvAddressError):
        run_app(app, no_counterpart(1), print=None, handle_signals=False)
    assert cleaned == [app]
