"""An SSH server of asyncssh's and its client, with keys of their own."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from functools import cache
from typing import Any

import asyncssh

from aiohvsock import Address, HybridAddress, HypervAddress
from aiohvsock.addresses import AddressLike
from aiohvsock.contrib.asyncssh import connect, listen

# How many pieces of 2**14 the command "zeros" sends, and an entry for each it has sent.
ZEROS = 512
sent: list[object] = []


@cache
def host_key(number: int = 0) -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519")


@cache
def user_key() -> asyncssh.SSHKey:
    return asyncssh.generate_private_key("ssh-ed25519")


def public(key: asyncssh.SSHKey) -> str:
    return key.export_public_key().decode().strip()


def name_of(address: Address) -> str:
    """Return the name of a machine, as the docs have it."""
    match address:
        case HybridAddress():
            return f"vsock-mux{address.path}"
        case HypervAddress():
            return f"hvsock/{address.vm_id}"
    return f"vsock/{address.cid}"


def known(address: Address, key: asyncssh.SSHKey | None = None) -> bytes:
    """Return a known_hosts that has this machine."""
    return f"{name_of(address)} {public(key or host_key())}\n".encode()


async def shell(process: asyncssh.SSHServerProcess[str]) -> None:
    """Do what tests ask for."""
    match process.command:
        case "who":
            process.stdout.write(str(process.get_extra_info("hv_peer")))
        case "shout":
            while text := await process.stdin.read(2**16):
                process.stdout.write(text.upper())
        case "zeros":
            sent.clear()
            for _ in range(ZEROS):
                process.stdout.write("0" * 2**14)
                await process.stdout.drain()
                sent.append(process)
        case "sleep":
            process.stdout.write("asleep\n")
            await process.stdin.read()
    process.exit(0)


def client_options(address: Address, **options: Any) -> dict[str, Any]:
    """Return what a client needs to log in, and nothing of this machine's own configuration."""
    defaults = {"config": None, "known_hosts": known(address), "client_keys": [user_key()], "username": "me"}
    return defaults | options


def server_options(**options: Any) -> dict[str, Any]:
    authorized = asyncssh.import_authorized_keys(public(user_key()))
    defaults = {"server_host_keys": [host_key()], "authorized_client_keys": authorized}
    return defaults | options


@contextlib.asynccontextmanager
async def serving(address: Any, **options: Any) -> AsyncIterator[Any]:
    """Serve; at the end, connections are closed with the server."""
    acceptor: Any = await listen(address, **server_options(process_factory=shell) | options)
    try:
        yield acceptor
    finally:
        acceptor.close()
        acceptor.close_clients()
        await acceptor.wait_closed()


@contextlib.asynccontextmanager
async def login(
    address: Address, at: AddressLike | None = None, **options: Any
) -> AsyncIterator[asyncssh.SSHClientConnection]:
    async with connect(at or address, **client_options(address, **options)) as connection:
        yield connection
