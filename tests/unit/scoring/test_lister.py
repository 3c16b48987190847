"""What a run takes becomes shards: full ones, whose bookmarks go on behind their last image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import anyio
import pytest

from batchcl.images import ImageRef
from batchcl.runs.layout import RunPaths
from batchcl.runs.store import Store
from batchcl.runs.worklist import WorkList
from batchcl.scoring.lister import freeze_all
from batchcl.scoring.tally import Tally
from batchcl.sources.filters import Filters
from batchcl.sources.select import Selection
from unit.sources.test_select import FakeSource

IMAGES = 31
SHARD = 4


class CutError(Exception):
    """The process ends here."""


class ButThirds:
    """Every third image of the source has a result."""

    async def fresh(self, images: Sequence[ImageRef]) -> list[bool]:
        return [int(image.key) % 3 != 0 for image in images]


async def listed(store: Store, *, page: int, incremental: bool, shards: int | None = None) -> list[list[str]]:
    """The keys in each shard, of a listing that goes on where it was cut, and is cut behind so many shards."""
    worklist = WorkList(store, RunPaths("r"))
    await worklist.open()
    source = FakeSource([str(n) for n in range(IMAGES)], page=page)

    def on_frozen() -> None:
        bookmark = worklist.bookmark
        assert bookmark is not None
        assert bookmark.taken - bookmark.known == worklist.images
        if worklist.shards == shards:
            raise CutError

    pages = Selection([source], Filters()).pages(worklist.bookmark, earlier=worklist.frozen_images())
    await freeze_all(
        worklist,
        pages,
        shard_size=SHARD,
        freshness=ButThirds() if incremental else None,
        tally=partial(Tally, lines=None),
        on_frozen=on_frozen,
    )
    assert worklist.totals is not None
    assert worklist.totals.known == (11 if incremental else 0)
    return [(await worklist.load(shard))["key"].cast("string").to_pylist() for shard in range(worklist.shards)]


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("page", [1, 3, 4, 7, 100])
def test_shards_are_full_and_a_listing_that_was_cut_behind_any_makes_the_same(page: int, incremental: bool) -> None:
    keys = [str(n) for n in range(IMAGES) if n % 3 != 0 or not incremental]
    expected = [keys[begin : begin + SHARD] for begin in range(0, len(keys), SHARD)]

    async def main() -> None:
        assert await listed(Store.memory(), page=page, incremental=incremental) == expected
        for shards in range(1, len(expected)):
            store = Store.memory()
            with pytest.raises(CutError):
                await listed(store, page=page, incremental=incremental, shards=shards)
            assert await listed(store, page=page, incremental=incremental) == expected

    anyio.run(main)
