"""Outcomes as columns: no field is lost, and the last entry of an image counts."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchcl.images import ImageRef, check_limits
from batchcl.outcomes import FAILURE_CODES, AlreadyKnown, Counts, Failed, FailureCode, Label, Scored
from batchcl.runs.entries import (
    ENTRIES,
    FailureGroup,
    JournalEntry,
    counts,
    entry_table,
    failure_groups,
    latest,
    of_round,
    of_status,
    positions,
    unresolved,
)
from batchcl.runs.worklist import image_table

NOW = dt.datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=dt.UTC)
IMAGE = ImageRef(uri="s3://b/a.jpg", bucket="b", key="a.jpg")


def scored(position: int, labels: tuple[Label, ...] = (), *, fitted: str | None = None) -> JournalEntry:
    outcome = Scored(
        image=IMAGE, labels=labels, attempts=2, latency_ms=1.5, request_id="q", scored_at=NOW, fitted=fitted
    )
    return JournalEntry(position, outcome)


def failed(position: int, code: str = "X", status: str = "failed") -> JournalEntry:
    outcome = Failed(image=IMAGE, status=status, code=code, message="m", attempts=8, failed_at=NOW)  # type: ignore[arg-type]
    return JournalEntry(position, outcome)


def test_every_field_of_an_outcome_becomes_a_column() -> None:
    box = Label("é\n", 12.5, (0.25, 0.5, 0.125, 1.0), ((0.0, 0.5), (1.0, 0.25)))
    entries = [scored(4, (box, Label("plain", 99.5))), scored(1, fitted="BMP to PNG"), failed(2, status="skipped")]
    nothing = dict.fromkeys(("left", "top", "width", "height", "polygon"))
    sides = {"left": 0.25, "top": 0.5, "width": 0.125, "height": 1.0}
    whole = {"name": "é\n", "confidence": 12.5, **sides, "polygon": [{"x": 0.0, "y": 0.5}, {"x": 1.0, "y": 0.25}]}
    good = {"status": "scored", "attempts": 2, "at": NOW, "latency_ms": 1.5, "request_id": "q", "round": 3, "fit": True}
    good |= {"code": None, "message": None}
    assert entry_table(entries, round_=3, fit=True).to_pylist() == [
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
            "fit": True,
        },
    ]


def test_no_outcomes_give_an_empty_table() -> None:
    assert entry_table([], round_=0) == ENTRIES.empty_table()
    assert counts(ENTRIES.empty_table()) == Counts()


def test_counts_are_by_status() -> None:
    known = [JournalEntry(4, AlreadyKnown(image=IMAGE, status="already_scored", at=NOW))]
    known += [JournalEntry(at, AlreadyKnown(image=IMAGE, status="already_failed", at=NOW)) for at in (5, 6)]
    table = entry_table(
        [scored(0), failed(1), failed(2, status="skipped"), scored(3, (Label("cat", 90),)), *known], round_=0
    )
    assert counts(table) == Counts(2, 1, 1, 1, 2, unlabelled=1)
    assert positions(of_status(table, scored=True)) == [0, 3]
    assert positions(of_status(table, scored=False)) == [1, 2]


LISTED = replace(IMAGE, etag="e1")
LOCAL = replace(IMAGE, uri="/d/a.jpg", bucket="", key="/d/a.jpg")


@pytest.mark.parametrize(
    ("image", "permanent"),
    [
        (LISTED, True),
        (replace(IMAGE, version_id="v1"), True),
        (replace(IMAGE, size_bytes=5, last_modified=NOW), False),
        (replace(LOCAL, size_bytes=5, last_modified=NOW), True),
        (replace(LOCAL, size_bytes=5), False),
        (replace(LOCAL, last_modified=NOW), False),
        (IMAGE, False),
    ],
)
def test_failures_are_permanent_only_for_known_versions(image: ImageRef, permanent: bool) -> None:
    table = entry_table([failed(0, "InvalidImageFormatException")], round_=0)
    assert unresolved(table, image_table([image])) == [
        (0, FailureGroup("failed", "InvalidImageFormatException", 0, permanent, fit_may_help=True))
    ]


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("code", ["X", "InvalidS3ObjectException", "AccessDeniedException", *FAILURE_CODES])
def test_failures_are_grouped_by_code_and_fit_setting(code: str, fit: bool) -> None:
    table = entry_table([scored(0), failed(1, code), failed(2, code)], round_=4, fit=fit)
    about = FAILURE_CODES.get(code, FailureCode("", permanent=False))
    expected = FailureGroup("failed", code, 4, about.permanent, about.fit_may_help and not fit)
    assert failure_groups(table, image_table([LISTED] * 3)) == {expected: 2}


@pytest.mark.parametrize(
    ("key", "size", "helps"),
    [("a.webp", 5, True), ("a.txt", 5, False), ("a.png", 0, False), ("a.png", 16 << 20, True), ("a/", 0, False)],
)
def test_fit_helps_skipped_images_that_it_accepts(key: str, size: int, helps: bool) -> None:
    image = replace(LISTED, key=key, uri=f"s3://b/{key}", size_bytes=size)
    reason = check_limits(image)
    assert reason is not None
    for fit in (False, True):
        table = entry_table([failed(0, reason.code, "skipped")], round_=0, fit=fit)
        expected = FailureGroup("skipped", reason.code, 0, permanent=True, fit_may_help=helps and not fit)
        assert failure_groups(table, image_table([image])) == {expected: 1}


@given(st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_the_later_entry_of_an_image_counts(first: set[int], second: set[int]) -> None:
    earlier = entry_table([failed(position) for position in sorted(first)], round_=0)
    later = entry_table([scored(position) for position in sorted(second)], round_=1)
    both = pa.concat_tables([earlier, later])
    assert of_round(both, 1) == (later, earlier)
    state = latest(both)
    assert sorted(positions(state)) == sorted(first | second)
    assert counts(state) == replace(counts(later), failed=len(first - second))
