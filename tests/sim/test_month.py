"""A month in virtual time: what `plan` estimates, what budgets allow, what runs record, and what the service bills.

Thirty nights in one output root, with two models and images of different sizes. One night is killed and repeated, one
is throttled, one exceeds its `--max-cost`, and the last one meets the monthly budget. Nights are scaled down to some
minutes; `BATCHCL_MONTH_SCALE=10` makes them ten times as long. To see the tables: `pytest -s tests/sim/test_month.py`
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from typing import Final

import anyio
import pytest

from batchcl.arns import ModelArn
from batchcl.errors import BatchclError, RefusedError, StoppedError
from batchcl.images import ImageRef
from batchcl.lifetime.manager import ModelManager
from batchcl.quantities import AutoUnits, Units
from batchcl.scoring.auto_units import read_measurements
from batchcl.scoring.estimates import Estimate, Limits, choose
from batchcl.scoring.plan import ContentCounter
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary
from fake_rekognition import arn_of
from sim.fake_world import FaultInjector, FaultKind, OperationKind, run_simulation, utcnow
from sim.service import Service, image
from sim.test_left_model import UnreachableModels, WorldWithModel

SCALE: Final = int(os.environ.get("BATCHCL_MONTH_SCALE", "1"))
DAY_S: Final = 24 * 3600.0
DECEMBER_S: Final = 10 * DAY_S
"""The first of December on the simulation's clock."""

USD_PER_UNIT_S: Final = 4.0 / 3600
LIMITS: Final = Limits(max_tps=None, account_tps=50.0, unit_hour_usd=4.0)
DESCRIBED_EVERY_S: Final = 3.0
"""How exactly a run knows when its model became RUNNING."""

BIRDS: Final = "birds@v1"
PARTS: Final = "parts@v3"
TPS_PER_UNIT: Final = {BIRDS: 2.8, PARTS: 1.9}
SECONDS_PER_MEGAPIXEL: Final = 0.02
MEGAPIXELS: Final = (0.8, 2.0, 5.0, 8.0, 12.0)

NIGHTS: Final = 30
KILLED: Final = 10
THROTTLED: Final = 16
CAPPED: Final = 22
LAST: Final = NIGHTS

MIN_IMAGES: Final = 30 * SCALE
WINDOW_S: Final = 200.0 * SCALE
"""Runs are started this long before their deadline."""

PAUSE_S: Final = 300.0 * SCALE
"""The killed run is repeated after this time."""


def megapixels(each: ImageRef) -> float:
    return random.Random(each.key).choice(MEGAPIXELS)


@dataclass(frozen=True, kw_only=True)
class Night:
    """The images of one model that arrived on a day."""

    number: int
    model: str
    images: tuple[ImageRef, ...]

    @property
    def is_plain(self) -> bool:
        """Whether nothing unforeseen happens."""
        return self.number not in {KILLED, THROTTLED, CAPPED, LAST}


@cache
def nights() -> tuple[Night, ...]:
    """Every third night is of the second model; one in ten images has the content of another one."""
    rng, found = random.Random(30), []
    for number in range(1, NIGHTS + 1):
        count = SCALE * rng.choice((6, 12, 60, 80, 100, 125, 210))
        if number in {1, 3} or number >= LAST - 2 or number in {KILLED, THROTTLED, CAPPED}:
            count = SCALE * 120
        images = tuple(
            replace(image(number * 10_000 + n), etag=f'"{number}-{n - 1 if n % 10 == 1 else n}"') for n in range(count)
        )
        found.append(Night(number=number, model=BIRDS if number % 3 else PARTS, images=images))
    return tuple(found)


@dataclass
class Root(WorldWithModel):
    """The output root of the month, with both models."""

    start_model: Units | AutoUnits = field(default_factory=AutoUnits)

    def model_manager(self, faults: FaultInjector) -> ModelManager:
        self.models.faults = faults
        return ModelManager(
            self.models,
            ModelArn.parse(self.model),
            units=self.start_model,
            keep=self.keep,
            observer=self.observer,
            stop_signal=StopSignal(),
            utcnow=utcnow,
        )


