"""Verifies AWS Signature Version 4.

The signature is recomputed from the raw request: method, path, query, the headers that the client has signed, and the
hash of the body. Source: "Create a signed AWS API request" in the IAM user guide.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from batchcl.emulator.errors import ApiError
from batchcl.emulator.settings import ACCOUNT
from batchcl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["CREDENTIALS_VARIABLE", "Caller", "Credential", "Verifier", "known_credentials"]

CREDENTIALS_VARIABLE: Final = "BATCHCL_EMULATOR_CREDENTIALS"
"""Environment variable with additional credentials: `ID:SECRET[:ACCOUNT]`, separated by commas."""

_SKEW_S: Final = 300.0
_TIMESTAMP: Final = "%Y%m%dT%H%M%SZ"
_SERVICE: Final = "rekognition"
_AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256\s+Credential=(?P<id>[^/,\s]+)/(?P<date>\d{8})/(?P<region>[a-z0-9-]+)/(?P<service>[a-z0-9-]+)"
    r"/aws4_request\s*,\s*SignedHeaders=(?P<headers>[^,\s]+)\s*,\s*Signature=(?P<signature>[0-9a-f]{64})\s*"
)
_CACHED_KEYS: Final = 256


@dataclass(frozen=True, slots=True)
class Credential:
    """Credentials that the emulator accepts; the secret is not in the repr."""

    access_key_id: str
    secret: str = field(repr=False)
    account: str = ACCOUNT


@dataclass(frozen=True, slots=True)
class Caller:
    """Account and region of a signed request."""

    account: str
    region: str


def known_credentials(environment: Mapping[str, str]) -> list[Credential]:
    """The credentials `emulator`/`emulator`, those of the AWS variables, and those of BATCHCL_EMULATOR_CREDENTIALS.

    Raises:
        UsageError: an entry is malformed; the message doesn't contain it, because it may be a secret.
    """
    credentials = [Credential("emulator", "emulator")]
    key_id, secret = environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY")
    if key_id and secret:
        credentials.append(Credential(key_id, secret))
    entries = environment.get(CREDENTIALS_VARIABLE, "").split(",")
    for number, entry in enumerate((e for e in entries if e.strip()), start=1):
        match = re.fullmatch(r"([^:/,\s]+):([^:,\s]+)(?::(\d{12}))?", entry.strip())
        if match is None:
            raise UsageError(
                f"entry {number} of {CREDENTIALS_VARIABLE} is not ID:SECRET or ID:SECRET:ACCOUNT, with an account of "
                "12 digits."
            )
        credentials.append(Credential(match[1], match[2], match[3] or ACCOUNT))
    return credentials


class Verifier:
    """Determines the caller of a request from its signature."""

    def __init__(self, credentials: Iterable[Credential]) -> None:
        self._known = {c.access_key_id: c for c in credentials}
        self._signing_keys: dict[tuple[str, str, str, str], bytes] = {}

    def verify(
        self,
        *,
        method: str,
        path: str,
        query: str,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        now: float,
        service: str = _SERVICE,
    ) -> Caller:
        """Verify the signature of a request and return the caller.

        Args:
            method: in upper case.
            path: raw, not decoded.
            query: raw query string without `?`.
            headers: all headers in their order.
            body: the whole body.
            now: seconds since the epoch.
            service: signing name of the service that the request must be signed for.

        Raises:
            ApiError: MissingAuthenticationTokenException, IncompleteSignatureException,
                UnrecognizedClientException, InvalidSignatureException, or RequestTimeTooSkewed for a date more than
                5 minutes from `now`.
        """
        received: dict[str, list[str]] = {}
        for name, value in headers:
            received.setdefault(name.lower(), []).append(" ".join(value.split()))
        authorization = received.get("authorization")
        if authorization is None:
            raise ApiError("MissingAuthenticationTokenException", "Missing Authentication Token")
        match = _AUTHORIZATION.fullmatch(authorization[0])
        if match is None:
            raise ApiError(
                "IncompleteSignatureException",
                "Authorization header requires 'Credential', 'SignedHeaders' and 'Signature' parameters.",
            )
        signed = match["headers"].split(";")
        timestamp = _request_time(received, signed)
        credential = self._known.get(match["id"])
        if credential is None:
            raise ApiError("UnrecognizedClientException", "The security token included in the request is invalid.")
        _check_scope(match["date"], match["service"], timestamp, wanted=service)
        _check_skew(timestamp, now)
        scope = f"{match['date']}/{match['region']}/{match['service']}/aws4_request"
        request = (method, path, _canonical_query(query))
        canonical = _canonical(request, received, signed, body)
        text = f"AWS4-HMAC-SHA256\n{timestamp}\n{scope}\n{hashlib.sha256(canonical).hexdigest()}"
        key = self._signing_key(credential, match["date"], match["region"], match["service"])
        expected = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        if not hmac.compare_digest(expected, match["signature"]):
            raise _bad_signature()
        return Caller(account=credential.account, region=match["region"])

    def _signing_key(self, credential: Credential, date: str, region: str, service: str) -> bytes:
        name = (credential.access_key_id, date, region, service)
        key = self._signing_keys.get(name)
        if key is None:
            key = f"AWS4{credential.secret}".encode()
            for part in (date, region, service, "aws4_request"):
                key = hmac.digest(key, part.encode(), "sha256")
            if len(self._signing_keys) >= _CACHED_KEYS:
                self._signing_keys.clear()
            self._signing_keys[name] = key
        return key


def _request_time(received: Mapping[str, list[str]], signed: Sequence[str]) -> str:
    """The x-amz-date of the request; also checks that all required headers are signed."""
    missing = {"host", "x-amz-date"} - set(signed)
    if missing or any(name not in received for name in signed):
        raise ApiError(
            "IncompleteSignatureException",
            "'host' and 'x-amz-date' must be signed headers, and every signed header must be sent.",
        )
    if "x-amz-security-token" in received and "x-amz-security-token" not in signed:
        raise _bad_signature()
    return received["x-amz-date"][0]


def _check_scope(date: str, service: str, timestamp: str, *, wanted: str) -> None:
    if service != wanted:
        raise ApiError("InvalidSignatureException", f"Credential should be scoped to correct service: '{wanted}'.")
    if not timestamp.startswith(date):
        raise ApiError(
            "InvalidSignatureException",
            f"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: "
            f"'{date}' != '{timestamp[:8]}', from '{timestamp}'.",
        )


def _check_skew(timestamp: str, now: float) -> None:
    try:
        sent = dt.datetime.strptime(timestamp, _TIMESTAMP).replace(tzinfo=dt.UTC).timestamp()
    except ValueError:
        raise ApiError(
            "IncompleteSignatureException", f"Date must be in ISO-8601 'basic format'. Got '{timestamp}'."
        ) from None
    if abs(sent - now) <= _SKEW_S:
        return
    here = _stamp(now)
    if sent < now:
        edge = f"expired: {timestamp} is now earlier than {_stamp(now - _SKEW_S)} ({here} - 5 min.)"
    else:
        edge = f"not yet current: {timestamp} is still later than {_stamp(now + _SKEW_S)} ({here} + 5 min.)"
    raise ApiError("RequestTimeTooSkewed", f"Signature {edge}", status=403)


def _stamp(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime(_TIMESTAMP)


def _canonical_query(query: str) -> str:
    pairs = sorted(pair.partition("=")[::2] for pair in query.split("&")) if query else []
    return "&".join(f"{name}={value}" for name, value in pairs)


def _canonical(
    request: tuple[str, str, str], received: Mapping[str, list[str]], signed: Sequence[str], body: bytes
) -> bytes:
    body_hash = hashlib.sha256(body).hexdigest()
    claimed = received.get("x-amz-content-sha256")
    if claimed is not None and claimed[0] != body_hash:
        raise _bad_signature()
    lines = [
        *request,
        *(f"{name}:{','.join(received[name])}" for name in sorted(signed)),
        "",
        ";".join(sorted(signed)),
        body_hash,
    ]
    return "\n".join(lines).encode()


def _bad_signature() -> ApiError:
    return ApiError(
        "InvalidSignatureException",
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret "
        "Access Key and signing method. Consult the service documentation for details.",
    )
