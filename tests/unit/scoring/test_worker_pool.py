from __future__ import annotations

import anyio
import pytest

from batchcl.scoring.worker_pool import WorkerPool
from virtual import run_virtual


def test_up_to_the_limit_tasks_work_at_once_and_are_reused() -> None:
    async def main() -> tuple[list[int], int, set[int]]:
        done: list[int] = []
        tasks: set[int] = set()
        busy = most = 0

        async def work(number: int) -> None:
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            tasks.add(anyio.get_current_task().id)
            await anyio.sleep(number % 3)
            done.append(number)
            busy -= 1

        pool = WorkerPool(work, limit=4)
        async with anyio.create_task_group() as group:
            for number in range(40):
                await pool.wait_for_free_slot()
                pool.submit(number, group)
            pool.close()
        return done, most, tasks

    done, most, tasks = run_virtual(main)
    assert sorted(done) == list(range(40))
    assert most == 4
    assert len(tasks) == 4


def test_idle_tasks_are_reused_before_new_ones_start() -> None:
    async def main() -> int:
        tasks: set[int] = set()

        async def work(_: int) -> None:
            tasks.add(anyio.get_current_task().id)
            await anyio.sleep(1)

        pool = WorkerPool(work, limit=100)
        async with anyio.create_task_group() as group:
            for number in range(10):
                await pool.wait_for_free_slot()
                pool.submit(number, group)
                await anyio.sleep(2)
            pool.close()
        return len(tasks)

    assert run_virtual(main) == 1


def test_close_lets_items_in_progress_finish() -> None:
    async def main() -> tuple[list[int], float]:
        done: list[int] = []

        async def work(number: int) -> None:
            await anyio.sleep(number)
            done.append(number)

        pool = WorkerPool(work, limit=5)
        async with anyio.create_task_group() as group:
            for number in (1, 9):
                pool.submit(number, group)
            await anyio.sleep(5)
            pool.close()
        return done, anyio.current_time()

    done, now = run_virtual(main)
    assert done == [1, 9]
    assert now == pytest.approx(9, abs=0.001)


def test_an_error_in_a_worker_reaches_the_task_group() -> None:
    async def main() -> None:
        async def work(_: int) -> None:
            raise ValueError("no such image")

        pool = WorkerPool(work, limit=1)
        async with anyio.create_task_group() as group:
            pool.submit(1, group)
            await pool.wait_for_free_slot()

    with pytest.raises(ExceptionGroup) as caught:
        run_virtual(main)
    assert isinstance(caught.value.exceptions[0], ValueError)
