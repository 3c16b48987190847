"""`status --watch`: a run on another machine is shown from the output root until it ends."""

from __future__ import annotations

from dataclasses import replace

import anyio
import pytest

from batchcl.errors import UsageError
from batchcl.runs.layout import RunPaths
from batchcl.runs.watch import WatchedRun, watch_store
from observers import RecordingObserver
from sim.fake_world import RUN, FakeWorld, FaultInjector, FaultyStore, OperationKind, run_simulation
from sim.test_if_held import IMAGES, Process, failing, killed, night, waiter


class Watch:
    """A watching process: the states that it yielded, their times, and the number of reads."""

    def __init__(self, world: FakeWorld, *, start_s: float = 0.0, run_id: str | None = RUN) -> None:
        self.world = world
        self.start_s = start_s
        self.run_id = run_id
        self.faults = FaultInjector()
        self.observer = RecordingObserver()
        self.seen: list[WatchedRun] = []
        self.reads: list[int] = []
        self.ended_s = -1.0

    async def live(self) -> None:
        await anyio.sleep(self.start_s)
        store = FaultyStore(self.world.files, self.faults)
        async for watched in watch_store(store, self.run_id, every_s=10, observer=self.observer):
            self.seen.append(watched)
            self.reads.append(self.faults.counts[OperationKind.STORE])
        self.ended_s = anyio.current_time()

    @property
    def states(self) -> list[str]:
        """The states without repetitions."""
        states = [each.state for each in self.seen]
        return [state for at, state in enumerate(states) if not at or state != states[at - 1]]


def play(watch: Watch, *processes: Process) -> Watch:
    async def main() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(watch.live)
            for each in processes:
                group.start_soon(each.live)

    run_simulation(main)
    return watch


@pytest.mark.parametrize("skew_s", [-300.0, 0.0, 300.0])
def test_a_run_is_shown_from_its_start_to_its_end(skew_s):
    world = night(skew_s=skew_s)
    watch = play(Watch(world), holder := Process(world, 25.0))
    assert watch.states == ["waiting", "running", "done"]
    assert watch.seen[-1].summary == holder.end
    assert watch.ended_s - holder.ended_s <= 12
    counters = [each.counters for each in watch.seen if each.counters is not None]
    scored = [each.scored for each in counters]
    assert scored == sorted(scored)
    assert len(set(scored)) > 8
    assert scored[-1] == counters[-1].planned == IMAGES
    assert 0 < counters[5].images_per_second <= 1.5
    assert watch.observer.kinds == ["holder", "holder-ended"]


def test_a_refresh_costs_one_read():
    world = night()
    watch = play(Watch(world, start_s=20.0), Process(world))
    costs = [after - before for before, after in zip(watch.reads, watch.reads[1:], strict=False)]
    assert len(costs) > 8
    assert set(costs[:-1]) == {1}
    assert costs[-1] <= 5, "the session, newer ones, and the summary until it is there"


def test_the_silence_and_the_death_of_a_process_are_shown():
    world = night()
    watch = play(Watch(world), dead := Process(world, faults=killed()))
    assert watch.states[-2:] == ["running", "interrupted"]
    last_heartbeat_s = dead.ended_s // 10 * 10
    assert watch.seen[-1].silent_s == pytest.approx(watch.ended_s - last_heartbeat_s, abs=11)
    assert 45 + 60 <= watch.ended_s - last_heartbeat_s <= 45 + 60 + 30
    assert watch.observer.kinds[-2:] == ["holder-silent", "holder-dead"]
    assert any("no heartbeat from process" in each.text for each in watch.observer.notices)


def test_a_takeover_is_followed():
    world = night()
    watch = play(Watch(world), Process(world, faults=killed()), second := waiter(world))
    assert watch.states in (
        ["waiting", "running", "interrupted", "running", "done"],
        ["waiting", "running", "done"],
    )
    assert watch.seen[-1].summary == second.end


def test_a_run_that_is_stopped_ends_the_watch_with_its_reason():
    world = night()
    watch = play(Watch(world), Process(world, signal_s=50.0))
    last = watch.seen[-1]
    assert last.state == "stopped"
    assert last.as_dict()["reason"] == "ended by SIGTERM"
    assert watch.ended_s < 70


def test_a_run_that_is_over_is_shown_once():
    world = night()
    play(Watch(world), first := Process(world))
    watch = play(Watch(world, run_id=None))
    (seen,) = watch.seen
    assert (seen.state, seen.summary) == ("done", first.end)
    assert watch.ended_s < 1


def test_the_newest_run_is_shown_unless_one_is_named():
    world = night()
    other = replace(world, run_id="other")
    play(Watch(world), Process(world))
    watch = play(Watch(world, run_id=None, start_s=5.0), Process(other))
    assert {each.run_id for each in watch.seen} == {"other"}
    assert [each.run_id for each in play(Watch(world)).seen] == [RUN]


def test_without_a_run_there_is_nothing_to_watch():
    with pytest.raises(UsageError, match="there is no run in memory yet; name the run to wait for its start"):
        run_simulation(Watch(night(), run_id=None).live)


def test_an_outage_is_shown_and_does_not_end_the_watch():
    world = night()
    watch = Watch(world)
    watch.faults = failing(40, 100)
    play(watch, holder := Process(world))
    problems = [each.problem for each in watch.seen if each.problem]
    assert 5 <= len(problems) <= 7
    assert set(problems) == {"503 Slow Down"}
    assert watch.seen[-1].summary == holder.end


def test_a_damaged_session_file_ends_the_watch():
    world = night()
    world.files[f"{RunPaths(RUN).sessions}/00000.json"] = b"{"
    (seen,) = play(Watch(world)).seen
    assert seen.state == "interrupted"
