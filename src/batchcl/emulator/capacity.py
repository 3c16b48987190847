"""Quotas of an account, capacity of models (token buckets, autoscaling), and latency.

Running models, inference units and concurrent trainings: AWS general reference, "Amazon Rekognition endpoints and
quotas". Tags: 50, as documented for all of AWS in "Tagging AWS resources". Values that AWS doesn't publish are marked
as assumptions.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final

from batchcl.emulator.errors import ApiError, over_quota
from batchcl.emulator.manifest import MAX_ENTRIES

if TYPE_CHECKING:
    from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "BURST_S",
    "AutoScaler",
    "Capacity",
    "Latency",
    "Quotas",
    "TokenBucket",
    "check_tags",
]

_MAX_TAGS: Final = 50


@dataclass(slots=True, kw_only=True)
class Quotas:
    """Quotas of each account and region. They may change while the emulator runs.

    Attributes:
        running: running models (AWS general reference: 2).
        training: concurrent trainings (2).
        units: inference units of a model (5).
        entries: of a dataset (250,000).
        projects: an assumption, like all that follow.
        versions: of a project.
        copying: concurrent copies of models into an account.
        policies: of a project.
    """

    running: int = 2
    training: int = 2
    units: int = 5
    entries: int = MAX_ENTRIES
    projects: int = 100
    versions: int = 100
    copying: int = 5
    policies: int = 20


def check_tags(tags: Mapping[str, str]) -> None:
    """Check the number of tags of a resource.

    Raises:
        ApiError: ServiceQuotaExceededException if there are more than 50.
    """
    if len(tags) > _MAX_TAGS:
        raise over_quota(f"A resource can have {_MAX_TAGS} tags, and this would make {len(tags)}.")


BURST_S: Final = 1.0
"""Capacity of a token bucket, in seconds of its rate."""


class TokenBucket:
    """Admits `rate` calls per second, with bursts of `BURST_S` seconds' worth, but of at least one call.

    A call that turns out to cost more than one token is charged for the rest: later calls wait until that is refilled.
    """

    __slots__ = ("_at", "_rate", "_tokens")

    def __init__(self, rate: float, *, now: float) -> None:
        self._rate = rate
        self._tokens = self._burst
        self._at = now

    @property
    def _burst(self) -> float:
        return max(1.0, self._rate * BURST_S)

    def take(self, *, now: float, rate: float) -> bool:
        """Take a token if there is one; True if the call is admitted.

        `rate` applies from `now` on: the tokens since the last call are added at the previous rate. If the rate drops,
        tokens above the new burst size are dropped at once.
        """
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = max(self._at, now)
        if rate != self._rate:
            self._rate = rate
            self._tokens = min(self._burst, self._tokens)
        # rounding: many small refills must add up to a whole token
        if self._tokens < 1.0 - 1e-9:
            return False
        self._tokens -= 1.0
        return True

    def charge(self, tokens: float) -> None:
        """Charge an admitted call for `tokens` more."""
        self._tokens -= tokens


class Capacity:
    """All token buckets of an emulator.

    Args:
        tps_per_unit: DetectCustomLabels calls per second and inference unit.
        account_tps: DetectCustomLabels calls per second, per account and region.
        control_tps: calls per second of each other operation, per account and region.
        seconds_per_megapixel: of one inference unit, in addition to the `1 / tps_per_unit` seconds of each image.
    """

    def __init__(
        self, *, tps_per_unit: float, account_tps: float, control_tps: float, seconds_per_megapixel: float = 0.0
    ) -> None:
        self._tps_per_unit = tps_per_unit
        self._tokens_per_pixel = seconds_per_megapixel * tps_per_unit / 1e6
        self._account_tps = account_tps
        self._control_tps = control_tps
        self._buckets: dict[tuple[str, ...], TokenBucket] = {}

    def admit_call(self, operation: str, *, account: str, region: str, now: float) -> None:
        """Count a call of `operation` against its quota.

        Raises:
            ApiError: ProvisionedThroughputExceededException if the quota is exceeded.
        """
        rate = self._account_tps if operation == "DetectCustomLabels" else self._control_tps
        self._take((account, region, operation), rate=rate, now=now)

    def admit_inference(self, version_arn: str, *, units: int, now: float) -> None:
        """Count an image against the capacity of a model with `units` inference units.

        Raises:
            ApiError: ProvisionedThroughputExceededException if the capacity is exceeded.
        """
        self._take((version_arn,), rate=self._tps_per_unit * units, now=now)

    @property
    def depends_on_pixels(self) -> bool:
        """Whether larger images take more of a model's capacity."""
        return self._tokens_per_pixel > 0

    def charge_pixels(self, version_arn: str, pixels: int) -> float:
        """Charge an admitted image for its size; returns by how many images of no size it exceeds one."""
        tokens = pixels * self._tokens_per_pixel
        self._buckets[version_arn,].charge(tokens)
        return tokens

    def _take(self, key: tuple[str, ...], *, rate: float, now: float) -> None:
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(rate, now=now)
        if not bucket.take(now=now, rate=rate):
            raise ApiError("ProvisionedThroughputExceededException", "Provisioned Rate exceeded")


