"""How far this machine's clock is from AWS's, by the Date of every answer."""

from __future__ import annotations

import datetime as dt
import email.utils
from collections.abc import Callable
from typing import Any, Final

from batchcl.doctor.findings import Verdict

__all__ = ["ClockWatch"]

_REFUSED_S: Final = 300.0
"""Requests signed so far off are refused; source: IAM user guide, "Troubleshoot requests with signed..."."""

_NOTABLE_S: Final = 60.0


class ClockWatch:
    """Compares the Date of answers with `utcnow` when they come."""

    def __init__(self, utcnow: Callable[[], dt.datetime]) -> None:
        self._utcnow = utcnow
        self._ahead_s: float | None = None

    def watch(self, client: Any) -> None:
        """Look at every answer that a botocore client gets from now on, refusals too."""
        client.meta.events.register("after-call", self._note)

    def verdict(self) -> tuple[Verdict, str]:
        """What the last answer told."""
        ahead_s = self._ahead_s
        if ahead_s is None:
            return Verdict.WARN, "nobody answered with a time to compare this machine's clock with"
        off = f"this machine's clock is {abs(ahead_s):,.0f} s {'behind' if ahead_s > 0 else 'ahead of'} the service's"
        if abs(ahead_s) >= _REFUSED_S:
            return (
                Verdict.FAIL,
                f"{off}, and requests signed five minutes off are refused; set it (chrony, ntpd)",
            )
        if abs(ahead_s) >= _NOTABLE_S:
            return Verdict.WARN, f"{off}; set it (chrony, ntpd) before it is five minutes, when requests are refused"
        return Verdict.OK, "this machine's clock agrees with the service's to a minute"

    def _note(self, *, parsed: dict[str, Any], **_: Any) -> None:
        told = parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
        if told is None:
            return
        try:
            there = email.utils.parsedate_to_datetime(told)
        except ValueError:
            return
        self._ahead_s = (there - self._utcnow()).total_seconds()
