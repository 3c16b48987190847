"""ListObjectsV2: requests by the signed client or the SDK, and pages parsed from XML into columns."""

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

from batchcl.aws.buckets import explain, explain_code
from batchcl.aws.errors import ErrorResponse, read_error
from batchcl.aws.http import HttpRequest, HttpResponse, SignedClient, open_signed_client
from batchcl.aws.session import Aws
from batchcl.choices import Transport
from batchcl.errors import BatchclError, CallError, CredentialsError, FatalCallError, TransientError, UnreachableError

__all__ = ["ListingPage", "MalformedPageError", "PageReader", "SdkPages", "SignedPages", "open_pages", "parse_page"]

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

    async def page(self, *, after: str | None = None, token: str | None = None) -> ListingPage:
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

    async def page(self, *, after: str | None = None, token: str | None = None) -> ListingPage:
        """See `PageReader.page`."""
        where = (("continuation-token", token),) if token is not None else (("start-after", after),) if after else ()
        request = HttpRequest(query=self._fixed + where)
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

    def _read(self, answer: HttpResponse) -> ListingPage:
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

    async def page(self, *, after: str | None = None, token: str | None = None) -> ListingPage:
        """See `PageReader.page`."""
        where = {"ContinuationToken": token} if token is not None else {"StartAfter": after} if after else {}
        try:
            answer = await self._client.list_objects_v2(Bucket=self._bucket, Prefix=self._prefix, **where)
        except (ClientError, BotoCoreError) as error:
            raise explain(error, f"listing s3://{self._bucket}/{self._prefix}", self._bucket) from error
        entries = answer.get("Contents", [])
        return ListingPage(
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


def _words(error: ErrorResponse) -> str:
    return f"{error.code}: {error.message}" if error.message else f"HTTP status {error.code}"


class MalformedPageError(ValueError):
    """The answer is no whole ListBucketResult."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListingPage:
    """Objects in the server's order, as columns of equal length.

    Attributes:
        keys: exactly as they are.
        etags: without quotes; None where there is none.
        sizes: in bytes.
        modified: in UTC.
        is_last: whether there is nothing behind it.
        token: continues behind the page; a server may have none, then its last key does.
        is_sorted: whether the server is known to list in UTF-8 binary order, which is Python's order of strings too.
    """

    keys: list[str]
    etags: list[str | None]
    sizes: list[int]
    modified: list[dt.datetime]
    is_last: bool = True
    token: str | None = None
    is_sorted: bool = False

    def cut(self, count: int) -> tuple[ListingPage, ListingPage]:
        """The first `count` objects, behind which there is more by definition, and the rest."""
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


_ENTRY: Final = re.compile(
    r"<Contents><Key>([^<&]++)</Key><LastModified>([^<&Z]++Z)</LastModified>"
    r'<ETag>(?:&quot;|")?+([^<&"]++)(?:&quot;|")?+</ETag>(?:<Checksum[^<]*+</[^<]*+)*+<Size>([0-9]++)</Size>'
)
_FLAG: Final = re.compile(r"<IsTruncated>(true|false)</IsTruncated>")
_TOKEN: Final = re.compile(r"<NextContinuationToken>([^<&]++)</NextContinuationToken>")
_ENCODED: Final = "<EncodingType>url</EncodingType>"


def parse_page(body: bytes, *, is_sorted: bool = False) -> ListingPage:
    """The page that `body` holds.

    With `encoding-type=url` S3 encodes keys as a form does, a space as `+` (seen in its answers, undocumented; botocore
    decodes them likewise). A server that doesn't say so in its answer hasn't encoded them.

    Raises:
        MalformedPageError: it is cut, no XML, or another document.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return _as_tree(body, is_sorted=is_sorted)  # the declaration may name another encoding
    return _as_text(text, is_sorted=is_sorted) or _as_tree(body, is_sorted=is_sorted)


def _as_text(text: str, *, is_sorted: bool) -> ListingPage | None:
    """The page, or None where it isn't written as S3 writes it."""
    entries = _ENTRY.findall(text)
    flag = _FLAG.search(text)
    if (
        flag is None
        or len(entries) != text.count("<Contents")
        or not text.endswith("</ListBucketResult>")
        or ("!" in text and "<!" in text)  # one character is found a hundred times faster than two
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


def _as_tree(body: bytes, *, is_sorted: bool) -> ListingPage:
    try:
        root = ET.fromstring(body)  # noqa: S314 - expat reads no external entities; the wire bounds the answer
    except (ET.ParseError, ValueError, LookupError) as error:
        raise MalformedPageError(f"its answer is no XML ({error})") from error
    if _name(root) != "ListBucketResult":
        raise MalformedPageError(f"its answer is a {_name(root)}, not a ListBucketResult")
    said = {_name(child): child.text or "" for child in root}
    is_encoded = said.get("EncodingType") == "url"
    entries = [{_name(field): field.text or "" for field in child} for child in root if _name(child) == "Contents"]
    try:
        keys = [entry["Key"] for entry in entries]
        return ListingPage(
            keys=[unquote_plus(key) for key in keys] if is_encoded else keys,
            etags=[entry.get("ETag", "").strip('"') or None for entry in entries],
            sizes=[int(entry["Size"]) for entry in entries],
            modified=[_time(entry["LastModified"]) for entry in entries],
            is_last=said["IsTruncated"].strip() != "true",
            token=said.get("NextContinuationToken") or None,
            is_sorted=is_sorted,
        )
    except (KeyError, ValueError) as error:
        raise MalformedPageError(f"its answer is no whole ListBucketResult ({error})") from error


def _name(element: ET.Element) -> str:
    """Without its namespace: not every server gives one."""
    return element.tag.rpartition("}")[2]


def _time(text: str) -> dt.datetime:
    found = dt.datetime.fromisoformat(text)
    return found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found.astimezone(dt.UTC)
