from __future__ import annotations

import datetime as dt

import pytest

from batchcl.images import ImageRef
from batchcl.sources.filters import FilterChain, Filters, describe_filters

NOON = dt.datetime(2026, 11, 20, 12, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)


def image(key: str = "a.png", *, size: int | None = None, modified: dt.datetime | None = None) -> ImageRef:
    return ImageRef(uri=f"s3://b/{key}", bucket="b", key=key, size_bytes=size, last_modified=modified)


def test_sizes_include_both_ends() -> None:
    sieve = FilterChain(Filters(min_size_bytes=10, max_size_bytes=20))
    found = sieve.reasons([image(size=size) for size in (9, 10, 20, 21, None)])
    assert found == ["min_size", None, None, "max_size", "size_unknown"]


def test_newer_and_older_meet_without_gap_or_overlap() -> None:
    images = [image(modified=moment) for moment in (NOON - SECOND, NOON, NOON + SECOND, None)]
    assert FilterChain(Filters(newer_than=NOON)).reasons(images) == ["newer_than", None, None, "time_unknown"]
    assert FilterChain(Filters(older_than=NOON)).reasons(images) == [None, "older_than", "older_than", "time_unknown"]


def test_the_first_filter_that_takes_an_image_away_is_the_one_that_counts() -> None:
    sieve = FilterChain(
        Filters(include=("*.png",), exclude=("b*",), newer_than=NOON, older_than=NOON + SECOND, min_size_bytes=1)
    )
    images = [
        image("b.jpg"),
        image("b.png"),
        image(modified=NOON - SECOND),
        image(modified=NOON + SECOND, size=0),
        image(modified=NOON, size=0),
        image(modified=NOON, size=1),
    ]
    assert sieve.reasons(images) == ["include", "exclude", "newer_than", "older_than", "min_size", None]


def test_only_what_judges_an_image_by_itself_makes_a_sieve() -> None:
    assert FilterChain(Filters(limit=3)).takes_all
    assert not FilterChain(Filters(max_size_bytes=3)).takes_all


@pytest.mark.parametrize(
    ("name", "words"), [("min_size", "--min-size"), ("where", "--where"), ("size_unknown", "size not known")]
)
def test_filters_are_told_by_their_flags(name: str, words: str) -> None:
    assert describe_filters(name) == words
