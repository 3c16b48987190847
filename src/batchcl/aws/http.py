"""Signed requests by aiohttp for the two hot paths, DetectCustomLabels and ListObjectsV2, without the SDK's overhead.

Endpoint, certificates and credentials come from botocore (`endpoint`, `credentials`).
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
"""For a whole request, from waiting for a connection to the last byte of the response."""

_CONNECT_TIMEOUT_S: Final = 5.0
_KEEP_ALIVE_S: Final = 12.0
"""Idle connections are closed after this, before load balancers and proxies drop them."""

_LOWEST_ERROR: Final = 300
_MIN_SKEW_S: Final = 60.0
"""A smaller clock skew is not the reason for a refusal."""

_LARGE_BODY_BYTES: Final = 1024 * 1024
"""Larger bodies are sent in chunks, so that they don't block the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """One request to a service or a bucket.

    Attributes:
        method: in upper case.
        path: below the service's or bucket's root; encoded.
        query: names and values in any order, not encoded.
        headers: to sign and send, in addition to those of the signature. Sharing one tuple makes signing faster.
        body: the whole body.
    """

    method: str = "GET"
    path: str = "/"
    query: tuple[tuple[str, str], ...] = ()
    headers: Headers = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole response with any status. Names in `headers` are case-insensitive."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class SignedClient:
    """Sends requests to one service or one S3 bucket. Safe for concurrent use.

    A request is repeated once after two kinds of refusal: refused keys are reloaded, and a clock skew is corrected by
    the response's Date, also for later requests. If credentials fail temporarily, a request to S3 waits; a call to
    Rekognition raises, so that the run pauses all calls.
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
        self._skew_s = 0.0
        self._service = endpoint.signing_name
        self._is_s3 = endpoint.signing_name.startswith("s3")
        self._signer = Signer(
            service=endpoint.signing_name, region=endpoint.region, host=endpoint.host, names_content=self._is_s3
        )
        self._tunnel_headers = endpoint.proxy_headers if endpoint.uses_tls else None

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint of all requests."""
        return self._endpoint

    async def send(self, request: HttpRequest) -> HttpResponse:
        """The response to `request`, with any status: redirects are not followed, error responses are not raised.

        Raises:
            TransientError: no complete response in time; see `connection_error` for its `code`.
            CredentialsFailingError: credentials fail temporarily.
            FatalCallError: there are no credentials (`code` is `Credentials`), the certificate is not trusted (`Tls`),
                or the proxy requires credentials (`Proxy`).
        """
        try:
            return await (
                self._keys.retry_while_failing(partial(self._try, request)) if self._is_s3 else self._try(request)
            )
        except CredentialsError as error:
            raise call_error(error) from error

    async def _try(self, request: HttpRequest) -> HttpResponse:
        keys = await self._keys.current()
        response = await self._send(request, keys)
        if response.status >= _LOWEST_ERROR and (corrected := await self._corrected_keys(response, keys)):
            response = await self._send(request, corrected)
        if response.status < _LOWEST_ERROR:
            self._keys.accepted(self._service)
            return response
        error = read_error(response.status, response.headers, response.body)
        if is_keys_error(error.code, error.message):
            refusal = self._keys.refused(self._service, f"{error.code}: {error.message}")
            if refusal is not None:
                raise refusal
        return response

    async def _corrected_keys(self, response: HttpResponse, keys: Keys) -> Keys | None:
        """The keys to repeat the request with; None if repeating it does not help."""
        error = read_error(response.status, response.headers, response.body)
        if is_clock_error(error.code, error.message):
            return keys if self._correct_clock(response) else None
        return await self._keys.renew(keys) if is_keys_error(error.code, error.message) else None

    def _correct_clock(self, response: HttpResponse) -> bool:
        """Use the service's clock from now on; False if this machine's clock is correct."""
        try:
            service_time_s = email.utils.parsedate_to_datetime(response.headers["Date"]).timestamp()
        except (KeyError, ValueError, OverflowError):
            return False
        skew_s = service_time_s - self._clock()
        if abs(skew_s) < _MIN_SKEW_S and abs(self._skew_s) < _MIN_SKEW_S:
            return False
        self._skew_s = skew_s
        return True

    async def _send(self, request: HttpRequest, keys: Keys) -> HttpResponse:
        path = self._endpoint.root + request.path
        query = canonical_query(request.query)
        url = f"{self._endpoint.url}{path}?{query}" if query else f"{self._endpoint.url}{path}"
        body = request.body
        headers = self._signer.sign(
            keys,
            at_s=self._clock() + self._skew_s,
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
            # without a cause: aiohttp's exceptions contain the request with its session token
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
    """Open a client of `service`; its connections are closed after the block.

    Args:
        aws: the standard AWS settings: endpoints, certificates, proxies and credentials.
        service: `rekognition` or `s3`.
        region: of the model or bucket.
        bucket: for S3, the bucket of all requests.
        connections: maximum; further requests wait for one.
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
        auto_decompress=False,  # no compressed response is requested
        trust_env=False,  # an entry in ~/.netrc would replace the signature; the proxy comes from the endpoint
    )
    try:
        yield SignedClient(session, endpoint, aws.credentials_of(service), deadline_s=deadline_s, clock=clock)
    finally:
        with anyio.CancelScope(shield=True):
            await session.close()
