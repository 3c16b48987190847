"""A month in virtual time: what `plan` estimates, what budgets allow, what runs record, and what the service bills.

Thirty nights in one output root, with two models and images of different sizes. One night is killed and repeated, one
is throttled, one exceeds its `--max-cost`, and the last one meets the monthly budget. Nights are scaled down to some
minutes; `BATCHCL_MONTH_SCALE=10` makes them ten times as long. To see the tables: `pytest -s tests/sim/test_month.py`
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from statistics import median
from typing import Any, Final

import anyio
import pytest

from batchcl.arns import ModelArn
from batchcl.errors import BatchclError, RefusedError, StoppedError
from batchcl.images import ImageRef
from batchcl.lifetime.manager import ModelManager
from batchcl.lifetime.reaper import reap
from batchcl.quantities import MAX_UNITS, AutoUnits, Units
from batchcl.scoring.auto_units import read_measurements
from batchcl.scoring.estimates import Estimate, Limits, choose
from batchcl.scoring.plan import ContentCounter
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary
from fake_rekognition import Models, arn_of, now
from sim.billed_world import LEASE_S, BilledWorld
from sim.fake_world import FaultInjector, FaultKind, OperationKind, run_simulation, utcnow
from sim.service import Service, image
from sim.test_left_model import UnreachableModels, WorldWithModel

SCALE: Final = int(os.environ.get("BATCHCL_MONTH_SCALE", "1"))
DAY_S: Final = 24 * 3600.0
DECEMBER_S: Final = 10 * DAY_S
"""The first of December on the simulation's clock."""

USD_PER_UNIT_S: Final = 4.0 / 3600
LIMITS: Final = Limits(max_tps=None, account_tps=50.0, unit_hour_usd=4.0)
BIRDS: Final = "birds@v1"
PARTS: Final = "parts@v3"
TPS_PER_UNIT: Final = {BIRDS: 2.8, PARTS: 1.9}
SECONDS_PER_MEGAPIXEL: Final = 0.02
MEGAPIXELS: Final = (0.8, 2.0, 5.0, 8.0, 12.0)

NIGHTS: Final = 30
FIRST_OF_BIRDS: Final = 1
FIRST_OF_PARTS: Final = 3
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
    def is_learned(self) -> bool:
        """Whether the model was measured before."""
        return self.number not in {FIRST_OF_BIRDS, FIRST_OF_PARTS}

    @property
    def event(self) -> str:
        """What is unforeseen."""
        events = {
            KILLED: f"killed, repeated after {PAUSE_S / 60:.0f} minutes",
            THROTTLED: "throttled until the deadline",
            CAPPED: "--max-cost reached",
            LAST: "--monthly-budget reached",
        }
        return events.get(self.number, "" if self.is_learned else "first night")


