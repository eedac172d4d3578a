from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest

from aiohvsock.waiter import Waiter

from .messages.peers import in_callback, turns

Start = Callable[[Coroutine[Any, Any, Any]], "asyncio.Task[Any]"]

variable: ContextVar[str] = ContextVar("variable", default="nobody's")


@pytest.fixture(params=["C", "Python"])
def start(request: pytest.FixtureRequest) -> Start:
    """Starts tasks of asyncio's C implementation, or of that in Python."""
    kind: Any = asyncio.Task if request.param == "C" else asyncio.tasks._PyTask  # type: ignore[attr-defined]
    return lambda coroutine: kind(coroutine, loop=asyncio.get_running_loop())


def new() -> Waiter:
    return Waiter(asyncio.get_running_loop())


# -- running on --------------------------------------------------------------------------------------------


async def test_the_task_runs_on_inside_the_callback(start: Start) -> None:
    waiter = new()
    happened = []

    async def wait() -> str:
        assert await waiter is None  # type: ignore[func-returns-value]
        happened.append("task")
        assert asyncio.current_task() is task
        return "done"

    def bring() -> None:
        happened.append("before")
        waiter.run_on()
        happened.append("after")
        assert asyncio.current_task() is None
        assert task.done()

    task = start(wait())
    await turns()
    await in_callback(bring)
    assert happened == ["before", "task", "after"]
    assert await task == "done"


async def test_it_can_be_awaited_again_and_again(start: Start) -> None:
    waiter = new()
    rounds = 0

    async def wait() -> None:
        nonlocal rounds
        while True:
            await waiter
            rounds += 1

    task = start(wait())
    await turns()
    for count in range(1, 5):
        await in_callback(waiter.run_on)
        assert rounds == count
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_nobody_waits(start: Start) -> None:
    waiter = new()
    waiter.run_on()
    waiter.run_on_soon()
    assert not waiter.cancel()
    await turns(2)

    async def wait() -> None:
        await waiter

    # None of that is remembered.
    task = start(wait())
    await turns(3)
    assert not task.done()
    await in_callback(waiter.run_on)
    assert task.done()
    waiter.run_on()
    waiter.run_on_soon()
    await task


async def test_running_on_soon_is_in_the_next_turn_and_once(start: Start) -> None:
    waiter = new()
    rounds = 0

    async def wait() -> None:
        nonlocal rounds
        while True:
            await waiter
            rounds += 1

    def bring() -> None:
        waiter.run_on_soon()
        waiter.run_on_soon()
        waiter.run_on()
        assert rounds == 0

    task = start(wait())
    await turns()
    await in_callback(bring)
    await turns(3)
    assert rounds == 1
    task.cancel()
    await asyncio.wait([task])


async def test_running_on_soon_may_be_asked_for_by_a_task(start: Start) -> None:
    waiter = new()

    async def wait() -> None:
        await waiter

    task = start(wait())
    await turns()
    waiter.run_on_soon()
    assert not task.done()
    await task


async def test_the_task_may_await_something_else_right_away(start: Start) -> None:
    waiter, other = new(), asyncio.get_running_loop().create_future()

    async def wait() -> str:
        await waiter
        await asyncio.sleep(0)
        return str(await other)

    task = start(wait())
    await turns()
    await in_callback(waiter.run_on)
    assert not task.done()
    waiter.run_on()  # it waits elsewhere
    other.set_result("the other")
    assert await task == "the other"


async def test_one_task_lets_another_run_on_by_way_of_the_loop(start: Start) -> None:
    """The first runs on inside a callback, where running on a second one directly would not do."""
    first, second = new(), new()
    happened = []

    async def wait_first() -> None:
        await first
        second.run_on_soon()
        happened.append("first")

    async def wait_second() -> None:
        await second
        happened.append("second")

    tasks = [start(wait_first()), start(wait_second())]
    await turns()
    await in_callback(first.run_on)
    await asyncio.gather(*tasks)
    assert happened == ["first", "second"]


# -- the task's own world ----------------------------------------------------------------------------------


@pytest.mark.parametrize("soon", [False, True])
async def test_the_task_sees_its_own_context(start: Start, soon: bool) -> None:
    waiter = new()
    seen = []

    async def wait() -> None:
        variable.set("the task's")
        await waiter
        seen.append(variable.get())
        variable.set("changed")
        await waiter
        seen.append(variable.get())

    def bring() -> None:
        variable.set("the callback's")
        (waiter.run_on_soon if soon else waiter.run_on)()
        assert variable.get() == "the callback's"

    task = start(wait())
    await turns()
    for _ in range(2):
        await in_callback(bring)
        await turns()
    await task
    assert seen == ["the task's", "changed"]
    assert variable.get() == "nobody's"


