"""The back ends that POST to a URL: Healthchecks' pings, and the webhook.

They use the standard library's blocking client: a request in an event loop would look up names in its executor, and
closing the loop waits for a lookup that hangs.
"""

from __future__ import annotations

import base64
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from http.client import HTTPException
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import orjson

from batchcl.__about__ import __version__
from batchcl.monitoring.report import Report
from batchcl.monitoring.sender import SendError
from batchcl.monitoring.targets import site

__all__ = ["Ping", "Webhook"]

_TIMEOUT_S: Final = 5.0
_PAUSES_S: Final = (0.25, 1.0)
"""Pauses before the second and the third attempt."""

_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500
_MAX_BODY_BYTES: Final = 10_000
"""Of a ping; Healthchecks keeps 100 kB."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Fails at redirects: urllib would follow them without the body."""

    def redirect_request(self, *_: object) -> None:
        return None


_OPENER: Final = urllib.request.build_opener(_NoRedirects)


class Ping:
    """Pings a check: `/start` when the run begins; at its end the URL itself, or `/<exit code>` after a failure.

    The body of the last ping has the run's last notices. A `rid` identifies the run, so that the check can measure how
    long it took, although others may run at the same time.
    """

    every_s = None

    def __init__(self, url: str) -> None:
        self.name = f"the ping of {site(url)}"
        self._url = url
        self._run_id = str(uuid.uuid4())

    def send(self, report: Report) -> None:
        """Ping at the start and at the end."""
        if report.stage == "start":
            self._post("start", b"")
        elif report.exit_code is not None:
            body = "\n".join((*report.lines, report.text)).encode(errors="replace")
            self._post(str(report.exit_code) if report.exit_code else "", body[-_MAX_BODY_BYTES:])

    def _post(self, action: str, body: bytes) -> None:
        parts = urlsplit(self._url)
        path = f"{parts.path.rstrip('/')}/{action}" if action else parts.path
        query = urlencode([*parse_qsl(parts.query, keep_blank_values=True), ("rid", self._run_id)])
        _post(parts._replace(path=path, query=query, fragment="").geturl(), body, "text/plain; charset=utf-8")


class Webhook:
    """POSTs a JSON document at the end and on trouble."""

    every_s = None

    def __init__(self, url: str, *, pauses_s: Sequence[float] = _PAUSES_S) -> None:
        self.name = f"the webhook {site(url)}"
        self._url = url
        self._pauses_s = pauses_s

    def send(self, report: Report) -> None:
        """POST the document, if there is one."""
        if report.document is not None:
            _post(self._url, orjson.dumps(report.document), "application/json", pauses_s=self._pauses_s)


def _post(url: str, body: bytes, content_type: str, *, pauses_s: Sequence[float] = _PAUSES_S) -> None:
    """POST, with two more attempts after network errors, 429 and 5xx. Raises `SendError`."""
    headers = {"Content-Type": content_type, "User-Agent": f"batchcl/{__version__}"}
    parts = urlsplit(url)
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    request = urllib.request.Request(url, body, headers, method="POST")  # noqa: S310 - the scheme has been checked
    for pause_s in (*pauses_s, None):
        try:
            with _OPENER.open(request, timeout=_TIMEOUT_S):
                return
        except (OSError, HTTPException, ValueError) as error:
            reason, may_pass = _described(error)
        if not may_pass or pause_s is None:
            raise SendError(reason)
        time.sleep(pause_s)


def _described(error: Exception) -> tuple[str, bool]:
    """What failed, without the URL, and whether another attempt may succeed."""
    if isinstance(error, urllib.error.HTTPError):
        with error:
            return f"HTTP status {error.code}", error.code == _TOO_MANY or error.code >= _SERVER_ERROR
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no response within {_TIMEOUT_S:.0f} s", True
    text = cause.strerror if isinstance(cause, OSError) else None
    return text or type(cause).__name__, isinstance(cause, OSError)
