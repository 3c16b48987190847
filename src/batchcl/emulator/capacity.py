"""How many calls the service accepts (token buckets, autoscaling), and how long each takes."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final

from batchcl.emulator.errors import ApiError, over_quota

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BURST_S",
    "MAX_COPYING",
    "MAX_POLICIES",
    "MAX_PROJECTS",
    "MAX_RUNNING",
    "MAX_TRAINING",
    "MAX_UNITS",
    "MAX_VERSIONS",
    "AutoScaler",
    "Capacity",
    "Latency",
    "TokenBucket",
    "check_tags",
]

MAX_RUNNING: Final = 2
MAX_TRAINING: Final = 2
MAX_UNITS: Final = 5

MAX_PROJECTS: Final = 100
"""Projects of an account in a region: an assumption."""

MAX_VERSIONS: Final = 100
"""Versions of a project: an assumption."""

MAX_COPYING: Final = 5
"""Versions that are copied at once into an account: an assumption."""

MAX_POLICIES: Final = 20
"""Policies of a project: an assumption."""

_MAX_TAGS: Final = 50


def check_tags(tags: Mapping[str, str]) -> None:
    """Refuse more tags than a resource can have.

    Raises:
        ServiceError: ServiceQuotaExceededException.
    """
    if len(tags) > _MAX_TAGS:
        raise over_quota(f"A resource can have {_MAX_TAGS} tags, and this would make {len(tags)}.")


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
            raise ApiError("ProvisionedThroughputExceededException", "Provisioned Rate exceeded")


_P99: Final = 2.3263478740408408
"""Where 99 % of a standard normal distribution lie below."""


class Latency:
    """Latencies of a log-normal distribution, the same for the same seed.

    Args:
        median_s: seconds; 0 for none.
        p99_s: what 99 of 100 stay under; at most the median, every latency is the median.
        seed: of the draws.
    """

    def __init__(self, *, median_s: float, p99_s: float, seed: int) -> None:
        self._median_s = median_s
        self._sigma = math.log(p99_s / median_s) / _P99 if median_s > 0 and p99_s > median_s else 0.0
        self._random = random.Random(f"latency {seed}")

    def draw(self) -> float:
        """The next one, in seconds."""
        if not self._sigma:
            return self._median_s
        return self._median_s * math.exp(self._random.gauss(0.0, self._sigma))


_BUSY: Final = 0.9
_IDLE: Final = 0.6


class AutoScaler:
    """Moves the units between their bounds. Pure arithmetic on a given `now`, in seconds.

    Args:
        least: MinInferenceUnits, with which it begins.
        most: MaxInferenceUnits.
        tps_per_unit: calls a second of one unit.
        period_s: how long is looked at before each step.
        now: when the model began to run.
    """

    __slots__ = ("_least", "_most", "_offered", "_period_s", "_start", "_tps_per_unit", "units")

    def __init__(self, *, least: int, most: int, tps_per_unit: float, period_s: float, now: float) -> None:
        self._least, self._most = least, most
        self._tps_per_unit, self._period_s = tps_per_unit, period_s
        self._start = now
        self._offered = 0
        self.units = least

    def offer(self) -> None:
        """Count a call, let through or not, since `advance`."""
        self._offered += 1

    def advance(self, now: float) -> list[tuple[float, int]]:
        """When the units changed up to `now`, and to how many.

        One more comes where a period asked for over 90 % of them, one goes where 60 % of the others would have done.
        """
        changes: list[tuple[float, int]] = []
        while now - self._start >= self._period_s:
            self._start += self._period_s
            wanted = self._offered / self._period_s / self._tps_per_unit
            self._offered = 0
            if wanted > _BUSY * self.units and self.units < self._most:
                self.units += 1
            elif wanted < _IDLE * (self.units - 1) and self.units > self._least:
                self.units -= 1
            else:
                if wanted == 0:  # nothing was asked for since: the periods that follow change nothing either
                    self._start += (now - self._start) // self._period_s * self._period_s
                continue
            changes.append((self._start, self.units))
        return changes
