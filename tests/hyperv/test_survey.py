"""How often sources are asked, for how long, and what is left of them when nobody waits any more."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from aiohvsock import HvConnectError, HvPermissionError
from aiohvsock.hyperv import _survey, find_machine, list_machines

from .host import WSL, B, C, Host, asked, wsl
from .programs import Hanging
from .test_wsl import wsl as wsl_script

# -- time --------------------------------------------------------------------------------------------------


async def test_one_that_hangs_is_given_up(full: Host, hung: Hanging) -> None:
    full.programs.add("wsl", "hang()")

    machines = await list_machines(timeout=0.5, sources=["wsl", "hcs"])

    assert "sandbox-1" in [machine.name for machine in machines]
    await hung.reach(0)
    with pytest.raises(HvConnectError, match="wsl: no answer within 0.3 s"):
        await find_machine("ubuntu", timeout=0.3, sources=["wsl"])
    await hung.reach(0)


async def test_none_waits_as_long_as_it_takes(full: Host) -> None:
    assert len(await list_machines(timeout=None)) == 5


async def test_an_answer_is_good_for_a_while(full: Host) -> None:
    await list_machines(max_age=60)
    await list_machines(max_age=60)
    await find_machine("build", max_age=60)

    assert asked(full) == (1, 1, 1)

    await find_machine("build", max_age=60, sources=["powershell"])
    assert asked(full) == (1, 1, 1)

    await list_machines(max_age=0)
    assert asked(full) == (2, 2, 2)


async def test_a_new_id_is_seen_by_who_asks_anew(full: Host) -> None:
    assert (await find_machine("ubuntu", max_age=60)).vm_id == WSL
    wsl(full, C)

    assert (await find_machine("ubuntu", max_age=60)).vm_id == WSL
    assert (await find_machine("ubuntu", max_age=0)).vm_id == C
    assert (await find_machine("ubuntu", max_age=60)).vm_id == C


async def test_age_counts_from_the_question(full: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was true when it was asked may have changed before it was answered."""
    now = 1000.0
    monkeypatch.setattr(_survey, "monotonic", lambda: now)
    await list_machines()
    now += 1.9
    await list_machines()
    assert asked(full) == (1, 1, 1)

    now += 0.1
    await list_machines()
    assert asked(full) == (2, 2, 2)


def test_other_loops_know_too(full: Host) -> None:
    asyncio.run(list_machines(max_age=60))
    asyncio.run(list_machines(max_age=60))

    assert asked(full) == (1, 1, 1)


async def test_many_who_ask_at_once_ask_once(full: Host) -> None:
    answers = await asyncio.gather(*(find_machine("build") for _ in range(20)))

    assert {machine.vm_id for machine in answers} == {B}
    assert asked(full) == (1, 1, 1)


async def test_a_refusal_is_remembered_too(full: Host) -> None:
    full.computecore.started = 0x8037011B

    for _ in range(2):
        with pytest.raises(HvPermissionError):
            await list_machines(sources=["hcs"], max_age=60)

    assert asked(full) == (0, 1, 0)


# -- cancelling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["wsl --list", "wslinfo", "powershell"])
async def test_cancelling_at_any_step(full: Host, hung: Hanging, step: str) -> None:
    if step == "wsl --list":
        full.programs.add("wsl", "hang()")
    elif step == "wslinfo":
        full.programs.add("wsl", wsl_script("Ubuntu\n", Ubuntu="hang()"))
    else:
        full.programs.add("powershell", "hang()")
    for _ in range(2):
        task = asyncio.create_task(find_machine("build"))
        await hung.reach(1)

        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task
        await hung.reach(0)


async def test_cancelling_while_the_service_hangs(full: Host) -> None:
    full.computecore.go.clear()
    task = asyncio.create_task(find_machine("build", max_age=0))
    await asyncio.to_thread(full.computecore.waiting.wait)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    full.computecore.go.set()
    for thread in threading.enumerate():
        if thread.name == "aiohvsock: hcs":
            await asyncio.to_thread(thread.join)


async def test_cancelling_in_every_turn(full: Host) -> None:
    """However far it has come, it ends, leaves nothing, and the next who asks gets an answer."""
    for turns in range(12):
        task = asyncio.create_task(find_machine("ubuntu", sources=["wsl"]))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        gc.collect()
        assert asyncio.all_tasks() == {asyncio.current_task()}
    assert (await find_machine("ubuntu", sources=["wsl"])).vm_id == WSL


async def test_who_still_waits_is_not_cancelled_with_another(full: Host, hung: Hanging) -> None:
    full.programs.add("wsl", "hang()")
    first, second = (asyncio.create_task(list_machines(sources=["wsl"], timeout=None)) for _ in range(2))
    await hung.reach(1)

    first.cancel()
    await asyncio.wait([first])
    assert not second.done()
    assert hung.count == 1

    second.cancel()
    await asyncio.wait([second])
    await hung.reach(0)
    assert asked(full) == (1, 0, 0)


async def test_a_shorter_patience_does_not_end_a_longer_one(full: Host, hung: Hanging) -> None:
    full.programs.add("powershell", "hang()")
    patient = asyncio.create_task(list_machines(sources=["powershell"], timeout=None))
    await hung.reach(1)

    with pytest.raises(HvConnectError, match="no answer within 0.05 s"):
        await list_machines(sources=["powershell"], timeout=0.05)

    assert hung.count == 1
    patient.cancel()
    await asyncio.wait([patient])
    await hung.reach(0)


async def test_what_was_cancelled_is_asked_anew(full: Host, hung: Hanging) -> None:
    full.programs.add("wsl", "hang()")
    task = asyncio.create_task(list_machines(sources=["wsl"]))
    await hung.reach(1)
    task.cancel()
    for _ in range(10):
        await asyncio.sleep(0)  # until nobody waits for it; to be killed takes longer
    wsl(full, WSL)

    assert (await find_machine("ubuntu", sources=["wsl"], max_age=60)).vm_id == WSL
    await asyncio.wait([task])
    assert task.cancelled()
