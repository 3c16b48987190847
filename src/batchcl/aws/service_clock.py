"""The service's time of day, by what its answers say.

Leases are written by one machine and judged by another; both go by the clock that they share, the service's.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any

__all__ = ["ServiceClock"]


class ServiceClock:
    """This machine's clock, corrected by the `Date` of the clients' last answer; exact to about a second.

    Args:
        client: an open client of any AWS service.
        utcnow: this machine's clock.
    """

    def __init__(self, client: Any, *, utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)) -> None:
        self._utcnow = utcnow
        self._ahead: dt.timedelta | None = None
        self.listen(client)

    def listen(self, client: Any) -> None:
        """Go by the answers to this client too, refusals among them."""
        client.meta.events.register("after-call", self._hear)

    @property
    def ahead(self) -> dt.timedelta | None:
        """How far the service's clock is ahead of this machine's; None before the first answer."""
        return self._ahead

    def now(self) -> dt.datetime:
        """What the service's clock shows, as far as is known; before the first answer, what this machine's does."""
        return self._utcnow() + (self._ahead or dt.timedelta(0))

    def _hear(self, parsed: dict[str, Any], **_: Any) -> None:
        date = parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        try:
            told = parsedate_to_datetime(date or "")
        except ValueError:
            return
        self._ahead = (told if told.tzinfo else told.replace(tzinfo=dt.UTC)) - self._utcnow()
