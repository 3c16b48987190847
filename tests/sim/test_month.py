"""A month in virtual time: what `plan` estimates, what budgets allow, what runs record, and what the service bills.

Thirty nights of two models in one output root: images of different sizes and nights of different lengths, of which one
is killed and continued, one is throttled, one exceeds `--max-cost`, and the last one meets the monthly budget. To see
the tables: `pytest -s tests/sim/test_month.py`. `BATCHCL_MONTH_SCALE=10` makes the nights ten times as long.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Final

import anyio
import pytest

from batchcl.arns import ModelArn
from batchcl.errors import BatchclError, RefusedError, StoppedError
from batchcl.images import ImageRef
from batchcl.lifetime.manager import ModelManager
from batchcl.quantities import AutoUnits, Units
from batchcl.scoring.auto_units import read_measurements
from batchcl.scoring.estimates import Limits
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary
from fake_rekognition import arn_of
from sim.fake_world import EPOCH, FaultInjector, FaultKind, OperationKind, run_simulation, utcnow
from sim.service import Service, image
from sim.test_left_model import UnreachableModels, WorldWithModel

SCALE: Final = int(os.environ.get("BATCHCL_MONTH_SCALE", "1"))
HOUR_S: Final = 3600.0
DAY_S: Final = 24 * HOUR_S
BEGIN_S: Final = 10 * DAY_S
"""The first of December on the simulation's clock."""

UNIT_USD_PER_S: Final = 4.0 / 3600
LIMITS: Final = Limits(max_tps=None, account_tps=50.0, unit_hour_usd=4.0)

BIRDS: Final = "birds@v1"
PARTS: Final = "parts@v3"
TPS_PER_UNIT: Final = {BIRDS: 2.8, PARTS: 1.9}
SECONDS_PER_MEGAPIXEL: Final = 0.02
MEGAPIXELS: Final = (0.8, 2.0, 5.0, 8.0, 12.0)

FEW: Final = 60
"""A night with fewer images is small; it is postponed with `--min-images`."""

CRASHED: Final = 10
THROTTLED: Final = 16
CAPPED: Final = 22
NIGHTS: Final = range(1, 31)


def megapixels(each: ImageRef) -> float:
    return random.Random(each.key).choice(MEGAPIXELS)


@dataclass(frozen=True, kw_only=True)
class Night:
    """Images that are new in a night, of one model."""

    number: int
    model: str
    images: tuple[ImageRef, ...]


@cache
def nights() -> tuple[Night, ...]:
    """Every third night is of the second model; a fifth of the images has the content of an earlier one."""
    rng, found = random.Random(30), []
    for number in NIGHTS:
        count = rng.choice((12, 25, 120, 160, 200, 250, 420))
        if number in {1, 3, CRASHED, THROTTLED, CAPPED, 29, 30}:
            count = 240
        images = []
        for n in range(count * SCALE):
            each = image(number * 10_000 + n)
            content = n // 2 if n % 10 == 1 else n
            images.append(replace(each, etag=f'"{number}-{content}"'))
        found.append(Night(number=number, model=PARTS if number % 3 == 0 else BIRDS, images=tuple(images)))
    return tuple(found)


@dataclass
class Root(WorldWithModel):
    """The output root of the month, with both models."""

    start_model: Units | AutoUnits = Units(1)  # noqa: RUF009 - frozen

    def model_manager(self, faults: FaultInjector) -> ModelManager:
        self.models.faults = faults
        return ModelManager(
            self.models,
            ModelArn.parse(self.model),
            units=self.start_model,
            keep=False,
            observer=self.observer,
            stop_signal=StopSignal(),
            utcnow=utcnow,
        )


@dataclass(kw_only=True)
class Row:
    """A night in the tables."""

    night: Night
    images: int = 0
    units: str = ""
    estimated_usd: float = 0.0
    allowed_usd: float | None = None
    recorded_usd: float = 0.0
    metered_usd: float = 0.0
    metered_unit_s: float = 0.0
    ends: list[str] = field(default_factory=list)


