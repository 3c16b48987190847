"""Calls, seconds and dollars of each session are recorded, and added up once in the summary."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from batchcl.errors import FatalCallError, StoppedError
from batchcl.runs.record import read_sessions, read_summary
from batchcl.summary import SessionRecord, Summary
from sim.fake_world import RUN, FakeWorld, FaultInjector, FaultKind, OperationKind, run_simulation
from sim.service import Service, image
from sim.test_left_model import world as world_with_model


def night(**more: object) -> FakeWorld:
    """A run of two minutes."""
    service = Service(latency_s=lambda _: 2.0)
    return FakeWorld([image(n) for n in range(120)], service, max_in_flight=2, **more)  # type: ignore[arg-type]


async def spent(world: FakeWorld) -> list[SessionRecord]:
    return await read_sessions(world.store(), world.run_id)


async def killed(world: FakeWorld) -> int:
    """Kill a session at its 40th call; returns the number of calls in its last heartbeat."""
    assert await world.run(FaultInjector(OperationKind.CALL, 40, FaultKind.CRASH_BEFORE)) is None
    (first,) = await spent(world)
    assert 20 <= first.calls <= 42
    assert 0 < first.images <= first.calls
    return first.calls


def test_a_killed_session_counts_up_to_its_last_heartbeat():
    async def main() -> None:
        world = night()
        calls = await killed(world)
        summary = await world.run_to_end()
        world.assert_exactly_once(summary)
        first, second = summary.sessions
        assert first.calls == calls
        assert (second.number, second.round, second.throttled) == (1, 0, 0)
        assert summary.calls == first.calls + second.calls
        assert summary.seconds == pytest.approx(first.seconds + second.seconds)
        assert summary.images_per_second == pytest.approx((first.images + second.images) / summary.seconds, abs=1e-3)
        assert await spent(world) == list(summary.sessions), "the files of the sessions say the same"

    run_simulation(main)


def test_recovery_by_another_run_adds_no_cost():
    async def main() -> None:
        world = night(incremental=True)
        calls = await killed(world)
        other = replace(world, run_id="other", images=world.images[:3])
        await other.run_to_end()
        assert [each.calls for each in await spent(world)] == [calls, 0], "the second session is the recovery"
        summary = await world.run_to_end()
        assert [each.calls for each in summary.sessions[:2]] == [calls, 0]
        assert (summary.calls, len(summary.sessions)) == (calls + summary.sessions[2].calls, 3)

    run_simulation(main)


def test_a_session_without_work_adds_no_cost():
    async def main() -> None:
        world = night()
        first = await world.run_to_end()
        assert await world.run() == first == await read_summary(world.store(), RUN)
        world.files.pop(f"runs/{RUN}/summary.json")  # as if it had been killed before it could write it
        again = await world.run_to_end()
        idle = again.sessions[1]
        assert (idle.calls, idle.images, idle.seconds, idle.cost_usd) == (0, 0, 0.0, None)
        assert (again.calls, again.seconds) == (first.calls, first.seconds)
        assert again.images_per_second == first.images_per_second

    run_simulation(main)


def test_dollars_add_up_over_sessions_with_a_running_model():
    async def main() -> None:
        world = world_with_model()
        unpaid = partial(FatalCallError, "the bill is not paid", code="X")
        stopped = await world.run(FaultInjector(OperationKind.CALL, 8, FaultKind.ERROR_BEFORE, error=unpaid))
        assert isinstance(stopped, StoppedError)
        first = stopped.summary
        assert isinstance(first, Summary)
        assert first.cost_usd is not None
        summary = await world.run_to_end()
        costs = [each.cost_usd for each in summary.sessions]
        assert costs[0] == first.cost_usd
        assert costs[1] is not None
        assert summary.cost_usd == pytest.approx(costs[0] + costs[1])
        world.files.pop(f"runs/{RUN}/summary.json")
        again = await world.run_to_end()
        assert again.sessions[2].cost_usd is None, "it has started no model"
        assert again.cost_usd == summary.cost_usd

    run_simulation(main)


def test_a_corrupt_session_file_is_ignored():
    async def main() -> None:
        world = night()
        await killed(world)
        world.files[f"runs/{RUN}/sessions/00000.json"] = b'{"progress": {"calls": "many", "seconds": null}}'
        summary = await world.run_to_end()
        assert summary.sessions[0] == SessionRecord(number=0)

    run_simulation(main)
