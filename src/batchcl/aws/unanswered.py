"""What it means that a call brought no answer, or one that is none of the API's."""

from __future__ import annotations

import ssl
from typing import Final

import aiohttp

from batchcl.errors import CallError, FatalCallError, TransientError

__all__ = ["MALFORMED", "malformed", "redirected", "unanswered"]

MALFORMED: Final = "MalformedAnswer"
"""The code of an answer that is none of the API's: it was cut on its way, or somebody else gave it."""

_PROXY_AUTHENTICATION: Final = 407


def unanswered(error: Exception, *, where: str) -> CallError:
    """What aiohttp's `error` means for a call to `where`: fatal for a certificate, else worth another attempt.

    `code` is `Tls`, `Proxy`, `Timeout`, `Unreachable`, `ConnectionLost`, `MalformedAnswer`, or else the error's name.
    """
    said = " ".join(str(error).split()) or type(error).__name__
    match error:
        case aiohttp.ClientSSLError() | ssl.SSLCertVerificationError() if not _cut(error):
            return FatalCallError(
                f"the TLS connection to {where} failed: {said}; set AWS_CA_BUNDLE to your CA's file", code="Tls"
            )
        case aiohttp.ClientHttpProxyError(status=407):
            return FatalCallError(
                f"the proxy wants other credentials before it lets {where} through; check HTTPS_PROXY and HTTP_PROXY",
                code="Proxy",
                status=_PROXY_AUTHENTICATION,
            )
        case aiohttp.ClientHttpProxyError():
            why = f"the proxy doesn't let {where} through: it answered {error.status} {error.message}"
            return TransientError(why.rstrip(), code="Proxy", status=error.status)
        case TimeoutError():
            return TransientError(f"no answer in time from {where}", code="Timeout")
        case aiohttp.ClientConnectorError() if not _cut(error):
            return TransientError(f"{where} can't be reached: {said}", code="Unreachable")
        case aiohttp.ClientResponseError():
            return TransientError(f"what {where} answered is no HTTP: {said}", code=MALFORMED)
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError() | OSError():
            return TransientError(f"the connection to {where} was lost: {said}", code="ConnectionLost")
        case _:
            return TransientError(f"the call to {where} failed: {said}", code=type(error).__name__)


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
    cause = getattr(error, "os_error", None)
    return isinstance(
        cause,
        ssl.SSLEOFError | ssl.SSLZeroReturnError | ssl.SSLSyscallError | ConnectionResetError | ConnectionAbortedError,
    )
