"""Signed requests without the SDK: the way of the two hot paths, DetectCustomLabels and ListObjectsV2.

Botocore still says where requests go, whom to trust and what signs them (`endpoint`, `credentials`); what it does
again for each call, and needn't, is done once here.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from batchcl.__about__ import __version__
from batchcl.aws.classify import EXPIRED_CODES, blames_clock
from batchcl.aws.connections import ConnectionPool, NotConnectedError, ProxyRefusedError, Route, TlsError, open_pool
from batchcl.aws.credentials import KeyRing
from batchcl.aws.endpoint import Endpoint, find_endpoint, trust
from batchcl.aws.http1 import Answer, NoHttpError
from batchcl.aws.refusal import read_refusal
from batchcl.aws.session import Aws
from batchcl.aws.sigv4 import Headers, Keys, Signer, canonical_path, canonical_query
from batchcl.aws.unanswered import unanswered

__all__ = ["Answer", "Request", "Wire", "open_wire"]

DEADLINE_S: Final = 60.0
"""No request takes longer than this, from the wait for a connection to the last byte of the answer."""

_CONNECT_TIMEOUT_S: Final = 5.0
_ERROR: Final = 300
_LEAST_SKEW_S: Final = 60.0
"""A refusal for its time with a clock closer than this is about something else."""

_PATHS: Final = 64
_USER_AGENT: Final = f"batchcl/{__version__}"


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


class Wire:
    """Sends requests to one service, or to one bucket of S3. Safe for many concurrent callers.

    Two things heal by themselves, once a request: credentials that the service calls expired are looked up anew, and
    a clock that it calls wrong is corrected by the Date of its answer, for all later requests too.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        endpoint: Endpoint,
        keys: KeyRing,
        *,
        deadline_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._endpoint = endpoint
        self._keys = keys
        self._deadline_s = deadline_s
        self._clock = clock
        self._ahead_s = 0.0
        self._is_s3 = endpoint.signing_name.startswith("s3")
        self._signer = Signer(
            service=endpoint.signing_name, region=endpoint.region, host=endpoint.host, names_content=self._is_s3
        )
        self._paths: dict[str, tuple[str, str]] = {}
        self._common = f"User-Agent: {_USER_AGENT}\r\n"
        self._origin = ""
        if endpoint.proxy is not None and endpoint.url.startswith("http:"):  # no tunnel: the proxy reads the request
            self._origin = endpoint.url
            if endpoint.proxy_authorization is not None:
                self._common += f"Proxy-Authorization: {endpoint.proxy_authorization}\r\n"

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
        sent, signed = self._paths.get(request.path) or self._prepare(request.path)
        query = canonical_query(request.query) if request.query else ""
        headers = self._signer.sign(
            keys,
            at_s=self._clock() + self._ahead_s,
            method=request.method,
            path=signed,
            query=query,
            headers=request.headers,
            body=request.body,
        )
        target = f"{sent}?{query}" if query else sent
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        length = f"Content-Length: {len(request.body)}\r\n" if request.body else ""
        head = f"{request.method} {target} HTTP/1.1\r\n{self._common}{lines}{length}\r\n"
        try:
            return await self._pool.exchange(head.encode() + request.body, deadline_s=self._deadline_s)
        except (OSError, NoHttpError, NotConnectedError, ProxyRefusedError, TlsError) as error:
            raise unanswered(error, where=self._endpoint.url) from error

    def _prepare(self, path: str) -> tuple[str, str]:
        """What the request line names, and what is signed."""
        if not path.isascii() or any(character.isspace() for character in path):
            raise ValueError(f"the path {path!r} isn't encoded")
        sent = self._endpoint.root + path
        prepared = self._origin + sent, sent if self._is_s3 else canonical_path(sent)
        if len(self._paths) < _PATHS:
            self._paths[path] = prepared
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
    route = Route(
        url=endpoint.url,
        proxy=endpoint.proxy,
        proxy_authorization=endpoint.proxy_authorization,
        tls=trust(aws) if "https:" in {endpoint.url[:6], (endpoint.proxy or "")[:6]} else None,
    )
    async with open_pool(route, limit=connections, connect_timeout_s=connect_timeout_s) as pool:
        keys = KeyRing(aws, service, monotonic=monotonic)
        yield Wire(pool, endpoint, keys, deadline_s=deadline_s, clock=clock)
