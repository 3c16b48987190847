"""How many calls the service lets through: token buckets, as pure arithmetic on a given `now`.

Three limits, from FACTS.md §1: a model's inference units, the account's DetectCustomLabels quota, and the
control-plane quota of each other operation. A bucket holds about one second of its rate, so that a client may burst
for a second and no longer.
"""

from __future__ import annotations

from typing import Final

from batchcl.emulator.faults import ServiceError

__all__ = ["BURST_S", "Capacity", "TokenBucket"]

BURST_S: Final = 1.0
"""Seconds of its rate that a full bucket holds."""


class TokenBucket:
    """Lets `rate` calls a second through, and at once at most a second's worth (but always at least one)."""

    __slots__ = ("_at", "_rate", "_tokens")

    def __init__(self, rate: float, *, now: float) -> None:
        self._rate = rate
        self._tokens = self._burst
        self._at = now

    @property
    def _burst(self) -> float:
        return max(1.0, self._rate * BURST_S)

    def take(self, *, now: float, rate: float) -> bool:
        """Whether one more call fits at `now`, given the rate from now on; if so its token is gone.

        Tokens since the last call come at the rate that held then. A bucket never shrinks below its tokens' share
        of a second: after a drop of the rate the surplus is cut at once.
        """
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = max(self._at, now)
        if rate != self._rate:
            self._rate = rate
            self._tokens = min(self._burst, self._tokens)
        # the sum of many small refills must not lose the token that it should have made
        if self._tokens < 1.0 - 1e-9:
            return False
        self._tokens -= 1.0
        return True


class Capacity:
    """Every bucket of one emulator.

    Args:
        tps_per_unit: DetectCustomLabels calls a second of one inference unit.
        account_tps: DetectCustomLabels calls a second of one account and region.
        control_tps: calls a second of each other operation of one account and region.
    """

    def __init__(self, *, tps_per_unit: float, account_tps: float, control_tps: float) -> None:
        self._tps_per_unit = tps_per_unit
        self._account_tps = account_tps
        self._control_tps = control_tps
        self._buckets: dict[tuple[str, ...], TokenBucket] = {}

    def admit_call(self, operation: str, *, account: str, region: str, now: float) -> None:
        """Count one call of `operation` against its quota.

        Raises:
            ServiceError: ProvisionedThroughputExceededException, over the quota.
        """
        rate = self._account_tps if operation == "DetectCustomLabels" else self._control_tps
        self._take((account, region, operation), rate=rate, now=now)

    def admit_inference(self, version_arn: str, *, units: int, now: float) -> None:
        """Count one image against the `units` inference units of a running model.

        Raises:
            ServiceError: ProvisionedThroughputExceededException, over the model's capacity.
        """
        self._take((version_arn,), rate=self._tps_per_unit * units, now=now)

    def _take(self, key: tuple[str, ...], *, rate: float, now: float) -> None:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(rate, now=now)
        if not bucket.take(now=now, rate=rate):
            raise ServiceError("ProvisionedThroughputExceededException", "Provisioned Rate exceeded")
