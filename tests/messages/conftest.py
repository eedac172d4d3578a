"""Here every test also ends the tasks it, or the package, has started."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from .peers import writes

__all__ = ["no_task_left", "writes"]


@pytest.fixture(autouse=True)
async def no_task_left() -> AsyncIterator[None]:
    """What is cancelled or closed leaves no task behind."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    for _ in range(3):  # those that have only their last step to take
        await asyncio.sleep(0)
    left = {task for task in left if not task.done()}
    assert not left, f"left running: {left}"