@cache
def nights() -> tuple[Night, ...]:
    """Every third night is of the second model; one in ten images has the content of another one."""
    rng, found = random.Random(30), []
    for number in range(1, NIGHTS + 1):
        count = SCALE * rng.choice((6, 12, 60, 80, 100, 125, 210))
        if number in {FIRST_OF_BIRDS, FIRST_OF_PARTS}:
            count = SCALE * 250
        elif number in {KILLED, THROTTLED, CAPPED, LAST}:
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

    @property
    def tolerance_usd(self) -> float:
        """How exactly a run knows when its model became RUNNING: half the time between two descriptions, rounded up."""
        return 2.0 * self.units * USD_PER_UNIT_S

    def __str__(self) -> str:
        how = "stopped" if self.summary is None else self.summary.status
        estimated = 0.0 if self.estimate is None else self.estimate.dollars
        budget = "" if self.budget_usd is None else f"{self.budget_usd:.4f}"
        return (
            f"{self.night.number:5} {self.night.model:8} {len(self.night.images):6,} {self.images:6,} {self.units:5} "
            f"{estimated:9.4f} {self._off(estimated):>6} {budget:>7} {self.recorded_usd:8.4f} "
            f"{self._off(self.recorded_usd):>6} {self.metered_usd:8.4f} {how:9} {self.night.event}"
        ).rstrip()

    def _off(self, dollars: float) -> str:
        return f"{dollars / self.metered_usd - 1:+.1%}" if self.metered_usd else ""


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
    def killed_usd(self) -> float:
        """The night that was killed and repeated."""
        return self.rows[KILLED - 1].metered_usd

    @property
    def start_unit_s(self) -> float:
        """Median of the billed unit-seconds of a run in which no call is made."""
        uses = ("start", "idle", "tail", "stop")
        return median(
            row.units * sum(session.billed_s.get(use, 0.0) for use in uses)
            for row in self.rows
            if row.summary is not None and row.night.number != KILLED
            for session in row.summary.sessions
        )

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
        """Estimate and run a night; the first one of a model has one unit and no deadline."""
        row = Row(night=night)
        if not night.is_learned:
            world.start_model, world.deadline = Units(1), None
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
            assert "the runs of memory have cost" in str(again)
            assert self.models.billed_unit_s() - before_unit_s == row.metered_unit_s
        return row

    async def _estimate(self, world: Root, calls: int) -> Estimate:
        """What `batchcl plan` says of the night."""
        measurements = await read_measurements(world.store(), world.model, observer=world.observer)
        if isinstance(world.start_model, Units):
            return measurements.estimate(calls, world.start_model, limits=LIMITS)
        return choose(measurements, calls, left_s=WINDOW_S, highest=MAX_UNITS, limits=LIMITS)

    def __str__(self) -> str:
        header = "night model    images scored units estimated    off  budget recorded    off  metered"
        sums = f"{'sum':20} {self.images:8,} {'':30} {self.recorded_usd:8.4f} {'':6} {self.metered_usd:8.4f}"
        return "\n".join([header, *map(str, self.rows), sums])


@cache
def month(start_model: Units | AutoUnits, min_images: int | None) -> Month:
    return Month.simulated(start_model=start_model, min_images=min_images)


def best() -> Month:
    """The month with `--start-model auto` and `--min-images`."""
    return month(AutoUnits(), MIN_IMAGES)


def test_what_is_recorded_is_what_the_service_bills():
    rows = best().rows
    print(f"\n{best()}")
    assert best().recorded_usd == pytest.approx(best().metered_usd, rel=0.01)
    for row in rows:
        assert row.recorded_usd == pytest.approx(row.metered_usd, rel=0.01, abs=row.tolerance_usd), row


def test_estimates_are_right_from_the_second_night_of_a_model_on():
    """Unless what can't be foreseen happens; the night after it is right again."""
    rows = [row for row in best().rows if row.night.is_learned and row.images and not row.night.event]
    assert len(rows) > 15
    for row in rows:
        assert row.estimate is not None
        assert row.estimate.dollars == pytest.approx(row.metered_usd, rel=0.1, abs=row.tolerance_usd), row
    total_usd = sum(row.estimate.dollars for row in rows if row.estimate is not None)
    assert total_usd == pytest.approx(sum(row.metered_usd for row in rows), rel=0.05)


def test_no_run_and_no_month_costs_more_than_its_budget():
    for row in best().rows:
        if row.budget_usd is not None:
            minute_usd = 60 * row.units * USD_PER_UNIT_S
            assert 0.9 * row.budget_usd < row.metered_usd < row.budget_usd + max(0.01 * row.budget_usd, minute_usd), row
            assert isinstance(row.end, StoppedError)


def test_measures_with_and_without():
    """An image costs the same with any number of units; a start does not, nor the time in which a run is dead."""
    plain = month(Units(MAX_UNITS), None)
    rows = [("--start-model 5", plain), ("--start-model auto --min-images", best())]
    if "BATCHCL_MONTH_SCALE" in os.environ:
        rows[1:1] = [
            ("--start-model 1", month(Units(1), None)),
            ("--start-model auto", month(AutoUnits(), None)),
            ("--start-model 5 --min-images", month(Units(MAX_UNITS), MIN_IMAGES)),
        ]
    header = "starts images $/1,000 images killed night unit-seconds without calls"
    print(f"\n{'':32} {header}")
    for name, each in rows:
        costs = f"{each.thousand_usd:14.4f} {each.killed_usd:12.4f} {each.start_unit_s:26.1f}"
        print(f"{name:32} {each.starts:6} {each.images:6,} {costs}")
    repeated_usd = sum(row.repeated_usd for row in best().rows if row.images)
    print(f"identical content: {repeated_usd:.4f} of {best().metered_usd:.4f} dollars; it is scored nevertheless")
    assert best().starts < plain.starts
    assert best().thousand_usd < 1.01 * plain.thousand_usd
    assert best().killed_usd < plain.killed_usd / 3
    assert best().start_unit_s < plain.start_unit_s / 2
    assert 0.05 < repeated_usd / best().metered_usd < 0.15