@dataclass(kw_only=True)
class Row:
    """A night in the tables; `budget_usd` is what the run was allowed to cost."""

    night: Night
    end: Summary | BatchclError | None = None
    estimate: Estimate | None = None
    repeated_usd: float = 0.0
    budget_usd: float | None = None
    recorded_usd: float = 0.0
    metered_unit_s: float = 0.0

    @property
    def summary(self) -> Summary | None:
        return self.end.summary if isinstance(self.end, BatchclError) else self.end

    @property
    def images(self) -> int:
        return 0 if self.summary is None else sum(each.images for each in self.summary.sessions)

    @property
    def units(self) -> int:
        return 1 if self.estimate is None else self.estimate.units

    @property
    def metered_usd(self) -> float:
        return self.metered_unit_s * USD_PER_UNIT_S

    def __str__(self) -> str:
        how = "stopped" if self.summary is None else self.summary.status
        event = {KILLED: " (killed once)", THROTTLED: " (throttled)", CAPPED: " (--max-cost)", LAST: " (month's budget)"}
        estimated = 0.0 if self.estimate is None else self.estimate.dollars
        budget = "" if self.budget_usd is None else f"{self.budget_usd:.4f}"
        off = [f"{each / self.metered_usd - 1:+.1%}" if self.metered_usd else "" for each in (estimated, self.recorded_usd)]
        return (
            f"{self.night.number:5} {self.night.model:8} {len(self.night.images):6,} {self.images:7,} {self.units:5}"
            f" {estimated:10.4f} {off[0]:>7} {budget:>8} {self.recorded_usd:9.4f} {off[1]:>7} {self.metered_usd:8.4f}"
            f"  {how}{event.get(self.night.number, '')}"
        )


