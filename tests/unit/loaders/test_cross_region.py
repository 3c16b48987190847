"""Objects of other regions are read as bytes."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from batchcl.errors import ImageError
from batchcl.images import MAX_BYTES_INLINE, ImageRef, check_limits
from batchcl.loaders.open import open_reader
from fake_s3 import FakeS3


def image(region: str | None, key: str = "x.png", **more: Any) -> ImageRef:
    bucket = region or "b"
    return ImageRef(uri=f"s3://{bucket}/{key}", bucket=bucket, key=key, region=region, **more)


def test_each_region_has_one_client_that_is_closed() -> None:
    objects = {"eu-west-1/x.png": b"e", "us-west-2/x.png": b"w", "us-west-2/x.png?v1": b"v"}
    s3 = FakeS3(objects, regions={each: each for each in ("eu-west-1", "us-west-2")})
    read: list[bytes] = []

    async def main() -> None:
        async with (
            open_reader(s3.aws, region="us-east-1", connections=7) as reader,
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
    opened = [(each["region"], each["connections"]) for each in s3.opened]
    assert sorted(opened) == [("eu-west-1", 7), ("us-west-2", 7)]
    assert sorted(map(str, s3.closed)) == ["eu-west-1", "us-west-2"]


def test_images_of_the_models_region_are_not_sent_as_bytes() -> None:
    async def main() -> tuple[bool, bool, bool]:
        async with open_reader(FakeS3().aws, region="us-east-1", connections=1) as reader:
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
    s3 = FakeS3({"eu-west-1/x.png": bytes(MAX_BYTES_INLINE + 1)})

    async def main() -> None:
        async with open_reader(s3.aws, region="us-east-1", connections=1) as reader:
            await reader.read(image("eu-west-1"))

    with pytest.raises(ImageError) as caught:
        anyio.run(main)
    assert caught.value.code == "TooLarge"