# --- single measures ------------------------------------------------------------------------------------------------


def tagged(count: int) -> list[ImageRef]:
    return [replace(image(n), etag=f'"{n}"') for n in range(count)]


def rooted(**more: Any) -> BilledWorld:
    """A root whose model scores 2.8 images per second and unit."""
    models = Models({"cats@v1": "STOPPED"}, start_s=300.0, stop_s=30.0)
    service = Service(tps=lambda _: 2.8 * models.units["cats@v1"], latency_s=lambda rng: rng.uniform(0.4, 1.2))
    world = BilledWorld([], service, models=models, page=1000, shard_size=1000, max_in_flight=32)
    changes: dict[str, Any] = {"model": arn_of("cats@v1"), "units": Units(1)} | more
    return replace(world, **changes)


async def metered_usd(world: BilledWorld, act: Callable[[], Awaitable[object]]) -> float:
    """What the service bills for `act` and the hour after it."""
    before_usd = world.metered_usd()
    await act()
    await anyio.sleep(3600)
    return world.metered_usd() - before_usd


def test_incremental_runs_pay_for_new_images_only():
    async def main() -> tuple[float, float]:
        world = rooted(images=tagged(150), incremental=True)
        await world.run()
        grown = replace(world, images=tagged(165), run_id="second")
        some_usd = await metered_usd(grown, grown.run)
        again = replace(grown, incremental=False, run_id="third")
        return some_usd, await metered_usd(again, again.run)

    some_usd, all_usd = run_simulation(main)
    print(f"\n15 new images of 165: ${all_usd:.3f} without --incremental, ${some_usd:.3f} with it")
    assert some_usd < 0.2 * all_usd


def test_a_small_job_costs_less_with_fewer_units():
    async def main() -> list[float]:
        costs = []
        for units in range(1, MAX_UNITS + 1):
            world = rooted(images=tagged(30), units=Units(units), run_id=f"with {units}")
            costs.append(await metered_usd(world, world.run))
        return costs

    costs = run_simulation(main)
    print("\n30 images with 1 to 5 units: " + ", ".join(f"${usd:.3f}" for usd in costs))
    assert 2 * costs[0] < costs[-1]


def test_what_stops_the_model_of_a_killed_run_bounds_the_bill():
    """The run is killed after 30 of 60 images, and the rest of them costs the same in all cases."""

    async def killed_usd(repeat_s: float, *, reap_every_s: float | None = None) -> float:
        world = rooted(images=tagged(60))

        async def act() -> None:
            assert await world.run(FaultInjector(OperationKind.CALL, 30, FaultKind.CRASH_BEFORE)) is None
            ends_s = anyio.current_time() + repeat_s
            while reap_every_s is not None and anyio.current_time() + reap_every_s < ends_s:
                await anyio.sleep(reap_every_s)
                await reap(world.models, now=now)
            await anyio.sleep(ends_s - anyio.current_time())
            assert isinstance(await world.run(), Summary)

        return await metered_usd(world, act)

    never, reaped, repeated = (
        run_simulation(partial(killed_usd, DAY_S)),
        run_simulation(partial(killed_usd, DAY_S, reap_every_s=600.0)),
        run_simulation(partial(killed_usd, 300.0)),
    )
    print(
        f"\na killed run with 1 unit: ${never:.2f} if the command is repeated the next night, ${reaped:.2f} with "
        f"`model reap` every 10 minutes and a lease of {LEASE_S / 60:.0f}, ${repeated:.2f} if it is repeated at once"
    )
    assert never == pytest.approx(24 * 4.0, rel=0.02)
    assert reaped < (LEASE_S + 600 + 240) * USD_PER_UNIT_S
    assert repeated < 600 * USD_PER_UNIT_S
