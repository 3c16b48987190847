"""What sessions record as billed is what the service has billed: within 1 %, and each second once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest

from batchcl.errors import BatchclError, StoppedError, TransientError
from batchcl.lifetime.reaper import reap
from batchcl.quantities import Units
from batchcl.runs.record import read_sessions, read_summary
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary
from fake_rekognition import Models, arn_of, now
from sim.billed_world import LEASE_S, NAME, BilledWorld, Suspension
from sim.fake_world import EPOCH, RUN, FaultInjector, FaultKind, OperationKind, run_simulation
from sim.service import Service, image

DAY_S = 24 * 3600.0


def night(*, images: int = 180, tps: float = 5.0, latency_s: float = 20.0, **more: Any) -> BilledWorld:
    """A run that scores for some minutes."""
    service = Service(latency_s=lambda _: latency_s, tps=lambda _: tps)
    return BilledWorld([image(n) for n in range(images)], service, page=90, shard_size=90, **more)


async def assert_billed(world: BilledWorld, *, within: float = 0.01) -> None:
    """The model is down, and the records have the dollars of the service's meter."""
    assert world.status in {"STOPPED", "STOPPING"}
    assert world.metered_usd() > 0.1
    assert await world.recorded_usd() == pytest.approx(world.metered_usd(), rel=within)


def test_a_plain_run() -> None:
    async def main() -> None:
        world = night()
        summary = await world.run()
        assert isinstance(summary, Summary)
        await assert_billed(world)
        assert summary.cost_usd == pytest.approx(sum(summary.cost_by_month.values()))
        assert sum(summary.billed_s.values()) * 2 == pytest.approx(world.models.billed_unit_s(), rel=0.01)
        (session,) = summary.sessions
        assert session.units == "2"
        assert session.start_s == pytest.approx(400, abs=2)
        used = summary.billed_s
        assert used["scoring"] > 0.9 * sum(used.values())
        assert used["start"] <= 3
        assert used["stop"] <= 3

    run_simulation(main)


def test_throttled_and_last_seconds_have_their_own_use() -> None:
    async def main() -> None:
        world = night(images=60, tps=2.0, latency_s=40.0)
        summary = await world.run()
        assert isinstance(summary, Summary)
        await assert_billed(world)
        assert summary.billed_s["throttled"] > 1
        assert summary.billed_s["tail"] > 20

    run_simulation(main)


def test_a_wait_for_the_capacity_of_a_slow_model_is_scoring() -> None:
    """Not idle: between two calls there is more than a second without one."""

    async def main() -> None:
        summary = await night(images=40, tps=0.4, latency_s=0.5).run()
        assert isinstance(summary, Summary)
        assert summary.billed_s.get("idle", 0.0) < 2
        assert summary.billed_s["scoring"] + summary.billed_s["throttled"] > 0.9 * sum(summary.billed_s.values())

    run_simulation(main)


@pytest.mark.parametrize("pause_s", [0.0, DAY_S])
def test_a_crash_and_a_resume(pause_s: float) -> None:
    """The time in which nobody worked on the run is idle."""

    async def main() -> None:
        world = night()
        assert await world.run(FaultInjector(OperationKind.CALL, 60, FaultKind.CRASH_BEFORE)) is None
        await anyio.sleep(pause_s)
        summary = await world.run()
        assert isinstance(summary, Summary)
        await assert_billed(world)
        assert summary.billed_s["idle"] >= pause_s
        _, second = summary.sessions
        assert second.billed_s["scoring"] > 100

    run_simulation(main)


def test_a_crash_while_the_model_starts() -> None:
    """It is unknown when the model became RUNNING: the time since the last heartbeat counts."""

    async def main() -> None:
        world = night()
        faults = FaultInjector(OperationKind.MODEL, 40, FaultKind.CRASH_BEFORE)
        assert await world.run(faults) is None
        assert world.status == "STARTING"
        await anyio.sleep(12 * 3600)
        assert isinstance(await world.run(), Summary)
        await assert_billed(world)

    run_simulation(main)


