"""Signed requests by aiohttp: the way of the two hot paths, DetectCustomLabels and ListObjectsV2.

Botocore still says where requests go, whom to trust and what signs them (`endpoint`, `credentials`); what it does
again for each call, and needn't, is done once here.
"""

from __future__ import annotations

import email.utils
import io
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from yarl import URL

from batchcl.__about__ import __version__
from batchcl.aws.classify import EXPIRED_CODES, blames_clock
from batchcl.aws.credentials import KeyRing
from batchcl.aws.endpoint import Endpoint, find_endpoint, trust
from batchcl.aws.refusal import read_refusal
from batchcl.aws.session import Aws
from batchcl.aws.sigv4 import Headers, Keys, Signer, canonical_path, canonical_query
from batchcl.aws.unanswered import unanswered

__all__ = ["Answer", "Request", "Wire", "open_wire"]

DEADLINE_S: Final = 60.0
"""No request takes longer than this, from the wait for a connection to the last byte of the answer."""

_CONNECT_TIMEOUT_S: Final = 5.0
_KEEP_ALIVE_S: Final = 12.0
_LARGEST_ANSWER_BYTES: Final = 64 * 1024 * 1024
_ERROR: Final = 300
_LEAST_SKEW_S: Final = 60.0
"""A refusal for its time with a clock closer than this is about something else."""

_INLINE_BYTES: Final = 512 * 1024
"""aiohttp writes a body of bytes in one go, which is for small ones."""

_USER_AGENT: Final = f"batchcl/{__version__}"
_SKIPPED: Final = ("Accept", "Accept-Encoding", "Content-Type")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to a service, or to a bucket.

    Attributes:
        method: in upper case.
        path: below the service's or bucket's root; encoded already.
        query: names and values as they are, in any order; the wire encodes them.
        headers: to send and sign besides those of the signature. Requests that share this tuple are cheaper to sign.
        body: the whole body.
    """

    method: str = "GET"
    path: str = "/"
    query: tuple[tuple[str, str], ...] = ()
    headers: Headers = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, whatever its status. `headers` are found in any case of their names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Wire:
    """Sends requests to one service, or to one bucket of S3. Safe for many concurrent callers.

    Two things heal by themselves, once a request: credentials that the service calls expired are looked up anew, and
    a clock that it calls wrong is corrected by the Date of its answer, for all later requests too.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        keys: KeyRing,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._keys = keys
        self._clock = clock
        self._ahead_s = 0.0
        self._is_s3 = endpoint.signing_name.startswith("s3")
        self._signer = Signer(
            service=endpoint.signing_name, region=endpoint.region, host=endpoint.host, names_content=self._is_s3
        )
        self._urls: dict[str, tuple[URL, str]] = {}
        told = endpoint.proxy_authorization
        self._to_proxy = None if told is None else {"Proxy-Authorization": told}

    @property
    def endpoint(self) -> Endpoint:
        """Where requests go."""
        return self._endpoint

    async def send(self, request: Request) -> Answer:
        """The answer to `request`, whatever its status: redirects aren't followed, errors aren't raised.

        Raises:
            TransientError: no whole answer came in time; see `batchcl.aws.unanswered` for its `code`.
            FatalCallError: no credentials (`code` is `Credentials`), a certificate that isn't trusted (`Tls`), or a
                proxy that wants credentials (`Proxy`).
        """
        keys = await self._keys.current()
        answer = await self._send(request, keys)
        if answer.status < _ERROR or not (again := await self._healed(answer, keys)):
            return answer
        return await self._send(request, again)

    async def _healed(self, answer: Answer, keys: Keys) -> Keys | None:
        """What to sign the request with again; None where that wouldn't help."""
        refusal = read_refusal(answer.status, answer.headers, answer.body)
        if refusal.code in EXPIRED_CODES:
            return await self._keys.renew(keys)
        if blames_clock(refusal.code, refusal.message) and self._correct_clock(answer):
            return keys
        return None

    def _correct_clock(self, answer: Answer) -> bool:
        """Go by the service's clock from now on; False where it isn't the clock."""
        try:
            there = email.utils.parsedate_to_datetime(answer.headers["Date"]).timestamp()
        except (KeyError, ValueError, OverflowError):
            return False
        ahead_s = there - self._clock()
        if abs(ahead_s) < _LEAST_SKEW_S and abs(self._ahead_s) < _LEAST_SKEW_S:
            return False
        self._ahead_s = ahead_s
        return True

    async def _send(self, request: Request, keys: Keys) -> Answer:
        query = canonical_query(request.query) if request.query else ""
        url, path = self._urls.get(request.path) or self._prepare(request.path)
        headers = self._signer.sign(
            keys,
            at_s=self._clock() + self._ahead_s,
            method=request.method,
            path=path,
            query=query,
            headers=request.headers,
            body=request.body,
        )
        if self._to_proxy is not None and url.scheme == "http":
            headers |= self._to_proxy  # there is no tunnel, whose request would carry it
        if query:
            url = URL(f"{url}?{query}", encoded=True)
        try:
            return await self._exchange(request.method, url, headers, request.body)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            lost = unanswered(error, where=self._endpoint.url)
        raise lost  # not from aiohttp's error, which holds all headers that were sent, the session token among them

    async def _exchange(self, method: str, url: URL, headers: dict[str, str], body: bytes) -> Answer:
        data: Any = body if len(body) <= _INLINE_BYTES else io.BytesIO(body)
        async with self._session.request(
            method, url, headers=headers, data=data or None, allow_redirects=False, proxy_headers=self._to_proxy
        ) as got:
            if (got.content_length or 0) > _LARGEST_ANSWER_BYTES:
                raise aiohttp.ClientPayloadError(f"an answer of {got.content_length:,} bytes is none of AWS's")
            return Answer(got.status, got.headers, await got.read())

    def _prepare(self, path: str) -> tuple[URL, str]:
        """The URL to send to, and the path to sign."""
        sent = self._endpoint.root + path
        prepared = URL(self._endpoint.url + sent, encoded=True), sent if self._is_s3 else canonical_path(sent)
        if len(self._urls) < 64:  # noqa: PLR2004 - a bound is enough; hot paths have one path
            self._urls[path] = prepared
        return prepared


