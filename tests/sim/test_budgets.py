"""`--max-cost` and `--monthly-budget` hold by the service's meter: within 1 % or one minute of the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest

from batchcl.errors import ExitCode, RefusedError, StoppedError
from batchcl.summary import Summary
from fake_rekognition import Models, arn_of
from observers import RecordingObserver
from sim.billed_world import NAME, BilledWorld, Suspension, minute_usd
from sim.fake_world import FaultInjector, FaultKind, OperationKind, run_simulation
from sim.service import Service, image

MONTH_END_S = 10 * 24 * 3600.0
"""The simulated clock begins on the 21st of November."""


def night(*, images: int = 2000, **more: Any) -> BilledWorld:
    """A run of an hour or so, at 2 units."""
    service = Service(latency_s=lambda _: 10.0, tps=lambda _: 2.0)
    return BilledWorld([image(n) for n in range(images)], service, page=500, shard_size=500, **more)


def starts(world: BilledWorld) -> int:
    return world.models.calls.count(f"start {world.name}")


def assert_held(spent_usd: float, budget_usd: float, *, units: int = 2) -> None:
    """The budget was used, and not exceeded by more than is promised."""
    tolerance = max(0.01 * budget_usd, minute_usd(units))
    assert budget_usd - tolerance <= spent_usd <= budget_usd + tolerance


async def play(*worlds: tuple[BilledWorld, float]) -> list[object]:
    """Run worlds at once, each from its time on; returns how each ended."""
    ends: list[object] = [None] * len(worlds)

    async def one(number: int, world: BilledWorld, begin_s: float) -> None:
        await anyio.sleep(begin_s)
        ends[number] = await world.run()

    async with anyio.create_task_group() as group:
        for number, (world, begin_s) in enumerate(worlds):
            group.start_soon(one, number, world, begin_s)
    return ends


def test_max_cost_ends_the_run_and_refuses_to_continue() -> None:
    async def main() -> None:
        world = night(max_cost=1.0)
        end = await world.run()
        assert isinstance(end, StoppedError)
        assert "--max-cost is $1.00" in str(end)
        assert world.status in {"STOPPED", "STOPPING"}
        assert_held(world.metered_usd(), 1.0)
        await anyio.sleep(100)
        again = await world.run()
        assert isinstance(again, RefusedError)
        assert again.exit_code is ExitCode.REFUSED
        assert "the start of the model is refused: the model has cost $1.0" in str(again)
        assert starts(world) == 1
        world.max_cost = 2.0
        assert isinstance(await world.run(), StoppedError)
        assert_held(world.metered_usd(), 2.0)

    run_simulation(main)


def test_max_cost_includes_killed_sessions_and_the_time_after_them() -> None:
    async def main() -> None:
        world = night(max_cost=1.5)
        assert await world.run(FaultInjector(OperationKind.CALL, 250, FaultKind.CRASH_BEFORE)) is None
        await anyio.sleep(120)
        before = world.metered_usd()
        assert 0.4 < before < 1.2
        assert isinstance(await world.run(), StoppedError)
        assert_held(world.metered_usd(), 1.5)

    run_simulation(main)


def test_a_left_model_that_has_used_up_the_budget_is_stopped_at_once() -> None:
    async def main() -> None:
        world = night(max_cost=1.0)
        assert await world.run(FaultInjector(OperationKind.CALL, 200, FaultKind.CRASH_BEFORE)) is None
        await anyio.sleep(2 * 3600)
        before, calls = world.metered_usd(), sum(world.service.calls.values())
        end = await world.run()
        assert isinstance(end, RefusedError)
        assert "scoring with the model that an earlier session has left is refused" in str(end)
        assert sum(world.service.calls.values()) == calls
        assert world.status in {"STOPPED", "STOPPING"}
        assert world.metered_usd() - before < minute_usd(2)

    run_simulation(main)


def test_max_cost_over_a_restart_of_the_model() -> None:
    async def main() -> None:
        world = night(max_cost=1.2)
        async with anyio.create_task_group() as group:

            async def stop_it() -> None:
                await anyio.sleep(600)
                await world.stop_by_hand()

            group.start_soon(stop_it)
            assert isinstance(await world.run(), StoppedError)
        assert starts(world) == 2
        assert_held(world.metered_usd(), 1.2)

    run_simulation(main)


def test_a_budget_used_up_by_others_prevents_a_restart() -> None:
    """The model was stopped from outside, and meanwhile another run has used up the month."""

    async def main() -> None:
        world = night(monthly_budget=2.0)
        other = replace(night(images=700), name="dogs@v1", run_id="other", models=world.models, files=world.files)
        world.models.statuses["dogs@v1"] = "STOPPED"
        halted = False
        held = Suspension()

        async def first() -> None:
            nonlocal halted
            end = await world.run(held)
            assert isinstance(end, StoppedError)
            assert "--monthly-budget is $2.00" in str(end)
            halted = True

        async with anyio.create_task_group() as group:
            group.start_soon(first)
            await anyio.sleep(600)
            await world.stop_by_hand()
            held.suspend()
            assert isinstance(await other.run(), Summary)
            held.resume()
        assert halted
        assert starts(world) == 1

    run_simulation(main)


def test_a_monthly_budget_counts_earlier_runs() -> None:
    async def main() -> None:
        first = night(images=400, monthly_budget=2.0)
        assert isinstance(await first.run(), Summary)
        spent = first.metered_usd()
        assert 0.5 < spent < 1.5
        await anyio.sleep(24 * 3600)
        second = replace(night(monthly_budget=2.0), run_id="second", models=first.models, files=first.files)
        end = await second.run()
        assert isinstance(end, StoppedError)
        assert "have cost $2.0" in str(end)
        assert_held(first.metered_usd(), 2.0)
        await anyio.sleep(3600)
        third = replace(second, run_id="third")
        refused = await third.run()
        assert isinstance(refused, RefusedError)
        assert "wait for the next month" in str(refused)
        assert starts(third) == 2

    run_simulation(main)


def test_a_monthly_budget_holds_for_runs_at_the_same_time() -> None:
    async def main() -> None:
        names = ["cats@v1", "dogs@v1", "owls@v1"]
        models = Models(dict.fromkeys(names, "STOPPED"), start_s=400.0, stop_s=60.0)
        files: dict[str, bytes] = {}
        worlds = [
            replace(night(monthly_budget=3.0), run_id=name[:4], name=name, models=models, files=files) for name in names
        ]
        ends = await play(*((world, 77.0 * number) for number, world in enumerate(worlds)))
        assert all(isinstance(end, StoppedError) for end in ends)
        assert_held(worlds[0].metered_usd(), 3.0, units=6)

    run_simulation(main)


def test_each_month_has_its_own_budget() -> None:
    """A run over midnight costs more than the budget, but less in each month."""

    async def main() -> None:
        world = night(images=600, monthly_budget=1.6)
        summary = await world.run()
        assert isinstance(summary, Summary)
        assert all(0.3 < dollars < 1.6 for dollars in summary.cost_by_month.values())
        assert world.metered_usd() > 1.6

    run_simulation(main, start_s=MONTH_END_S - 400 - 300)


def test_a_budget_that_is_used_up_ends_at_midnight() -> None:
    async def main() -> None:
        first = night(monthly_budget=0.5)
        assert isinstance(await first.run(), StoppedError)
        assert first.metered_usd() == pytest.approx(0.5, abs=minute_usd(2))
        assert isinstance(await first.run(), RefusedError)
        before = first.metered_usd()
        await anyio.sleep(MONTH_END_S - anyio.current_time())
        second = replace(first, run_id="second")
        assert isinstance(await second.run(), StoppedError)
        assert_held(first.metered_usd() - before, 0.5)

    run_simulation(main, start_s=MONTH_END_S - 3600)


def test_a_shared_model_counts_for_the_run_that_started_it() -> None:
    async def main() -> None:
        first = night(monthly_budget=1.0)
        observer = RecordingObserver()
        second = replace(
            night(images=600, monthly_budget=1.0, max_cost=0.1, observer=observer),
            run_id="second",
            models=first.models,
            files=first.files,
        )
        begun, shared = await play((first, 0.0), (second, 500.0))
        assert isinstance(begun, StoppedError)
        assert begun.summary is not None
        assert begun.summary.cost_usd is not None
        assert_held(begun.summary.cost_usd, 1.0)
        assert isinstance(shared, Summary), "it has started nothing"
        assert "budget-unused" in [notice.kind for notice in observer.notices]
        assert (shared.cost_usd or 0.0) > 0.5, "what the model has cost after the first run has left it"
        third = replace(night(), run_id="third", models=first.models, files=first.files)
        third.monthly_budget = begun.summary.cost_usd + 0.5 * (shared.cost_usd or 0.0)
        assert isinstance(await third.run(), RefusedError)

    run_simulation(main)


@pytest.mark.parametrize("budget", ["max_cost", "monthly_budget"])
def test_a_model_that_others_started_is_used_with_a_notice(budget: str) -> None:
    async def main() -> None:
        observer = RecordingObserver()
        world = night(images=50, observer=observer, **{budget: 0.000001})
        await world.models.start_project_version(ProjectVersionArn=arn_of(NAME), MinInferenceUnits=1)
        await anyio.sleep(500)
        assert isinstance(await world.run(), Summary)
        assert "budget-unused" in [notice.kind for notice in observer.notices]

    run_simulation(main)
