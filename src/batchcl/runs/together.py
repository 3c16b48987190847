"""Many small reads at a time, which fail as one read does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio

from batchcl.errors import BatchclError

__all__ = ["together"]

T = TypeVar("T")
R = TypeVar("R")


async def together(work: Callable[[T], Awaitable[R]], items: Iterable[T], *, at_once: int) -> list[R]:
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
