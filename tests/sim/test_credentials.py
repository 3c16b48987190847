"""Credentials that are lost during a run: it waits for five minutes, then ends resumably."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import anyio
import pytest

from batchcl.arns import ModelArn
from batchcl.aws.credentials import CredentialCache, call_error
from batchcl.aws.detect import Detector
from batchcl.errors import BatchclError, CredentialsError, ExitCode
from batchcl.images import ImageRef
from batchcl.lifetime.lease_tags import lease_key
from batchcl.lifetime.manager import ModelManager
from batchcl.lifetime.model_lease import ModelLease
from batchcl.outcomes import Detection
from batchcl.quantities import Units
from batchcl.scoring.session import RunContext
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary
from fake_rekognition import Models, arn_of, now
from keys import cache_of
from observers import RecordingObserver
from sim.fake_world import FakeWorld, FaultInjector, run_simulation
from sim.service import Service, image

T = TypeVar("T")

NAME = "cats@v1"
ARN = ModelArn.parse(arn_of(NAME))
HOLDER = "run night in memory"
GONE_AT_S = 20.0
"""During scoring, at one image per second."""


@dataclass
class SignedModels(Models):
    """A control plane that waits for credentials like aioboto3's clients."""

    sign: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint

    async def _do(self, operation: str, name: str, effect: Callable[[], T]) -> T:
        await self.sign()
        return await super()._do(operation, name, effect)


@dataclass
class SignedWorld(FakeWorld):
    """A world whose credentials expire and whose provider then fails."""

    gone_s: float = 0.0
    gone_at_s: float = GONE_AT_S
    models: SignedModels = field(default_factory=lambda: SignedModels({NAME: "STOPPED"}))
    listener: RecordingObserver = field(default_factory=RecordingObserver)

    def __post_init__(self) -> None:
        self.cache: CredentialCache = cache_of(self._look_up)
        self.models.sign = partial(self.cache.retry_while_failing, self.sign)

    @property
    def is_gone(self) -> bool:
        return self.gone_at_s <= anyio.current_time() < self.gone_at_s + self.gone_s

    def _look_up(self) -> str:
        if self.is_gone:
            raise RuntimeError("token expired")
        return "KEY"

    async def sign(self) -> None:
        keys = await self.cache.current()
        if self.is_gone:
            await self.cache.renew(keys)

    @asynccontextmanager
    async def detector(self) -> AsyncIterator[Detector]:
        yield self

    async def detect(self, each: ImageRef) -> Detection:
        try:
            await self.sign()
        except CredentialsError as error:
            raise call_error(error) from error
        return await self.service.detect(each)

    def model_manager(self, faults: FaultInjector) -> ModelManager:
        lease = ModelLease(self.models, ARN, key=lease_key(HOLDER), holder=HOLDER, length_s=900.0, now=now)
        return ModelManager(
            self.models, ARN, units=Units(1), keep=False, lease=lease, observer=self.listener, stop_signal=StopSignal()
        )

    def _context(self, faults: FaultInjector, service: Detector, ends_at: float) -> RunContext:
        return replace(super()._context(faults, service, ends_at), observer=self.listener)


def night(
    gone_s: float, *, images: int = 60, gone_at_s: float = GONE_AT_S, start_s: float = 0.0
) -> tuple[Any, SignedWorld, float]:
    """Run without credentials for `gone_s`; returns the end, the world and the time."""

    async def main() -> tuple[Summary | BatchclError | None, SignedWorld, float]:
        service = Service(latency_s=lambda _: 1.0)
        world = SignedWorld(
            images=[image(n) for n in range(images)],
            service=service,
            max_in_flight=1,
            gone_s=gone_s,
            gone_at_s=gone_at_s,
            models=SignedModels({NAME: "STOPPED"}, start_s=start_s),
        )
        end = await world.run()
        return end, world, anyio.current_time()

    return run_simulation(main)


@pytest.mark.parametrize("images", [24, 60])
def test_five_minutes_without_credentials_cost_time_and_no_image(images: int) -> None:
    """Also if so few images are left that their attempts would be exhausted earlier."""
    end, world, now_s = night(290.0, images=images)
    assert isinstance(end, Summary)
    assert (end.scored, end.failed, end.status) == (images, 0, "done")
    assert {row["attempts"] for row in world.rows()} == {1}
    assert now_s < GONE_AT_S + 290 + images + 60
    assert world.models.status(NAME) == "STOPPED"
    (paused,) = {notice.text for notice in world.listener.notices if notice.kind == "paused"}
    assert "loading the AWS credentials of profile no profile with credential_process failed: token expired" in paused


def test_after_five_minutes_without_credentials_the_run_ends() -> None:
    end, world, now_s = night(400.0)
    assert isinstance(end, BatchclError)
    assert end.exit_code is ExitCode.STOPPED
    assert str(end).startswith("no valid AWS credentials for 5 minutes: loading the AWS credentials of profile ")
    assert str(end).endswith("; the model is stopped")
    assert end.summary is not None
    assert 10 < end.summary.scored < 30
    assert end.summary.failed == 0
    assert now_s < GONE_AT_S + 400 + 60
    assert world.models.status(NAME) == "STOPPED"
    assert "cats@v1 is stopped; its billing has ended" in world.listener.notices[-1].text


def test_a_run_waiting_for_its_model_ends_without_credentials() -> None:
    end, _, now_s = night(1e9, gone_at_s=10.0, start_s=60.0)
    assert isinstance(end, BatchclError)
    assert end.exit_code is ExitCode.STOPPED
    assert "the model cats@v1 is still STARTING, so it could not be stopped and will be RUNNING" in str(end)
    assert "token expired" in str(end)
    assert "it is stopped by the same command or by `batchcl model reap` after " in str(end)
    assert 310 < now_s < 660


def test_without_credentials_the_error_says_who_stops_the_model() -> None:
    end, world, _ = night(1e9)
    assert isinstance(end, BatchclError)
    assert end.exit_code is ExitCode.STOPPED
    assert world.models.status(NAME) == "RUNNING"
    assert "the model cats@v1 could not be stopped and may be RUNNING, which costs $4.00 per unit and hour" in str(end)
    assert "loading the AWS credentials of profile no profile with credential_process failed: token expired" in str(end)
    assert "it is stopped by the same command or by `batchcl model reap` after 2026-11-21T00:1" in str(end)
    assert "network" not in str(end)
