"""Signature Version 4 for requests that are much alike: what stays the same between calls is worked out once.

A signing key holds for a day, and the canonical headers differ in the date alone. Source: "Create a signed AWS API
request" in the IAM user guide; for S3, "Authenticating Requests (AWS Signature Version 4)" in its API reference.
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
"""Header lines, names in any case. A tuple, so that signers know again what they have seen."""

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
_END: Final = "aws4_request"
_HOLE: Final = "\0"
_FORMS: Final = 64


@dataclass(frozen=True, slots=True)
class Keys:
    """What signs: an access key, its secret, and the token of a session. Its repr shows neither of the last two."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class _Form:
    """The canonical headers of one kind of request, cut where content hash and date go."""

    before_hash: str
    before_date: str
    after_date: str
    signed: str


class Signer:
    """Signs requests to one host for one service and region.

    Args:
        service: the signing name, such as `rekognition` or `s3`.
        region: of the credential scope.
        host: as the Host header has it: lower case, with a port that is not the scheme's own.
        names_content: whether the content's hash is a header of its own, as S3 demands.
    """

    def __init__(self, *, service: str, region: str, host: str, names_content: bool) -> None:
        self._service = service
        self._region = region
        self._host = host
        self._names_content = names_content
        self._keys: Keys | None = None
        self._day = ""
        self._key = b""
        self._second = -1
        self._stamp = ""
        self._forms: dict[Headers, _Form] = {}

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
        """All headers to send: `headers`, Host, and what makes up the signature.

        Args:
            keys: what signs.
            at_s: seconds since the epoch; the service takes those within 5 minutes of its own clock (S3: 15).
            method: in upper case.
            path: as it is signed: see `canonical_path`; for S3, as it is sent.
            query: as `canonical_query` makes it.
            headers: more headers, which are signed too.
            body: the whole body.
        """
        if keys is not self._keys:
            self._keys, self._day = keys, ""
            self._forms.clear()
        stamp = self._stamped(at_s)
        if stamp[:8] != self._day:
            self._turn_over(keys, stamp[:8])
        form = self._forms.get(headers) or self._form(headers)
        body_hash = hashlib.sha256(body).hexdigest()
        named = f"{form.before_hash}{body_hash}" if self._names_content else ""
        lines = f"{named}{form.before_date}{stamp}{form.after_date}"
        canonical = f"{method}\n{path}\n{query}\n{lines}\n\n{form.signed}\n{body_hash}"
        text = f"{_ALGORITHM}\n{stamp}\n{self._scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        signature = hmac.digest(self._key, text.encode(), "sha256").hex()
        sent = {"Host": self._host, "X-Amz-Date": stamp}
        if keys.token is not None:
            sent["X-Amz-Security-Token"] = keys.token
        if self._names_content:
            sent["X-Amz-Content-SHA256"] = body_hash
        sent["Authorization"] = (
            f"{_ALGORITHM} Credential={keys.access_key}/{self._scope}, SignedHeaders={form.signed}, "
            f"Signature={signature}"
        )
        sent.update(headers)
        return sent

    def _stamped(self, at_s: float) -> str:
        second = int(at_s // 1)
        if second != self._second:
            self._stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(second))
            self._second = second
        return self._stamp

    def _turn_over(self, keys: Keys, day: str) -> None:
        key = f"AWS4{keys.secret_key}".encode()
        for part in (day, self._region, self._service, _END):
            key = hmac.digest(key, part.encode(), "sha256")
        self._key = key
        self._day = day
        self._scope = f"{day}/{self._region}/{self._service}/{_END}"

    def _form(self, headers: Headers) -> _Form:
        lines = {"host": self._host, "x-amz-date": _HOLE}
        if self._keys is not None and self._keys.token is not None:
            lines["x-amz-security-token"] = self._keys.token
        if self._names_content:
            lines["x-amz-content-sha256"] = _HOLE
        lines |= {name.lower(): " ".join(value.split()) for name, value in headers}
        text = "\n".join(f"{name}:{lines[name]}" for name in sorted(lines))
        *before_hash, before_date, after_date = text.split(_HOLE)
        form = _Form("".join(before_hash), before_date, after_date, ";".join(sorted(lines)))
        if len(self._forms) >= _FORMS:
            self._forms.clear()
        self._forms[headers] = form
        return form


def canonical_query(pairs: Iterable[tuple[str, str]]) -> str:
    """The query string for `pairs`, encoded and in the order in which it is signed; it can be sent as it is.

    Raises:
        UnicodeEncodeError: a name or value is no Unicode text (a lone surrogate).
    """
    encoded = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in pairs)
    return "&".join(f"{name}={value}" for name, value in encoded)


def canonical_path(path: str) -> str:
    """The path that services other than S3 sign for `path`, which is encoded already: encoded once more.

    Dots and double slashes are not resolved: nothing here sends any.
    """
    return quote(path or "/", safe="/~")
