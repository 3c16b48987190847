"""Estimates against the service's meter: jobs in virtual time, after one night that was learned from."""

from __future__ import annotations

import math
import random
import sys
from dataclasses import dataclass, field

import anyio
import orjson
import pytest

from batchcl.arns import ModelArn
from batchcl.errors import BatchclError, StoppedError
from batchcl.events import Notice, Progress, SilentObserver
from batchcl.job import Job
from batchcl.lifetime.manager import ModelManager
from batchcl.quantities import AutoUnits, Units
from batchcl.scoring.auto_units import AutoUnitsChooser, read_measurements
from batchcl.scoring.estimates import Limits, Measurements
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary
from fake_rekognition import arn_of
from sim.fake_world import EPOCH, MODEL, FaultInjector, run_simulation, utcnow
from sim.service import Service, image
from sim.test_left_model import NAME, ONE, UnreachableModels, WorldWithModel

TPS_PER_UNIT = 3.4
LIMITS = Limits(max_tps=None, account_tps=50, unit_hour_usd=4.0)


class Notices(SilentObserver):
    def __init__(self) -> None:
        self.of_kind: dict[str, Notice] = {}

    def notice(self, notice: Notice) -> None:
        self.of_kind[notice.kind] = notice


@dataclass
class Nights(WorldWithModel):
    """An output root with one run per night; the model's capacity is `TPS_PER_UNIT` for each unit it runs with."""

    observer: Notices = field(default_factory=Notices)
    rng: random.Random = field(default_factory=lambda: random.Random(17))

    def model_manager(self, faults: FaultInjector) -> ModelManager:
        self.models.faults = faults
        return ModelManager(
            self.models,
            ModelArn.parse(arn_of(NAME)),
            units=self.units,
            keep=self.keep,
            observer=self.observer,
            stop_signal=StopSignal(),
            utcnow=utcnow,
        )

    async def session(
        self, images: int, units: Units | AutoUnits, *, name: str, deadline: str | None = None
    ) -> Summary | BatchclError | None:
        self.images, self.units, self.run_id, self.deadline = [image(n) for n in range(images)], units, name, deadline
        end = await self.run()
        await anyio.sleep(600)
        assert self.models.status(NAME) == "STOPPED"
        return end

    async def night(self, images: int, units: Units | AutoUnits, *, name: str, deadline: str | None = None) -> Summary:
        end = await self.session(images, units, name=name, deadline=deadline)
        assert isinstance(end, Summary), end
        assert end.scored == images
        return end

    async def measurements(self) -> Measurements:
        return await read_measurements(self.store(), self.model, observer=self.observer)


def nights() -> Nights:
    models = UnreachableModels({NAME: "STOPPED"}, start_s=300.0, stop_s=30.0)
    service = Service(
        tps=lambda _: TPS_PER_UNIT * models.units.get(NAME, 1), latency_s=lambda rng: rng.uniform(0.2, 0.5)
    )
    return Nights([], service, models=models, shard_size=500, page=500, max_in_flight=64)


def test_ten_jobs_cost_what_was_estimated_after_one_night():
    async def main() -> list[tuple[int, int, str, float, float, float | None]]:
        world, rows = nights(), []
        await world.night(1200, Units(2), name="learned")
        for number in range(10):
            images, units = round(250 * 1.14**number), 1 + number % 5
            estimate = (await world.measurements()).estimate(images, Units(units), limits=LIMITS)
            before, world.models.start_s = world.models.billed_unit_s(), world.rng.uniform(240, 480)
            end = await world.night(images, Units(units), name=f"{number:02}")
            rows.append(
                (
                    images,
                    units,
                    estimate.basis.value,
                    estimate.dollars,
                    (world.models.billed_unit_s() - before) * 4 / 3600,
                    end.cost_usd,
                )
            )
        return rows

    rows = run_simulation(main)
    table = [f"\n{'images':>7} {'units':>5}  {'rate':8} {'estimated':>9} {'meter':>9} {'recorded':>9} {'off':>7}"]
    for images, units, basis, estimated, billed, recorded in rows:
        off = estimated / billed - 1
        table.append(f"{images:7,} {units:5}  {basis:8} {estimated:8.4f}$ {billed:8.4f}$ {recorded:8.4f}$ {off:7.1%}")
    sys.stdout.write("\n".join(table) + "\n")
    for images, units, _, estimated, billed, _ in rows:
        assert estimated == pytest.approx(billed, rel=0.1), (images, units)


def test_more_units_cost_more_for_the_same_images():
    """The seconds without calls are paid for each unit, so `auto` takes as few as it can."""

    async def main() -> tuple[list[float], int]:
        world, unit_s = nights(), []
        world.models.start_s = 302.0  # RUNNING is noticed 1.5 s later, as on average
        for units in range(1, 6):
            for again in (False, True):
                before = world.models.billed_unit_s()
                await world.night(200, Units(units), name=f"{units} {again}")
            unit_s.append(world.models.billed_unit_s() - before)
        await world.night(200, AutoUnits(), name="auto")
        return unit_s, world.models.units[NAME]

    unit_s, chosen = run_simulation(main)
    sys.stdout.write(f"\nunit-seconds for 200 images with 1 to 5 units: {[round(each, 1) for each in unit_s]}\n")
    assert unit_s[4] > 1.02 * unit_s[0]
    assert chosen == 1