@asynccontextmanager
async def open_wire(
    aws: Aws,
    service: str,
    *,
    region: str,
    bucket: str | None = None,
    connections: int = 64,
    deadline_s: float = DEADLINE_S,
    connect_timeout_s: float = _CONNECT_TIMEOUT_S,
    clock: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Wire]:
    """A wire to `service`, whose connections are closed at the end of the block.

    Args:
        aws: endpoints, certificates, proxies and credentials, by the standard AWS settings.
        service: `rekognition` or `s3`.
        region: that the model or bucket lies in.
        bucket: for S3, the bucket that the requests' paths lie below.
        connections: at once at most; further requests wait for one.
        deadline_s: for one request and its whole answer.
        connect_timeout_s: for one connection.
        clock: seconds since the epoch.
        monotonic: seconds on a clock that only goes on.

    Raises:
        RefusedError: there are no credentials, no endpoint is known, or the CA bundle can't be read.
    """
    endpoint = await find_endpoint(aws, service, region=region, bucket=bucket)
    connector = aiohttp.TCPConnector(
        limit=connections,
        ssl=trust(aws) if endpoint.url.startswith("https:") else False,
        keepalive_timeout=_KEEP_ALIVE_S,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=_SKIPPED,
        headers={"User-Agent": _USER_AGENT},
        timeout=aiohttp.ClientTimeout(total=deadline_s, sock_connect=connect_timeout_s),
        proxy=endpoint.proxy,
    ) as session:
        yield Wire(session, endpoint, KeyRing(aws, service, monotonic=monotonic), clock=clock)
