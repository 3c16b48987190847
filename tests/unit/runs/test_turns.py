from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from batchcl.memory import trim
from batchcl.runs.turns import in_turn

T = TypeVar("T")
BLOCK_BYTES, BLOCKS = 4096, 16_384


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


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc can be asked to give memory back")
def test_what_work_has_freed_goes_back_to_the_system_even_where_something_small_lies_behind_it() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    behind: list[ctypes.c_void_p] = []

    def work() -> int:
        blocks = [ctypes.c_void_p(libc.malloc(BLOCK_BYTES)) for _ in range(BLOCKS)]
        for block in blocks:
            ctypes.memset(block, 1, BLOCK_BYTES)
        at_most = _resident_bytes()
        behind.append(blocks.pop())
        for block in blocks:
            libc.free(block)
        return at_most

    trim()  # what earlier tests have left free would be taken first, and is resident already
    before = _resident_bytes()
    at_most = anyio.run(in_turn, work)
    after = _resident_bytes()
    libc.free(behind.pop())

    assert at_most - before > BLOCKS * BLOCK_BYTES * 0.8
    assert after - before < BLOCKS * BLOCK_BYTES * 0.2


def _resident_bytes() -> int:
    """Of this process, as Linux counts them."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
