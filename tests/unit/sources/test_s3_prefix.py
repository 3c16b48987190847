from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from batchcl.aws.session import Aws
from batchcl.errors import CredentialsError, SourceError, UnreachableError
from batchcl.images import ImageRef
from batchcl.sources.base import Position
from batchcl.sources.s3_prefix import S3PrefixSource

AT = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


class FakeS3:
    """Lists keys two a page, or refuses behind the first page."""

    def __init__(self, keys: list[str], error: Exception | None = None) -> None:
        self.keys = keys
        self.error = error
        self.asked: list[dict[str, Any]] = []

    @asynccontextmanager
    async def s3(self, *, region: str) -> AsyncIterator[FakeS3]:
        assert region == "eu-west-1"
        yield self

    def get_paginator(self, operation: str) -> FakeS3:
        assert operation == "list_objects_v2"
        return self

    async def paginate(self, **arguments: Any) -> AsyncIterator[dict[str, Any]]:
        self.asked.append(arguments)
        for begin in range(0, len(self.keys), 2):
            yield {
                "Contents": [
                    {"Key": key, "ETag": f'"e-{key}"', "Size": 7, "LastModified": AT}
                    for key in self.keys[begin : begin + 2]
                ]
            }
        yield {}
        if self.error is not None:
            raise self.error


def read(fake: FakeS3, uri: str = "s3://b/a b+c%2F/", after: Position | None = None) -> list[list[ImageRef]]:
    async def main() -> list[list[ImageRef]]:
        source = S3PrefixSource(uri, cast("Aws", fake), region="eu-west-1")
        return [page async for page in source.pages(after)]

    return anyio.run(main)


def test_objects_come_in_s3s_pages_with_what_the_listing_says() -> None:
    fake = FakeS3(["a b+c%2F/1", "a b+c%2F/é", "z"])
    pages = read(fake)
    assert [[image.key for image in page] for page in pages] == [["a b+c%2F/1", "a b+c%2F/é"], ["z"]]
    assert pages[0][0] == ImageRef(
        uri="s3://b/a b+c%2F/1",
        bucket="b",
        key="a b+c%2F/1",
        etag="e-a b+c%2F/1",
        size_bytes=7,
        last_modified=AT,
    )
    assert fake.asked == [{"Bucket": "b", "Prefix": "a b+c%2F/"}]


@pytest.mark.parametrize(("uri", "prefix"), [("s3://b", ""), ("s3://b/", ""), ("s3://b/x", "x"), ("s3://b//x/", "/x/")])
def test_the_prefix_is_taken_literally(uri: str, prefix: str) -> None:
    fake = FakeS3([])
    assert read(fake, uri) == []
    assert fake.asked[0]["Prefix"] == prefix


def test_reading_goes_on_behind_a_key() -> None:
    fake = FakeS3(["z"])
    read(fake, after=Position(2, "a b+c%2F/é"))
    assert fake.asked[0]["StartAfter"] == "a b+c%2F/é"


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ClientError(cast("Any", {"Error": {"Code": "NoSuchBucket"}}), "L"), SourceError, "no bucket b"),
        (ClientError(cast("Any", {"Error": {"Code": "AccessDenied"}}), "L"), CredentialsError, "s3:ListBucket"),
        (EndpointConnectionError(endpoint_url="http://x"), UnreachableError, "http://x"),
    ],
)
def test_a_listing_that_breaks_off_is_never_taken_for_complete(
    error: Exception, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=r"^listing s3://b/p failed: ") as caught:
        read(FakeS3(["1", "2", "3"], error), "s3://b/p")
    assert words in str(caught.value)


def test_it_names_its_bucket_and_contains_the_latest_versions_below_its_prefix() -> None:
    source = S3PrefixSource("s3://b/p/", cast("Aws", None), region="eu-west-1")
    assert anyio.run(source.check).buckets == {"b"}
    for bucket, key, version_id, expected in [
        ("b", "p/x", None, True),
        ("b", "p", None, False),
        ("b", "q/x", None, False),
        ("c", "p/x", None, False),
        ("b", "p/x", "v1", False),
        ("", "p/x", None, False),
    ]:
        image = ImageRef(uri="x", bucket=bucket, key=key, version_id=version_id)
        assert anyio.run(source.contains, image) is expected
