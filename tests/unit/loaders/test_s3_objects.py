"""Reading objects from a real S3 server: whole, by version, and within the size limit."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest

from batchcl.aws.session import Aws
from batchcl.errors import CallError, CredentialsError, CredentialsFailingError, FatalCallError, HostError, ImageError
from batchcl.images import ArchiveMember, ImageRef
from batchcl.loaders.s3_objects import ObjectReader, open_object_reader
from servers import aws_env, client


@pytest.fixture
def bucket(seaweed: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in aws_env(s3=seaweed).items():
        monkeypatch.setenv(name, value)
    name = f"objects-{uuid.uuid4().hex[:8]}"
    client("s3", seaweed).create_bucket(Bucket=name)
    return name


def ref(bucket: str, key: str, version_id: str | None = None) -> ImageRef:
    return ImageRef(uri=f"s3://{bucket}/{key}", bucket=bucket, key=key, version_id=version_id)


def read(image: ImageRef, *, max_bytes: int | None = None) -> bytes:
    async def main() -> bytes:
        async with open_object_reader(Aws(), region="us-east-1") as reader:
            if max_bytes is not None:
                reader._max_bytes = max_bytes
            assert reader.accepts(image)
            return await reader.read(image)

    return anyio.run(main)


def test_an_object_is_read_by_its_exact_key(bucket: str, seaweed: str) -> None:
    body = bytes(range(256)) * 10_000
    client("s3", seaweed).put_object(Bucket=bucket, Key="a b+c%2F/é.tif", Body=body)
    assert read(ref(bucket, "a b+c%2F/é.tif")) == body


def test_the_version_in_the_list_is_read(bucket: str, seaweed: str) -> None:
    s3 = client("s3", seaweed)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    first = s3.put_object(Bucket=bucket, Key="a.webp", Body=b"old")["VersionId"]
    s3.put_object(Bucket=bucket, Key="a.webp", Body=b"new")
    assert read(ref(bucket, "a.webp", first)) == b"old"
    assert read(ref(bucket, "a.webp")) == b"new"


def test_missing_and_too_large_objects_fail(bucket: str, seaweed: str) -> None:
    client("s3", seaweed).put_object(Bucket=bucket, Key="big", Body=bytes(1000))
    assert len(read(ref(bucket, "big"), max_bytes=1000)) == 1000
    for image, code in ((ref(bucket, "none"), "InvalidS3ObjectException"), (ref(bucket, "big"), "TooLarge")):
        with pytest.raises(ImageError) as caught:
            read(image, max_bytes=999)
        assert caught.value.code == code


class Refusing:
    """An S3 client that raises an error."""

    def __init__(self, code: str, status: int) -> None:
        self.code, self.status = code, status

    async def get_object(self, **_: Any) -> Awaitable[Any]:
        from botocore.exceptions import ClientError

        if self.code in {"none", "none yet"}:
            raise CredentialsError("no AWS credentials found", may_pass=self.code == "none yet")
        said: Any = {"Error": {"Code": self.code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": self.status}}
        raise ClientError(said, "GetObject")


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("AccessDenied", 403, ImageError),
        ("SlowDown", 503, HostError),
        ("InternalError", 500, HostError),
        ("InvalidObjectState", 403, ImageError),
        ("none", 0, FatalCallError),
        ("none yet", 0, CredentialsFailingError),
    ],
)
def test_s3_errors_are_classified(code: str, status: int, kind: type[CallError]) -> None:
    reading: Callable[[ImageRef], Awaitable[bytes]] = ObjectReader(Refusing(code, status)).read
    member = ArchiveMember("x.tar", 512)
    for image in (ref("b", "k"), replace(ref("b", "x.tar#k"), size_bytes=3, member=member)):
        with pytest.raises(kind):
            anyio.run(reading, image)


def test_a_truncated_archive_member_fails(bucket: str, seaweed: str) -> None:
    client("s3", seaweed).put_object(Bucket=bucket, Key="x.tar", Body=bytes(1000))
    image = replace(ref(bucket, "x.tar#k"), size_bytes=600, member=ArchiveMember("x.tar", 512))
    with pytest.raises(ImageError, match="the archive is truncated: it has 488 of the image's 600 bytes"):
        read(image)
