"""ListObjectsV2, a page a request: signed and sent by `http`, or by the SDK."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, Protocol

import anyio
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.buckets import explain, explain_code
from batchcl.aws.errors import ServiceError, read_error
from batchcl.aws.http import Request, Response, SignedClient, open_signed_client
from batchcl.aws.listing_page import MalformedPageError, Page, parse_page
from batchcl.aws.session import Aws
from batchcl.aws.transport import Transport
from batchcl.errors import BatchclError, CallError, CredentialsError, FatalCallError, TransientError, UnreachableError

__all__ = ["PageReader", "SdkPages", "SignedPages", "open_pages"]

ATTEMPTS: Final = 6
"""At one page, as the SDK's standard retries are set for everything else that batchcl asks of S3."""

_OK: Final = 200
_SERVER_ERROR: Final = 500
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 20.0
_BUSY: Final = frozenset(
    {"SlowDown", "429", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded", "InternalError"}
)
_S3: Final = "AmazonS3"
_DIRECTORY_BUCKET: Final = "--x-s3"


class PageReader(Protocol):
    """Reads the objects of one bucket below one prefix, a page at a time."""

    async def page(self, *, after: str | None = None, token: str | None = None) -> Page:
        """The page behind the key `after`, or where the server's `token` says.

        Raises:
            BatchclError: one that says what to do; what may pass was tried again before.
        """
        ...


class SignedPages:
    """Pages through a `SignedClient`. Any number of them may be asked for at a time.

    What may pass (a busy server, a cut connection or answer) is tried six times with full jitter, up to 20 s apart.

    Args:
        client: of the bucket.
        bucket: its name.
        prefix: that keys begin with.
        uniform: a random number between two.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        client: SignedClient,
        *,
        bucket: str,
        prefix: str,
        uniform: Callable[[float, float], float] = random.uniform,
        sleep: Callable[[float], Any] = anyio.sleep,
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._doing = f"listing s3://{bucket}/{prefix}"
        self._fixed = (("list-type", "2"), ("encoding-type", "url"), ("prefix", prefix))
        self._uniform = uniform
        self._sleep = sleep
        self._parsing = anyio.Lock()

    async def page(self, *, after: str | None = None, token: str | None = None) -> Page:
        """See `PageReader.page`."""
        where = (("continuation-token", token),) if token is not None else (("start-after", after),) if after else ()
        request = Request(query=self._fixed + where)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                response = await self._client.send(request)
                async with self._parsing:  # one in a turn of the event loop, which calls need too
                    return self._read(response)
            except (TransientError, MalformedPageError) as error:
                if attempt == ATTEMPTS:
                    raise self._given_up(error) from error
            except CallError as error:
                raise _fatal(error, self._doing) from error
            longest_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**attempt)
            await self._sleep(self._uniform(0, longest_s))
        raise AssertionError("the last attempt returns or raises")

    def _read(self, answer: Response) -> Page:
        """The page of an answer; raises `TransientError` for what may pass."""
        if answer.status == _OK:
            # S3 alone is known to list in UTF-8 binary order (API reference, ListObjectsV2), but not directory buckets
            is_sorted = answer.headers.get("Server") == _S3 and not self._bucket.endswith(_DIRECTORY_BUCKET)
            return parse_page(answer.body, is_sorted=is_sorted)
        error = read_error(answer.status, answer.headers, answer.body)
        if answer.status >= _SERVER_ERROR or error.code in _BUSY:
            raise TransientError(_words(error), code=error.code, status=answer.status)
        said = error.message or error.code
        raise explain_code(error.code, said, doing=self._doing, bucket=self._bucket, region=error.region)

    def _given_up(self, error: Exception) -> UnreachableError:
        return UnreachableError(
            f"{self._doing} failed {ATTEMPTS} times: {error}; check the endpoint and the network, or try again later"
        )


class SdkPages:
    """By aioboto3's client, which retries by itself. Its pages never claim to be sorted."""

    def __init__(self, client: Any, *, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix

    async def page(self, *, after: str | None = None, token: str | None = None) -> Page:
        """See `PageReader.page`."""
        where = {"ContinuationToken": token} if token is not None else {"StartAfter": after} if after else {}
        try:
            answer = await self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, **where)
        except (ClientError, BotoCoreError) as error:
            raise explain(error, f"listing s3://{self._bucket}/{self._prefix}", self._bucket) from error
        entries = answer.get("Contents", [])
        return Page(
            keys=[entry["Key"] for entry in entries],
            etags=[entry.get("ETag", "").strip('"') or None for entry in entries],
            sizes=[entry["Size"] for entry in entries],
            modified=[entry["LastModified"].astimezone(dt.UTC) for entry in entries],
            is_last=not answer.get("IsTruncated"),
            token=answer.get("NextContinuationToken"),
        )


@asynccontextmanager
async def open_pages(
    aws: Aws, *, bucket: str, prefix: str, region: str, transport: Transport, connections: int
) -> AsyncIterator[PageReader]:
    """A reader whose connections are closed at the end of the block.

    Raises:
        RefusedError: there are no credentials, or S3 can't be reached as things are set.
    """
    if transport is Transport.AIOBOTO3:
        async with aws.s3(region=region) as client:
            yield SdkPages(client, bucket=bucket, prefix=prefix)
        return
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(
                open_signed_client(aws, "s3", region=region, bucket=bucket, connections=connections)
            )
        except FatalCallError as error:
            raise _fatal(error, f"listing s3://{bucket}/{prefix}") from error
        yield SignedPages(client, bucket=bucket, prefix=prefix)


def _fatal(error: CallError, doing: str) -> BatchclError:
    """What no attempt can mend."""
    kind = CredentialsError if error.code == "Credentials" else UnreachableError
    return kind(f"{doing} failed: {error}")


def _words(error: ServiceError) -> str:
    return f"{error.code}: {error.message}" if error.message else f"HTTP status {error.code}"
