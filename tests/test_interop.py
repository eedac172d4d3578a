"""Foreign peers: socat and ncat, in both directions, on real AF_VSOCK."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from asyncio.subprocess import PIPE

import pytest

from aiohvsock import Retry, VsockAddress, open_hv_connection, start_hv_server

pytestmark = pytest.mark.vsock

SIZE = 5 * 2**20

# Each is started with data on stdin and writes what it receives to stdout.
DIAL = {
    "socat": "socat -t 10 - VSOCK-CONNECT:{cid}:{port}",
    "ncat": "ncat --vsock {cid} {port}",
}
LISTEN = {
    "socat": "socat -t 10 - VSOCK-LISTEN:{port}",
    "ncat": "ncat --vsock --listen {port}",
}


def need(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed: apt-get install {tool}")


async def start(command: str, address: VsockAddress) -> asyncio.subprocess.Process:
    words = command.format(cid=address.cid, port=address.port).split()
    return await asyncio.create_subprocess_exec(*words, stdin=PIPE, stdout=PIPE)


@pytest.mark.parametrize("tool", DIAL)
async def test_a_foreign_client(address: VsockAddress, tool: str) -> None:
    need(tool)
    received: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    answer = os.urandom(SIZE)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data, _ = await asyncio.gather(reader.readexactly(SIZE), send(writer, answer))
        received.set_result(hashlib.sha256(data).hexdigest())
        writer.close()

    question = os.urandom(SIZE)
    async with await start_hv_server(handler, address):
        client = await start(DIAL[tool], address)
        output, _ = await client.communicate(question)
        assert await received == hashlib.sha256(question).hexdigest()
        assert hashlib.sha256(output).digest() == hashlib.sha256(answer).digest()
        assert client.returncode == 0


@pytest.mark.parametrize("tool", LISTEN)
async def test_a_foreign_server(address: VsockAddress, tool: str) -> None:
    need(tool)
    question, answer = os.urandom(SIZE), os.urandom(SIZE)
    server = await start(LISTEN[tool], address)
    talking = asyncio.ensure_future(server.communicate(answer))
    reader, writer = await open_hv_connection(address, retry=Retry(delay=0.02))
    data, _ = await asyncio.gather(reader.readexactly(SIZE), send(writer, question))
    writer.write_eof()
    output, _ = await talking
    assert hashlib.sha256(data).digest() == hashlib.sha256(answer).digest()
    assert hashlib.sha256(output).digest() == hashlib.sha256(question).digest()
    writer.close()
    await writer.wait_closed()


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()
