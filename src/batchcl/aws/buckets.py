"""Checks buckets before their images are scored: existence, access and region."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError, ProxyConnectionError

from batchcl.aws.errors import S3_DENIED, bucket_region, error_code, error_code_for, error_message
from batchcl.aws.session import Aws
from batchcl.concurrency import gather
from batchcl.errors import (
    BatchclError,
    CredentialsError,
    ErrorCode,
    RefusedError,
    RegionError,
    SourceError,
    UnreachableError,
)

__all__ = ["BucketChecks", "check_bucket", "error_for_code", "s3_error"]

_MAX_CONCURRENT: Final = 16
_BAD_CREDENTIALS: Final = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AuthFailure"}
)
_MISSING: Final = frozenset({"NoSuchBucket", "404", "NotFound"})
_OTHER_REGION: Final = frozenset(
    {
        "PermanentRedirect",
        "TemporaryRedirect",
        "301",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraint",
        "IllegalLocationConstraintException",
    }
)


class BucketChecks:
    """Checks the buckets of a run, each one once. DetectCustomLabels reads only buckets of the model's region.

    Args:
        aws: for S3 clients.
        region: the model's.
        cross_region: allow buckets of other regions.
    """

    def __init__(self, aws: Aws, *, region: str, cross_region: bool = False) -> None:
        self._aws = aws
        self._region = region
        self._cross_region = cross_region
        self._regions: dict[str, str] = {}

    @property
    def elsewhere(self) -> dict[str, str]:
        """The checked buckets of other regions: bucket → region."""
        return {bucket: region for bucket, region in self._regions.items() if region != self._region}

    async def check(self, names: Iterable[str]) -> None:
        """Check the buckets that were not checked before.

        Raises:
            RegionError: a bucket is in another region, and `cross_region` is not set.
            SourceError: a bucket does not exist.
            CredentialsError: access is denied.
            UnreachableError: S3 does not respond.
        """
        unchecked = sorted(set(names) - self._regions.keys())
        if not unchecked:
            return
        async with self._aws.s3(region=self._region) as client:
            regions = await gather(partial(self._find_region, client), unchecked, at_once=_MAX_CONCURRENT)
        self._regions |= dict(zip(unchecked, regions, strict=True))

    async def region_of(self, name: str) -> str:
        """A bucket's region; without `cross_region` it is the model's, and S3 is not queried. Raises as `check`."""
        if not self._cross_region:
            return self._region
        await self.check([name])
        return self._regions[name]

    async def _find_region(self, client: Any, bucket: str) -> str:
        try:
            await check_bucket(client, bucket, region=self._region)
        except RegionError as error:
            if error.region is None:
                raise
            if not self._cross_region:
                message = f"{error}, or send the images as bytes with --cross-region"
                raise RegionError(message, region=error.region) from error
            async with self._aws.s3(region=error.region) as regional_client:
                await check_bucket(regional_client, bucket, region=error.region)
            return error.region
        return self._region


async def check_bucket(client: Any, bucket: str, *, region: str) -> None:
    """Check one bucket with an open S3 client; raises as `BucketChecks.check` does."""
    try:
        response = await client.head_bucket(Bucket=bucket)
    except ClientError as error:
        _check_region(bucket, bucket_region(error.response), region)
        raise s3_error(error, f"looking up s3://{bucket}", bucket) from error
    except BotoCoreError as error:
        raise s3_error(error, f"looking up s3://{bucket}", bucket) from error
    _check_region(bucket, bucket_region(response), region)


def s3_error(error: ClientError | BotoCoreError, doing: str, bucket: str) -> BatchclError:
    """The batchcl error for an SDK error of S3, with advice."""
    if isinstance(error, ParamValidationError):
        return SourceError(
            f"{doing} failed: {bucket!r} is not a valid bucket name; write it like s3://bucket/prefix",
            code=ErrorCode.NO_SUCH_BUCKET,
        )
    if isinstance(error, ProxyConnectionError):
        return UnreachableError(f"{doing} failed: {error}; check HTTPS_PROXY and HTTP_PROXY", code=ErrorCode.PROXY)
    if isinstance(error, BotoCoreError):
        return UnreachableError(f"{doing} failed: {error}; check the endpoint and the network")
    code = error_code(error)
    region = bucket_region(error.response)
    return error_for_code(code, error_message(error) or code, doing=doing, bucket=bucket, region=region)


def error_for_code(code: str, message: str, *, doing: str, bucket: str, region: str | None) -> BatchclError:
    """The batchcl error for an error response of S3; `region` is the bucket's, if S3 states it."""
    if code in _MISSING:
        return SourceError(
            f"{doing} failed: there is no bucket {bucket}; check its name", code=ErrorCode.NO_SUCH_BUCKET
        )
    if code in _OTHER_REGION or (code == "307" and region):
        where = f"is in {region}" if region else f"is in another region ({message})"
        return RegionError(f"{doing} failed: bucket {bucket} {where}; check the region and the endpoint", region=region)
    if code in S3_DENIED:
        return CredentialsError(
            f"{doing} failed: access denied; allow s3:ListBucket and s3:GetObject on {bucket}",
            code=ErrorCode.ACCESS_DENIED,
        )
    if code in _BAD_CREDENTIALS:
        return CredentialsError(
            f"{doing} failed: {code}: {message}; check the profile and its keys, or log in again",
            code=ErrorCode.INVALID_CREDENTIALS,
        )
    advice = "; check the endpoint and the proxy" if code.isdigit() else ""  # a status: not a response of S3
    return RefusedError(f"{doing} failed: {code}: {message}{advice}", code=error_code_for(code))


def _check_region(bucket: str, region: str | None, model_region: str) -> None:
    if region is not None and region != model_region:
        raise RegionError(
            f"bucket {bucket} is in {region} and the model in {model_region}, but Custom Labels reads only buckets of "
            f"the model's region; copy the images to {model_region}, or copy the model to {region}",
            region=region,
        )
