from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from batchcl.runs.turns import in_turn

T = TypeVar("T")


def test_work_on_columns_is_never_done_beside_other_such_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now, most = 0, 0

    async def in_a_thread(work: Callable[[], T]) -> T:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await anyio.lowlevel.checkpoint()  # whoever need not wait for a turn begins here
        now -= 1
        return work()

    monkeypatch.setattr(anyio.to_thread, "run_sync", in_a_thread)

    def work(number: int, *, add: int) -> int:
        return number + add

    async def act() -> list[int]:
        results: dict[int, int] = {}

        async def one(number: int) -> None:
            results[number] = await in_turn(work, number, add=10)

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(one, number)
        return [results[number] for number in range(8)]

    assert anyio.run(act) == list(range(10, 18))
    assert most == 1


def test_an_error_of_the_work_is_its_callers() -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no columns")

    async def act() -> None:
        with pytest.raises(ValueError, match="no columns"):
            await in_turn(fail)
        assert await in_turn(int, "7") == 7

    anyio.run(act)
