"""Helpers for concurrent tasks: bounded gather, a notifier, the event loop's clock."""

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
    """The results of `work` for `items`, in their order; at most `at_once` run concurrently.

    Raises:
        BatchclError: the first one that `work` raised, not wrapped in a group; the other tasks are cancelled.
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
    """Notifies waiting tasks; notifications without a waiter are dropped, and cost nothing."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def notify(self) -> None:
        """Wake all waiting tasks."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self, *, timeout_s: float = math.inf) -> None:
        """Return at the next notification, or after `timeout_s` seconds."""
        if self._event is None:
            self._event = anyio.Event()
        if timeout_s == math.inf:
            await self._event.wait()
            return
        with anyio.move_on_after(timeout_s):
            await self._event.wait()


def loop_clock() -> Callable[[], float]:
    """The running loop's clock; `anyio.current_time` takes ten times as long, as it looks the loop up each time."""
    return asyncio.get_running_loop().time
