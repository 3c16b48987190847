"""What can be said of a bucket before its images are scored: whether it is there, readable, and where it lies."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from batchcl.aws.errors import S3_DENIED, bucket_region, error_code, error_message
from batchcl.aws.session import Aws
from batchcl.concurrency import gather
from batchcl.errors import BatchclError, CredentialsError, RefusedError, RegionError, SourceError, UnreachableError

__all__ = ["BucketChecks", "check_bucket", "explain", "explain_code"]

_AT_ONCE: Final = 16
_UNKNOWN_KEYS: Final = frozenset(
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
    """The buckets of a run, each of which is looked up once; DetectCustomLabels reads only those of its own region.

    Args:
        aws: to look them up with.
        region: the model's.
        cross_region: whether they may lie elsewhere.
    """

    def __init__(self, aws: Aws, *, region: str, cross_region: bool = False) -> None:
        self._aws = aws
        self._region = region
        self._cross_region = cross_region
        self._found: dict[str, str] = {}

    @property
    def elsewhere(self) -> dict[str, str]:
        """Each bucket that was found elsewhere → its region."""
        return {bucket: region for bucket, region in self._found.items() if region != self._region}

    async def check(self, names: Iterable[str]) -> None:
        """Look up what wasn't looked up yet.

        Raises:
            RegionError: a bucket lies in another region, and may not.
            SourceError: a bucket doesn't exist.
            CredentialsError: the credentials don't reach it.
            UnreachableError: S3 doesn't answer.
        """
        wanted = sorted(set(names) - self._found.keys())
        if not wanted:
            return
        async with self._aws.s3(region=self._region) as client:
            regions = await gather(partial(self._look_up, client), wanted, at_once=_AT_ONCE)
        self._found |= dict(zip(wanted, regions, strict=True))

    async def region_of(self, name: str) -> str:
        """A bucket's region: the model's, and nobody is asked, where none may lie elsewhere. Raises as `check`."""
        if not self._cross_region:
            return self._region
        await self.check([name])
        return self._found[name]

    async def _look_up(self, client: Any, bucket: str) -> str:
        try:
            await check_bucket(client, bucket, region=self._region)
        except RegionError as error:
            if error.found is None:
                raise
            if not self._cross_region:
                words = f"{error}, or send the images as bytes with --cross-region"
                raise RegionError(words, found=error.found) from error
            async with self._aws.s3(region=error.found) as there:
                await check_bucket(there, bucket, region=error.found)
            return error.found
        return self._region


async def check_bucket(client: Any, bucket: str, *, region: str) -> None:
    """Look one bucket up with an open S3 client; raises as `BucketChecks.check` does."""
    try:
        answer = await client.head_bucket(Bucket=bucket)
    except ClientError as error:
        _check_region(bucket, bucket_region(error.response), region)
        raise explain(error, f"looking up s3://{bucket}", bucket) from error
    except BotoCoreError as error:
        raise explain(error, f"looking up s3://{bucket}", bucket) from error
    _check_region(bucket, bucket_region(answer), region)


def explain(error: ClientError | BotoCoreError, doing: str, bucket: str) -> BatchclError:
    """S3's error as ours, with what to do."""
    if isinstance(error, ParamValidationError):
        return SourceError(f"{doing} failed: {bucket!r} is not a bucket's name; check it, as in s3://bucket/prefix")
    if isinstance(error, BotoCoreError):
        return UnreachableError(f"{doing} failed: {error}; check the endpoint and the network")
    code = error_code(error)
    region = bucket_region(error.response)
    return explain_code(code, error_message(error) or code, doing=doing, bucket=bucket, region=region)


def explain_code(code: str, said: str, *, doing: str, bucket: str, region: str | None) -> BatchclError:
    """S3's refusal, by its code, its own words, and the region that it says the bucket is in, as ours."""
    if code in _MISSING:
        return SourceError(f"{doing} failed: there is no bucket {bucket}; check its name")
    if code in _OTHER_REGION or (code == "307" and region):
        where = f"is in {region}" if region else f"lies in another region ({said})"
        return RegionError(f"{doing} failed: bucket {bucket} {where}; check the region and the endpoint", found=region)
    if code in S3_DENIED:
        return CredentialsError(f"{doing} failed: access denied; allow s3:ListBucket and s3:GetObject on {bucket}")
    if code in _UNKNOWN_KEYS:
        return CredentialsError(f"{doing} failed: {code}: {said}; check the profile and its keys, or log in again")
    advice = "; check the endpoint and the proxy" if code.isdigit() else ""  # S3's codes are words, but for 403
    return RefusedError(f"{doing} failed: {code}: {said}{advice}")


def _check_region(bucket: str, found: str | None, wanted: str) -> None:
    if found is not None and found != wanted:
        raise RegionError(
            f"bucket {bucket} lies in {found} and the model in {wanted}; Custom Labels reads only buckets of its own "
            f"region: copy the images to {wanted}, or copy the model to {found}",
            found=found,
        )
