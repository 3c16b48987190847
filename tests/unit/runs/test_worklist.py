"""The work list: shards are written once, read back exactly, and listing resumes after an interruption."""

from __future__ import annotations

import datetime as dt
import os
from dataclasses import replace

import anyio
import pytest

from batchcl.errors import OutputError, StoppedError
from batchcl.images import Bookmark, ImageRef, Position
from batchcl.runs.layout import RunPaths
from batchcl.runs.store import Store
from batchcl.runs.worklist import ImageRows, WorkList, image_table
from batchcl.summary import SourceCounts

PATHS = RunPaths("r")


def image(n: int) -> ImageRef:
    return ImageRef(uri=f"s3://b/{n}.jpg", bucket="b", key=f"{n}.jpg", size_bytes=n)


def bookmark(n: int, already_scored: int = 0) -> Bookmark:
    return Bookmark(0, Position(n, f"{n - 1}.jpg"), n, already_scored=already_scored)


def test_images_survive_a_round_trip():
    name = os.fsdecode(b"/x/\xff\xfe.jpg")
    odd = [
        ImageRef(uri="/x/odd", bucket="", key=name),
        ImageRef(
            uri="s3://b/a b+c%2F é\n.jpg",
            bucket="b",
            key="a b+c%2F é\n.jpg",
            version_id="v",
            etag="e",
            size_bytes=2**40,
            last_modified=dt.datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=dt.UTC),
            extra='{"a": 1}',
            region="eu-west-1",
        ),
    ]

    async def main() -> None:
        store = Store.memory()
        worklist = WorkList(store, PATHS)
        await worklist.freeze(image_table(odd), bookmark(2))
        table = await worklist.load(0)
        for positions in ([0, 1], [1]):
            rows = ImageRows(table, positions)
            assert list(rows) == list(rows) == [odd[position] for position in positions]

    anyio.run(main)


def test_bookmarks_store_the_state_of_filters_and_samples():
    cut = (1 << 64) - 1
    left = Bookmark(1, Position(3, "k"), 2, duplicates=1, filtered={"exclude": 4, "sample": 5}, cut=cut)

    async def main() -> Bookmark | None:
        store = Store.memory()
        await WorkList(store, PATHS).freeze(image_table([image(1)]), left)
        again = WorkList(store, PATHS)
        await again.open()
        return again.bookmark

    assert anyio.run(main) == left


def test_an_interrupted_list_has_a_bookmark():
    async def main() -> None:
        store = Store.memory()
        first = WorkList(store, PATHS)
        await first.freeze(image_table([image(0), image(1)]), bookmark(2))
        await first.freeze(image_table([image(3)]), bookmark(4, already_scored=1))
        again = WorkList(store, PATHS)
        await again.open()
        assert (again.shards, again.images, again.bookmark, again.totals) == (2, 3, bookmark(4, already_scored=1), None)
        await again.complete(SourceCounts(planned=3, already_scored=1))
        last = WorkList(store, PATHS)
        await last.open()
        assert (last.shards, last.images, last.totals) == (2, 3, SourceCounts(planned=3, already_scored=1))

    anyio.run(main)


def test_frozen_images_come_with_their_first_possible_source():
    async def main() -> None:
        worklist = WorkList(Store.memory(), PATHS)
        await worklist.freeze(image_table([image(0), image(1)]), replace(bookmark(2), source=1))
        await worklist.freeze(image_table([image(2)]), replace(bookmark(3), source=1))
        await worklist.freeze(image_table([image(3)]), replace(bookmark(4), source=3))
        await worklist.freeze(image_table([image(4)]), replace(bookmark(5), source=3))
        found = [(source, [each.key for each in images]) async for source, images in worklist.frozen_images()]
        assert found == [(0, ["0.jpg", "1.jpg"]), (1, ["2.jpg"]), (1, ["3.jpg"]), (3, ["4.jpg"])]

    anyio.run(main)


def test_shard_numbers_are_yielded_until_the_list_is_complete():
    seen: list[int] = []

    async def read(worklist: WorkList) -> None:
        async for shard in worklist.shard_numbers():
            seen.append(shard)

    async def main() -> None:
        worklist = WorkList(Store.memory(), PATHS)
        async with anyio.create_task_group() as group:
            group.start_soon(read, worklist)
            await anyio.wait_all_tasks_blocked()
            assert seen == []
            await worklist.freeze(image_table([image(0)]), bookmark(1))
            await anyio.wait_all_tasks_blocked()
            assert seen == [0]
            await worklist.freeze(image_table([image(1)]), bookmark(2))
            await worklist.complete(SourceCounts(planned=2))
        assert seen == [0, 1]

    anyio.run(main)


def test_a_different_list_of_another_process_is_detected():
    async def main() -> None:
        store = Store.memory()
        first, second = WorkList(store, PATHS), WorkList(store, PATHS)
        await first.freeze(image_table([image(0)]), bookmark(1))
        await second.freeze(image_table([image(0)]), bookmark(1))
        await first.freeze(image_table([image(1)]), bookmark(2))
        with pytest.raises(StoppedError, match="another process"):
            await second.freeze(image_table([image(2)]), bookmark(2))

    anyio.run(main)


def test_a_missing_shard_is_reported_with_its_path():
    async def main() -> None:
        with pytest.raises(OutputError, match=r"reading the work list failed: .* is missing; restore it"):
            await WorkList(Store.memory(), PATHS).load(0)

    anyio.run(main)
