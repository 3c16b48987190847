from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import pytest
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

from batchcl.aws.buckets import BucketChecks, s3_error
from batchcl.aws.session import Aws
from batchcl.errors import CredentialsError, RefusedError, RegionError, SourceError, UnreachableError


def said(region: str | None) -> dict[str, Any]:
    return {"ResponseMetadata": {"HTTPHeaders": {} if region is None else {"x-amz-bucket-region": region}}}


def refused(code: str, region: str | None = None, message: str = "") -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": message}, **said(region)}
    return ClientError(response, "HeadBucket")


class FakeS3:
    """Responses by bucket; exceptions are raised."""

    def __init__(self, buckets: Mapping[str, dict[str, Any] | Exception]) -> None:
        self.buckets = buckets
        self.asked: list[str] = []
        self.regions: list[str | None] = []

    async def head_bucket(self, *, Bucket: str) -> dict[str, Any]:
        self.asked.append(Bucket)
        answer = self.buckets[Bucket]
        if isinstance(answer, Exception):
            raise answer
        return answer

    @asynccontextmanager
    async def s3(self, *, region: str | None = None) -> AsyncIterator[FakeS3]:
        self.regions.append(region)
        yield self


def check(fake: FakeS3, *, region: str = "eu-west-1", cross_region: bool = False) -> dict[str, str]:
    async def main() -> dict[str, str]:
        buckets = BucketChecks(cast("Aws", fake), region=region, cross_region=cross_region)
        for _ in range(2):
            await buckets.check(fake.buckets)
        return buckets.elsewhere

    return anyio.run(main)


def test_each_bucket_is_looked_up_once_in_the_models_region() -> None:
    fake = FakeS3({"b": said("eu-west-1"), "a": said(None)})
    check(fake)
    assert fake.asked == ["a", "b"]
    assert fake.regions == ["eu-west-1"]


@pytest.mark.parametrize("answer", [said("us-east-1"), refused("403", "us-east-1"), refused("301", "us-east-1")])
def test_a_bucket_in_another_region_is_refused_with_both_regions(answer: dict[str, Any] | Exception) -> None:
    with pytest.raises(RegionError, match=r"bucket pics is in us-east-1 and the model in eu-west-1.*copy"):
        check(FakeS3({"pics": answer}))


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (refused("404"), SourceError, "there is no bucket pics"),
        (refused("NoSuchBucket"), SourceError, "there is no bucket pics"),
        (refused("403"), CredentialsError, "s3:ListBucket and s3:GetObject on pics"),
        (refused("403", "eu-west-1"), CredentialsError, "access denied"),
        (refused("PermanentRedirect"), RegionError, "another region"),
        (refused("InvalidAccessKeyId", message="unknown key"), CredentialsError, "unknown key"),
        (refused("ExpiredToken"), CredentialsError, "log in again"),
        (refused("Odd", message="why"), RefusedError, "Odd: why"),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:1"), UnreachableError, "127.0.0.1:1"),
    ],
)
def test_each_refusal_has_its_class_and_says_what_was_done(error: Exception, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=r"^looking up s3://pics failed: ") as caught:
        check(FakeS3({"pics": error}))
    assert type(caught.value) is kind
    assert words in str(caught.value)


@pytest.mark.parametrize("answer", [said("us-east-1"), refused("301", "us-east-1"), refused("403", "us-east-1")])
def test_with_cross_region_a_bucket_is_checked_in_its_region(answer: dict[str, Any] | Exception) -> None:
    class Elsewhere(FakeS3):
        async def head_bucket(self, *, Bucket: str) -> dict[str, Any]:
            if Bucket == "far" and self.regions[-1] == "us-east-1":
                return said("us-east-1")
            return await super().head_bucket(Bucket=Bucket)

    fake = Elsewhere({"near": said("eu-west-1"), "far": answer})
    assert check(fake, cross_region=True) == {"far": "us-east-1"}
    assert fake.regions == ["eu-west-1", "us-east-1"]
    assert fake.asked.count("near") == 1


@pytest.mark.parametrize(("cross_region", "regions"), [(True, ["eu-west-1", "us-east-1"]), (False, ["eu-west-1"] * 2)])
def test_regions_are_queried_only_with_cross_region(*, cross_region: bool, regions: list[str]) -> None:
    class Elsewhere(FakeS3):
        async def head_bucket(self, *, Bucket: str) -> dict[str, Any]:
            self.asked.append(Bucket)
            return said("us-east-1" if Bucket == "far" else "eu-west-1")

    fake = Elsewhere({})

    async def main() -> list[str]:
        buckets = BucketChecks(cast("Aws", fake), region="eu-west-1", cross_region=cross_region)
        found = [await buckets.region_of(name) for name in ("near", "far")]
        assert [await buckets.region_of(name) for name in ("near", "far")] == found
        return found

    assert anyio.run(main) == regions
    assert fake.asked == (["near", "far", "far"] if cross_region else []), "the far one in its own region, too"


def test_an_unreadable_bucket_of_another_region_is_refused() -> None:
    with pytest.raises(CredentialsError, match="s3:ListBucket and s3:GetObject on far"):
        check(FakeS3({"far": refused("403", "us-east-1")}), cross_region=True)
    with pytest.raises(RegionError, match="another region"):
        check(FakeS3({"far": refused("PermanentRedirect")}), cross_region=True)


def test_a_status_without_a_code_is_not_from_s3() -> None:
    said = str(s3_error(refused("400"), "looking up s3://b", "b"))
    assert said.endswith("; check the endpoint and the proxy")


def test_an_error_without_a_message_is_explained() -> None:
    assert "failed" in str(s3_error(ClientError(cast("Any", {}), "HeadBucket"), "listing s3://b", "b"))
    assert isinstance(s3_error(BotoCoreError(), "listing s3://b", "b"), UnreachableError)
