from __future__ import annotations

from typing import Any, cast

import anyio
import pytest
from botocore.exceptions import BotoCoreError, ClientError, EndpointConnectionError

from batchcl.aws import buckets
from batchcl.aws.buckets import BucketChecks
from batchcl.errors import CredentialsError, RefusedError, RegionError, SourceError, UnreachableError
from fake_s3 import FakeS3, s3_error


def check(s3: FakeS3, *names: str, region: str = "eu-west-1", cross_region: bool = False) -> dict[str, str]:
    async def main() -> dict[str, str]:
        checks = BucketChecks(s3.aws, region=region, cross_region=cross_region)
        for _ in range(2):
            await checks.check(names)
        return checks.elsewhere

    return anyio.run(main)


def asked(s3: FakeS3) -> list[str]:
    return [arguments["Bucket"] for arguments in s3.arguments("head_bucket")]


def opened(s3: FakeS3) -> list[str]:
    return [each["region"] for each in s3.opened]


def test_each_bucket_is_looked_up_once_in_the_models_region() -> None:
    s3 = FakeS3(regions={"b": "eu-west-1"})
    check(s3, "b", "a")
    assert asked(s3) == ["a", "b"]
    assert opened(s3) == ["eu-west-1"]


FAR = {"pics": "us-east-1"}
REFUSALS = [None, s3_error("403", "us-east-1"), s3_error("301", "us-east-1")]


@pytest.mark.parametrize("error", REFUSALS)
def test_a_bucket_in_another_region_is_refused_with_both_regions(error: Exception | None) -> None:
    with pytest.raises(RegionError, match=r"bucket pics is in us-east-1 and the model in eu-west-1.*copy"):
        check(FakeS3(regions=FAR, fault=lambda _: error), "pics")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (s3_error("404"), SourceError, "there is no bucket pics"),
        (s3_error("NoSuchBucket"), SourceError, "there is no bucket pics"),
        (s3_error("403"), CredentialsError, "s3:ListBucket and s3:GetObject on pics"),
        (s3_error("403", "eu-west-1"), CredentialsError, "access denied"),
        (s3_error("PermanentRedirect"), RegionError, "another region"),
        (s3_error("InvalidAccessKeyId", message="unknown key"), CredentialsError, "unknown key"),
        (s3_error("ExpiredToken"), CredentialsError, "log in again"),
        (s3_error("Odd", message="why"), RefusedError, "Odd: why"),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:1"), UnreachableError, "127.0.0.1:1"),
    ],
)
def test_each_refusal_has_its_class_and_says_what_was_done(error: Exception, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=r"^looking up s3://pics failed: ") as caught:
        check(FakeS3(fault=lambda _: error), "pics")
    assert type(caught.value) is kind
    assert words in str(caught.value)


@pytest.mark.parametrize("error", REFUSALS)
def test_with_cross_region_a_bucket_is_checked_in_its_region(error: Exception | None) -> None:
    regions = {"near": "eu-west-1", "far": "us-east-1"}
    s3 = FakeS3(regions=regions, fault=lambda call: None if call.region == regions[call.arguments["Bucket"]] else error)
    assert check(s3, "near", "far", cross_region=True) == {"far": "us-east-1"}
    assert opened(s3) == ["eu-west-1", "us-east-1"]
    assert asked(s3).count("near") == 1


@pytest.mark.parametrize(("cross_region", "regions"), [(True, ["eu-west-1", "us-east-1"]), (False, ["eu-west-1"] * 2)])
def test_regions_are_queried_only_with_cross_region(*, cross_region: bool, regions: list[str]) -> None:
    s3 = FakeS3(regions={"near": "eu-west-1", "far": "us-east-1"})

    async def main() -> list[str]:
        checks = BucketChecks(s3.aws, region="eu-west-1", cross_region=cross_region)
        found = [await checks.region_of(name) for name in ("near", "far")]
        assert [await checks.region_of(name) for name in ("near", "far")] == found
        return found

    assert anyio.run(main) == regions
    assert asked(s3) == (["near", "far", "far"] if cross_region else []), "the far one in its own region, too"


def test_an_unreadable_bucket_of_another_region_is_s3_error() -> None:
    with pytest.raises(CredentialsError, match="s3:ListBucket and s3:GetObject on far"):
        check(FakeS3(fault=lambda _: s3_error("403", "us-east-1")), "far", cross_region=True)
    with pytest.raises(RegionError, match="another region"):
        check(FakeS3(fault=lambda _: s3_error("PermanentRedirect")), "far", cross_region=True)


def test_a_status_without_a_code_is_not_from_s3() -> None:
    said = str(buckets.s3_error(s3_error("400"), "looking up s3://b", "b"))
    assert said.endswith("; check the endpoint and the proxy")


def test_an_error_without_a_message_is_explained() -> None:
    assert "failed" in str(buckets.s3_error(ClientError(cast("Any", {}), "HeadBucket"), "listing s3://b", "b"))
    assert isinstance(buckets.s3_error(BotoCoreError(), "listing s3://b", "b"), UnreachableError)
