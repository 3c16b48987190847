"""Tasks and time: many small reads at once, waiting tasks and their notifier, the loop's clock."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio

from batchcl.errors import BatchclError

__all__ = ["Notifier", "gather", "loop_clock"]

T = TypeVar("T")
R = TypeVar("R")


async def gather(work: Callable[[T], Awaitable[R]], items: Iterable[T], *, at_once: int) -> list[R]:
    """The result of `work` for each of `items`, in their order; at most `at_once` at a time.

    Raises:
        BatchclError: the first one that `work` raised, itself and in no group, so that callers can catch it; the
            others are cancelled.
    """
    slots = anyio.Semaphore(at_once)
    results: dict[int, R] = {}
    errors: list[BatchclError] = []

    async def one(number: int, item: T) -> None:
        try:
            async with slots:
                results[number] = await work(item)
        except BatchclError as error:
            errors.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for number, item in enumerate(items):
            group.start_soon(one, number, item)
    if errors:
        raise errors[0]
    return [results[number] for number in sorted(results)]


class Notifier:
    """Tells tasks that something has changed; each looks for itself what. Costs nothing while nobody waits."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def ring(self) -> None:
        """Wake all that wait now."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self, *, at_most_s: float = math.inf) -> None:
        """Return at the next ring, or after so long."""
        if self._event is None:
            self._event = anyio.Event()
        if at_most_s == math.inf:
            await self._event.wait()
            return
        with anyio.move_on_after(at_most_s):
            await self._event.wait()


def loop_clock() -> Callable[[], float]:
    """`anyio.current_time` of the loop that runs now; finding the loop again each time takes ten times as long."""
    return asyncio.get_running_loop().time
