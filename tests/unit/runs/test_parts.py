from __future__ import annotations

import datetime as dt
import io
from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq
import pytest

from batchcl.images import ImageRef
from batchcl.runs.entries import Entry, entry_table, replaced
from batchcl.runs.parts import Part, PartSpec, shard_parts
from batchcl.scoring.outcome import Failed, Label, Outcome, Scored
from tables import columns

AT = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)
SPEC = PartSpec(run_id="r", model="dogs@v1", date=AT.date(), min_confidence=5.0, max_results=2)
RESULTS = "results/model=dogs@v1/date=2026-11-21/r-00004"
FAILURES = "failures/model=dogs@v1/date=2026-11-21/r-00004.parquet"


def scored(name: str) -> Scored:
    image = ImageRef(uri=f"s3://b/{name}", bucket="b", key=name)
    labels = (Label("cat", 50.0),)
    return Scored(image=image, labels=labels, attempts=1, latency_ms=1, request_id="", scored_at=AT)


def failed(name: str) -> Failed:
    image = ImageRef(uri=f"s3://b/{name}", bucket="b", key=name)
    return Failed(image=image, status="failed", code="C", message="m", attempts=1, failed_at=AT)


def rows(part: Part) -> list[dict[str, Any]]:
    assert part.data is not None
    found: list[dict[str, Any]] = pq.read_table(io.BytesIO(part.data)).to_pylist()
    return found


def parts(new: Sequence[Outcome], *, round_: int = 0) -> list[Part]:
    images, entries = columns(new, round_=round_)
    return shard_parts(SPEC, 4, round_=round_, images=images, new=entries, state=entries)


def test_a_shard_becomes_one_file_of_results_and_one_of_failures() -> None:
    results, failures = parts([scored("d"), failed("c"), failed("b"), scored("a")])
    assert (results.path, failures.path) == (f"{RESULTS}.parquet", FAILURES)
    assert [row["key"] for row in rows(results)] == ["a", "d"]
    assert {(row["min_confidence"], row["max_results"], row["run_id"]) for row in rows(results)} == {(5.0, 2, "r")}
    assert [row["key"] for row in rows(failures)] == ["b", "c"]


def test_no_file_is_made_without_rows() -> None:
    assert [part.path for part in parts([scored("a")])] == [f"{RESULTS}.parquet"]
    assert [part.path for part in parts([failed("a")])] == [FAILURES]
    assert parts([]) == []


def test_a_retry_adds_its_own_results_before_it_takes_failures_away() -> None:
    images, first = columns([failed("a"), failed("b"), scored("c")])
    new = entry_table([Entry(0, scored("a")), Entry(1, failed("b"))], round_=2)
    added, left = shard_parts(SPEC, 4, round_=2, images=images, new=new, state=replaced(first, new))
    assert (added.path, left.path) == (f"{RESULTS}-r2.parquet", FAILURES)
    assert [row["key"] for row in rows(added)] == ["a"]
    assert [(row["key"], row["round"]) for row in rows(left)] == [("b", 2)]


def test_a_failure_that_was_not_retried_keeps_its_round() -> None:
    images, first = columns([failed("a"), failed("b")])
    new = entry_table([Entry(1, failed("b"))], round_=1)
    (left,) = shard_parts(SPEC, 4, round_=1, images=images, new=new, state=replaced(first, new))
    assert [(row["key"], row["round"]) for row in rows(left)] == [("a", 0), ("b", 1)]


def test_a_retry_that_leaves_no_failure_takes_the_file_away() -> None:
    added, left = parts([scored("a")], round_=1)
    assert added.data is not None
    assert left == Part(FAILURES, None)


@pytest.mark.parametrize("round_", [0, 1])
def test_publishing_again_writes_the_same_bytes_to_the_same_names(round_: int) -> None:
    outcomes = [scored(f"{number}") for number in range(30)] + [failed("x"), failed("y")]
    first = parts(outcomes, round_=round_)
    again = parts(list(reversed(outcomes)), round_=round_)
    assert first == again
    assert len({part.path for part in first}) == 2
