"""Outcomes as columns: nothing of them is lost, and the later entry of an image counts."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from batchcl.images import ImageRef
from batchcl.runs.entries import (
    ENTRIES,
    Entry,
    counts,
    entry_table,
    failed_by_code,
    latest,
    of_round,
    of_status,
    positions,
    to_retry,
)
from batchcl.scoring.outcome import AlreadyScored, Counts, Failed, Label, Scored

NOW = dt.datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=dt.UTC)
IMAGE = ImageRef(uri="s3://b/a.jpg", bucket="b", key="a.jpg")


def scored(position: int, labels: tuple[Label, ...] = (), *, fitted: str | None = None) -> Entry:
    outcome = Scored(
        image=IMAGE, labels=labels, attempts=2, latency_ms=1.5, request_id="q", scored_at=NOW, fitted=fitted
    )
    return Entry(position, outcome)


def failed(position: int, code: str = "X", status: str = "failed") -> Entry:
    outcome = Failed(image=IMAGE, status=status, code=code, message="m", attempts=8, failed_at=NOW)  # type: ignore[arg-type]
    return Entry(position, outcome)


def test_all_of_an_outcome_becomes_columns() -> None:
    box = Label("é\n", 12.5, (0.25, 0.5, 0.125, 1.0), ((0.0, 0.5), (1.0, 0.25)))
    entries = [scored(4, (box, Label("plain", 99.5))), scored(1, fitted="BMP to PNG"), failed(2, status="skipped")]
    nothing = dict.fromkeys(("left", "top", "width", "height", "polygon"))
    sides = {"left": 0.25, "top": 0.5, "width": 0.125, "height": 1.0}
    whole = {"name": "é\n", "confidence": 12.5, **sides, "polygon": [{"x": 0.0, "y": 0.5}, {"x": 1.0, "y": 0.25}]}
    good = {"status": "scored", "attempts": 2, "at": NOW, "latency_ms": 1.5, "request_id": "q", "round": 3}
    good |= {"code": None, "message": None}
    assert entry_table(entries, round_=3).to_pylist() == [
        {"position": 4, "labels": [whole, {"name": "plain", "confidence": 99.5, **nothing}], "fitted": None, **good},
        {"position": 1, "labels": [], "fitted": "BMP to PNG", **good},
        {
            **dict.fromkeys(("labels", "latency_ms", "request_id", "fitted")),
            "position": 2,
            "status": "skipped",
            "attempts": 8,
            "at": NOW,
            "code": "X",
            "message": "m",
            "round": 3,
        },
    ]


def test_no_outcome_is_an_empty_table_of_the_same_columns() -> None:
    assert entry_table([], round_=0) == ENTRIES.empty_table()
    assert counts(ENTRIES.empty_table()) == Counts()


def test_counts_are_by_status() -> None:
    known = Entry(4, AlreadyScored(image=IMAGE, at=NOW))
    table = entry_table([scored(0), failed(1), failed(2, status="skipped"), scored(3), known], round_=0)
    assert counts(table) == Counts(2, 1, 1, 1)
    assert positions(of_status(table, scored=True)) == [0, 3]
    assert positions(of_status(table, scored=False)) == [1, 2]


def test_a_retry_is_about_failures_of_its_codes() -> None:
    table = entry_table([scored(0), failed(1, "A"), failed(2, "B"), failed(3, "A", "skipped")], round_=0)
    assert to_retry(table, ()) == [1, 2]
    assert to_retry(table, ["A", "C"]) == [1]
    assert failed_by_code(table) == {"A": 1, "B": 1}


@given(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_the_later_entry_of_an_image_counts(first: set[int], second: set[int]) -> None:
    earlier = entry_table([failed(position) for position in sorted(first)], round_=0)
    later = entry_table([scored(position) for position in sorted(second)], round_=1)
    both = pa.concat_tables([earlier, later])
    assert of_round(both, 1) == (later, earlier)
    state = latest(both)
    assert sorted(positions(state)) == sorted(first | second)
    assert counts(state) == Counts(len(second), len(first - second))