def test_a_crash_before_the_next_session_counts() -> None:
    """The second session dies before it has looked at the model: the third one counts since the first."""

    async def main() -> None:
        world = night()
        assert await world.run(FaultInjector(OperationKind.CALL, 60, FaultKind.CRASH_BEFORE)) is None
        await anyio.sleep(600)
        assert await world.run(FaultInjector(OperationKind.MODEL, 1, FaultKind.CRASH_BEFORE)) is None
        assert len(await read_sessions(world.store(), RUN)) == 2
        await anyio.sleep(600)
        assert isinstance(await world.run(), Summary)
        await assert_billed(world)

    run_simulation(main)


def test_a_session_that_starts_no_model_leaves_the_bill_to_the_next() -> None:
    async def main() -> None:
        world = night()
        assert await world.run(FaultInjector(OperationKind.CALL, 60, FaultKind.CRASH_BEFORE)) is None
        await anyio.sleep(600)
        world.units = None
        assert await world.run(FaultInjector(OperationKind.CALL, 20, FaultKind.CRASH_BEFORE)) is None
        await anyio.sleep(600)
        world.units = Units(2)
        assert isinstance(await world.run(), Summary)
        await assert_billed(world)

    run_simulation(main)


def test_a_session_with_nothing_to_score_counts_the_left_model() -> None:
    async def main() -> None:
        world = night(images=3)
        world.models.errors["stop"] = OSError("no route")
        assert isinstance(await world.run(), StoppedError)
        assert world.status == "RUNNING"
        world.models.errors.clear()
        await anyio.sleep(1800)
        await world.run()
        await assert_billed(world)

    run_simulation(main)


@pytest.mark.parametrize("wakes_s", [200.0, 700.0])
def test_a_takeover_while_the_holder_is_suspended(wakes_s: float) -> None:
    """Whether the other process still works, has ended or has been billed for long: no second counts twice."""

    async def main() -> None:
        world, held = night(), Suspension()
        ends: list[object] = []

        async def first() -> None:
            ends.append(await world.run(held))

        async def second() -> None:
            await anyio.sleep(60)
            ends.append(await replace(world, service=Service(latency_s=lambda _: 20.0, tps=lambda _: 5.0)).run())

        async with anyio.create_task_group() as group:
            group.start_soon(first)
            await anyio.sleep(500)
            held.suspend()
            group.start_soon(second)
            await anyio.sleep(wakes_s)
            held.resume()
        assert len(ends) == 2
        assert any(isinstance(end, Summary) for end in ends)
        await assert_billed(world)
        sessions = [each.cost_usd or 0.0 for each in await read_sessions(world.store(), RUN)]
        assert all(sessions)
        assert sum(sessions) == pytest.approx(world.metered_usd(), rel=0.01)

    run_simulation(main)


def test_a_retry() -> None:
    async def main() -> None:
        world = night(images=90)
        failing = {each.uri for each in world.images[:5]}
        lost = TransientError("no", code="InternalServerError")
        world.service = Service(
            latency_s=lambda _: 20.0, fault=lambda each, n, _: lost if each.uri in failing and n <= 8 else None
        )
        first = await world.run()
        assert isinstance(first, Summary)
        assert first.failed
        await anyio.sleep(3600)
        second = await world.retry()
        assert isinstance(second, Summary)
        await assert_billed(world)
        assert second.cost_usd == pytest.approx(await world.recorded_usd())
        assert (second.cost_usd or 0.0) > (first.cost_usd or 0.0)

    run_simulation(main)


def test_a_model_that_is_stopped_by_others_and_restarted() -> None:
    async def main() -> None:
        world = night()

        async def stop_it() -> None:
            await anyio.sleep(600)
            await world.stop_by_hand()

        async with anyio.create_task_group() as group:
            group.start_soon(stop_it)
            summary = await world.run()
        assert isinstance(summary, Summary)
        assert [call for call in world.models.calls if call.startswith("start ")] == [f"start {NAME}"] * 2
        await assert_billed(world)

    run_simulation(main)


