"""S3 listings of real servers, compared with boto3's paginator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import anyio
import pytest

from batchcl.aws.listing import ListingPage, PageReader, open_page_reader
from batchcl.aws.session import Aws
from batchcl.choices import Transport
from batchcl.images import Position
from batchcl.sources.s3_prefix import S3PrefixSource, read_in_order
from servers import REGION, aws_env, client, make_bucket

PREFIX = "data +%/é/"
ORDINARY = [f"{PREFIX}day-{number // 20:02}/{number:04} a+b.jpg" for number in range(40)]
HARD = [
    *(f"{PREFIX}{name}" for name in ("%2B", "%", "+", " ", "a b", "a%20b", "é", "e\u0301", "日本/🙂.png", "x=1&y?#")),
    *(f"{PREFIX}{name}" for name in ("<&>\"'", "~*'()!", "\uffff", "\U0001f642", "\U0010ffff")),
]
UNUSUAL = [f"{PREFIX}{name}" for name in ("a//b", "a/../b", "./c", "/d", "tab\t", "trailing/", "q" * 900)]
OUTSIDE_PREFIX = ["data +%/e", "data", "data +%/é", "zz"]


@dataclass(frozen=True)
class Server:
    bucket: str
    expected: list[dict[str, Any]]


@pytest.fixture(scope="module", params=["moto", "seaweed"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A bucket, and the objects that boto3 lists in it. SeaweedFS refuses some of the keys."""
    url = request.getfixturevalue(request.param)
    s3 = client("s3", url)
    make_bucket(s3, "listed")
    outside = OUTSIDE_PREFIX if request.param == "moto" else ["zz"]
    for number, key in enumerate([*ORDINARY, *HARD, *outside, *(UNUSUAL if request.param == "moto" else [])]):
        s3.put_object(Bucket="listed", Key=key, Body=b"x" * (number + 1))
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="listed", Prefix=PREFIX)
    expected = [entry for page in pages for entry in page.get("Contents", ())]
    assert len(expected) >= len(ORDINARY) + len(HARD)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws_env(s3=url).items():
            patch.setenv(name, value)
        yield Server("listed", expected)


@pytest.mark.parametrize("transport", list(Transport))
def test_a_listing_equals_boto3s_from_any_key(server: Server, transport: Transport) -> None:
    async def listed(after: Position | None = None) -> list[tuple[Any, ...]]:
        source = S3PrefixSource(f"s3://{server.bucket}/{PREFIX}", Aws(), region=REGION, transport=transport)
        return [
            (image.bucket, image.key, image.etag, image.size_bytes, image.last_modified)
            async for page in source.pages(after)
            for image in page
        ]

    expected = [
        (server.bucket, each["Key"], each["ETag"].strip('"'), each["Size"], each["LastModified"])
        for each in server.expected
    ]
    assert anyio.run(listed) == expected
    for index in (7, len(expected) // 2, len(expected) - 1):
        assert anyio.run(listed, Position(index + 1, expected[index][1])) == expected[index + 1 :]


@dataclass
class ShortPages:
    """The same server with pages of three objects, marked as sorted, as moto's are."""

    reader: PageReader
    requests: int = 0

    async def page(self, *, after: str | None = None, token: str | None = None) -> ListingPage:
        assert token is None
        self.requests += 1
        page = await self.reader.page(after=after)
        first = page.cut(3)[0] if len(page.keys) > 3 else page
        return replace(first, is_sorted=True)


def test_key_ranges_add_up_to_the_whole_listing(server: Server) -> None:
    keys = [each["Key"] for each in server.expected]
    if keys != sorted(keys):
        pytest.skip("it doesn't list in UTF-8 order")

    async def listed() -> list[str]:
        opened = open_page_reader(
            Aws(), bucket=server.bucket, prefix=PREFIX, region=REGION, transport=Transport.AIOHTTP, connections=16
        )
        async with opened as reader:
            short = ShortPages(reader)
            names = [key async for page in read_in_order(short, prefix=PREFIX) for key in page.keys]
        assert short.requests > len(keys) // 3
        return names

    assert anyio.run(listed) == keys
