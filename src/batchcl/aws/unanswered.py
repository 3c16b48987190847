"""What it means that a call brought no answer, or one that is none of the API's."""

from __future__ import annotations

import ssl
from typing import Final

import aiohttp

from batchcl.aws.connections import NotConnectedError, ProxyRefusedError, TlsError
from batchcl.aws.http1 import NoHttpError
from batchcl.errors import CallError, FatalCallError, TransientError

__all__ = ["MALFORMED", "malformed", "redirected", "unanswered"]

MALFORMED: Final = "MalformedAnswer"
"""The code of an answer that is none of the API's: it was cut on its way, or somebody else gave it."""

_PROXY_AUTHENTICATION: Final = 407
_GONE: Final = (
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
    ssl.SSLSyscallError,
    ConnectionResetError,
    ConnectionAbortedError,
)


def unanswered(error: Exception, *, where: str) -> CallError:
    """What an `error` of the wire or of aiohttp means for a call to `where`: fatal, or else worth another attempt.

    Fatal are a certificate that isn't trusted, TLS that can't be agreed on, and a proxy that wants credentials. `code`
    is `Tls`, `Proxy`, `Timeout`, `Unreachable`, `ConnectionLost`, `MalformedAnswer`, or else the error's name.
    """
    said = " ".join(str(error).split()) or type(error).__name__
    match error:
        case ProxyRefusedError() | aiohttp.ClientHttpProxyError():
            return _proxy_refused(error.status, where)
        case TlsError() | aiohttp.ClientSSLError() | ssl.SSLCertVerificationError() if not _cut(error):
            return FatalCallError(
                f"the TLS connection to {where} failed: {said}; set AWS_CA_BUNDLE to your CA's file", code="Tls"
            )
        case TimeoutError():
            return TransientError(f"no answer in time from {where}", code="Timeout")
        case NotConnectedError():
            return TransientError(f"{where} can't be reached: {said}", code="Unreachable")
        case aiohttp.ClientConnectorError() if not _cut(error):
            return TransientError(f"{where} can't be reached: {said}", code="Unreachable")
        case NoHttpError() | aiohttp.ClientResponseError():
            return TransientError(f"what {where} answered is no HTTP: {said}", code=MALFORMED)
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError() | OSError():
            return TransientError(f"the connection to {where} was lost: {said}", code="ConnectionLost")
        case _:
            return TransientError(f"the call to {where} failed: {said}", code=type(error).__name__)


def _proxy_refused(status: int, where: str) -> CallError:
    if status == _PROXY_AUTHENTICATION:
        return FatalCallError(
            f"the proxy wants other credentials before it lets {where} through; check HTTPS_PROXY and HTTP_PROXY",
            code="Proxy",
            status=status,
        )
    return TransientError(f"the proxy doesn't let {where} through: it answered {status}", code="Proxy", status=status)


def malformed() -> TransientError:
    """An answer that is none of the API's."""
    return TransientError("the answer has another shape than the API's", code=MALFORMED)


def redirected(where: str, status: int, location: str | None) -> FatalCallError:
    """An answer that sends the call elsewhere, where it would need another signature."""
    there = location or "another place"
    return FatalCallError(
        f"{where} answered {status} and redirects to {there}; check the region, the AWS_ENDPOINT_URL settings and the "
        "proxy",
        code=str(status),
        status=status,
    )


def _cut(error: Exception) -> bool:
    """Whether connecting ended because the other side went away, rather than for what it said or as it isn't there."""
    return isinstance(getattr(error, "os_error", None), _GONE)
