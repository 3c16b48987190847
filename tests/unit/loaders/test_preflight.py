from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import ClientPayloadError
from botocore.exceptions import ConnectTimeoutError

from batchcl.errors import CredentialsError, RefusedError
from batchcl.images import ImageRef
from batchcl.loaders.preflight import ProbeResult, check_images_readable, count_errors, probe, sample_images
from fake_s3 import FakeS3, s3_error

SILENCE = ConnectTimeoutError(endpoint_url="http://s3")


def image(key: str, **more: Any) -> ImageRef:
    return ImageRef(uri=f"s3://b/{key}", bucket="b", key=key, **more)


def look(images: list[ImageRef], **errors: Exception) -> list[ProbeResult]:
    s3 = FakeS3(fault=lambda call: errors.get(call.arguments["Key"].removesuffix(".png")))
    return anyio.run(lambda: probe(s3.aws, images, region="us-east-1"))


def test_a_sample_is_spread_over_the_images_that_cost_a_call() -> None:
    page = [image(f"{n}.png") for n in range(1000)] + [image("notes.txt"), image("folder/")]
    sample = sample_images(page)
    assert len(sample) == 20
    assert sample[0].key == "0.png"
    assert sample[-1].key == "950.png"
    assert sample_images(page[:3]) == page[:3]
    assert sample_images(page[-2:]) == []


def test_the_beginning_of_an_images_version_is_read() -> None:
    s3 = FakeS3({"b/a.png?v1": b"x" * 10_000})  # arrives in ten parts
    (found,) = anyio.run(lambda: probe(s3.aws, [image("a.png", version_id="v1")], region="us-east-1"))
    assert found.head == b"x" * 10_000
    assert s3.arguments("get_object") == [{"Bucket": "b", "Key": "a.png", "VersionId": "v1", "Range": "bytes=0-65535"}]


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
        ImageRef(uri="s3://near/1", bucket="near", key="1"),
        ImageRef(uri="s3://far/2", bucket="far", key="2", region="eu-west-1"),
        ImageRef(uri=str(local), bucket="", key=str(local)),
        ImageRef(uri="s3://far/3", bucket="far", key="3", region="eu-west-1"),
    ]
    objects = {"near/1": b"one", "far/2": b"two", "far/3": b"three"}
    s3 = FakeS3(objects, regions={"near": "us-east-1", "far": "eu-west-1"})
    found = anyio.run(lambda: probe(s3.aws, images, region="us-east-1"))
    assert [each.head for each in found] == [b"one", b"two", b"here", b"three"]
    assert [each["region"] for each in s3.opened] == ["eu-west-1", "us-east-1"]


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
