"""The service's clock, by the Date of its responses.

A lease is written by one machine and checked by another, so both use the clock that they share: the service's.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

__all__ = ["ServiceClock"]


class ServiceClock:
    """This machine's clock, corrected by the `Date` of the clients' last response; accurate to about a second.

    Args:
        client: an open client of any AWS service.
        utcnow: this machine's clock.
    """

    def __init__(self, client: Any, *, utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)) -> None:
        self._utcnow = utcnow
        self._ahead: dt.timedelta | None = None
        self.listen(client)

    def listen(self, client: Any) -> None:
        """Also use this client's responses, including errors."""
        client.meta.events.register("after-call", self._on_response)

    @property
    def ahead(self) -> dt.timedelta | None:
        """How far the service's clock is ahead of this machine's; None before the first response."""
        return self._ahead

    def now(self) -> dt.datetime:
        """The service's time; before the first response, this machine's."""
        return self._utcnow() + (self._ahead or dt.timedelta(0))

    def _on_response(self, parsed: dict[str, Any], **_: Any) -> None:
        date = parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        try:
            service_time = parsedate_to_datetime(date or "")
        except ValueError:
            return
        self._ahead = (service_time if service_time.tzinfo else service_time.replace(tzinfo=dt.UTC)) - self._utcnow()
