"""AWS Signature Version 4, fast for many similar requests: what they have in common is computed once.

A signing key is valid for a day, and the canonical headers differ only in the date and content hash. Source: "Create a
signed AWS API request" in the IAM user guide; for S3, "Authenticating Requests (AWS Signature Version 4)" in its API
reference.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import quote

__all__ = ["Headers", "Keys", "Signer", "canonical_path", "canonical_query"]

Headers = tuple[tuple[str, str], ...]
"""Names and values; names in any case. A tuple, so that signers can use it as a cache key."""

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_SCOPE_END: Final = "aws4_request"
_PLACEHOLDER: Final = "\0"
_MAX_TEMPLATES: Final = 64


@dataclass(frozen=True, slots=True)
class Keys:
    """An access key, its secret, and a session token. The repr hides secret and token."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _HeaderTemplate:
    """The canonical headers of one kind of request, split at the content hash and the date."""

    before_hash: str
    before_date: str
    after_date: str
    signed: str


class Signer:
    """Signs requests to one host for one service and region.

    Args:
        service: the signing name, such as `rekognition` or `s3`.
        region: of the credential scope.
        host: value of the Host header: lower case, with the port unless it is the scheme's default.
        names_content: send the content's hash as a header, which S3 requires.
    """

    def __init__(self, *, service: str, region: str, host: str, names_content: bool) -> None:
        self._service = service
        self._region = region
        self._host = host
        self._names_content = names_content
        self._keys: Keys | None = None
        self._day = ""
        self._signing_key = b""
        self._second = -1
        self._timestamp = ""
        self._templates: dict[Headers, _HeaderTemplate] = {}

    def sign(
        self,
        keys: Keys,
        *,
        at_s: float,
        method: str,
        path: str = "/",
        query: str = "",
        headers: Headers = (),
        body: bytes = b"",
    ) -> dict[str, str]:
        """All headers to send: `headers`, Host, and those of the signature.

        Args:
            keys: sign the request.
            at_s: seconds since the epoch; must be within 5 minutes of the service's clock (S3: 15).
            method: in upper case.
            path: for S3 as it is sent, for other services by `canonical_path`.
            query: by `canonical_query`.
            headers: further headers to sign.
            body: the whole body.
        """
        if keys is not self._keys:
            self._keys, self._day = keys, ""
            self._templates.clear()
        timestamp = self._format_time(at_s)
        if timestamp[:8] != self._day:
            self._derive_signing_key(keys, timestamp[:8])
        template = self._templates.get(headers) or self._new_template(headers)
        body_hash = hashlib.sha256(body).hexdigest()
        content_line = f"{template.before_hash}{body_hash}" if self._names_content else ""
        lines = f"{content_line}{template.before_date}{timestamp}{template.after_date}"
        canonical_request = f"{method}\n{path}\n{query}\n{lines}\n\n{template.signed}\n{body_hash}"
        request_hash = hashlib.sha256(canonical_request.encode()).hexdigest()
        string_to_sign = f"{_ALGORITHM}\n{timestamp}\n{self._scope}\n{request_hash}"
        signature = hmac.digest(self._signing_key, string_to_sign.encode(), "sha256").hex()
        sent = {"Host": self._host, "X-Amz-Date": timestamp}
        if keys.token is not None:
            sent["X-Amz-Security-Token"] = keys.token
        if self._names_content:
            sent["X-Amz-Content-SHA256"] = body_hash
        sent["Authorization"] = (
            f"{_ALGORITHM} Credential={keys.access_key}/{self._scope}, SignedHeaders={template.signed}, "
            f"Signature={signature}"
        )
        sent.update(headers)
        return sent

    def _format_time(self, at_s: float) -> str:
        second = int(at_s // 1)
        if second != self._second:
            self._timestamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
            self._second = second
        return self._timestamp

    def _derive_signing_key(self, keys: Keys, day: str) -> None:
        key = f"AWS4{keys.secret_key}".encode()
        for part in (day, self._region, self._service, _SCOPE_END):
            key = hmac.digest(key, part.encode(), "sha256")
        self._signing_key = key
        self._day = day
        self._scope = f"{day}/{self._region}/{self._service}/{_SCOPE_END}"

    def _new_template(self, headers: Headers) -> _HeaderTemplate:
        lines = {"host": self._host, "x-amz-date": _PLACEHOLDER}
        if self._keys is not None and self._keys.token is not None:
            lines["x-amz-security-token"] = self._keys.token
        if self._names_content:
            lines["x-amz-content-sha256"] = _PLACEHOLDER
        lines |= {name.lower(): " ".join(value.split()) for name, value in headers}
        text = "\n".join(f"{name}:{lines[name]}" for name in sorted(lines))
        *before_hash, before_date, after_date = text.split(_PLACEHOLDER)
        template = _HeaderTemplate("".join(before_hash), before_date, after_date, ";".join(sorted(lines)))
        if len(self._templates) >= _MAX_TEMPLATES:
            self._templates.clear()
        self._templates[headers] = template
        return template


def canonical_query(pairs: Iterable[tuple[str, str]]) -> str:
    """The query string for `pairs`, encoded and in canonical order, to sign and to send.

    Raises:
        UnicodeEncodeError: a name or value is not valid Unicode (a lone surrogate).
    """
    encoded = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in pairs)
    return "&".join(f"{name}={value}" for name, value in encoded)


def canonical_path(path: str) -> str:
    """The path to sign for services other than S3: `path`, which is encoded, encoded once more.

    Dots and double slashes are not normalised; no request has any.
    """
    return quote(path or "/", safe="/~")
