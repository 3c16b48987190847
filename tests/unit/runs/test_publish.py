"""Publishing: names and rows follow from the journal; files are created once and never changed."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Sequence
from typing import Any

import anyio
import pyarrow.parquet as pq
import pytest

from batchcl.errors import BatchclError
from batchcl.images import ImageRef
from batchcl.outcomes import AlreadyKnown, Failed, Label, Outcome, Scored
from batchcl.runs.entries import JournalEntry
from batchcl.runs.journal import Journal, JournalChunk
from batchcl.runs.layout import RunPaths
from batchcl.runs.publish import PartSpec, publish_chunk, publish_journal
from batchcl.runs.store import Store
from batchcl.runs.worklist import image_table
from tables import columns

AT = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
ARN = "arn:aws:rekognition:eu-west-1:123456789012:project/dogs/version/v1/1700000000000"
SPEC = PartSpec(run_id="r", model="dogs@v1", model_arn=ARN, date=AT.date(), min_confidence=5.0, max_results=2)
RESULTS = "results/model=dogs@v1/date=2026-11-21/r-00004-00007.parquet"
FAILURES = "failures/model=dogs@v1/date=2026-11-21/r-00004-00007.parquet"


def image(name: str) -> ImageRef:
    return ImageRef(uri=f"s3://b/{name}", bucket="b", key=name)


def scored(name: str) -> Scored:
    labels = (Label("cat", 50.0),)
    return Scored(image=image(name), labels=labels, attempts=1, latency_ms=1, request_id="", scored_at=AT)


def failed(name: str) -> Failed:
    return Failed(image=image(name), status="failed", code="C", message="m", attempts=1, failed_at=AT)


def files(store: Store) -> dict[str, bytes]:
    return {file.path: store.open_file(file.path).read() for file in store.list_sync("")}


def rows(data: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
    return found


def published(outcomes: Sequence[Outcome], *, round_: int = 0, store: Store | None = None) -> dict[str, bytes]:
    images, entries = columns(outcomes, round_=round_)
    into = store or Store.memory()
    anyio.run(publish_chunk, into, SPEC, 4, JournalChunk(7, entries), images)
    return files(into)


def test_a_chunk_becomes_one_file_per_table() -> None:
    found = published([scored("d"), failed("c"), failed("b"), scored("a")])
    assert found.keys() == {RESULTS, FAILURES}
    assert [row["key"] for row in rows(found[RESULTS])] == ["a", "d"]
    settings = {(row["min_confidence"], row["max_results"], row["run_id"]) for row in rows(found[RESULTS])}
    assert settings == {(5.0, 2, "r")}
    assert {row["model_arn"] for data in found.values() for row in rows(data)} == {ARN}
    assert [row["key"] for row in rows(found[FAILURES])] == ["b", "c"]


def test_no_file_is_created_without_rows() -> None:
    assert published([scored("a")]).keys() == {RESULTS}
    assert published([failed("a")]).keys() == {FAILURES}
    assert published([]) == {}
    assert published([AlreadyKnown(image=image("a"), status="already_scored", at=AT)]) == {}, (
        "its row is that of another run"
    )


def test_a_failure_has_the_round_that_called_for_it() -> None:
    assert [row["round"] for row in rows(published([failed("a")], round_=2)[FAILURES])] == [2]


@pytest.mark.parametrize("round_", [0, 1])
def test_equal_outcomes_give_equal_bytes(round_: int) -> None:
    outcomes = [scored(f"{number}") for number in range(30)] + [failed("x"), failed("y")]
    first = published(outcomes, round_=round_)
    assert first == published(list(reversed(outcomes)), round_=round_)
    assert len(first) == 2


def test_existing_files_are_not_changed() -> None:
    store = Store.memory()
    before = published([scored("a"), failed("b")], store=store)
    assert published([scored("c"), failed("d")], store=store) == before


def journal(store: Store, writer: str = "w") -> Journal:
    return Journal(store, RunPaths("r"), 4, writer=writer)


def test_closed_chunks_are_named_after_their_first_segment() -> None:
    outcomes: list[Outcome] = [scored("a"), failed("b"), scored("c"), scored("d")]
    images = image_table([outcome.image for outcome in outcomes])

    async def main() -> dict[str, bytes]:
        store = Store.memory()
        writer = journal(store)
        for position, outcome in enumerate(outcomes):
            await writer.stage([JournalEntry(position, outcome)], round_=0)
            if position in {1, 2}:
                await writer.cut()
        await writer.flush()
        content = await publish_journal(store, SPEC, 4, journal(store, "another"), images)
        assert [chunk.first for chunk in content.chunks] == [0, 3]
        assert content.uncut is not None
        assert content.uncut.first == 5
        return {path: data for path, data in files(store).items() if not path.startswith("runs/")}

    folder = "model=dogs@v1/date=2026-11-21"
    found = {path: [row["key"] for row in rows(data)] for path, data in anyio.run(main).items()}
    assert found == {
        f"results/{folder}/r-00004-00000.parquet": ["a"],
        f"failures/{folder}/r-00004-00000.parquet": ["b"],
        f"results/{folder}/r-00004-00003.parquet": ["c"],
    }


def test_two_outcomes_of_an_image_in_a_round_are_an_error() -> None:
    images = image_table([image("a")])

    async def main() -> None:
        store = Store.memory()
        writer = journal(store)
        for _ in range(2):
            await writer.stage([JournalEntry(0, scored("a"))], round_=0)
        await writer.cut()
        with pytest.raises(BatchclError, match="two outcomes in one round"):
            await publish_journal(store, SPEC, 4, writer, images)
        assert not store.list_sync("results")

    anyio.run(main)
