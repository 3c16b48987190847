"""Configures obstore for a bucket: botocore's endpoint, and the session's credential cache.

obstore reads `AWS_*` variables by other rules than botocore's. Each variable that could redirect requests, leave
them unsigned or change their meaning is overridden here.
"""

from __future__ import annotations

import datetime as dt
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.credentials import CredentialCache
from batchcl.aws.endpoint import find_endpoint
from batchcl.aws.errors import bucket_region
from batchcl.aws.session import Aws
from batchcl.aws.sigv4 import Keys

if TYPE_CHECKING:
    from obstore.store import S3Credential

__all__ = ["StoreAccess", "find_store_access", "find_store_access_blocking"]


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """A bucket's region and URL, and the credentials for it."""

    region: str
    url: str
    credentials: CredentialCache = field(repr=False)

    @property
    def allows_http(self) -> bool:
        """Whether the endpoint does not use TLS."""
        return self.url.startswith("http://")

    async def provide(self) -> S3Credential:
        """The keys; a `credential_provider` for obstore's asynchronous functions."""
        return _provided(await self.credentials.current())

    def provide_blocking(self) -> S3Credential:
        """The keys; a `credential_provider` for obstore's blocking functions."""
        return _provided(self.credentials.current_blocking())

    def store_config(self) -> dict[str, str]:
        """`config` of obstore's S3Store."""
        return {
            "skip_signature": "false",
            "request_payer": "false",
            "s3_express": "false",
            "region": self.region,
            "aws_endpoint_url_s3": self.url,  # which counts before `endpoint`
            "virtual_hosted_style_request": "true",  # the URL holds the bucket already, in its host or its path
            "conditional_put": "etag",
            "checksum_algorithm": "SHA256",  # a bucket with Object Lock takes no object without a checksum
            "unsigned_payload": "false",
        }


def _provided(keys: Keys) -> S3Credential:
    return {
        "access_key_id": keys.access_key,
        "secret_access_key": keys.secret_key,
        "token": keys.token,
        "expires_at": dt.datetime.now(dt.UTC),  # so that it asks again for each request, which costs microseconds
    }


async def find_store_access(aws: Aws, bucket: str) -> StoreAccess:
    """How to reach `bucket`. Sends one HeadBucket, whose response names the bucket's region.

    Raises:
        CredentialsError: there are none.
        RefusedError: botocore finds no endpoint.
    """
    await aws.credentials.current()
    region = await _bucket_region(aws, bucket) or aws.region
    endpoint = await find_endpoint(aws, "s3", region=region, bucket=bucket)
    return StoreAccess(endpoint.region, endpoint.url + endpoint.root, aws.credentials)


def find_store_access_blocking(aws: Aws, bucket: str) -> StoreAccess:
    """`find_store_access` for synchronous callers, in any thread. Blocks for at most half a minute."""
    aws.credentials.current_blocking()
    with ThreadPoolExecutor(1) as thread:  # as this thread may have a loop that runs
        return thread.submit(anyio.run, find_store_access, aws, bucket).result()


async def _bucket_region(aws: Aws, bucket: str) -> str | None:
    """The bucket's region; None where S3 doesn't say."""
    async with aws.s3(is_brief=True) as client:
        try:
            answer = await client.head_bucket(Bucket=bucket)
        except ClientError as error:
            answer = error.response
        except BotoCoreError:
            return None  # the first real request says what is wrong, with its own words
        return bucket_region(answer)