def test_auto_takes_the_fewest_units_that_meet_the_deadline():
    async def main() -> tuple[int, float, Notice]:
        world = nights()
        await world.night(500, Units(2), name="learned")
        began = anyio.current_time()
        end = await world.night(1500, AutoUnits(), name="auto", deadline="12m")
        assert (end.sessions[0].units, world.models.units[NAME]) == ("2", 2)
        return world.models.units[NAME], anyio.current_time() - began - 600, world.observer.of_kind["model-units"]

    units, took_s, notice = run_simulation(main)
    assert took_s < 12 * 60
    assert (units, notice.fields["basis"], notice.level) == (2, "measured", "info")
    assert notice.text.startswith("starting the model with 2 inference units: 1,500 images take about 3 min ")


def test_auto_begins_with_the_rate_that_was_learned_for_its_units():
    async def main() -> Notice:
        world = nights()
        await world.night(500, Units(1), name="learned")
        await world.night(500, AutoUnits(), name="auto")
        return world.observer.of_kind["pace"]

    assert run_simulation(main).fields["learned_tps"] == pytest.approx(TPS_PER_UNIT, rel=0.1)


def test_a_resumed_run_chooses_again_for_what_is_left():
    """The first deadline is too near for any number of units, so the run begins with the most."""

    async def main() -> None:
        world = nights()
        await world.night(500, Units(2), name="learned")
        end = await world.session(2500, AutoUnits(), name="auto", deadline="7m")
        assert isinstance(end, StoppedError)
        assert world.models.units[NAME] == 5
        notice = world.observer.of_kind["model-units"]
        assert (notice.level, "; the deadline of 7m may be missed by" in notice.text) == ("warning", True)
        assert end.summary is not None
        assert end.summary.scored > 1700
        await world.night(2500, AutoUnits(), name="auto", deadline="14m")
        assert world.models.units[NAME] == 1

    run_simulation(main)


def test_a_run_that_is_repeated_after_its_time_of_day_waits_for_the_next_night():
    """A scheduler repeats the command at once; it must not go on until the next day, nor start the model."""

    async def main() -> None:
        world, deadline = nights(), "00:10"
        assert isinstance(await world.session(1500, ONE, name="long", deadline=deadline), StoppedError)
        record = orjson.loads(world.files["runs/long/run.json"])
        world.files["runs/long/run.json"] = orjson.dumps(record | {"started_at": EPOCH})  # in virtual time
        starts = world.models.calls.count(f"start {NAME}")
        end = await world.session(1500, ONE, name="long", deadline=deadline)
        assert isinstance(end, StoppedError)
        assert str(end).startswith("the deadline of 00:10 has passed")
        assert world.models.calls.count(f"start {NAME}") == starts
        await anyio.sleep(20 * 3600)
        await world.night(1500, ONE, name="long", deadline=deadline)

    run_simulation(main)


@pytest.mark.parametrize(
    ("deadline", "advice"),
    [
        ("18m", "repeat the command with --start-model 3 to meet it (a stop and a start take about 5 min 1 s)"),
        ("13m", "more units can't meet it any more, but 5 units would end"),
    ],
)
def test_a_run_that_will_miss_its_deadline_says_what_would_help(deadline, advice):
    async def main() -> Notice:
        world = nights()
        await world.night(300, Units(1), name="learned")
        assert isinstance(await world.session(3000, Units(1), name="slow", deadline=deadline), StoppedError)
        return world.observer.of_kind["deadline-missed"]

    notice = run_simulation(main)
    assert notice.text.startswith("at 3.4 images/s with 1 inference unit the deadline of")
    assert advice in notice.text


@pytest.mark.parametrize(
    ("ends_at", "images", "highest", "chosen_after_s", "units"),
    [
        (math.inf, 10_000, 5, 0, 1),  # without a deadline the number of images does not matter
        (6 * 3600.0, 10_000, 5, 60, 1),
        (6 * 3600.0, 1_000_000, 3, 0, 3),
    ],
)
def test_auto_waits_for_the_list_unless_more_images_change_nothing(ends_at, images, highest, chosen_after_s, units):
    async def main() -> tuple[float, Units | None]:
        manager = ModelManager(
            None,
            ModelArn.parse(MODEL),
            units=AutoUnits(highest),
            keep=False,
            observer=SilentObserver(),
            stop_signal=StopSignal(),
        )
        progress = Progress()
        chooser = AutoUnitsChooser(
            job=Job(sources="x", out="x", model="m@1"),
            store=nights().store(),
            model_arn=MODEL,
            model_manager=manager,
            progress=progress,
            images_left=lambda: images,
            ends_at=ends_at,
            observer=SilentObserver(),
        )
        async with anyio.create_task_group() as group:
            group.start_soon(chooser.choose)
            await anyio.sleep(1)
            while manager.undecided is not None:
                await anyio.sleep(1)
                progress.listed = anyio.current_time() >= 60
        return anyio.current_time(), manager.units

    after_s, chosen = run_simulation(main)
    assert after_s == pytest.approx(max(1, chosen_after_s), abs=1.5)
    assert chosen == Units(units)
