"""Objects of other regions are read as bytes."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from batchcl.aws.session import Aws
from batchcl.errors import ImageError
from batchcl.images import MAX_BYTES_INLINE, ImageRef, check_limits
from batchcl.loaders.open import open_reader


class Body:
    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    async def read(self, size: int) -> bytes:
        return self._data.read(size)

    def close(self) -> None:
        self._data.close()


class FakeAws:
    """Buckets of some regions; a client reads its own region's."""

    def __init__(self, objects: dict[tuple[str, str], bytes]) -> None:
        self.objects = objects
        self.opened: list[tuple[str, int]] = []
        self.closed: list[str] = []

    @asynccontextmanager
    async def s3(self, *, region: str, connections: int) -> AsyncIterator[FakeClient]:
        self.opened.append((region, connections))
        await anyio.lowlevel.checkpoint()
        yield FakeClient(self, region)
        self.closed.append(region)


class FakeClient:
    def __init__(self, aws: FakeAws, region: str) -> None:
        self._aws = aws
        self._region = region

    async def get_object(self, *, Bucket: str, Key: str, VersionId: str = "") -> dict[str, Any]:
        return {"Body": Body(self._aws.objects[self._region, f"{Bucket}/{Key}{VersionId}"])}


def image(region: str | None, key: str = "x.png", **more: Any) -> ImageRef:
    return ImageRef(uri=f"s3://b/{key}", bucket="b", key=key, region=region, **more)


def test_each_region_has_one_client_that_is_closed() -> None:
    aws = FakeAws({("eu-west-1", "b/x.png"): b"e", ("us-west-2", "b/x.png"): b"w", ("us-west-2", "b/x.pngv1"): b"v"})
    read: list[bytes] = []

    async def main() -> None:
        async with (
            open_reader(cast("Aws", aws), region="us-east-1", connections=7) as reader,
            anyio.create_task_group() as group,
        ):

            async def one(wanted: ImageRef) -> None:
                assert reader.accepts(wanted)
                read.append(await reader.read(wanted))

            for _ in range(3):
                for wanted in (image("eu-west-1"), image("us-west-2"), image("us-west-2", version_id="v1")):
                    group.start_soon(one, wanted)

    anyio.run(main)
    assert sorted(read) == sorted([b"e", b"w", b"v"] * 3)
    assert sorted(aws.opened) == [("eu-west-1", 7), ("us-west-2", 7)]
    assert sorted(aws.closed) == ["eu-west-1", "us-west-2"]


def test_images_of_the_models_region_are_not_sent_as_bytes() -> None:
    async def main() -> tuple[bool, bool, bool]:
        async with open_reader(cast("Aws", FakeAws({})), region="us-east-1", connections=1) as reader:
            local = ImageRef(uri="/x.png", bucket="", key="/x.png")
            return reader.accepts(image(None)), reader.accepts(image("eu-west-1")), reader.accepts(local)

    assert anyio.run(main) == (False, True, True)


def test_an_object_over_the_limit_is_not_read() -> None:
    large = image("eu-west-1", size_bytes=MAX_BYTES_INLINE + 1)
    reason = check_limits(large)
    assert reason is not None
    assert reason.code == "TooLarge"
    assert check_limits(image(None, size_bytes=MAX_BYTES_INLINE + 1)) is None
    assert check_limits(image("eu-west-1", size_bytes=MAX_BYTES_INLINE)) is None
    aws = FakeAws({("eu-west-1", "b/x.png"): bytes(MAX_BYTES_INLINE + 1)})

    async def main() -> None:
        async with open_reader(cast("Aws", aws), region="us-east-1", connections=1) as reader:
            await reader.read(image("eu-west-1"))

    with pytest.raises(ImageError) as caught:
        anyio.run(main)
    assert caught.value.code == "TooLarge"
