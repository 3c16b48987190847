"""ListObjectsV2 through the signed client or the SDK; pages are parsed into columns."""

from __future__ import annotations

import datetime as dt
import random
import re
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import unquote_plus

import anyio
from botocore.exceptions import BotoCoreError, ClientError

from batchcl.aws.buckets import error_for_code, s3_error
from batchcl.aws.errors import code_of, read_error
from batchcl.aws.http import HttpRequest, HttpResponse, SignedClient, open_signed_client
from batchcl.aws.session import Aws
from batchcl.choices import Transport
from batchcl.errors import BatchclError, CallError, CredentialsError, FatalCallError, TransientError, UnreachableError

__all__ = [
    "ListingPage",
    "MalformedPageError",
    "PageReader",
    "SdkPageReader",
    "SignedPageReader",
    "open_page_reader",
    "parse_page",
]

ATTEMPTS: Final = 6
"""For one page; the same as the SDK's retries of other S3 requests (`session.Connection`)."""

_OK: Final = 200
_SERVER_ERROR: Final = 500
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 20.0
_BUSY: Final = frozenset(
    {"SlowDown", "429", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded", "InternalError"}
)
_S3: Final = "AmazonS3"
_DIRECTORY_BUCKET: Final = "--x-s3"
_ENTRY: Final = re.compile(
    r"<Contents><Key>([^<&]++)</Key><LastModified>([^<&Z]++Z)</LastModified>"
    r'<ETag>(?:&quot;|")?+([^<&"]++)(?:&quot;|")?+</ETag>(?:<Checksum[^<]*+</[^<]*+)*+<Size>([0-9]++)</Size>'
)
_FLAG: Final = re.compile(r"<IsTruncated>(true|false)</IsTruncated>")
_TOKEN: Final = re.compile(r"<NextContinuationToken>([^<&]++)</NextContinuationToken>")
_ENCODED: Final = "<EncodingType>url</EncodingType>"


class MalformedPageError(ValueError):
    """A response is not a complete ListBucketResult."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingPage:
    """Objects in the server's order, as columns of equal length.

    Attributes:
        keys: decoded.
        etags: without quotes; None for an object without one.
        sizes: in bytes.
        modified: in UTC.
        is_last: there are no more objects.
        token: continues after this page; without one, the page's last key does.
        is_sorted: the server is known to list in UTF-8 binary order, which is also Python's order of strings.
    """

    keys: list[str]
    etags: list[str | None]
    sizes: list[int]
    modified: list[dt.datetime]
    is_last: bool = True
    token: str | None = None
    is_sorted: bool = False

    def cut(self, count: int) -> tuple[ListingPage, ListingPage]:
        """Split into the first `count` objects, which are never the last page, and the rest."""
        first = ListingPage(
            keys=self.keys[:count],
            etags=self.etags[:count],
            sizes=self.sizes[:count],
            modified=self.modified[:count],
            is_last=False,
            is_sorted=self.is_sorted,
        )
        rest = ListingPage(
            keys=self.keys[count:],
            etags=self.etags[count:],
            sizes=self.sizes[count:],
            modified=self.modified[count:],
            is_last=self.is_last,
            token=self.token,
            is_sorted=self.is_sorted,
        )
        return first, rest


class PageReader(Protocol):
    """Lists the objects below one prefix of a bucket, one page at a time."""

    async def page(self, *, after: str | None = None, token: str | None = None) -> ListingPage:
        """The page after the key `after`, or at the continuation `token` of the page before.

        Raises:
            BatchclError: with advice; transient errors were retried.
        """
        ...


class SignedPageReader:
    """Lists through a `SignedClient`. Safe for concurrent use.

    Transient errors (a busy server, a lost connection, a truncated response) are retried with full jitter: six
    attempts, at most 20 s apart.

    Args:
        client: of the bucket.
        bucket: the bucket's name.
        prefix: of the keys.
        uniform: returns a random number between two.
        sleep: waits for some seconds.
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
        self._query = (("list-type", "2"), ("encoding-type", "url"), ("prefix", prefix))
        self._uniform = uniform
        self._sleep = sleep
        self._parsing = anyio.Lock()

    async def page(self, *, after: str | None = None, token: str | None = None) -> ListingPage:
        """See `PageReader.page`."""
        start = (("continuation-token", token),) if token is not None else (("start-after", after),) if after else ()
        request = HttpRequest(query=self._query + start)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                response = await self._client.send(request)
                async with self._parsing:  # one page between two turns of the event loop, which calls need too
                    return self._parse(response)
            except (TransientError, MalformedPageError) as error:
                if attempt == ATTEMPTS:
                    raise UnreachableError(
                        f"{self._doing} failed {ATTEMPTS} times: {error}; check the endpoint and the network, or try "
                        "again later"
                    ) from error
            except CallError as error:
                raise _fatal(error, self._doing) from error
            longest_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2**attempt)
            await self._sleep(self._uniform(0, longest_s))
        raise AssertionError("the last attempt returns or raises")

    def _parse(self, response: HttpResponse) -> ListingPage:
        """The page in a response; raises `TransientError` for errors to retry."""
        if response.status == _OK:
            # only S3 is known to list in UTF-8 binary order (API reference, ListObjectsV2), except directory buckets
            is_sorted = response.headers.get("Server") == _S3 and not self._bucket.endswith(_DIRECTORY_BUCKET)
            return parse_page(response.body, is_sorted=is_sorted)
        error = read_error(response.status, response.headers, response.body)
        if response.status >= _SERVER_ERROR or error.code in _BUSY:
            message = f"{error.code}: {error.message}" if error.message else f"HTTP status {error.code}"
            raise TransientError(message, code=error.code, status=response.status)
        message = error.message or error.code
        raise error_for_code(error.code, message, doing=self._doing, bucket=self._bucket, region=error.region)


