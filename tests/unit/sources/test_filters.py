from __future__ import annotations

import datetime as dt

import pytest

from batchcl.images import ImageRef
from batchcl.sources.filters import FilterChain, Filters, describe_filters

NOON = dt.datetime(2026, 11, 20, 12, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)


def image(key: str = "a.png", *, size: int | None = None, modified: dt.datetime | None = None) -> ImageRef:
    return ImageRef(uri=f"s3://b/{key}", bucket="b", key=key, size_bytes=size, last_modified=modified)


def test_size_limits_are_inclusive() -> None:
    chain = FilterChain(Filters(min_size_bytes=10, max_size_bytes=20))
    reasons = chain.reasons([image(size=size) for size in (9, 10, 20, 21, None)])
    assert reasons == ["min_size", None, None, "max_size", "size_unknown"]


def test_newer_than_is_inclusive_and_older_than_exclusive() -> None:
    images = [image(modified=moment) for moment in (NOON - SECOND, NOON, NOON + SECOND, None)]
    assert FilterChain(Filters(newer_than=NOON)).reasons(images) == ["newer_than", None, None, "time_unknown"]
    assert FilterChain(Filters(older_than=NOON)).reasons(images) == [None, "older_than", "older_than", "time_unknown"]


def test_the_first_filter_that_excludes_an_image_is_reported() -> None:
    chain = FilterChain(
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
    assert chain.reasons(images) == ["include", "exclude", "newer_than", "older_than", "min_size", None]


def test_a_chain_without_filters_per_image_is_empty() -> None:
    assert FilterChain(Filters(limit=3)).is_empty
    assert not FilterChain(Filters(max_size_bytes=3)).is_empty


@pytest.mark.parametrize(
    ("name", "words"), [("min_size", "--min-size"), ("where", "--where"), ("size_unknown", "size not known")]
)
def test_filters_are_described_by_their_flags(name: str, words: str) -> None:
    assert describe_filters(name) == words
