"""Slices of the work list: the unit of commit, and later of resume and distribution."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from batchcl.images import ImageRef

__all__ = ["Batch", "sharded"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Some images of one shard; `last` when the shard has no more. A last batch may be empty."""

    shard: int
    images: list[ImageRef]
    last: bool


async def sharded(pages: AsyncIterator[list[ImageRef]], size: int) -> AsyncIterator[Batch]:
    """Cut pages into shards of `size` images, in order and numbered from 0; only the last shard may be smaller."""
    shard, room = 0, size
    async for page in pages:
        rest = page
        while rest:
            part, rest = rest[:room], rest[room:]
            room -= len(part)
            yield Batch(shard, part, room == 0)
            if not room:
                shard, room = shard + 1, size
    if room < size:
        yield Batch(shard, [], last=True)
