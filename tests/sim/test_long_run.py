"""A night in virtual time: it meets every kind of fault, and ends with each image once.

For a night of 12 hours: `BATCHCL_SOAK_HOURS=24 pytest tests/sim/test_long_run.py`
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any, cast

import anyio
import pytest
from botocore.exceptions import ClientError

from batchcl.arns import ModelArn
from batchcl.aws.credentials import CredentialCache
from batchcl.aws.detect import Detector, open_detector
from batchcl.aws.session import Aws
from batchcl.choices import Transport
from batchcl.errors import (
    BatchclError,
    CallError,
    ImageError,
    ModelNotReadyError,
    OutputError,
    StoppedError,
    ThrottledError,
    TransientError,
    UnreachableError,
)
from batchcl.images import ImageRef
from batchcl.loaders.files import FileReader
from batchcl.summary import Summary
from keys import cache_of
from sim.fake_world import MODEL, FakeWorld, FaultInjector, run_simulation
from sim.service import Service, image

FILES = FileReader()

HOUR_S = 3600.0
CRON_S = 300.0
IS_LONG = "BATCHCL_SOAK_HOURS" in os.environ
BETWEEN_H = 2.0 if IS_LONG else 0.25
"""Hours without faults before each fault of the night."""

VALID_S = HOUR_S if IS_LONG else HOUR_S / 3
"""Credentials are valid for this long."""


class Session:
    """A session whose credentials expire and whose client is the fake service."""

    def __init__(self, world: AwsWorld) -> None:
        self._world = world
        self._keys = cache_of(self._look_up)

    def _look_up(self) -> str:
        self._world.look_ups += 1
        return str(anyio.current_time())

    def credentials_of(self, _service: str) -> CredentialCache:
        return self._keys

    @asynccontextmanager
    async def rekognition(self, **_options: object) -> AsyncIterator[Client]:
        yield Client(self._world, self._keys)


class Client:
    """Looks up credentials again when they are refused, like `Aws`."""

    def __init__(self, world: AwsWorld, keys: CredentialCache) -> None:
        self._world = world
        self._keys = keys

    async def detect_custom_labels(self, **request: Any) -> dict[str, Any]:
        keys = await self._keys.current()
        if anyio.current_time() > float(keys.access_key) + VALID_S:
            keys = await self._keys.renew(keys)
        assert anyio.current_time() <= float(keys.access_key) + VALID_S
        try:
            detection = await self._world.service.detect(self._world.by_key[request["Image"]["S3Object"]["Name"]])
        except CallError as error:
            raise _client_error(error.code, str(error), error.status or 500) from error
        labels = [{"Name": label.name, "Confidence": label.confidence} for label in detection.labels]
        return {"CustomLabels": labels, "ResponseMetadata": {"RequestId": detection.request_id}}


def _client_error(code: str, message: str, status: int) -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "DetectCustomLabels")


class AwsWorld(FakeWorld):
    """A world that is reached through the real detector."""

    look_ups = 0

    @cached_property
    def by_key(self) -> dict[str, ImageRef]:
        return {each.key: each for each in self.images}

    @asynccontextmanager
    async def detector(self) -> AsyncIterator[Detector]:
        session = cast("Aws", Session(self))
        async with open_detector(
            session, ModelArn.parse(MODEL), transport=Transport.AIOBOTO3, reader=FILES
        ) as detector:
            yield detector


async def cron(world: FakeWorld, failing: Callable[[], bool], *, until: float) -> tuple[Summary, list[BatchclError]]:
    """Start the run every five minutes until it is done; returns the summary and the errors before."""
    ends: list[BatchclError] = []
    while anyio.current_time() < until:
        end = await world.run(FaultInjector(failing=failing))
        if isinstance(end, Summary):
            return end, ends
        assert isinstance(end, StoppedError | OutputError | UnreachableError), f"a person has to act: {end!r}"
        ends.append(end)
        now = anyio.current_time()
        await anyio.sleep(CRON_S - now % CRON_S)
    raise AssertionError(f"not done at {until / HOUR_S} hours: {ends[-3:]}")


def test_a_night_with_every_fault_scores_each_image_once():
    count = 3_150 if IS_LONG else 500
    ends_at, outages = 0.0, []
    for length in (0.5, 1.0, 0.25, 1 / 6, 0.01):
        outages.append((ends_at + BETWEEN_H, ends_at + BETWEEN_H + length))
        ends_at = outages[-1][1]
    stopped, throttled, stopped_again, full, unavailable = outages

    def is_in(outage: tuple[float, float], now: float) -> bool:
        return outage[0] <= now / HOUR_S < outage[1]

    def fault(each: ImageRef, _call: int, now: float) -> CallError | None:
        if is_in(stopped, now) or is_in(stopped_again, now):
            return ModelNotReadyError("the model is not RUNNING", code="ResourceNotReadyException", status=400)
        if is_in(throttled, now):
            return ThrottledError(
                "Provisioned Rate exceeded", code="ProvisionedThroughputExceededException", status=400
            )
        if is_in(unavailable, now):
            return TransientError("Service Unavailable", code="ThrottlingException", status=500)
        if each.key.endswith("7.jpg") and each.key < "000500":
            return ImageError("larger than 4096 pixels", code="ImageTooLargeException", status=400)
        return None

    async def main() -> None:
        service = Service(fault=fault, latency_s=lambda rng: rng.uniform(16, 32))
        night = AwsWorld([image(n) for n in range(count)], service, shard_size=count // 3, page=1000, max_in_flight=2)
        summary, ends = await cron(night, lambda: is_in(full, anyio.current_time()), until=1.5 * ends_at * HOUR_S)
        night.assert_exactly_once(summary)
        assert summary.failed == 50
        assert ends_at * HOUR_S < anyio.current_time() < 1.3 * ends_at * HOUR_S
        stalled = [end for end in ends if "no image got an outcome for 15 minutes" in str(end)]
        assert len(stalled) == 3, "in the hour of throttling, with cron every five minutes"
        assert len(ends) == 3 + 2, "once when the store went away, once when cron came too early"
        assert all("503" in str(end) for end in ends if end not in stalled)
        assert night.look_ups >= ends_at * HOUR_S / VALID_S - len(ends)
        answered_twice = [uri for uri, times in service.answered.items() if times > 1]
        assert len(answered_twice) < 10, "what was not journalled when the store went away"

    run_simulation(main)


@pytest.mark.parametrize("seed", range(20 if IS_LONG else 2))
def test_a_run_completes_when_all_outages_are_over(seed):
    """Outages of any kind and length in the first hour; repeating the command completes the run."""
    rng = random.Random(seed)
    sorts = ["store", "model", "throttle", "transient"]
    outages = [(rng.choice(sorts), rng.uniform(0, 1), rng.expovariate(4)) for _ in range(rng.randint(2, 12))]

    def is_out(operation: str, now: float) -> bool:
        return any(
            operation == each and begin <= now / HOUR_S < min(1.5, begin + length) for each, begin, length in outages
        )

    def fault(_each: ImageRef, _call: int, now: float) -> CallError | None:
        if is_out("model", now):
            return ModelNotReadyError("the model is not RUNNING", code="ResourceNotReadyException", status=400)
        if is_out("throttle", now):
            return ThrottledError("Slow down", code="ThrottlingException", status=400, sudden=True)
        if is_out("transient", now):
            return TransientError("Internal error", code="InternalServerError", status=500)
        return None

    async def main() -> None:
        service = Service(fault=fault, latency_s=lambda each: each.uniform(20, 40), seed=seed)
        images = [image(n) for n in range(250)]
        night = AwsWorld(images, service, shard_size=50, page=100, max_in_flight=3)
        summary, _ = await cron(night, lambda: is_out("store", anyio.current_time()), until=4 * HOUR_S)
        night.assert_exactly_once(summary)
        assert summary.scored > 0

    run_simulation(main)
