"""Counts of images that are in two sides, against a count in plain Python."""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import polars as pl
import pytest

from batchcl.analysis.image_pairs import BIN_WIDTH, PairCounts, count_pairs
from batchcl.analysis.part_files import Batch

T = TypeVar("T")
NOON = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
HOSTILE = [
    "",
    "(none)",
    "\x1b[31mcat\n",
    "<script>alert(1)</script>",
    "\u202egod",
    "a" * 1000,
    "'; DROP TABLE x --",
    "\0",
]


@dataclass(frozen=True)
class Row:
    uri: str
    labels: tuple[tuple[str | None, float | None], ...] = ()
    version_id: str | None = None
    etag: str | None = None
    model_arn: str = "arn:1"
    at: dt.datetime = NOON
    min_confidence: float | None = None


class Side:
    """The rows of a side in batches of one model, as `Results.map_batches` yields them."""

    def __init__(self, rows: Iterable[Row], *, batch_rows: int = 1000) -> None:
        models: defaultdict[str, list[Row]] = defaultdict(list)
        for row in rows:
            models[row.model_arn].append(row)
        self.batches = [own[at : at + batch_rows] for own in models.values() for at in range(0, len(own), batch_rows)]

    def __call__(self, compute: Callable[[Batch], T], *, columns: Sequence[str]) -> Iterator[T]:
        for rows in self.batches:
            yield compute(batch_of(rows, columns))


def batch_of(rows: Sequence[Row], columns: Sequence[str]) -> Batch:
    schema = {
        "uri": pl.String(),
        "version_id": pl.String(),
        "etag": pl.String(),
        "scored_at": pl.Datetime("us", "UTC"),
        "min_confidence": pl.Float32(),
        "max_results": pl.Int32(),
    }
    values = [(row.uri, row.version_id, row.etag, row.at, row.min_confidence, None) for row in rows]
    labels = [(number, *label) for number, row in enumerate(rows) for label in row.labels]
    kinds = {"image": pl.UInt32(), "label": pl.Categorical(), "confidence": pl.Float32()}
    return Batch(
        model="cats@v1",
        model_arn=rows[0].model_arn,
        date="2026-11-21",
        rows=len(rows),
        images=pl.DataFrame(values, schema=schema, orient="row").select(columns),
        detections=pl.DataFrame(labels, schema=kinds, orient="row"),
    )


def top_of(row: Row) -> str | None:
    known = [(label, confidence) for label, confidence in row.labels if label is not None and confidence is not None]
    return min(known, key=lambda each: (-each[1], each[0]), default=(None, 0))[0]


def labels_of(*rows: Row) -> set[str | None]:
    """The labels that all rows have; None if none of them has a label."""
    sets = [{label for label, _ in row.labels} or {None} for row in rows]
    return set.intersection(*sets)


def counted(a: Side, b: Side, *, paired: bool = True, examples: int = 3) -> PairCounts:
    return count_pairs([a], [b], is_paired=lambda *_: paired, examples=examples)


def random_rows(seed: int, *, images: int, first: int = 0) -> list[Row]:
    """Images with up to five objects of six labels, some of the same label or the same confidence."""
    random = np.random.default_rng(seed)
    labels = ["cat", "dog", *HOSTILE[:4]]
    return [
        Row(
            f"s3://b/{number}",
            tuple(
                (labels[random.integers(6)], float(random.choice([0, 12.5, 50, 99.96, 100])))
                for _ in range(random.integers(6))
            ),
            etag=[None, "x", "y"][random.integers(3)],
            version_id=[None, "v1"][random.integers(2)] if number % 7 == 0 else None,
        )
        for number in range(first, first + images)
    ]


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("batch_rows", [7, 1000])
def test_counts_equal_those_of_plain_python(paired: bool, batch_rows: int) -> None:
    rows_a, rows_b = random_rows(1, images=300), random_rows(2, images=300, first=100)
    counts = counted(
        Side(rows_a, batch_rows=batch_rows), Side(rows_b, batch_rows=batch_rows), paired=paired, examples=2
    )
    of_a, of_b = ({(row.uri, row.version_id): row for row in rows} for rows in (rows_a, rows_b))
    both = [(of_a[key], row) for key, row in of_b.items() if key in of_a]
    assert (counts.a.images, counts.b.images, counts.both) == (300, 300, len(both))
    for rows, own, side in ((rows_a, of_b, counts.a), (rows_b, of_a, counts.b)):
        kept = [row for row in rows if not paired or (row.uri, row.version_id) in own]
        assert side.compared == len(kept)
        assert side.labels == Counter(label for row in kept for label in labels_of(row))
        found = [label for row in kept for label in row.labels]
        assert {label: int(bins.sum()) for label, bins in side.histograms.items()} == Counter(
            label for label, _ in found
        )
        for label, bins in side.histograms.items():
            confidences = [confidence for name, confidence in found if name == label and confidence is not None]
            assert side.confidences[label] == pytest.approx(sum(confidences))
            assert np.flatnonzero(bins).tolist() == sorted({round(each / BIN_WIDTH) for each in confidences})
    assert counts.labels == Counter(label for pair in both for label in labels_of(*pair))
    assert counts.tops == Counter((top_of(a), top_of(b)) for a, b in both)
    assert counts.replaced == sum(None not in {a.etag, b.etag} and a.etag != b.etag for a, b in both)
    changes: defaultdict[tuple[str | None, str | None], list[str]] = defaultdict(list)
    for a, b in both:
        if top_of(a) != top_of(b):
            changes[top_of(a), top_of(b)].append(b.uri)
    assert counts.examples == {tops: uris[:2] for tops, uris in changes.items()}


