from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from batchcl.aws.session import Aws, AwsSettings
from batchcl.errors import CredentialsError, RegionError, SourceError, UnreachableError, UsageError
from batchcl.workflow.create import add_local, create_from_local
from batchcl.workflow.local import DatasetEntry, LocalDataset, LocalImage
from batchcl.workflow.upload import S3Folder, Uploaded, have_bucket, upload_images
from servers import aws_env, client

NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


@pytest.fixture
def s3(seaweed, monkeypatch) -> Callable[[Callable[[Any], Awaitable[Any]]], Any]:
    """Await a coroutine with an open client of the real server."""
    for name, value in aws_env(s3=seaweed).items():
        monkeypatch.setenv(name, value)

    def run(work: Callable[[Any], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            async with Aws(AwsSettings(region="us-east-1")).s3() as opened:
                return await work(opened)

        return anyio.run(main)

    return run


@pytest.fixture
def bucket(seaweed, request) -> str:
    """A new bucket."""
    name = f"up-{abs(hash(request.node.name))}"
    client("s3", seaweed).create_bucket(Bucket=name)
    return name


@pytest.fixture
def images(tmp_path) -> list[LocalImage]:
    return [image(tmp_path, name, name.encode()) for name in ("cat/a b+%41.png", "cat/ä.png", "dog/c.png")]


def image(folder: Path, key: str, data: bytes) -> LocalImage:
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return LocalImage(path=path, key=key, size_bytes=len(data), md5=hashlib.md5(data).hexdigest())


def test_existing_objects_are_skipped_and_changed_ones_sent(s3, bucket, images, seaweed, tmp_path):
    to = S3Folder(bucket, "some/prefix")
    told: list[Uploaded] = []
    first = s3(lambda opened: upload_images(opened, to, images, on_progress=told.append))
    assert (first.total, first.there, first.sent) == (3, 0, 3)
    assert told == [Uploaded(3, 0), first]
    assert s3(lambda opened: upload_images(opened, to, images)) == Uploaded(3, 3)
    changed = [image(tmp_path, "dog/c.png", b"dog/C.png"), *images[:2]]
    assert s3(lambda opened: upload_images(opened, to, changed)) == Uploaded(3, 2, 1, 9)
    server = client("s3", seaweed)
    listed = {each["Key"]: each["Size"] for each in server.list_objects_v2(Bucket=bucket)["Contents"]}
    assert listed == {to.key(each.key): each.size_bytes for each in images}
    assert server.get_object(Bucket=bucket, Key="some/prefix/dog/c.png")["Body"].read() == b"dog/C.png"


def test_an_interrupted_upload_is_resumed(s3, bucket, images):
    to = S3Folder(bucket, "")
    s3(lambda opened: upload_images(opened, to, images[:1]))
    found = s3(lambda opened: upload_images(opened, to, images))
    assert (found.there, found.sent) == (1, 2)


def test_a_file_that_changed_meanwhile_is_an_error(s3, bucket, images):
    images[0].path.write_bytes(b"longer than before")
    with pytest.raises(SourceError, match="the file has changed meanwhile"):
        s3(lambda opened: upload_images(opened, S3Folder(bucket, ""), images))
    images[0].path.unlink()
    with pytest.raises(SourceError, match="reading it failed"):
        s3(lambda opened: upload_images(opened, S3Folder(bucket, ""), images))


def test_a_bucket_is_only_created_on_request(s3, seaweed):
    with pytest.raises(SourceError, match="there is no bucket up-nowhere"):
        s3(lambda opened: have_bucket(opened, "up-nowhere", region="us-east-1"))
    assert s3(lambda opened: have_bucket(opened, "up-nowhere", region="us-east-1", create=True)) is True
    assert s3(lambda opened: have_bucket(opened, "up-nowhere", region="us-east-1", create=True)) is False
    assert "up-nowhere" in [each["Name"] for each in client("s3", seaweed).list_buckets()["Buckets"]]


class Refusing:
    """An S3 client whose writes fail with the given error."""

    def __init__(self, error: Exception) -> None:
        self._error = error
        self.made: list[dict[str, Any]] = []

    async def head_bucket(self, **_: Any) -> dict[str, Any]:
        raise ClientError({"Error": {"Code": "404", "Message": "Not Found"}}, "HeadBucket")

    async def create_bucket(self, **arguments: Any) -> None:
        self.made.append(arguments)

    async def put_object(self, **_: Any) -> None:
        raise self._error

    def get_paginator(self, _: str) -> Any:
        return self

    async def paginate(self, **_: Any) -> Any:
        yield {}


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "PutObject"), CredentialsError, "PutObject"),
        (EndpointConnectionError(endpoint_url="https://x"), UnreachableError, "check the endpoint and the network"),
    ],
)
def test_a_refused_write_names_the_object_and_the_permission(images, error, kind, says):
    with pytest.raises(kind, match=f"writing s3://b/(cat|dog)/.*{says}"):
        anyio.run(lambda: upload_images(Refusing(error), S3Folder("b", ""), images))


def test_a_bucket_is_created_in_the_projects_region():
    s3 = Refusing(ValueError())
    anyio.run(lambda: have_bucket(s3, "b", region="us-east-1", create=True))
    anyio.run(lambda: have_bucket(s3, "b", region="eu-west-1", create=True))
    assert s3.made == [
        {"Bucket": "b"},
        {"Bucket": "b", "CreateBucketConfiguration": {"LocationConstraint": "eu-west-1"}},
    ]


def test_a_bucket_of_another_region_is_refused(moto, monkeypatch):
    client("s3", moto).create_bucket(Bucket="up-far", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    for name, value in aws_env(s3=moto).items():
        monkeypatch.setenv(name, value)

    async def main() -> None:
        async with Aws(AwsSettings(region="us-east-1")).s3() as opened:
            await have_bucket(opened, "up-far", region="us-east-1", create=True)

    with pytest.raises(RegionError, match="is in eu-west-1"):
        anyio.run(main)


@pytest.mark.parametrize("text", ["b/prefix", "s3://", "/s3://b", ""])
def test_texts_that_are_not_s3_uris_are_refused(text):
    with pytest.raises(SourceError, match="Expected s3://bucket/prefix"):
        S3Folder.parse(text)


def test_an_s3_folder_may_have_no_prefix():
    assert S3Folder.parse("s3://b").uri("x/y") == "s3://b/x/y"
    assert S3Folder.parse("s3://b/").uri("x") == "s3://b/x"
    assert S3Folder.parse("s3://b/p/q/").uri("x") == "s3://b/p/q/x"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "name one dataset"),
        ({"kind": "train", "test_share": 0.2}, "name one dataset"),
        ({"test_share": 1.0}, "must be between 0 and 1"),
    ],
)
def test_either_one_dataset_or_a_test_share(images, options, says):
    local = LocalDataset(tuple(DatasetEntry(image=each, uri=None, labels=("x",)) for each in images))
    with pytest.raises(UsageError, match=says):
        anyio.run(lambda: create_from_local(None, None, None, local, S3Folder("b", ""), created=NOW, **options))  # type: ignore[arg-type]


def test_local_files_need_a_location_in_s3(images):
    local = LocalDataset(tuple(DatasetEntry(image=each, uri=None, labels=("x",)) for each in images))
    with pytest.raises(UsageError, match=r"3 images are local files\. .*--upload-to"):
        anyio.run(lambda: add_local(None, None, None, local, None, created=NOW))  # type: ignore[arg-type]
