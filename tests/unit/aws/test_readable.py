"""Images are tried where they lie."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio

from batchcl.aws.readable import look_at
from batchcl.aws.session import Aws
from batchcl.images import ImageRef


class Body:
    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    async def read(self, size: int) -> bytes:
        return self._data.read(size)


class FakeS3:
    """Answers with the region that is asked, and the key."""

    def __init__(self) -> None:
        self.regions: list[str] = []

    @asynccontextmanager
    async def s3(self, *, region: str) -> AsyncIterator[Client]:
        self.regions.append(region)
        yield Client(region)


class Client:
    def __init__(self, region: str) -> None:
        self._region = region

    async def get_object(self, *, Bucket: str, Key: str, Range: str) -> dict[str, Any]:  # noqa: N803 -- boto's names
        assert (Bucket, Range) == ("b", "bytes=0-65535")
        return {"Body": Body(f"{self._region} {Key}".encode())}


def test_each_image_is_read_in_its_buckets_own_region(tmp_path: Path) -> None:
    local = tmp_path / "x.png"
    local.write_bytes(b"here")
    images = [
        ImageRef(uri="s3://b/1", bucket="b", key="1"),
        ImageRef(uri="s3://b/2", bucket="b", key="2", region="eu-west-1"),
        ImageRef(uri=str(local), bucket="", key=str(local)),
        ImageRef(uri="s3://b/3", bucket="b", key="3", region="eu-west-1"),
    ]
    aws = FakeS3()

    async def main() -> list[bytes]:
        return [each.head for each in await look_at(cast("Aws", aws), images, region="us-east-1")]

    assert anyio.run(main) == [b"us-east-1 1", b"eu-west-1 2", b"here", b"eu-west-1 3"]
    assert aws.regions == ["eu-west-1", "us-east-1"]
