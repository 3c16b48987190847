"""Freezes the work list, shard by shard, while scoring goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Protocol

from batchcl.images import ImageRef
from batchcl.runs.worklist import WorkList, WorkListTotals
from batchcl.scoring.tally import Tally
from batchcl.sources.select import Selected

__all__ = ["Freshness", "freeze_all"]


class Freshness(Protocol):
    """Tells image versions that need a call from those that have a result."""

    async def fresh(self, images: Sequence[ImageRef]) -> list[bool]:
        """For each image, whether it needs a call."""
        ...


async def freeze_all(
    worklist: WorkList,
    pages: AsyncIterator[list[Selected]],
    *,
    shard_size: int,
    freshness: Freshness | None,
    tally: Callable[..., Tally],
    on_frozen: Callable[[], None],
) -> None:
    """Read `pages` to their end and freeze them as shards of `shard_size`; the last one may be smaller.

    `tally` tells what became of the lines, given `planned` and `known`.

    Raises what the sources raise, and `StoppedError` where another runner freezes the same list.
    """
    known = 0 if worklist.bookmark is None else worklist.bookmark.known
    waiting: list[Selected] = []
    async for page in pages:
        kept = page
        if freshness is not None:
            needed = await freshness.fresh([each.image for each in page])
            kept = []
            for each, need in zip(page, needed, strict=True):
                known += not need
                if need:
                    kept.append(replace(each, bookmark=replace(each.bookmark, known=known)))
        waiting += kept
        while len(waiting) >= shard_size:
            await _freeze(worklist, waiting[:shard_size])
            del waiting[:shard_size]
            on_frozen()
    if waiting:
        await _freeze(worklist, waiting)
    counted = tally(planned=worklist.images, known=known)
    await worklist.complete(
        WorkListTotals(
            shards=worklist.shards,
            images=worklist.images,
            repeated=counted.repeated,
            known=known,
            bad_lines=counted.bad,
            filtered=counted.filtered,
            filtered_by=dict(counted.filtered_by),
            left_out=dict(counted.left_out),
            lines=counted.lines,
        )
    )
    on_frozen()


async def _freeze(worklist: WorkList, selected: Sequence[Selected]) -> None:
    await worklist.freeze([each.image for each in selected], selected[-1].bookmark)
