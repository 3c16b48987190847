"""Corrupt files of a run are reported with their path and a remedy."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import anyio
import pytest

from batchcl.errors import OutputError
from batchcl.images import Bookmark, ImageRef, Position
from batchcl.outcomes import Scored
from batchcl.runs.entries import JournalEntry, positions
from batchcl.runs.journal import Journal
from batchcl.runs.layout import RunPaths
from batchcl.runs.rounds import Round, open_round
from batchcl.runs.store import Store
from batchcl.runs.worklist import WorkList, image_table
from batchcl.summary import SourceCounts

PATHS = RunPaths("r")
IMAGES = [ImageRef(uri=f"s3://b/{n}.jpg", bucket="b", key=f"{n}.jpg") for n in range(4)]
NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


def entry(position: int) -> JournalEntry:
    image = IMAGES[position]
    return JournalEntry(
        position, Scored(image=image, labels=(), attempts=1, latency_ms=1, request_id="q", scored_at=NOW)
    )


async def started_run(root: Path) -> Store:
    """A run of four images, two of which are in the journal, in one segment each."""
    store = Store.open(str(root), create=True)
    worklist = WorkList(store, PATHS)
    await worklist.freeze(image_table(IMAGES), Bookmark(source=0, position=Position(0, "3.jpg"), taken=4))
    await worklist.complete(SourceCounts(planned=4))
    journal = Journal(store, PATHS, 0, writer="a")
    for position in (0, 1):
        await journal.stage([entry(position)], round_=0)
    await journal.flush()
    return store


async def resume(store: Store) -> list[int]:
    """Read the work list and the journal, as a resumed run does; returns the journalled positions."""
    worklist = WorkList(store, PATHS)
    await worklist.open()
    await worklist.load(0)
    return positions((await Journal(store, PATHS, 0, writer="b").read()).entries)


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        (
            PATHS.segment(0, 1),
            "restore the journal, or score the remaining images with --incremental and another --run-id",
        ),
        (PATHS.frozen(0), "restore it, or score the remaining images with --incremental"),
        (PATHS.totals, "delete it, and the same command lists the remaining images again"),
    ],
)
def test_a_truncated_file_is_reported_with_a_remedy(path: str, remedy: str, tmp_path: Path) -> None:
    async def main() -> None:
        store = await started_run(tmp_path)
        whole = (tmp_path / path).read_bytes()
        (tmp_path / path).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(OutputError, match=rf"{tmp_path / path} is corrupt: [^\n]+; {remedy}"):
            await resume(store)
        (tmp_path / path).write_bytes(whole)
        assert await resume(store) == [0, 1]

    anyio.run(main)


def test_listing_resumes_without_the_totals(tmp_path: Path) -> None:
    async def main() -> None:
        store = await started_run(tmp_path)
        (tmp_path / PATHS.totals).unlink()
        worklist = WorkList(store, PATHS)
        await worklist.open()
        assert worklist.totals is None
        assert worklist.bookmark is not None
        assert worklist.bookmark.taken == 4, "the listing resumes after the last shard"

    anyio.run(main)


@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_journal_with_a_gap_is_refused(damage: str, tmp_path: Path) -> None:
    """File names follow from segment numbers: with a gap, rows would be published again under another name."""

    async def main() -> None:
        store = await started_run(tmp_path)
        segment = tmp_path / PATHS.segment(0, 0)
        if damage == "missing":
            segment.unlink()
        else:
            segment.write_bytes(b"")
        with pytest.raises(OutputError, match=r"is corrupt: .*; restore the journal, or score the remaining images"):
            await resume(store)

    anyio.run(main)


def test_a_truncated_retry_file_is_reported(tmp_path: Path) -> None:
    async def main() -> None:
        store = await started_run(tmp_path)
        await store.put(PATHS.round(1), b'["Throt')
        with pytest.raises(OutputError, match=r"is corrupt: .*; restore it"):
            await open_round(store, PATHS, Round(0))

    anyio.run(main)
