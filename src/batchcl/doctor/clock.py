"""How far this machine's clock is from AWS's, which refuses requests that are signed too early or too late."""

from __future__ import annotations

from typing import Final

from batchcl.doctor.case import Answer, Case
from batchcl.doctor.findings import Verdict

__all__ = ["check_clock"]

_REFUSED_S: Final = 300.0
"""Requests signed so far off are refused; source: IAM user guide, "Troubleshoot signed requests for AWS APIs"."""

_NOTABLE_S: Final = 60.0


async def check_clock(case: Case) -> Answer:
    """By the Date of the answers so far."""
    ahead = case.clock.ahead
    if ahead is None:
        return Verdict.WARN, "nobody answered with a time to compare this machine's clock with"
    seconds = ahead.total_seconds()
    off = f"this machine's clock is {abs(seconds):,.0f} s {'behind' if seconds > 0 else 'ahead of'} the service's"
    if abs(seconds) >= _REFUSED_S:
        return Verdict.FAIL, f"{off}, and requests signed five minutes off are refused; set it (chrony, ntpd)"
    if abs(seconds) >= _NOTABLE_S:
        return Verdict.WARN, f"{off}; set it (chrony, ntpd) before it is five minutes, when requests are refused"
    return Verdict.OK, "this machine's clock agrees with the service's to a minute"