def test_midnight_at_the_end_of_a_month() -> None:
    async def main() -> None:
        world = night(images=400)
        summary = await world.run()
        assert isinstance(summary, Summary)
        await assert_billed(world)
        before, after = summary.cost_by_month["2026-11"], summary.cost_by_month["2026-12"]
        midnight_s = 10 * DAY_S
        began_s = midnight_s - 600 + 400
        assert before == pytest.approx((midnight_s - began_s) * 2 * 4 / 3600, rel=0.01)
        assert before + after == pytest.approx(world.metered_usd(), rel=0.01)

    run_simulation(main, start_s=10 * DAY_S - 600)
    assert (EPOCH.month, EPOCH.day) == (11, 21)


@pytest.mark.parametrize("second_units", [Units(1), None])
def test_two_runs_that_share_a_model(second_units: Units | None) -> None:
    """The run that started it pays until it leaves it, and then the run that stops it."""

    async def main() -> None:
        first = night(images=180)
        second = replace(night(images=450), run_id="other", models=first.models, files=first.files, units=second_units)

        async def late() -> None:
            await anyio.sleep(500)
            assert isinstance(await second.run(), Summary)

        async with anyio.create_task_group() as group:
            group.start_soon(late)
            assert isinstance(await first.run(), Summary)
            assert second.status == "RUNNING"
        assert [who for who, _ in first.models.stops] == ["run"]
        await assert_billed(first)
        costs = [(await read_summary(first.store(), run)).cost_usd for run in (RUN, "other")]  # type: ignore[union-attr]
        assert all(cost is not None and cost > 0.2 for cost in costs)

    run_simulation(main)


def test_a_model_that_others_started_costs_a_run_nothing() -> None:
    async def main() -> None:
        world = night()
        await world.models.start_project_version(ProjectVersionArn=arn_of(NAME), MinInferenceUnits=1)
        await anyio.sleep(500)
        summary = await world.run()
        assert isinstance(summary, Summary)
        assert (summary.cost_usd, summary.billed_s, summary.cost_by_month) == (None, {}, {})
        assert world.status == "RUNNING"

    run_simulation(main)


def test_a_kept_model_is_billed_to_the_run_until_its_end() -> None:
    async def main() -> None:
        world = night(keep=True)
        assert isinstance(await world.run(), Summary)
        metered = world.metered_usd()
        assert await world.recorded_usd() == pytest.approx(metered, rel=0.01)
        await anyio.sleep(3600)
        assert await world.recorded_usd() == pytest.approx(metered, rel=0.01)

    run_simulation(main)


def test_a_model_that_is_still_starting_when_the_run_ends() -> None:
    """It can be stopped only when it is RUNNING; those seconds are billed, too."""

    async def main() -> None:
        world = night()
        world.stop_signal = StopSignal()

        async def interrupt() -> None:
            await anyio.sleep(350)
            assert world.stop_signal is not None
            world.stop_signal.request("ended by SIGTERM")

        async with anyio.create_task_group() as group:
            group.start_soon(interrupt)
            end = await world.run()
        assert isinstance(end, BatchclError)
        assert world.status in {"STOPPED", "STOPPING"}
        assert world.models.billed_unit_s() > 0
        assert await world.recorded_usd() == pytest.approx(world.metered_usd(), abs=2 * 2 * 4 / 3600)

    run_simulation(main)


def test_a_reaped_model_is_billed_until_its_lease_expired() -> None:
    """The process was suspended, its lease expired, and the reaper stopped the model."""

    async def main() -> None:
        world, held = night(), Suspension()
        ends: list[object] = []

        async def run() -> None:
            ends.append(await world.run(held))

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await anyio.sleep(500)
            held.suspend()
            await anyio.sleep(LEASE_S + 30)
            reaper = Models(**vars(world.models))
            await reap(reaper, now=now)
            await anyio.sleep(3600)
            held.resume()
        assert len(ends) == 1
        assert world.status == "STOPPED"
        longest_s = (
            LEASE_S / 3 + 60
        )  # from the last renewal before the suspension until the reaper's stop, less a lease
        unknown_usd = world.metered_usd() - await world.recorded_usd()
        assert 0 <= unknown_usd <= longest_s * 2 * 4 / 3600

    run_simulation(main)
