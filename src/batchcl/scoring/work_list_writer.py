"""Writes the work list, shard by shard, while scoring is under way."""

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
from batchcl.outcomes import KnownStatus
from batchcl.runs.worklist import WorkList, image_table
from batchcl.sources.select import SelectedPage
from batchcl.summary import SourceCounts

__all__ = ["AHEAD_IMAGES", "LISTED_PER_S", "KnownImages", "wait_for_calls", "write_work_list"]

AHEAD_IMAGES: Final = 20_000
"""With this many images on the work list without an outcome, calls have priority over listing."""

LISTED_PER_S: Final = 25_000
"""Rate limit for listing while calls have priority, in images per second.

Listing and freezing one image costs about 10 µs, most of it under the interpreter's lock: at full speed listing uses
one core, and calls are delayed (`benchmarks/listing_beside_scoring.py`). At this rate it uses a quarter of a core,
and is still 100 times as fast as scoring.
"""


class KnownImages(Protocol):
    """Finds the image versions that earlier runs have scored, or that failed permanently."""

    async def known(self, images: Sequence[ImageRef]) -> list[KnownStatus | None]:
        """Return the earlier status of each image; None if it needs a call."""
        ...


async def wait_for_calls(worklist: WorkList, progress: Progress, images: int) -> None:
    """Pause after listing `images` images so that calls get the processor, if enough images are on the work list."""
    if worklist.images - progress.done >= AHEAD_IMAGES:
        await anyio.sleep(images / LISTED_PER_S)


async def write_work_list(
    worklist: WorkList,
    pages: AsyncIterator[SelectedPage],
    *,
    shard_size: int,
    incremental: KnownImages | None,
    count_sources: Callable[..., SourceCounts],
    on_frozen: Callable[[], None],
) -> None:
    """Read `pages` to the end and freeze the images as shards of `shard_size`; the last shard may be smaller.

    `count_sources` receives `planned`, `already_scored` and `already_failed` and returns the counts of all lines.

    Raises the errors of the sources, and `StoppedError` if another process writes the same list.
    """
    scored, failed = (0, 0) if (last := worklist.bookmark) is None else (last.already_scored, last.already_failed)
    shard = _Shard(shard_size)
    async for page in pages:
        none_known: list[KnownStatus | None] = [None] * len(page.images)
        statuses = none_known if incremental is None else await incremental.known(page.images)
        failed_up_to = list(accumulate((each == "already_failed" for each in statuses), initial=failed))
        new = [at for at, each in enumerate(statuses) if each is None]
        done = 0
        while done < len(new):
            taken = new[done : done + shard.free]
            done += len(taken)
            end = taken[-1] + 1
            excluded = scored + failed + end - done
            bookmark = replace(
                page.behind(end), already_scored=excluded - failed_up_to[end], already_failed=failed_up_to[end]
            )
            await shard.add([page.images[at] for at in taken], bookmark)
            if not shard.free:
                await shard.freeze(worklist)
                on_frozen()
        scored += statuses.count("already_scored")
        failed = failed_up_to[-1]
    if shard.images:
        await shard.freeze(worklist)
    counts = count_sources(planned=worklist.images, already_scored=scored, already_failed=failed)
    await worklist.complete(counts)
    on_frozen()


class _Shard:
    """The images of the next shard so far, as Arrow columns: objects would dominate the memory of a run."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._tables: list[pa.Table] = []
        self._bookmark: Bookmark | None = None
        self.images = 0

    @property
    def free(self) -> int:
        """Number of images that can still be added."""
        return self._size - self.images

    async def add(self, images: list[ImageRef], bookmark: Bookmark) -> None:
        """Add at most `free` images; `bookmark` is the position after them."""
        self._tables.append(await anyio.to_thread.run_sync(image_table, images))
        self._bookmark = bookmark
        self.images += len(images)

    async def freeze(self, worklist: WorkList) -> None:
        """Write the shard and begin the next one."""
        assert self._bookmark is not None
        await worklist.freeze(pa.concat_tables(self._tables), self._bookmark)
        self._tables, self._bookmark, self.images = [], None, 0
