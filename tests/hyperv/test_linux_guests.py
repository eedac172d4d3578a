"""The guests of a Linux host: what is read of command lines, and how they are found. Nothing here is dialled."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aiohvsock import CID_ANY, HvAddressError, HvUnsupportedError, HybridAddress, VsockAddress
from aiohvsock.hyperv import (
    Machine,
    _guests,
    find_machine,
    list_machines,
    local_cid,
    machine_address,
)
from aiohvsock.platforms import linux

from .host import A, B
from .proc import VSOCK, Proc, qemu
from .programs import Programs
from .test_wsl import SAY_ID

elsewhere = pytest.mark.skipif(sys.platform == "win32", reason="is about other systems: make test runs it")
only_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="looks into /proc: make test runs it on Linux"
)

pytestmark = pytest.mark.usefixtures("no_wsl")


# -- what is read of command lines -------------------------------------------------------------------------


@elsewhere
@pytest.mark.parametrize(
    ("argv", "machine"),
    [
        (["qemu-system-x86_64", *VSOCK], qemu("qemu-7", None, 3)),
        (["/usr/libexec/qemu-kvm", *VSOCK], qemu("qemu-7", None, 3)),
        (["/usr/bin/kvm", *VSOCK], qemu("qemu-7", None, 3)),
        (["qemu-system-arm", "-device", "vhost-vsock-device,guest-cid=0x10"], qemu("qemu-7", None, 16)),
        (
            ["qemu-system-s390x", "--device", "id=v,guest-cid=5,driver=vhost-vsock-ccw"],
            qemu("qemu-7", None, 5),
        ),
        (
            [
                "/usr/bin/qemu-system-x86_64",
                "-name",
                "guest=web,debug-threads=on",
                "-uuid",
                str(A),
                "-device",
                '{"driver":"vhost-vsock-pci","id":"vsock0","guest-cid":4294967294,"vhostfd":"28"}',
            ],
            qemu("web", A, CID_ANY - 1, "qemu-7"),
        ),
        (["qemu-system-x86_64", "-name", "a,,b=c,process=x", *VSOCK], qemu("a,b=c", None, 3, "qemu-7")),
        (["qemu-system-x86_64", "-name", "web", *VSOCK, "-name"], qemu("qemu-7", None, 3)),
        # The last counts, of what can be read.
        (
            [
                "qemu-system-x86_64",
                "-name",
                "a",
                *VSOCK,
                "-name",
                "b",
                "-device",
                "vhost-vsock-pci,guest-cid=4",
            ],
            qemu("b", None, 4, "qemu-7"),
        ),
        (["qemu-system-x86_64", "-name", "a", *VSOCK, "-name", "process=x"], qemu("a", None, 3, "qemu-7")),
        (
            ["qemu-system-x86_64", "-device", "vhost-vsock-pci,guest-cid=4,guest-cid=3"],
            qemu("qemu-7", None, 3),
        ),
        (["qemu-system-x86_64", *VSOCK, "-device", "vhost-vsock-pci,guest-cid=x"], qemu("qemu-7", None, 3)),
        (
            ["qemu-system-x86_64", *VSOCK, "-device", '{"driver":' + "[" * 50_000],
            qemu("qemu-7", None, 3),
        ),
        # No id of any machine's.
        (["qemu-system-x86_64", "-uuid", str(uuid.UUID(int=0)), *VSOCK], qemu("qemu-7", None, 3)),
        (["qemu-system-x86_64", "-uuid", "x", *VSOCK], qemu("qemu-7", None, 3)),
        # What would move the cursor of who lists it, or cannot be printed.
        (
            ["qemu-system-x86_64", "-name", "a\x1b[2J\udcff", *VSOCK],
            qemu("a\ufffd[2J\ufffd", None, 3, "qemu-7"),
        ),
    ],
)
async def test_what_is_read_of_qemu(proc: Proc, argv: list[str], machine: Machine) -> None:
    proc.add(7, *argv)

    assert await list_machines() == [machine]


@elsewhere
@pytest.mark.parametrize(
    "argv",
    [
        [],
        [""],
        ["bash", *VSOCK],
        ["qemu-img", *VSOCK],
        ["qemu-system-x86_64"],
        ["qemu-system-x86_64", "-device"],
        ["qemu-system-x86_64", "-device", ""],
        ["qemu-system-x86_64", "-device", "virtio-net-pci,guest-cid=3"],
        ["qemu-system-x86_64", "-device", "vhost-user-vsock-pci,chardev=c,guest-cid=3"],
        ["qemu-system-x86_64", "-drive", VSOCK[1]],
        *(
            ["qemu-system-x86_64", "-device", f"vhost-vsock-pci{rest}"]
            for rest in (
                *("", ",guest-cid", ",guest-cid=", ",guest-cid=x", ",guest-cid=-3", ",guest-cid= 3"),
                *(",guest-cid=1_0", ",guest-cid=\u0663", ",guest-cid=010", f",guest-cid={'9' * 5000}"),
                *(f",guest-cid={cid}" for cid in (0, 1, 2, CID_ANY, 2**32)),
            )
        ),
        *(
            ["qemu-system-x86_64", "-device", text]
            for text in (
                "{",
                "{}",
                '{"driver": 3, "guest-cid": 3}',
                '{"driver": "vhost-vsock-pci"}',
                '{"driver": "vhost-vsock-pci", "guest-cid": true}',
                '{"driver": "vhost-vsock-pci", "guest-cid": 3.0}',
                '{"driver": "vhost-vsock-pci", "guest-cid": [3]}',
                '{"driver":' + "[" * 50000,
            )
        ),
        ["firecracker"],
        ["firecracker", "--config-file"],
        ["cloud-hypervisor"],
        ["cloud-hypervisor", "--vsock"],
        ["cloud-hypervisor", "--vsock", "cid=3"],
        ["cloud-hypervisor", "--vsock", "socket=/ch.sock"],
        ["cloud-hypervisor", "--vsock", "cid=2,socket=/ch.sock"],
        ["cloud-hypervisor", "--vsock", "cid=3,socket="],
        ["cloud-hypervisor", "--vsock", "cid=3,socket=/run/"],
    ],
)
async def test_what_is_no_machine_to_talk_to(proc: Proc, argv: list[str]) -> None:
    proc.add(6, *argv)
    proc.add(7, "qemu-system-x86_64", *VSOCK)

    assert await list_machines() == [qemu("qemu-7", None, 3)]


def configure(path: Path, uds_path: object = "/run/v.sock", guest_cid: object = 3) -> str:
    path.write_text(json.dumps({"vsock": {"guest_cid": guest_cid, "uds_path": uds_path}}), "utf-8")
    return str(path)


def firecracker(name: str, socket: str) -> Machine:
    return Machine(
        name, None, "processes", owner="Firecracker", aliases=("firecracker-7",), cid=3, socket=socket
    )


@elsewhere
async def test_what_is_read_of_firecracker(proc: Proc, tmp_path: Path) -> None:
    proc.add(7, "/opt/firecracker-v1.7", "--id", "web", "--config-file", configure(tmp_path / "vm.json"))

    assert await list_machines() == [firecracker("web", "/run/v.sock")]
    assert await machine_address("web", 2761)() == HybridAddress("/run/v.sock", 2761)
    assert await machine_address("WEB", A)() == HybridAddress("/run/v.sock", A)


@elsewhere
async def test_what_is_relative(proc: Proc, tmp_path: Path) -> None:
    configure(tmp_path / "vm.json", "./v.sock")
    proc.add(7, "firecracker", "--config-file=vm.json", cwd=tmp_path)

    assert await list_machines() == [firecracker("anonymous-instance", f"{tmp_path}/v.sock")]


@elsewhere
@pytest.mark.parametrize(("path", "place"), [("/run/v.sock", "root/run/v.sock"), ("v.sock", "cwd/v.sock")])
@pytest.mark.parametrize("config", ["/vm.json", "vm.json"])
async def test_what_is_in_a_jail(proc: Proc, tmp_path: Path, path: str, place: str, config: str) -> None:
    """The path that the process knows leads elsewhere, or nowhere, for us."""
    (jail := tmp_path / "jail").mkdir()
    configure(jail / "vm.json", path)
    folder = proc.add(7, "firecracker", "--config-file", config, root=jail)

    assert await list_machines() == [firecracker("anonymous-instance", f"{folder}/{place}")]


@elsewhere
async def test_what_has_other_mounts(proc: Proc, tmp_path: Path) -> None:
    folder = proc.add(7, "firecracker", "--config-file", "/vm.json", root=tmp_path)
    configure(tmp_path / "vm.json")
    (folder / "root").unlink()
    (folder / "root").symlink_to(proc.root)
    configure(proc.root / "vm.json")
    (folder / "ns" / "mnt").unlink()
    (folder / "ns" / "mnt").symlink_to(tmp_path)

    assert await list_machines() == [firecracker("anonymous-instance", f"{folder}/root/run/v.sock")]


@elsewhere
@pytest.mark.parametrize("hidden", ["root", "ns/mnt"])
async def test_where_another_users_process_stands_is_not_known(
    proc: Proc, tmp_path: Path, hidden: str
) -> None:
    config = configure(tmp_path / "vm.json")
    for pid, file in ((7, config), (8, "vm.json")):
        folder = proc.add(pid, "firecracker", "--config-file", file, cwd=tmp_path)
        (folder / hidden).unlink()

    assert await list_machines() == [firecracker("anonymous-instance", "/run/v.sock")]


@elsewhere
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"vsock": null}',
        b'{"vsock": [3]}',
        b'{"vsock": {"guest_cid": 3}}',
        b'{"vsock": {"uds_path": "/v.sock"}}',
        *(
            json.dumps({"vsock": {"guest_cid": cid, "uds_path": path}}).encode()
            for cid, path in (
                (2, "/v.sock"),
                (None, "/v.sock"),
                (3, 5),
                (3, ""),
                (3, "/v/"),
                (3, "/\0"),
                (3, "/\ud800"),
            )
        ),
        b"\xff" * 100,
        b"[" * 100_000,
        b" " * 2**20 + b'{"vsock": {"guest_cid": 3, "uds_path": "/v.sock"}}',
        None,
    ],
)
async def test_a_configuration_that_makes_no_sense(proc: Proc, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "vm.json").write_bytes(content)
    proc.add(6, "firecracker", "--config-file", str(tmp_path / "vm.json"))
    proc.add(7, "qemu-system-x86_64", *VSOCK)

    assert await list_machines() == [qemu("qemu-7", None, 3)]


@elsewhere
@pytest.mark.parametrize("content", [b"", b'{"vsock": {"guest_cid": 3, "uds_path": "/run/v.sock"}}'])
async def test_what_is_no_file_is_not_read(proc: Proc, tmp_path: Path, content: bytes) -> None:
    """A pipe can make who reads it wait, and a device can mind being opened."""
    pipe = str(tmp_path / "pipe")
    if sys.platform != "win32":
        os.mkfifo(pipe)
    descriptor = os.open(pipe, os.O_RDWR)
    os.write(descriptor, content)
    proc.add(6, "firecracker", "--config-file", pipe)
    proc.add(7, "firecracker", "--config-file", str(tmp_path))

    assert await list_machines() == []
    os.close(descriptor)


@elsewhere
@pytest.mark.parametrize("value", ["cid=3,socket=/tmp/ch.sock", "socket=/tmp/ch.sock,iommu=on,cid=3,id=v"])
async def test_what_is_read_of_cloud_hypervisor(proc: Proc, value: str) -> None:
    proc.add(7, "/usr/bin/cloud-hypervisor", "--vsock", "cid=9,socket=/x", "--vsock", value)

    assert await list_machines() == [
        Machine(
            "cloud-hypervisor-7",
            None,
            "processes",
            owner="Cloud Hypervisor",
            cid=3,
            socket="/tmp/ch.sock",
        )
    ]
    assert await machine_address("cloud-hypervisor-7", 80)() == HybridAddress("/tmp/ch.sock", 80)


def end(folder: Path) -> None:
    shutil.rmtree(folder)


def end_while_it_is_read(folder: Path) -> None:
    (folder / "cmdline").unlink()


def swell(folder: Path) -> None:
    (folder / "cmdline").write_bytes((folder / "cmdline").read_bytes() + b"x" * 2**20)


@elsewhere
@pytest.mark.parametrize("change", [end, end_while_it_is_read, swell])
async def test_what_is_gone_or_cannot_be_read_is_passed_over(
    proc: Proc, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    folder = proc.add(6, "qemu-system-x86_64", *VSOCK)
    proc.add(7, "qemu-system-x86_64", *VSOCK)
    (proc.path / "8").write_text("", "utf-8")
    names = os.listdir(proc.path)
    monkeypatch.setattr(_guests.os, "listdir", lambda path: names)  # type: ignore[attr-defined]
    change(folder)

    assert await list_machines() == [qemu("qemu-7", None, 3)]


@elsewhere
async def test_a_system_without_proc(proc: Proc) -> None:
    shutil.rmtree(proc.path)

    with pytest.raises(HvUnsupportedError, match="no virtual machines here: processes: there is no "):
        await list_machines()
    with pytest.raises(
        HvAddressError, match="no machine is called 'web'; none was found; could not be asked: "
    ):
        await find_machine("web")


# -- one of them -------------------------------------------------------------------------------------------


@elsewhere
async def test_two_guests_of_one_name(proc: Proc) -> None:
    proc.add(6, "qemu-system-x86_64", "-name", "Web", "-device", "vhost-vsock-pci,guest-cid=4")
    proc.add(7, "qemu-system-x86_64", "-name", "web", "-uuid", str(A), *VSOCK)

    with pytest.raises(HvAddressError) as caught:
        await machine_address("WEB", 2761)()

    assert str(caught.value) == (
        "2 machines are called 'WEB'; write another name of one: "
        f"Web (qemu-6), CID 4; web (qemu-7) {A}, CID 3"
    )
    assert await machine_address("qemu-6", 2761)() == VsockAddress(4, 2761)


@elsewhere
async def test_clones_have_one_id(proc: Proc) -> None:
    for pid in (6, 7):
        proc.add(pid, "qemu-system-x86_64", "-uuid", str(A), "-device", f"vhost-vsock-pci,guest-cid={pid}")

    assert [machine.cid for machine in await list_machines()] == [6, 7]
    with pytest.raises(HvAddressError, match="2 machines are called .*another name of one: qemu-6 "):
        await find_machine(str(A))


@elsewhere
async def test_an_id_is_a_name(proc: Proc) -> None:
    proc.add(7, "qemu-system-x86_64", "-uuid", str(A), *VSOCK)

    assert await machine_address(f"{{{A}}}".upper(), 2761)() == VsockAddress(3, 2761)
    with pytest.raises(HvAddressError, match=f"no machine is called '{B}'; there are: qemu-7 {A}, CID 3$"):
        await machine_address(str(B), 2761)()


@elsewhere
@pytest.mark.parametrize("vm_id", [None, A])
async def test_a_name_that_nobody_has(proc: Proc, vm_id: uuid.UUID | None) -> None:
    proc.add(7, "qemu-system-x86_64", *([] if vm_id is None else ["-uuid", str(vm_id)]), *VSOCK)

    with pytest.raises(HvAddressError, match="no machine is called 'web'; there are: qemu-7"):
        await find_machine("web")


@elsewhere
@pytest.mark.parametrize(
    ("machine", "text"),
    [
        (qemu("qemu-7", None, 3), "qemu-7, CID 3"),
        (qemu(str(A), A, 3, "qemu-7"), f"{A} (qemu-7), CID 3"),
        (qemu(str(A), None, 3, "qemu-7"), f"{A} (qemu-7), CID 3"),
        (firecracker("web", "/v.sock"), "web (firecracker-7), CID 3 behind /v.sock"),
    ],
)
def test_its_text(machine: Machine, text: str) -> None:
    assert str(machine) == text


@elsewhere
@pytest.mark.parametrize(
    ("service", "text"), [("HV Socket Demo", "write the port"), (A, "is not made from a port")]
)
async def test_a_guest_with_a_cid_has_ports(proc: Proc, service: Any, text: str) -> None:
    proc.add(7, "qemu-system-x86_64", *VSOCK)

    with pytest.raises(HvAddressError, match=text):
        await machine_address("qemu-7", service)()


@elsewhere
async def test_inside_of_wsl_processes_are_asked_by_name_only(proc: Proc, programs: Programs) -> None:
    programs.add("wslinfo", SAY_ID)
    proc.add(7, "qemu-system-x86_64", "-uuid", str(A), *VSOCK)

    assert [machine.name for machine in await list_machines()] == ["WSL"]
    assert [machine.name for machine in await list_machines(sources=["processes"])] == ["qemu-7"]
    assert await machine_address(str(A), 2761, sources=["processes"])() == VsockAddress(3, 2761)
    both = await list_machines(sources=["processes", "wsl"])
    assert [machine.name for machine in both] == ["qemu-7", "WSL"]


# -- processes that run ------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(*argv: str, **options: Any) -> Iterator[str]:
    """Run something that looks like a monitor; give the number of its process. It waits for its input to end."""
    # The process has its command line when Popen() returns.
    command = [argv[0], "-c", "read line; exit", *argv]
    with subprocess.Popen(command, executable="/bin/sh", stdin=subprocess.PIPE, **options) as process:
        yield str(process.pid)


@only_linux
async def test_a_process_that_runs() -> None:
    with running("qemu-system-x86_64", "-name", "aiohvsock test", *VSOCK) as pid:
        machine = await find_machine(f"qemu-{pid}", max_age=0)
        assert machine == qemu("aiohvsock test", None, 3, f"qemu-{pid}")
        assert machine in await list_machines(max_age=0)
        assert await machine_address("AIOHVSOCK test", 2761)() == VsockAddress(3, 2761)

    with pytest.raises(HvAddressError, match="no machine is called 'aiohvsock test'"):
        await find_machine("aiohvsock test", max_age=0)


@only_linux
async def test_where_a_process_stands(tmp_path: Path) -> None:
    configure(tmp_path / "vm.json", "v.sock")
    with running("firecracker", "--config-file", "vm.json", cwd=tmp_path) as pid:
        address = await machine_address(f"firecracker-{pid}", 2761)()

    assert address == HybridAddress(tmp_path / "v.sock", 2761)


@only_linux
async def test_processes_that_come_and_go() -> None:
    """However they end, at whatever moment, those that stay are found."""
    done = asyncio.Event()

    def come_and_go() -> None:
        for _ in range(20):
            with running("qemu-system-x86_64", *VSOCK):
                pass

    async def churn() -> None:
        await asyncio.to_thread(come_and_go)
        done.set()

    with running("qemu-system-x86_64", *VSOCK) as pid:
        task = asyncio.create_task(churn())
        while not done.is_set():
            assert (await find_machine(f"qemu-{pid}", max_age=0)).cid == 3
        await task


# -- this machine ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cid", [7, None])
def test_the_local_cid(monkeypatch: pytest.MonkeyPatch, cid: int | None) -> None:
    monkeypatch.setattr(linux, "local_cid", lambda: cid)
    if sys.platform == "win32":
        with pytest.raises(HvUnsupportedError, match="Windows has no CIDs"):
            local_cid()
    else:
        assert local_cid() == cid
