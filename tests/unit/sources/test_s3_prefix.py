from __future__ import annotations

from contextlib import aclosing
from typing import Any, cast

import anyio
import pytest
from botocore.exceptions import EndpointConnectionError
from hypothesis import given
from hypothesis import strategies as st

from batchcl.aws.session import Aws
from batchcl.choices import Transport
from batchcl.errors import CredentialsError, SourceError, UnreachableError
from batchcl.images import ImageRef, Position
from batchcl.sources.s3_prefix import S3PrefixSource, read_in_order
from fake_s3 import AT, FakeS3, s3_error
from listings import FakeBucket
from virtual import run_virtual

PRINTABLE = st.characters(exclude_categories=["C", "Z"], include_characters=" ")


def bucket_of(keys: list[str], **more: Any) -> FakeS3:
    return FakeS3({f"b/{key}": b"7 bytes" for key in keys}, page_size=2, **more)


def read(s3: FakeS3, uri: str = "s3://b/a b+c%2F/", after: Position | None = None) -> list[list[ImageRef]]:
    async def main() -> list[list[ImageRef]]:
        source = S3PrefixSource(uri, s3.aws, region="eu-west-1", transport=Transport.AIOBOTO3)
        return [page async for page in source.pages(after)]

    return anyio.run(main)


def test_objects_have_the_size_time_and_etag_of_the_listing() -> None:
    fake = bucket_of(["a b+c%2F/1", "a b+c%2F/é", "z"])
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
    assert fake.opened[0]["region"] == "eu-west-1"
    assert fake.arguments("list_objects_v2") == [
        {"Bucket": "b", "Prefix": "a b+c%2F/"},
        {"Bucket": "b", "Prefix": "a b+c%2F/", "ContinuationToken": "2"},
    ]


@pytest.mark.parametrize(("uri", "prefix"), [("s3://b", ""), ("s3://b/", ""), ("s3://b/x", "x"), ("s3://b//x/", "/x/")])
def test_the_prefix_is_taken_literally(uri: str, prefix: str) -> None:
    fake = bucket_of([])
    assert read(fake, uri) == []
    assert fake.calls[0].arguments["Prefix"] == prefix


def test_a_listing_resumes_after_a_key() -> None:
    fake = bucket_of(["z"])
    read(fake, after=Position(2, "a b+c%2F/é"))
    assert fake.calls[0].arguments["StartAfter"] == "a b+c%2F/é"


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (s3_error("NoSuchBucket"), SourceError, "no bucket b"),
        (s3_error("AccessDenied"), CredentialsError, "s3:ListBucket"),
        (EndpointConnectionError(endpoint_url="http://x"), UnreachableError, "http://x"),
    ],
)
def test_an_interrupted_listing_is_an_error(error: Exception, kind: type[Exception], words: str) -> None:
    s3 = bucket_of(["1", "2", "3"], fault=lambda call: error if "ContinuationToken" in call.arguments else None)
    with pytest.raises(kind, match=r"^listing s3://b/p failed: ") as caught:
        read(s3, "s3://b/p")
    assert words in str(caught.value)


def test_a_prefix_may_name_any_key_that_starts_with_it() -> None:
    source = S3PrefixSource("s3://b/p/", cast("Aws", None), region="eu-west-1")
    assert anyio.run(source.check).buckets == {"b"}
    for bucket, key, version_id, expected in [
        ("b", "p/x", None, True),
        ("b", "p", None, False),
        ("b", "q/x", None, False),
        ("c", "p/x", None, False),
        ("b", "p/x", "v1", True),
        ("", "p/x", None, False),
    ]:
        image = ImageRef(uri="x", bucket=bucket, key=key, version_id=version_id)
        assert anyio.run(source.may_name, [image]) == [expected]


def test_a_prefix_that_is_not_utf8_is_refused() -> None:
    source = S3PrefixSource("s3://b/\udcff", cast("Aws", None), region="eu-west-1")
    with pytest.raises(SourceError, match="is not UTF-8"):
        anyio.run(source.check)


MANY = [f"day-{number // 100:03}/{number:06}" for number in range(2000)]


async def collect(bucket: FakeBucket, listed: list[str], after: str | None = None) -> None:
    async for page in read_in_order(bucket, after=after):
        listed += page.keys


async def keys_of(bucket: FakeBucket, after: str | None = None) -> list[str]:
    listed: list[str] = []
    await collect(bucket, listed, after)
    return listed


def test_a_long_prefix_is_listed_four_times_as_fast() -> None:
    keys = [f"day-{number // 250:03}/{number:06}" for number in range(5000)]
    bucket = FakeBucket(keys, page_size=10, latency_s=1)

    async def main() -> None:
        assert await keys_of(bucket) == keys
        assert anyio.current_time() < len(keys) / 10 / 4
        assert 8 <= bucket.most_at_once <= 16

    run_virtual(main)


def test_only_the_pages_that_a_caller_needs_are_read() -> None:
    bucket = FakeBucket(MANY, page_size=4, latency_s=1)

    async def main() -> None:
        async with aclosing(read_in_order(bucket)) as pages:
            assert (await anext(pages)).keys == MANY[:4]
            assert bucket.requests == 1
            await anext(pages)
            await anyio.sleep(100)
            assert bucket.under_way == 0
            assert bucket.requests <= 3
        assert bucket.under_way == 0

    run_virtual(main)


def test_cancelling_ends_every_request() -> None:
    bucket = FakeBucket(MANY, page_size=4, latency_s=1)

    async def main() -> None:
        with anyio.move_on_after(20.5):
            await keys_of(bucket)
        assert bucket.requests > 100
        assert bucket.under_way == 0

    run_virtual(main)


def test_a_listing_resumes_after_an_error_of_any_request() -> None:
    keys = MANY[:120]
    clean = FakeBucket(keys, latency_s=1)
    run_virtual(keys_of, clean)
    for number in range(1, clean.requests + 1):
        bucket = FakeBucket(keys, latency_s=1, faults={number: UnreachableError("gone")})

        async def main(bucket: FakeBucket = bucket) -> None:
            listed: list[str] = []
            with pytest.raises(UnreachableError, match="gone"):
                await collect(bucket, listed)
            assert bucket.under_way == 0
            assert listed == keys[: len(listed)]
            assert listed + await keys_of(bucket, listed[-1] if listed else None) == keys

        run_virtual(main)


@given(st.sets(st.text(PRINTABLE, min_size=1, max_size=3), max_size=40), st.text(max_size=2))
def test_keys_are_listed_in_the_order_of_their_utf8_bytes(keys: set[str], after: str) -> None:
    bucket = FakeBucket(keys, page_size=2)
    assert run_virtual(keys_of, bucket, after) == bucket.behind(after)
