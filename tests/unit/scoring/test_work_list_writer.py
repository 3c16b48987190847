"""Writing the work list: full shards, and bookmarks from which an interrupted listing resumes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import anyio
import pytest

from batchcl.events import Progress
from batchcl.images import Bookmark, ImageRef, Position
from batchcl.outcomes import KnownStatus
from batchcl.runs.layout import RunPaths
from batchcl.runs.store import Store
from batchcl.runs.worklist import WorkList, image_table
from batchcl.scoring.work_list_writer import AHEAD_IMAGES, LISTED_PER_S, wait_for_calls, write_work_list
from batchcl.sources.filters import Filters
from batchcl.sources.select import Selection
from batchcl.summary import SourceCounts
from unit.sources.lists import FakeSource
from virtual import run_virtual

IMAGES = 31
SHARD = 4


class KilledError(Exception):
    """The process is killed."""


class EveryThirdKnown:
    """Every third image is known: every ninth failed permanently, the others have a result."""

    async def known(self, images: Sequence[ImageRef]) -> list[KnownStatus | None]:
        return [_known(int(image.key)) for image in images]


def _known(number: int) -> KnownStatus | None:
    if number % 3:
        return None
    return "already_scored" if number % 9 else "already_failed"


async def listed_shards(store: Store, *, page: int, incremental: bool, shards: int | None = None) -> list[list[str]]:
    """Resume a listing, interrupt it after `shards` shards, and return the keys of each shard."""
    worklist = WorkList(store, RunPaths("r"))
    await worklist.open()
    source = FakeSource([str(n) for n in range(IMAGES)], page=page)

    def on_frozen() -> None:
        bookmark = worklist.bookmark
        assert bookmark is not None
        assert bookmark.taken - bookmark.already_scored - bookmark.already_failed == worklist.images
        if worklist.shards == shards:
            raise KilledError

    pages = Selection([source], Filters()).pages(worklist.bookmark, earlier=worklist.frozen_images())
    await write_work_list(
        worklist,
        pages,
        shard_size=SHARD,
        incremental=EveryThirdKnown() if incremental else None,
        count_sources=partial(SourceCounts, lines=None),
        on_frozen=on_frozen,
    )
    assert worklist.totals is not None
    assert (worklist.totals.already_scored, worklist.totals.already_failed) == ((7, 4) if incremental else (0, 0))
    return [(await worklist.load(shard))["key"].cast("string").to_pylist() for shard in range(worklist.shards)]


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("page", [1, 3, 4, 7, 100])
def test_an_interrupted_listing_resumes_with_the_same_shards(page: int, incremental: bool) -> None:
    keys = [str(n) for n in range(IMAGES) if n % 3 != 0 or not incremental]
    expected = [keys[begin : begin + SHARD] for begin in range(0, len(keys), SHARD)]

    async def main() -> None:
        assert await listed_shards(Store.memory(), page=page, incremental=incremental) == expected
        for shards in range(1, len(expected)):
            store = Store.memory()
            with pytest.raises(KilledError):
                await listed_shards(store, page=page, incremental=incremental, shards=shards)
            assert await listed_shards(store, page=page, incremental=incremental) == expected

    anyio.run(main)


@pytest.mark.parametrize("include", [(), ("0000*",)])
def test_calls_run_between_any_two_pages_of_a_list(include: tuple[str, ...]) -> None:
    page, pages, shard = 1000, 50, 4000
    source = FakeSource([f"{number:06}" for number in range(page * pages)], page=page)
    worklist = WorkList(Store.memory(), RunPaths("r"))
    selection = Selection([source], Filters(include=include))
    read_at: list[tuple[float, int]] = []

    async def call() -> None:
        while True:
            await anyio.sleep(0.001)
            read_at.append((anyio.current_time(), source.pages_read))

    async def main() -> None:
        await worklist.freeze(image_table(source.images[:1] * AHEAD_IMAGES), Bookmark(0, Position(1, "000000"), 1))
        async with anyio.create_task_group() as group:
            group.start_soon(call)
            await write_work_list(
                worklist,
                selection.pages(pause=partial(wait_for_calls, worklist, Progress())),
                shard_size=shard,
                incremental=None,
                count_sources=partial(SourceCounts, lines=None),
                on_frozen=lambda: None,
            )
            group.cancel_scope.cancel()

    run_virtual(main)
    assert worklist.totals is not None
    assert max(later - earlier for (_, earlier), (_, later) in pairwise(read_at)) == 1
    assert read_at[-1][0] >= page * (pages - 1) / LISTED_PER_S


def test_listing_waits_only_if_enough_images_wait_for_calls() -> None:
    async def main() -> list[bool]:
        worklist, progress = WorkList(Store.memory(), RunPaths("r")), Progress()
        source = FakeSource(["k"])
        waited = []
        for frozen, done in ((0, 0), (AHEAD_IMAGES, 0), (0, 1), (1, 0)):
            if frozen:
                await worklist.freeze(image_table(source.images * frozen), Bookmark(0, Position(1, "k"), 1))
            progress.scored += done
            before_s = anyio.current_time()
            await wait_for_calls(worklist, progress, LISTED_PER_S)
            waited.append(anyio.current_time() - before_s > 0.5)
        return waited

    assert run_virtual(main) == [False, True, False, True]
