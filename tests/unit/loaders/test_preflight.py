from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from aiohttp import ClientPayloadError
from botocore.exceptions import ClientError, ConnectTimeoutError

from batchcl.aws.session import Aws
from batchcl.errors import CredentialsError, RefusedError
from batchcl.images import ImageRef
from batchcl.loaders.preflight import ProbeResult, check_images_readable, count_errors, probe, sample_images

SILENCE = ConnectTimeoutError(endpoint_url="http://s3")


class FakeBody:
    def __init__(self, data: bytes = b"x" * 10) -> None:
        self._data = data

    async def read(self, size: int) -> bytes:
        return self._data[:size]


class FakeS3:
    """Raises the error of a key."""

    def __init__(self, errors: dict[str, Exception]) -> None:
        self._errors = errors
        self.asked: list[dict[str, Any]] = []

    async def get_object(self, **asked: Any) -> dict[str, Any]:
        self.asked.append(asked)
        if asked["Key"] in self._errors:
            raise self._errors[asked["Key"]]
        return {"Body": FakeBody()}

    @asynccontextmanager
    async def s3(self, *, region: str | None = None) -> AsyncIterator[FakeS3]:
        assert region == "us-east-1"
        yield self


class RegionalS3:
    """Returns the region of the client, and the key."""

    def __init__(self) -> None:
        self.regions: list[str] = []

    @asynccontextmanager
    async def s3(self, *, region: str) -> AsyncIterator[RegionalClient]:
        self.regions.append(region)
        yield RegionalClient(region)


class RegionalClient:
    def __init__(self, region: str) -> None:
        self._region = region

    async def get_object(self, *, Bucket: str, Key: str, Range: str) -> dict[str, Any]:
        assert (Bucket, Range) == ("b", "bytes=0-65535")
        return {"Body": FakeBody(f"{self._region} {Key}".encode())}


def s3_error(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "said"}}, "GetObject")


def image(key: str, **more: Any) -> ImageRef:
    return ImageRef(uri=f"s3://b/{key}", bucket="b", key=key, **more)


def look(images: list[ImageRef], **errors: Exception) -> list[ProbeResult]:
    s3 = FakeS3({f"{name}.png": error for name, error in errors.items()})
    return anyio.run(lambda: probe(cast("Aws", s3), images, region="us-east-1"))


def test_a_sample_is_spread_over_the_images_that_cost_a_call() -> None:
    page = [image(f"{n}.png") for n in range(1000)] + [image("notes.txt"), image("folder/")]
    sample = sample_images(page)
    assert len(sample) == 20
    assert sample[0].key == "0.png"
    assert sample[-1].key == "950.png"
    assert sample_images(page[:3]) == page[:3]
    assert sample_images(page[-2:]) == []


def test_the_beginning_of_an_images_version_is_read() -> None:
    s3 = FakeS3({})
    (found,) = anyio.run(lambda: probe(cast("Aws", s3), [image("a.png", version_id="v1")], region="us-east-1"))
    assert found.head == b"x" * 10
    assert s3.asked == [{"Bucket": "b", "Key": "a.png", "VersionId": "v1", "Range": "bytes=0-65535"}]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (s3_error("AccessDenied"), "AccessDenied"),
        (s3_error("NoSuchKey"), "NoSuchKey"),
        (s3_error("InvalidObjectState"), "InvalidObjectState"),
        (s3_error("InvalidRange"), ""),
        (SILENCE, "NoResponse"),
        (ClientPayloadError("cut"), "NoResponse"),
        (ConnectionResetError("gone"), "NoResponse"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_errors_are_reported_and_not_raised(error: Exception, code: str) -> None:
    (found,) = look([image("a.png")], a=error)
    assert found.code == code
    assert found.head == b""


def test_missing_credentials_are_raised() -> None:
    with pytest.raises(CredentialsError, match="no AWS credentials found"):
        look([image("a.png")], a=CredentialsError("no AWS credentials found"))


def test_local_files_are_read(tmp_path: Path) -> None:
    there, gone = tmp_path / "a.png", tmp_path / "b.png"
    there.write_bytes(b"abc")
    files = [ImageRef(uri=str(path), bucket="", key=str(path)) for path in (there, gone)]
    found = look(files)
    assert [each.head for each in found] == [b"abc", b""]
    assert count_errors(found) == {"NoSuchFile": 1}
    check_images_readable(found)


def test_each_image_is_read_in_its_buckets_region(tmp_path: Path) -> None:
    local = tmp_path / "x.png"
    local.write_bytes(b"here")
    images = [
        image("1"),
        image("2", region="eu-west-1"),
        ImageRef(uri=str(local), bucket="", key=str(local)),
        image("3", region="eu-west-1"),
    ]
    aws = RegionalS3()
    found = anyio.run(lambda: probe(cast("Aws", aws), images, region="us-east-1"))
    assert [each.head for each in found] == [b"us-east-1 1", b"eu-west-1 2", b"here", b"eu-west-1 3"]
    assert aws.regions == ["eu-west-1", "us-east-1"]


def test_only_a_whole_unreadable_sample_is_refused() -> None:
    denied = [ProbeResult(image(f"{n}.png"), "AccessDenied", "AccessDenied: said") for n in range(20)]
    missing = [ProbeResult(image(f"{n}.png"), "NoSuchKey", "NoSuchKey: said") for n in range(20)]
    good = ProbeResult(image("good.png"), head=b"x")
    for harmless in ([], [*denied[:19], good], [*missing[:19], good], missing[:19], [*missing[:10], *denied[:10]]):
        check_images_readable(harmless)
    with pytest.raises(CredentialsError, match=r"20 of 20 sampled images can't be read, such as s3://b/0\.png"):
        check_images_readable(denied)
    with pytest.raises(CredentialsError, match=r"the image can't be read.*allow s3:GetObject on them"):
        check_images_readable(denied[:1])
    with pytest.raises(RefusedError, match="20 of 20 sampled images do not exist"):
        check_images_readable(missing)
    versioned = [ProbeResult(image("a.png", version_id="v"), "AccessDenied", "")]
    with pytest.raises(CredentialsError, match="s3:GetObject and s3:GetObjectVersion"):
        check_images_readable(versioned)
