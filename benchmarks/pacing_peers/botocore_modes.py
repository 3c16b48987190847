"""botocore's retry modes on virtual time: its own classes, given our clock, and asked as its endpoint asks them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, Final, Protocol

import botocore.session
from botocore.exceptions import CapacityNotAvailableError
from botocore.retries import adaptive, bucket, quota, standard, throttling
from botocore.retryhandler import create_retry_handler
from botocore.translate import build_retry_config

from pacing_peers.workers import Call
from pacing_peers.world import Loop

__all__ = ["Adaptive", "Legacy", "Standard"]

_CODE: Final = "ProvisionedThroughputExceededException"
_ENDPOINT_PREFIX: Final = "rekognition"


@dataclass(frozen=True, slots=True)
class _Http:
    status_code: int


_SESSION: Final = botocore.session.get_session()
_OPERATION: Final = _SESSION.get_service_model("rekognition").operation_model("DetectCustomLabels")


def _event(call: Call, status: int) -> dict[str, Any]:
    """What botocore's endpoint tells its retry handlers of an answer."""
    parsed: dict[str, Any] = {"ResponseMetadata": {"HTTPStatusCode": status}}
    if status >= 400:
        parsed["Error"] = {"Code": _CODE, "Message": "Provisioned Rate exceeded"}
    return {
        "response": (_Http(status), parsed),
        "attempts": call.attempts,
        "operation": _OPERATION,
        "caught_exception": None,
        "request_dict": {"context": call.context},
    }


class _Handler(Protocol):
    def __call__(self, **event: Any) -> float | None: ...


class Standard:
    """`retries={"mode": "standard"}`: 3 attempts, exponential backoff with jitter, and the retry quota of 500."""

    def __init__(self, rng: random.Random) -> None:
        self._quota = standard.RetryQuotaChecker(quota.RetryQuota())
        self._handler = standard.RetryHandler(
            retry_policy=standard.RetryPolicy(
                retry_checker=standard.StandardRetryConditions(),
                retry_backoff=standard.ExponentialBackoff(random=rng.random),
            ),
            retry_event_adapter=standard.RetryEventAdapter(),
            retry_quota=self._quota,
        )

    def wait_s(self) -> float:
        """Send at once."""
        return 0.0

    def answered(self, call: Call) -> None:
        """Give the quota back."""
        self._quota.release_retry_quota(call.context, _Http(200))

    def refused(self, call: Call) -> float | None:
        """Ask the handler."""
        delay_s: float | None = self._handler.needs_retry(**_event(call, 400))
        return delay_s


class _Clock:
    """Virtual time in the shape of botocore's clock."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def current_time(self) -> float:
        return self._loop.now


class Adaptive(Standard):
    """`retries={"mode": "adaptive"}`: standard, and a client-side rate by CUBIC once something was refused."""

    def __init__(self, rng: random.Random, loop: Loop) -> None:
        super().__init__(rng)
        clock = _Clock(loop)
        self._bucket = bucket.TokenBucket(max_rate=1, clock=clock)
        self._limiter = adaptive.ClientRateLimiter(
            rate_adjustor=throttling.CubicCalculator(starting_max_rate=0, start_time=clock.current_time()),
            rate_clocker=adaptive.RateClocker(clock),
            token_bucket=self._bucket,
            throttling_detector=standard.ThrottlingErrorDetector(retry_event_adapter=standard.RetryEventAdapter()),
            clock=clock,
        )

    def wait_s(self) -> float:
        """Take a token; its own acquire would block a thread, so this says how long that would be."""
        if not self._limiter._enabled:
            return 0.0
        try:
            self._bucket.acquire(block=False)
        except CapacityNotAvailableError:
            return max(1e-6, float(self._bucket._sleep_amount(1)))
        return 0.0

    def answered(self, call: Call) -> None:
        """Let the rate grow."""
        self._limiter.on_receiving_response(**_event(call, 200))
        super().answered(call)

    def refused(self, call: Call) -> float | None:
        """Let the rate fall."""
        self._limiter.on_receiving_response(**_event(call, 400))
        return super().refused(call)


class Legacy:
    """The default: 5 attempts, exponential backoff with jitter, no quota. It draws from the global random source."""

    def __init__(self, rng: random.Random) -> None:
        random.seed(rng.random())
        data = _SESSION.get_component("data_loader").load_data("_retry")
        config = build_retry_config(_ENDPOINT_PREFIX, data["retry"], data["definitions"])
        self._handler: _Handler = create_retry_handler(config, _ENDPOINT_PREFIX)

    def wait_s(self) -> float:
        """Send at once."""
        return 0.0

    def answered(self, call: Call) -> None:
        """Nothing to keep."""

    def refused(self, call: Call) -> float | None:
        """Ask the handler."""
        return self._handler(**_event(call, 400))
