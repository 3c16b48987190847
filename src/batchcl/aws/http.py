"""Signed requests by aiohttp: DetectCustomLabels and ListObjectsV2, the two hot paths, without the SDK's work per call.

Botocore says where requests go, which certificates to trust and what signs them (`endpoint`, `credentials`).
"""

from __future__ import annotations

import asyncio
import email.utils
import io
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import aiohttp
import anyio
from yarl import URL

from batchcl.__about__ import __version__
from batchcl.aws.credentials import CredentialCache, call_error
from batchcl.aws.endpoint import Endpoint, find_endpoint, tls_context
from batchcl.aws.errors import connection_error, is_clock_error, is_keys_error, read_error
from batchcl.aws.session import Aws
from batchcl.aws.sigv4 import Headers, Keys, Signer, canonical_path, canonical_query
from batchcl.errors import CredentialsError

__all__ = ["HttpRequest", "HttpResponse", "SignedClient", "open_signed_client"]

DEADLINE_S: Final = 60.0
"""No request takes longer than this, from the wait for a connection to the last byte of the response."""

_CONNECT_TIMEOUT_S: Final = 5.0
_KEEP_ALIVE_S: Final = 12.0
"""An idle connection is closed after this, before load balancers and proxies drop it."""

_ERROR: Final = 300
_LEAST_SKEW_S: Final = 60.0
"""A refusal for its time with a clock closer than this is about something else."""

_LARGE_BODY_BYTES: Final = 1024 * 1024
"""Larger bodies are sent in pieces, so that the other calls go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """One request to a service, or to a bucket.

    Attributes:
        method: in upper case.
        path: below the service's or bucket's root; encoded already.
        query: names and values as they are, in any order; the client encodes them.
        headers: to send and sign besides those of the signature. Requests that share this tuple are cheaper to sign.
        body: the whole body.
    """

    method: str = "GET"
    path: str = "/"
    query: tuple[tuple[str, str], ...] = ()
    headers: Headers = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole response, whatever its status. `headers` are found in any case of their names."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class SignedClient:
    """Sends requests to one service, or to one bucket of S3. Safe for many concurrent callers.

    Two refusals are corrected once a request: keys that the service refuses are looked up anew, and a clock that it
    calls wrong is corrected by the Date of its response, for all later requests too. For S3 it waits for credentials
    that may come back; a call to Rekognition reports them, so that no more calls are sent meanwhile.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        endpoint: Endpoint,
        keys: CredentialCache,
        *,
        deadline_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._session = session
        self._endpoint = endpoint
        self._keys = keys
        self._deadline_s = deadline_s
        self._clock = clock
        self._ahead_s = 0.0
        self._service = endpoint.signing_name
        self._is_s3 = endpoint.signing_name.startswith("s3")
        self._signer = Signer(
            service=endpoint.signing_name, region=endpoint.region, host=endpoint.host, names_content=self._is_s3
        )
        self._tunnel_headers = endpoint.proxy_headers if endpoint.uses_tls else None

    @property
    def endpoint(self) -> Endpoint:
        """Where requests go."""
        return self._endpoint

    async def send(self, request: HttpRequest) -> HttpResponse:
        """The response to `request`, whatever its status: redirects aren't followed, errors aren't raised.

        Raises:
            TransientError: no whole response came in time; see `connection_error` for its `code`.
            CredentialsFailingError: there are no valid credentials just now.
            FatalCallError: nor will there be any (`code` is `Credentials`), a certificate that isn't trusted (`Tls`),
                or a proxy that wants credentials (`Proxy`).
        """
        try:
            return await (self._keys.patiently(partial(self._try, request)) if self._is_s3 else self._try(request))
        except CredentialsError as error:
            raise call_error(error) from error

    async def _try(self, request: HttpRequest) -> HttpResponse:
        keys = await self._keys.current()
        response = await self._send(request, keys)
        if response.status >= _ERROR and (corrected := await self._corrected(response, keys)):
            response = await self._send(request, corrected)
        if response.status < _ERROR:
            self._keys.accepted(self._service)
            return response
        error = read_error(response.status, response.headers, response.body)
        if is_keys_error(error.code, error.message):
            lost = self._keys.refused(self._service, f"{error.code}: {error.message}")
            if lost is not None:
                raise lost
        return response

    async def _corrected(self, response: HttpResponse, keys: Keys) -> Keys | None:
        """What to sign the request with again; None where that wouldn't help."""
        error = read_error(response.status, response.headers, response.body)
        if is_clock_error(error.code, error.message):
            return keys if self._correct_clock(response) else None
        return await self._keys.renew(keys) if is_keys_error(error.code, error.message) else None

    def _correct_clock(self, response: HttpResponse) -> bool:
        """Go by the service's clock from now on; False where the clock is right."""
        try:
            there = email.utils.parsedate_to_datetime(response.headers["Date"]).timestamp()
        except (KeyError, ValueError, OverflowError):
            return False
        ahead_s = there - self._clock()
        if abs(ahead_s) < _LEAST_SKEW_S and abs(self._ahead_s) < _LEAST_SKEW_S:
            return False
        self._ahead_s = ahead_s
        return True

    async def _send(self, request: HttpRequest, keys: Keys) -> HttpResponse:
        path = self._endpoint.root + request.path
        query = canonical_query(request.query)
        url = f"{self._endpoint.url}{path}?{query}" if query else f"{self._endpoint.url}{path}"
        body = request.body
        headers = self._signer.sign(
            keys,
            at_s=self._clock() + self._ahead_s,
            method=request.method,
            path=path if self._is_s3 else canonical_path(path),
            query=query,
            headers=request.headers,
            body=body,
        )
        try:
            async with asyncio.timeout(self._deadline_s):
                async with self._session.request(
                    request.method,
                    URL(url, encoded=True),
                    headers=headers,
                    data=io.BytesIO(body) if len(body) > _LARGE_BODY_BYTES else body or None,
                    proxy=self._endpoint.proxy,
                    proxy_headers=self._tunnel_headers,
                    allow_redirects=False,
                ) as response:
                    return HttpResponse(response.status, response.headers, await response.read())
        except (aiohttp.ClientError, OSError) as error:
            # not its cause: aiohttp's errors hold the request with its session token
            raise connection_error(error, where=self._endpoint.url) from None