class SdkPageReader:
    """Lists through an aioboto3 client, which retries. Its pages are never marked as sorted."""

    def __init__(self, client: Any, *, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix

    async def page(self, *, after: str | None = None, token: str | None = None) -> ListingPage:
        """See `PageReader.page`."""
        start = {"ContinuationToken": token} if token is not None else {"StartAfter": after} if after else {}
        try:
            response = await self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, **start)
        except (ClientError, BotoCoreError) as error:
            raise s3_error(error, f"listing s3://{self._bucket}/{self._prefix}", self._bucket) from error
        entries = response.get("Contents", [])
        return ListingPage(
            keys=[entry["Key"] for entry in entries],
            etags=[entry.get("ETag", "").strip('"') or None for entry in entries],
            sizes=[entry["Size"] for entry in entries],
            modified=[entry["LastModified"].astimezone(dt.UTC) for entry in entries],
            is_last=not response.get("IsTruncated"),
            token=response.get("NextContinuationToken"),
        )


@asynccontextmanager
async def open_page_reader(
    aws: Aws, *, bucket: str, prefix: str, region: str, transport: Transport, connections: int
) -> AsyncIterator[PageReader]:
    """Open a page reader; its connections are closed after the block.

    Raises:
        RefusedError: there are no credentials, or the AWS settings can't be used.
    """
    if transport is Transport.AIOBOTO3:
        async with aws.s3(region=region) as client:
            yield SdkPageReader(client, bucket=bucket, prefix=prefix)
        return
    async with AsyncExitStack() as stack:
        try:
            client = await stack.enter_async_context(
                open_signed_client(aws, "s3", region=region, bucket=bucket, connections=connections)
            )
        except FatalCallError as error:
            raise _fatal(error, f"listing s3://{bucket}/{prefix}") from error
        yield SignedPageReader(client, bucket=bucket, prefix=prefix)


def _fatal(error: CallError, doing: str) -> BatchclError:
    """The error for a listing that a retry does not fix."""
    kind = CredentialsError if error.code == "Credentials" else UnreachableError
    return kind(f"{doing} failed: {error}", code=code_of(error))


def parse_page(body: bytes, *, is_sorted: bool = False) -> ListingPage:
    """Parse a response body.

    With `encoding-type=url` S3 encodes keys like HTML forms, a space as `+` (observed, not documented; botocore decodes
    them in the same way). A response without EncodingType has keys that are not encoded.

    Raises:
        MalformedPageError: it is truncated, not XML, or another document.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return _parse_tree(body, is_sorted=is_sorted)  # the XML declaration may name another encoding
    return _parse_text(text, is_sorted=is_sorted) or _parse_tree(body, is_sorted=is_sorted)


def _parse_text(text: str, *, is_sorted: bool) -> ListingPage | None:
    """Parse by regular expressions, which is fast; None if the document differs from S3's own form."""
    entries = _ENTRY.findall(text)
    flag = _FLAG.search(text)
    if (
        flag is None
        or len(entries) != text.count("<Contents")
        or not text.endswith("</ListBucketResult>")
        or ("!" in text and "<!" in text)  # searching for one character is a hundred times faster than for two
    ):
        return None
    token = _TOKEN.search(text)
    if token is None and "NextContinuationToken" in text:
        return None
    keys: list[str]
    if entries:
        encoded_keys, times, etags, sizes = zip(*entries, strict=True)
    else:
        encoded_keys, times, etags, sizes = (), (), (), ()
    try:
        modified = list(map(dt.datetime.fromisoformat, times))
    except ValueError:
        return None
    if _ENCODED in text:
        keys = [unquote_plus(key) if "%" in key or "+" in key else key for key in encoded_keys]
    else:
        keys = list(encoded_keys)
    return ListingPage(
        keys=keys,
        etags=list(etags),
        sizes=list(map(int, sizes)),
        modified=modified,
        is_last=flag[1] == "false",
        token=token and token[1],
        is_sorted=is_sorted,
    )


def _parse_tree(body: bytes, *, is_sorted: bool) -> ListingPage:
    try:
        root = ET.fromstring(body)  # noqa: S314 - expat reads no external entities; a page has at most 1,000 entries
    except (ET.ParseError, ValueError, LookupError) as error:
        raise MalformedPageError(f"the response is not XML ({error})") from error
    if _name(root) != "ListBucketResult":
        raise MalformedPageError(f"the response is a {_name(root)}, not a ListBucketResult")
    fields = {_name(child): child.text or "" for child in root}
    is_encoded = fields.get("EncodingType") == "url"
    entries = [{_name(field): field.text or "" for field in child} for child in root if _name(child) == "Contents"]
    try:
        keys = [entry["Key"] for entry in entries]
        return ListingPage(
            keys=[unquote_plus(key) for key in keys] if is_encoded else keys,
            etags=[entry.get("ETag", "").strip('"') or None for entry in entries],
            sizes=[int(entry["Size"]) for entry in entries],
            modified=[_time(entry["LastModified"]) for entry in entries],
            is_last=fields["IsTruncated"].strip() != "true",
            token=fields.get("NextContinuationToken") or None,
            is_sorted=is_sorted,
        )
    except (KeyError, ValueError) as error:
        raise MalformedPageError(f"the response is not a complete ListBucketResult ({error})") from error


def _name(element: ET.Element) -> str:
    """The tag without its namespace, which not every server sends."""
    return element.tag.rpartition("}")[2]


def _time(text: str) -> dt.datetime:
    time = dt.datetime.fromisoformat(text)
    return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)