async def test_what_the_task_raises_is_the_tasks_affair(start: Start) -> None:
    waiter = new()

    async def wait() -> None:
        await waiter
        raise ZeroDivisionError

    task = start(wait())
    await turns()
    await in_callback(waiter.run_on)
    assert isinstance(task.exception(), ZeroDivisionError)


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
async def test_what_ends_the_program_does(start: Start, error: type[BaseException]) -> None:
    """As in every step of a task."""
    waiter = new()

    async def wait() -> None:
        await waiter
        raise error

    def bring() -> None:
        with pytest.raises(error):
            waiter.run_on()

    task = start(wait())
    await turns()
    await in_callback(bring)
    assert isinstance(task.exception(), error)


# -- cancelling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [(), ("why",)])
async def test_cancelling_a_waiting_task(start: Start, message: tuple[str, ...]) -> None:
    waiter = new()
    caught: list[asyncio.CancelledError] = []

    async def wait() -> None:
        try:
            await waiter
        except asyncio.CancelledError as error:
            caught.append(error)
            raise

    task = start(wait())
    await turns()
    assert task.cancel(*message)
    assert not caught
    with pytest.raises(asyncio.CancelledError):
        await task
    assert caught[0].args == message
    assert task.cancelled()


@pytest.mark.parametrize("brought", ["before", "after"])
async def test_cancelled_in_the_same_moment_as_it_could_run_on(start: Start, brought: str) -> None:
    waiter = new()
    happened = []

    async def wait() -> None:
        try:
            await waiter
            happened.append("ran on")
            await waiter
        except asyncio.CancelledError:
            happened.append("cancelled")
            raise

    def both() -> None:
        if brought == "before":
            waiter.run_on()
        assert task.cancel()
        if brought == "after":
            waiter.run_on()
            assert not happened  # it is on its way to be cancelled, and must not be entered twice
        waiter.run_on_soon()

    task = start(wait())
    await turns()
    await in_callback(both)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert happened == (["ran on", "cancelled"] if brought == "before" else ["cancelled"])


async def test_cancelled_while_it_is_about_to_run_on_soon(start: Start) -> None:
    waiter = new()

    async def wait() -> None:
        await waiter

    def both() -> None:
        waiter.run_on_soon()
        assert task.cancel()

    task = start(wait())
    await turns()
    await in_callback(both)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_task_cancelled_before_it_waits(start: Start) -> None:
    waiter = new()

    async def wait() -> None:
        task.cancel()
        await waiter

    task = start(wait())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not waiter.cancel()


async def test_a_cancellation_that_was_caught_leaves_nothing_behind(start: Start) -> None:
    waiter = new()

    async def wait() -> str:
        for _ in range(3):
            with pytest.raises(asyncio.CancelledError):
                await waiter
        await waiter
        return "done"

    task = start(wait())
    for _ in range(3):
        await turns(2)
        task.cancel()
    await turns(2)
    await in_callback(waiter.run_on)
    assert await task == "done"


async def test_a_coroutine_that_is_thrown_away_leaves_the_waiter_to_others(start: Start) -> None:
    waiter = new()

    async def wait() -> str:
        await waiter
        return "done"

    forgotten = wait()
    assert forgotten.send(None) is waiter
    forgotten.close()
    waiter._asyncio_future_blocking = False  # what a task does at once
    task = start(wait())
    await turns()
    await in_callback(waiter.run_on)
    assert await task == "done"


# -- what asyncio has around tasks -------------------------------------------------------------------------


async def test_under_timeout() -> None:
    waiter = new()
    for limit in (0, 0.01):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(limit):
                await waiter
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0


async def test_under_wait_for_gather_and_shield(start: Start) -> None:
    waiters = [new() for _ in range(3)]
    results: list[object] = []

    async def wait(number: int) -> int:
        await waiters[number]
        return number

    async def main() -> None:
        results.append(
            await asyncio.gather(
                asyncio.wait_for(wait(0), 10), wait(1), asyncio.shield(asyncio.create_task(wait(2)))
            )
        )

    task = start(main())
    await turns(3)
    for waiter in waiters:
        await in_callback(waiter.run_on)
    await task
    assert results == [[0, 1, 2]]


async def test_in_a_task_group(start: Start) -> None:
    waiters = [new(), new()]
    cancelled = []

    async def wait(number: int) -> None:
        try:
            await waiters[number]
        except asyncio.CancelledError:
            cancelled.append(number)
            raise
        raise ZeroDivisionError

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(wait(0))
            group.create_task(wait(1))

    task = start(main())
    await turns(3)
    await in_callback(waiters[0].run_on)
    with pytest.raises(ExceptionGroup) as caught:
        await task
    assert caught.group_contains(ZeroDivisionError)
    assert cancelled == [1]


async def test_it_shows_in_a_tasks_repr(start: Start) -> None:
    """As debuggers do."""
    waiter = new()

    async def wait() -> None:
        await waiter

    task = start(wait())
    await turns()
    assert "Waiter" in repr(task)
    assert task.get_stack()
    task.cancel()
    await asyncio.wait([task])