@asynccontextmanager
async def open_signed_client(
    aws: Aws,
    service: str,
    *,
    region: str,
    bucket: str | None = None,
    connections: int = 64,
    deadline_s: float = DEADLINE_S,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[SignedClient]:
    """A client of `service`, whose connections are closed at the end of the block.

    Args:
        aws: endpoints, certificates, proxies and credentials, by the standard AWS settings.
        service: `rekognition` or `s3`.
        region: that the model or bucket lies in.
        bucket: for S3, the bucket that the requests' paths lie below.
        connections: at once at most; further requests wait for one.
        deadline_s: for one request and its whole response.
        clock: seconds since the epoch.

    Raises:
        RefusedError: there are no credentials, no endpoint is known, or the CA bundle can't be read.
    """
    endpoint = await find_endpoint(aws, service, region=region, bucket=bucket)
    proxy_uses_tls = endpoint.proxy is not None and endpoint.proxy.scheme == "https"
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=connections,
            keepalive_timeout=_KEEP_ALIVE_S,
            ssl=tls_context(aws) if endpoint.uses_tls or proxy_uses_tls else True,
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
        headers={"User-Agent": f"batchcl/{__version__}"} | ({} if endpoint.uses_tls else endpoint.proxy_headers),
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type"),
        auto_decompress=False,  # nothing compressed is asked for
        trust_env=False,  # an entry in ~/.netrc would replace the signature; the endpoint has the proxy
    )
    try:
        yield SignedClient(session, endpoint, aws.keys_of(service), deadline_s=deadline_s, clock=clock)
    finally:
        with anyio.CancelScope(shield=True):
            await session.close()