@dataclass
class Month:
    """A simulated month."""

    rows: list[Row] = field(default_factory=list)

    @property
    def metered_usd(self) -> float:
        return sum(row.metered_usd for row in self.rows)
    @property
    def recorded_usd(self) -> float:
        return sum(row.recorded_usd for row in self.rows)


async def simulate(*, start_model: Units | AutoUnits, min_images: int | None, budget: float | None = None, which: Sequence[int] = NIGHTS) -> Month:
    models = UnreachableModels({BIRDS: "STOPPED", PARTS: "STOPPED"}, stop_s=30.0)
    rng = random.Random(12)
    slow = 1.0
    month = Month()
    files: dict[str, bytes] = {}

    def service(name: str) -> Service:
        return Service(
            tps=lambda _: slow * TPS_PER_UNIT[name] * models.units.get(name, 1),
            tokens=lambda each: 1 + SECONDS_PER_MEGAPIXEL * megapixels(each) * TPS_PER_UNIT[name],
            latency_s=lambda rng: rng.uniform(0.4, 1.2),
        )

    root = Root(
        [], Service(), files=files, models=models, shard_size=2000, page=1000, max_in_flight=32,
        start_model=start_model, incremental=True, min_images=min_images,
        max_wait=None if min_images is None else "3d", deadline="06:00", monthly_budget=budget,
    )
    services = {name: service(name) for name in TPS_PER_UNIT}
    for number in which:
        night = nights()[number - 1]
        await anyio.sleep(BEGIN_S + number * DAY_S - DAY_S + 6 * HOUR_S - 300 * SCALE - anyio.current_time())
        models.start_s = rng.uniform(60, 150) * SCALE
        row = Row(night=night)
        month.rows.append(row)
        # the list has the images of the last four days, as with --modified-within 4d
        listed = [each for other in nights() if other.model == night.model and number - 4 < other.number <= number for each in other.images]
        world = replace(root, model=arn_of(night.model), images=listed, service=services[night.model], run_id=f"2026-12-{number:02}")
        slow = 0.4 if number == THROTTLED else 1.0
        faults = FaultInjector(OperationKind.CALL, 100 * SCALE, FaultKind.CRASH_BEFORE) if number == CRASHED else FaultInjector()
        if number == CAPPED:
            world.max_cost = 0.08 * SCALE
            row.allowed_usd = world.max_cost
        before = models.billed_unit_s()
        measurements = await read_measurements(world.store(), world.model)
        end = await world.run(faults)
        if number == CRASHED:
            await anyio.sleep(600)
            end = await world.run()
        row.ends.append(getattr(end, "status", None) or type(end).__name__)
        summary = end if isinstance(end, Summary) else end.summary
        row.metered_unit_s = models.billed_unit_s() - before
        row.metered_usd = row.metered_unit_s * UNIT_USD_PER_S
        if summary is not None and summary.sessions:
            row.images = sum(s.images for s in summary.sessions)
            row.recorded_usd = summary.cost_usd or 0.0
            row.units = summary.sessions[-1].units or ""
            if row.units and row.images:
                row.estimated_usd = measurements.estimate(row.images, Units.parse(row.units), limits=LIMITS).dollars
        else:
            row.ends.append(str(end))
    return month


def show(month):
    print()
    for row in month.rows:
        off = row.estimated_usd / row.metered_usd - 1 if row.metered_usd else 0
        off2 = row.recorded_usd / row.metered_usd - 1 if row.metered_usd else 0
        print(f"{row.night.number:3} {row.night.model:9} {len(row.night.images):5} {row.images:5} {row.units:2} {row.estimated_usd:8.4f} {row.recorded_usd:8.4f} {row.metered_usd:8.4f} {off:7.1%} {off2:7.1%} {row.ends}")
    print(month.recorded_usd, month.metered_usd)

def test_month():
    import time
    for start, few in ((AutoUnits(5), FEW), (Units(1), None), (Units(5), None)):
        t=time.process_time()
        show(run_simulation(partial(simulate, start_model=start, min_images=few), start_s=BEGIN_S))
        print("cpu", time.process_time()-t)