@pytest.mark.parametrize("label", HOSTILE)
def test_hostile_labels_are_counted_as_they_are(label: str) -> None:
    a, b = Side([Row(label, ((label, 90.0),))]), Side([Row(label, ((label, 80.0), ("cat", 70.0)))])
    counts = counted(a, b)
    assert (counts.a.labels, counts.b.labels, counts.labels) == ({label: 1}, {label: 1, "cat": 1}, {label: 1, "cat": 0})
    assert counts.tops == {(label, label): 1}


@pytest.mark.parametrize("confidence", [float("nan"), -0.0, -5.0, 1e9, float("inf")])
def test_impossible_confidences_stay_in_the_histogram(confidence: float) -> None:
    counts = counted(Side([Row("s3://b/1", (("cat", confidence), ("dog", 50.0)))]), Side([Row("s3://b/1")]))
    assert counts.a.histograms["cat"].sum() == 1
    assert counts.a.labels == {"cat": 1, "dog": 1}


def test_labels_without_name_or_confidence_are_left_out() -> None:
    counts = counted(Side([Row("s3://b/1", ((None, 50.0), ("cat", None)))]), Side([Row("s3://b/1")]))
    assert (counts.a.labels, counts.tops) == ({None: 1}, {(None, None): 1})


@pytest.mark.parametrize("newer", ["arn:1", "arn:2"])
def test_of_several_models_the_newest_row_of_an_image_counts(newer: str) -> None:
    rows = [
        Row("s3://b/1", (("cat", 50.0),), model_arn="arn:1"),
        Row("s3://b/1", (("dog", 50.0),), model_arn="arn:2"),
        Row("s3://b/2", (("bird", 50.0),), model_arn="arn:2"),
    ]
    rows = [replace(row, at=NOON + dt.timedelta(hours=row.model_arn == newer)) for row in rows]
    for counts in (counted(Side(rows), Side(rows)), counted(Side(rows), Side([]), paired=False)):
        assert counts.a.images == counts.a.compared == 2
        assert counts.a.labels == {"cat" if newer == "arn:1" else "dog": 1, "bird": 1}
        assert sum(counts.a.origins.values()) == 3


def test_of_several_runs_the_newest_row_of_an_image_counts() -> None:
    runs = [
        [Row(f"s3://b/{n}", ((label, 50.0),), at=NOON + dt.timedelta(hours=(n + shift) % 3)) for n in range(9)]
        for shift, label in enumerate(("cat", "dog", "bird"))
    ]
    sides = [Side(rows, batch_rows=4) for rows in runs]
    counts = count_pairs(sides, sides[:1], is_paired=lambda *_: True, examples=0)
    newest = Counter(max((rows[n] for rows in runs), key=lambda row: row.at).labels[0][0] for n in range(9))
    assert counts.a.images == counts.a.compared == 9
    assert counts.a.labels == newest
    assert counts.tops.total() == 9


def test_empty_sides_have_no_counts() -> None:
    counts = counted(Side([]), Side([]), paired=False)
    assert (counts.a.images, counts.b.images, counts.both, counts.tops) == (0, 0, 0, {})
    assert counts.examples == {}
    one = counted(Side([]), Side([Row("s3://b/1")]), paired=False)
    assert (one.b.compared, one.tops) == (1, {})


def test_a_version_is_another_image() -> None:
    counts = counted(
        Side([Row("s3://b/1", version_id="v1")]), Side([Row("s3://b/1", version_id="v2"), Row("s3://b/1")])
    )
    assert (counts.a.images, counts.b.images, counts.both) == (1, 2, 0)
