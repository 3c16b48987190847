"""Freezes the work list, shard by shard, while scoring goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Final, Protocol

import anyio
import anyio.to_thread
import pyarrow as pa

from batchcl.events import Progress
from batchcl.images import Bookmark, ImageRef
from batchcl.outcomes import Known
from batchcl.runs.worklist import WorkList, WorkListTotals, image_table
from batchcl.scoring.source_counts import SourceCounts
from batchcl.sources.select import SelectedPage

__all__ = ["AHEAD_IMAGES", "LISTED_PER_S", "KnownImages", "freeze_all", "leave_room_for_calls"]

AHEAD_IMAGES: Final = 20_000
"""With so many images on the work list that have no outcome yet, calls come before listing."""

LISTED_PER_S: Final = 25_000
"""Images that are listed a second at most from then on.

An image costs some 10 µs to list and freeze, most of it under the interpreter's lock: at full speed that is a core, and
calls fall behind (`benchmarks/listing_beside_scoring.py`). At this rate it is a quarter of one, and still a hundred
times as fast as any model scores.
"""


class KnownImages(Protocol):
    """Finds the image versions that earlier runs have dealt with."""

    async def known(self, images: Sequence[ImageRef]) -> list[Known | None]:
        """For each image, what an earlier run made of it; None where it needs a call."""
        ...


async def leave_room_for_calls(worklist: WorkList, progress: Progress, images: int) -> None:
    """Wait after so many images were listed, so that calls get the processor, unless they need the list to go on."""
    if worklist.images - progress.done >= AHEAD_IMAGES:
        await anyio.sleep(images / LISTED_PER_S)


async def freeze_all(
    worklist: WorkList,
    pages: AsyncIterator[SelectedPage],
    *,
    shard_size: int,
    incremental: KnownImages | None,
    tally: Callable[..., SourceCounts],
    on_frozen: Callable[[], None],
) -> None:
    """Read `pages` to their end and freeze them as shards of `shard_size`; the last one may be smaller.

    `tally` tells what became of the lines, given `planned`, `known` and `known_failed`.

    Raises what the sources raise, and `StoppedError` where another runner freezes the same list.
    """
    known, failed = (0, 0) if (last := worklist.bookmark) is None else (last.known, last.known_failed)
    shard = _Shard(shard_size)
    async for page in pages:
        nothing: list[Known | None] = [None] * len(page.images)
        found = nothing if incremental is None else await incremental.known(page.images)
        failed_up_to = list(accumulate((each == "already_failed" for each in found), initial=failed))
        fresh = [at for at, each in enumerate(found) if each is None]
        done = 0
        while done < len(fresh):
            taken = fresh[done : done + shard.room]
            done += len(taken)
            behind = taken[-1] + 1
            left_out = known + failed + behind - done
            bookmark = replace(
                page.behind(behind), known=left_out - failed_up_to[behind], known_failed=failed_up_to[behind]
            )
            await shard.take([page.images[at] for at in taken], bookmark)
            if not shard.room:
                await shard.freeze(worklist)
                on_frozen()
        known += found.count("already_scored")
        failed = failed_up_to[-1]
    if shard.images:
        await shard.freeze(worklist)
    counted = tally(planned=worklist.images, known=known, known_failed=failed)
    await worklist.complete(
        WorkListTotals(
            shards=worklist.shards,
            images=worklist.images,
            repeated=counted.repeated,
            known=known,
            known_failed=failed,
            bad_lines=counted.bad,
            filtered=counted.filtered,
            filtered_by=dict(counted.filtered_by),
            left_out=dict(counted.left_out),
            lines=counted.lines,
        )
    )
    on_frozen()


class _Shard:
    """The images of the next shard so far, as columns: as objects they would be most of what a run has in memory."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._columns: list[pa.Table] = []
        self._bookmark: Bookmark | None = None
        self.images = 0

    @property
    def room(self) -> int:
        """How many images it takes yet."""
        return self._size - self.images

    async def take(self, images: list[ImageRef], bookmark: Bookmark) -> None:
        """Add the next images, for which there is room; `bookmark` is the one behind them."""
        self._columns.append(await anyio.to_thread.run_sync(image_table, images))
        self._bookmark = bookmark
        self.images += len(images)

    async def freeze(self, worklist: WorkList) -> None:
        """Hand it over, and begin the next one."""
        assert self._bookmark is not None
        await worklist.freeze(pa.concat_tables(self._columns), self._bookmark)
        self._columns, self._bookmark, self.images = [], None, 0
