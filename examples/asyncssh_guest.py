"""A host logs in to its guest over a VM socket: a command, and a file there and back.

The guest's end is asyncssh, too. OpenSSH's will do as well: systemd 256 and newer has it listen on AF_VSOCK port 22.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import asyncssh

from aiohvsock import Address, Retry
from aiohvsock.contrib.asyncssh import connect, listen
from aiohvsock.testing import local_address

# -- the guest ---------------------------------------------------------------------------------------------


async def run(process: asyncssh.SSHServerProcess[str]) -> None:
    """Do what the host asks for: here, but one thing."""
    if process.command == "uptime":
        process.stdout.write("up 3 days, 2:01")
        process.exit(0)
    else:
        process.stderr.write(f"{process.command}: not found\n")
        process.exit(127)


async def guest(address: Address, key: asyncssh.SSHKey, authorized: str) -> asyncssh.SSHAcceptor:
    return await listen(
        address,
        server_host_keys=[key],
        authorized_client_keys=asyncssh.import_authorized_keys(authorized),
        process_factory=run,
        sftp_factory=True,
    )


# -- the host ----------------------------------------------------------------------------------------------


async def host(address: Address, known_hosts: bytes, key: asyncssh.SSHKey) -> None:
    login: dict[str, Any] = {
        "known_hosts": known_hosts,
        "client_keys": [key],
        "username": "root",
        "config": None,
    }
    async with connect(address, "web-1", retry=Retry(), connect_timeout=60, **login) as connection:
        print("uptime:", (await connection.run("uptime", check=True)).stdout)
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            (directory / "here").write_bytes(b"x" * 100_000)
            async with connection.start_sftp_client() as sftp:
                await sftp.put(directory / "here", directory / "there")
                print("there it has", (await sftp.stat(directory / "there")).size, "bytes")
    try:
        await connect(address, "web-2", **login)
    except asyncssh.HostKeyNotVerifiable as error:
        print(error)


async def main() -> None:
    # Both in one program, to be tried on any machine. The keys are usually in files, the host's in ~/.ssh.
    theirs, ours = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    known_hosts = b"web-1 " + theirs.export_public_key()
    with local_address() as address:
        async with await guest(address, theirs, ours.export_public_key().decode()):
            await host(address, known_hosts, ours)


if __name__ == "__main__":
    asyncio.run(main())
