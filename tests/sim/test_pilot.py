"""`batchcl pilot`: a sample of a run is scored first, the run scores the rest, and no image is scored twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import anyio
import pytest

from batchcl.errors import BatchclError, CallError, ImageError, StoppedError
from batchcl.images import ImageRef
from batchcl.job import Job
from batchcl.runs.layout import RunPaths
from batchcl.runs.record import read_record, read_summary
from batchcl.runs.sample import draw_sample
from batchcl.runs.status import read_run_state
from batchcl.runs.worklist import WorkList
from batchcl.scoring.pilot import Pilot, read_pilot
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary
from sim.fake_world import MODEL, RUN, FakeWorld, FaultInjector, FaultKind, OperationKind, run_simulation, utcnow
from sim.service import Service, image
from sim.test_faults import inject_everywhere
from sim.test_left_model import WorldWithModel

IMAGES = 60
SAMPLE = 12


def world(count: int = IMAGES, **more: Any) -> WorldWithModel:
    settings: dict[str, Any] = {"shard_size": 10} | more
    return WorldWithModel([image(n) for n in range(count)], Service(latency_s=lambda _: 1.0), page=7, **settings)


def text_file(n: int) -> ImageRef:
    return ImageRef(uri=f"s3://b/{n:06}.txt", bucket="b", key=f"{n:06}.txt", size_bytes=1000)


async def sampled(world: FakeWorld, images: int = SAMPLE) -> set[str]:
    """The images of the sample, by the frozen list."""
    worklist = WorkList(world.store(), RunPaths(world.run_id))
    await worklist.open()
    sample = await draw_sample(worklist, images=images, seed=world.run_id, fit=False)
    found: set[str] = set()
    async for shard in sample.shards():
        table = await worklist.load(shard)
        found.update(table["uri"][at].as_py() for at in sample.positions(shard, table, table))
    return found


async def report(world: FakeWorld, images: int = SAMPLE) -> Pilot:
    record = await read_record(world.store(), world.run_id)
    assert record is not None
    job = Job(sources="x", model=MODEL, out="memory", start_model=2)
    return await read_pilot(job, world.store(), record, images=images, is_free=False, observer=world.observer)


async def piloted(world: FakeWorld, images: int = SAMPLE) -> Summary:
    end = await world.pilot(images)
    assert isinstance(end, Summary), repr(end)
    return end


def test_the_run_scores_what_the_pilot_has_left():
    async def main() -> None:
        both = world()
        end = await piloted(both)
        assert (end.status, end.planned, end.scored, end.calls) == ("stopped", IMAGES, SAMPLE, SAMPLE)
        assert set(both.service.calls) == await sampled(both)
        assert both.status == "STOPPED"
        state = await read_run_state(both.store(), RUN, now=utcnow())
        assert state is not None
        assert (state.state, state.published, state.left, state.resumable) == ("stopped", SAMPLE, 48, True)
        rest = await both.run()
        assert isinstance(rest, Summary)
        both.assert_exactly_once(rest)
        assert set(both.service.calls.values()) == {1}
        assert (rest.calls, len(rest.sessions), both.models.calls.count("start cats@v1")) == (IMAGES, 2, 2)

    run_simulation(main)


def test_a_repeated_pilot_calls_nothing_and_a_larger_one_adds_to_the_sample():
    async def main() -> None:
        both = world()
        await piloted(both)
        first = set(both.service.calls)
        again = await piloted(both)
        assert (again.scored, again.calls, set(both.service.calls)) == (SAMPLE, SAMPLE, first)
        assert both.models.calls.count("start cats@v1") == 1
        larger = await piloted(both, 2 * SAMPLE)
        assert (larger.scored, first < set(both.service.calls)) == (2 * SAMPLE, True)
        both.assert_exactly_once(await both.run_to_end())
        assert set(both.service.calls.values()) == {1}

    run_simulation(main)


def test_the_sample_is_spread_over_the_list_and_depends_on_the_run_id():
    async def main() -> set[str]:
        spread = world(800, shard_size=100)
        await piloted(spread, 100)
        numbers = sorted(int(uri[-10:-4]) for uri in spread.service.calls)
        assert all(sum(begin <= n < begin + 200 for n in numbers) >= 12 for begin in range(0, 800, 200))
        other = world(800, shard_size=100, run_id="other")
        await piloted(other, 100)
        assert set(other.service.calls) != set(spread.service.calls)
        return set(spread.service.calls)

    assert run_simulation(main) == run_simulation(main)


def test_a_pilot_of_more_images_than_there_are_completes_the_run():
    async def main() -> None:
        small = world(8)
        end = await piloted(small)
        small.assert_exactly_once(end)
        done = await piloted(small)
        assert (done.status, done.calls, (await report(small)).is_done) == ("done", 8, True)

    run_simulation(main)


def test_images_that_need_no_call_are_left_to_the_run():
    async def main() -> None:
        mixed = world()
        mixed.images = [image(n) if n % 3 else text_file(n) for n in range(IMAGES)]
        end = await piloted(mixed, 20)
        assert (end.scored, end.skipped) == (20, 0)
        found = await report(mixed, 20)
        assert found.left == 40
        assert 14 <= found.calls_left <= 26, "20 in fact"
        mixed.assert_exactly_once(await mixed.run_to_end())

    run_simulation(main)


@pytest.mark.parametrize(
    ("kind", "then"),
    [
        pytest.param(FaultKind.ERROR_BEFORE, "pilot", id="error-pilot"),
        pytest.param(FaultKind.CRASH_BEFORE, "pilot", id="crash-pilot"),
        pytest.param(FaultKind.CRASH_AFTER, "run", id="crash-run"),
    ],
)
def test_a_pilot_that_broke_off_is_resumed(kind, then):
    def scene(n: int) -> bool:
        async def main() -> bool:
            both, faults = world(24, shard_size=8), FaultInjector(OperationKind.STORE, n, kind)
            await both.pilot(6, faults)
            kept = {uri: both.service.calls[uri] for uri in both.journalled()}
            if then == "pilot":
                await anyio.sleep(60)
                end = await piloted(both, 6)
                assert (end.status, end.scored) == ("stopped", 6)
                assert set(both.service.calls) == await sampled(both, 6), "the same sample"
            both.assert_exactly_once(await both.run_to_end())
            assert both.status == "STOPPED"
            assert kept == {uri: both.service.calls[uri] for uri in kept}, "no image with an outcome is called again"
            return faults.fired

        return run_simulation(main)

    assert inject_everywhere(scene, step=8) > 3


def test_an_interrupted_pilot_keeps_its_outcomes():
    async def main() -> None:
        both = world(stop_signal=StopSignal(), max_in_flight=2)
        ends: list[Summary | BatchclError | None] = []

        async def pilot() -> None:
            ends.append(await both.pilot(SAMPLE))

        async with anyio.create_task_group() as group:
            group.start_soon(pilot)
            await anyio.sleep(4)
            assert both.stop_signal is not None
            both.stop_signal.request("ended by SIGTERM", limit_s=25)
        (end,) = ends
        assert isinstance(end, StoppedError)
        assert end.summary is not None
        assert 2 <= end.summary.scored < SAMPLE
        both.stop_signal = None
        assert (await piloted(both)).scored == SAMPLE
        both.assert_exactly_once(await both.run_to_end())
        assert set(both.service.calls.values()) == {1}

    run_simulation(main)


def test_a_run_that_stops_after_a_pilot_counts_all_that_was_scored():
    async def main() -> None:
        both = world(stop_signal=StopSignal(), max_in_flight=1)
        await piloted(both)

        async def interrupt() -> None:
            await anyio.sleep(5)
            assert both.stop_signal is not None
            both.stop_signal.request("ended by SIGTERM", limit_s=25)

        async with anyio.create_task_group() as group:
            group.start_soon(interrupt)
            end = await both.run()
        assert isinstance(end, StoppedError)
        assert end.summary is not None
        assert end.summary.scored == len(both.table()) > SAMPLE
        stored = await read_summary(both.store(), RUN)
        assert stored is not None
        assert stored.scored == end.summary.scored

    run_simulation(main)


def test_a_pilot_of_an_incremental_run_skips_what_is_known():
    async def main() -> None:
        versions = [replace(image(n), etag=f'"{n}"') for n in range(IMAGES)]
        both = world(incremental=True, run_id="monday")
        both.images = versions[:20]
        await both.run_to_end()
        both = replace(both, images=versions, run_id=RUN)
        end = await piloted(both)
        assert (end.scored, end.already_scored, end.planned) == (SAMPLE, 20, 40)
        other = replace(both, run_id="tuesday", images=versions[:40])
        await other.run_to_end()
        assert set(other.service.calls.values()) == {1}, "it skips what the pilot has scored"
        rest = await both.run_to_end()
        assert set(both.service.calls.values()) == {1}
        assert rest.status == "done"
        assert len(both.table()) == IMAGES

    run_simulation(main)


def test_images_that_failed_in_the_pilot_are_retried_like_others():
    def once(_: ImageRef, call: int, _now: float) -> CallError | None:
        return ImageError("bad", code="SomethingNew", status=400) if call == 1 else None

    async def main() -> None:
        both = world(12)
        both.service = Service(fault=once)
        end = await piloted(both, 5)
        assert (end.failed, end.retryable) == (5, None)
        done = await both.run_to_end()
        assert (done.failed, done.retryable) == (12, 12)
        both.assert_exactly_once(await both.retry_to_end())
        assert set(both.service.calls.values()) == {2}

    run_simulation(main)


def test_the_report_has_the_rate_its_interval_and_estimates():
    async def main() -> None:
        both = world(1000, shard_size=500)
        both.service = Service(tps=lambda _: 4.0, latency_s=lambda _: 0.3)
        both.models.start_s = 120.0
        await piloted(both, 300)
        found = await report(both, 300)
        assert found.rate is not None
        assert (found.rate.images, found.rate.units, found.rate.is_lower_bound) == (300, "1", False)
        assert found.rate.tps_low < 4.0 < found.rate.tps_high
        assert found.rate.tps_high - found.rate.tps_low < 1.0
        assert (found.left, found.calls_left) == (700, 700)
        assert found.start_s == pytest.approx(120, abs=3)
        one, two, *_, five = found.estimates
        assert [each.units for each in found.estimates] == [1, 2, 3, 4, 5]
        assert (two.is_requested, one.is_requested) == (True, False)
        assert one.billed_s_low < 700 / 4.0 < one.billed_s_high
        assert five.images_per_second == pytest.approx(5 * one.images_per_second)
        assert five.dollars_low < 700 / 20 * 20 / 3600 < five.dollars_high
        assert found.ends_at(one) - found.read_at > found.ends_at(five) - found.read_at
        assert found.cost_usd is not None
        rest = await both.run_to_end()
        assert rest.cost_usd is not None
        assert one.dollars_low <= rest.cost_usd - found.cost_usd <= one.dollars_high

    run_simulation(main)


def test_a_model_that_was_running_has_no_cost():
    async def main() -> None:
        both = world(units=None)
        both.models.statuses["cats@v1"] = "RUNNING"
        await piloted(both)
        found = await report(both)
        assert (found.cost_usd, both.status) == (None, "RUNNING")
        assert found.rate is not None

    run_simulation(main)
