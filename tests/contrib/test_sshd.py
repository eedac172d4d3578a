"""asyncssh's client and OpenSSH's server, which has each connection as its standard input: as systemd's sshd@.service runs it."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncssh
import pytest

from aiohvsock import Address
from aiohvsock.contrib.asyncssh import connect
from aiohvsock.contrib.sockets import listening_socket

from .aiohttp_service import MIB
from .ssh_service import client_options, host_key, known, name_of, public, user_key

pytestmark = pytest.mark.linux

# Not on every user's PATH. It wants to be called by its whole path.
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[list[str]]:
    """The command for one connection; whoever runs the tests can log in."""
    if SSHD is None:
        pytest.skip("needs OpenSSH's server: apt-get install openssh-server")
    host_key().write_private_key(tmp_path / "host")
    (tmp_path / "host").chmod(0o600)
    (tmp_path / "authorized").write_text(public(user_key()))
    options = {
        "AuthorizedKeysFile": tmp_path / "authorized",
        "HostKey": tmp_path / "host",
        "PermitRootLogin": "prohibit-password",
        "PidFile": "none",
        "SetEnv": f"HOME={tmp_path}",  # without what the user's shell may do first
        "StrictModes": "no",  # of the directory for temporary files, everybody may write to it
        "Subsystem": "sftp internal-sftp",
        "UsePAM": "no",
    }
    with contextlib.ExitStack() as stack:
        separate = Path("/run/sshd")
        if os.getuid() == 0 and not separate.exists():  # systemd makes it
            separate.mkdir(0o755)
            stack.callback(separate.rmdir)
        yield [SSHD, "-i", "-e", "-f", "/dev/null", *(f"-o{name}={value}" for name, value in options.items())]


@contextlib.asynccontextmanager
async def serving(address: Address, sshd: list[str], log: Path) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    running: list[asyncio.subprocess.Process] = []

    async def accept() -> None:
        with log.open("wb") as errors:
            while True:
                sock, _ = await loop.sock_accept(listener)
                with sock:
                    sock.setblocking(True)
                    fd = sock.fileno()
                    running.append(
                        await asyncio.create_subprocess_exec(*sshd, stdin=fd, stdout=fd, stderr=errors)
                    )

    with listening_socket(address) as listener:
        accepting = asyncio.create_task(accept())
        try:
            yield
        finally:
            accepting.cancel()
            await asyncio.wait([accepting])
            for process in running:
                await process.wait()  # it ends with its connection


@pytest.mark.timeout(60)
async def test_a_login(address: Address, sshd: list[str], tmp_path: Path) -> None:
    async with (
        serving(address, sshd, tmp_path / "log"),
        connect(address, **client_options(address, username=getpass.getuser())) as connection,
    ):
        done = await connection.run("id -un; echo $SSH_CONNECTION; cat; exit 3", input="hello")
        assert done.exit_status == 3
        # Of addresses it knows those of IP.
        assert isinstance(done.stdout, str)
        assert done.stdout.startswith(f"{getpass.getuser()}\nUNKNOWN 65535 ")
        assert done.stdout.endswith("\nhello")
        assert connection.get_extra_info("hv_peer") == address
        done = await connection.run(f"head -c {MIB} /dev/zero", encoding=None)
        assert done.stdout == bytes(MIB)


@pytest.mark.timeout(60)
async def test_files(address: Address, sshd: list[str], tmp_path: Path) -> None:
    data = os.urandom(MIB)
    (tmp_path / "here").write_bytes(data)
    async with (
        serving(address, sshd, tmp_path / "log"),
        connect(address, **client_options(address, username=getpass.getuser())) as connection,
        connection.start_sftp_client() as sftp,
    ):
        await sftp.put(tmp_path / "here", tmp_path / "there")
        await sftp.get(tmp_path / "there", tmp_path / "back")
    assert (tmp_path / "there").read_bytes() == (tmp_path / "back").read_bytes() == data


@pytest.mark.timeout(60)
async def test_strangers(address: Address, sshd: list[str], tmp_path: Path) -> None:
    """Neither side takes another's key."""
    async with serving(address, sshd, tmp_path / "log"):
        with pytest.raises(asyncssh.HostKeyNotVerifiable, match=name_of(address)):
            await connect(address, **client_options(address, known_hosts=known(address, host_key(1))))
        options = client_options(address, client_keys=[host_key(1)], username=getpass.getuser())
        with pytest.raises(asyncssh.PermissionDenied):
            await connect(address, **options)