_P99: Final = 2.3263478740408408
"""The 99th percentile of the standard normal distribution."""


class Latency:
    """Random latencies with a log-normal distribution; the same sequence for the same seed.

    Args:
        median_s: in seconds; 0 for no latency.
        p99_s: the 99th percentile, in seconds. If it is not above the median, every latency is the median.
        seed: of the random numbers.
    """

    def __init__(self, *, median_s: float, p99_s: float, seed: int) -> None:
        self._median_s = median_s
        self._sigma = math.log(p99_s / median_s) / _P99 if median_s > 0 and p99_s > median_s else 0.0
        self._random = random.Random(f"latency {seed}")

    def draw(self) -> float:
        """The next latency, in seconds."""
        if not self._sigma:
            return self._median_s
        return self._median_s * math.exp(self._random.gauss(0.0, self._sigma))


_BUSY: Final = 0.9
_IDLE: Final = 0.6


class AutoScaler:
    """Adjusts the inference units of a running model to its load. Has no clock: `now` is passed, in seconds.

    Args:
        min_units: MinInferenceUnits; the initial number.
        max_units: MaxInferenceUnits.
        tps_per_unit: calls per second and unit.
        period_s: length of the periods whose load decides about each step.
        now: when the model became RUNNING.
    """

    __slots__ = ("_max_units", "_min_units", "_offered", "_period_s", "_start", "_tps_per_unit", "units")

    def __init__(self, *, min_units: int, max_units: int, tps_per_unit: float, period_s: float, now: float) -> None:
        self._min_units, self._max_units = min_units, max_units
        self._tps_per_unit, self._period_s = tps_per_unit, period_s
        self._start = now
        self._offered = 0.0
        self.units = min_units

    def offer(self, tokens: float = 1.0) -> None:
        """Count a call, admitted or not, or what an admitted call costs in addition."""
        self._offered += tokens

    def advance(self, now: float) -> list[tuple[float, int]]:
        """The changes up to `now`, each as (time, units).

        A unit is added after a period with a load above 90 % of the capacity, and removed after one with a load below
        60 % of the capacity without that unit.
        """
        changes: list[tuple[float, int]] = []
        while now - self._start >= self._period_s:
            self._start += self._period_s
            load_units = self._offered / self._period_s / self._tps_per_unit
            self._offered = 0.0
            if load_units > _BUSY * self.units and self.units < self._max_units:
                self.units += 1
            elif load_units < _IDLE * (self.units - 1) and self.units > self._min_units:
                self.units -= 1
            else:
                if load_units == 0:  # later periods have no load either and change nothing: skip them
                    self._start += (now - self._start) // self._period_s * self._period_s
                continue
            changes.append((self._start, self.units))
        return changes