@dataclass(kw_only=True)
class Month:
    """A simulated month.

    Attributes:
        start_model: `--start-model` of all runs.
        min_images: `--min-images`, with a `--max-wait` of a week.
    """

    start_model: Units | AutoUnits
    min_images: int | None
    rows: list[Row] = field(default_factory=list)
    _slow: float = 1.0

    @classmethod
    def simulated(cls, *, start_model: Units | AutoUnits, min_images: int | None) -> Month:
        month = cls(start_model=start_model, min_images=min_images)
        run_simulation(month._run, start_s=DECEMBER_S)
        return month

    @property
    def recorded_usd(self) -> float:
        return sum(row.recorded_usd for row in self.rows)

    @property
    def metered_usd(self) -> float:
        return sum(row.metered_usd for row in self.rows)

    @property
    def images(self) -> int:
        return sum(row.images for row in self.rows)

    @property
    def thousand_usd(self) -> float:
        """Dollars per 1,000 images, without the killed night."""
        rows = [row for row in self.rows if row.night.number != KILLED]
        return 1000 * sum(row.metered_usd for row in rows) / sum(row.images for row in rows)

    @property
    def starts(self) -> int:
        return sum(row.metered_unit_s > 0 for row in self.rows)

    @cached_property
    def models(self) -> UnreachableModels:
        return UnreachableModels({BIRDS: "STOPPED", PARTS: "STOPPED"}, stop_s=30.0)

    def _service(self, name: str) -> Service:
        tps = TPS_PER_UNIT[name]
        return Service(
            tps=lambda _: self._slow * tps * self.models.units[name],
            tokens=lambda each: 1 + SECONDS_PER_MEGAPIXEL * megapixels(each) * tps,
            latency_s=lambda rng: rng.uniform(0.4, 1.2),
        )

    async def _run(self) -> None:
        root = Root(
            [],
            Service(),
            models=self.models,
            shard_size=5000,
            page=1000,
            max_in_flight=32,
            start_model=self.start_model,
            incremental=True,
            min_images=self.min_images,
            max_wait=None if self.min_images is None else "7d",
            deadline="06:00",
        )
        services = {name: self._service(name) for name in TPS_PER_UNIT}
        starts = random.Random(12)
        for night in nights():
            begins_s = DECEMBER_S + (night.number - 0.75) * DAY_S - WINDOW_S
            await anyio.sleep(begins_s - anyio.current_time())
            self.models.start_s = SCALE * starts.uniform(40, 80)
            self._slow = 0.4 if night.number == THROTTLED else 1.0
            listed = [
                each
                for other in nights()
                if other.model == night.model and night.number - 8 < other.number <= night.number
                for each in other.images
            ]
            self.rows.append(
                await self._night(
                    replace(
                        root,
                        model=arn_of(night.model),
                        images=listed,
                        service=services[night.model],
                        run_id=f"2026-12-{night.number:02}",
                    ),
                    night,
                )
            )

    async def _night(self, world: Root, night: Night) -> Row:
        row = Row(night=night)
        before_unit_s = self.models.billed_unit_s()
        new = [each for each in world.images if not world.service.answered[each.uri]]
        row.estimate = await self._estimate(world, len(new))
        contents = ContentCounter()
        for each in new:
            contents.add(each)
        row.repeated_usd = contents.count()[1] * row.estimate.image_dollars
        if night.number == CAPPED:
            row.budget_usd = world.max_cost = 0.6 * row.estimate.dollars
        if night.number == LAST:
            row.budget_usd = 0.6 * row.estimate.dollars
            world.monthly_budget = self.recorded_usd + row.budget_usd
        if night.number == KILLED:
            assert await world.run(FaultInjector(OperationKind.CALL, 60 * SCALE, FaultKind.CRASH_BEFORE)) is None
            await anyio.sleep(PAUSE_S)
            world.deadline = None
        row.end = await world.run()
        row.recorded_usd = 0.0 if row.summary is None else row.summary.cost_usd or 0.0
        row.metered_unit_s = self.models.billed_unit_s() - before_unit_s
        if night.number == LAST:
            again = await replace(world, run_id="another").run()
            assert isinstance(again, RefusedError), again
            assert "the model was not started: the runs of memory have cost" in str(again)
            assert self.models.billed_unit_s() - before_unit_s == row.metered_unit_s
        return row

    async def _estimate(self, world: Root, calls: int) -> Estimate:
        """What `batchcl plan` says of the night."""
        measurements = await read_measurements(world.store(), world.model, observer=world.observer)
        if isinstance(self.start_model, Units):
            return measurements.estimate(calls, self.start_model, limits=LIMITS)
        return choose(measurements, calls, left_s=WINDOW_S, highest=self.start_model.highest, limits=LIMITS)

    def __str__(self) -> str:
        header = (
            "night model    images  scored units  estimated             budget  recorded           metered\n"
        )
        sums = f"{'sum':14} {'':6} {self.images:7,} {'':5} {'':10} {'':7} {'':8} {self.recorded_usd:9.4f} {'':7} {self.metered_usd:8.4f}"
        return header + "\n".join(map(str, self.rows)) + "\n" + sums


def learned(rows: list[Row]) -> list[Row]:
    """Rows after the first night of their model."""
    seen: set[str] = set()
    found = []
    for row in rows:
        if row.night.model in seen and row.images:
            found.append(row)
        seen.add(row.night.model)
    return found


def test_x():
    import time
    for start, few in ((AutoUnits(5), MIN_IMAGES), (AutoUnits(5), None), (Units(1), MIN_IMAGES), (Units(5), MIN_IMAGES)):
        t=time.process_time()
        m = Month.simulated(start_model=start, min_images=few)
        print(); print(m, m.thousand_usd, m.starts, sum(r.repeated_usd for r in m.rows if r.images))
        print("cpu", time.process_time()-t)
