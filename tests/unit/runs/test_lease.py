"""The lease: an early, friendly refusal, and a takeover within a minute."""

from __future__ import annotations

import datetime as dt
import signal
import socket
import subprocess
import sys
from itertools import count

import anyio
import orjson
import pytest

from batchcl.errors import OutputError, StoppedError
from batchcl.runs.layout import RunPaths
from batchcl.runs.lease import RunLease, RunLeaseHolder, _process_location, _state, read_lease
from batchcl.runs.store import Store
from servers import wait_for
from sim.fake_world import FaultInjector, FaultyStore
from virtual import run_virtual

FOLDER = RunPaths("r").sessions
START = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


def utcnow() -> dt.datetime:
    return START + dt.timedelta(seconds=anyio.current_time())


def model_manager(store: Store) -> RunLeaseHolder:
    return RunLeaseHolder(store, FOLDER, what="run r", utcnow=utcnow)


async def pretend(store: Store, number: int = 0, **changes: object) -> None:
    """A session of another process, on another machine."""
    values = {"holder": "x", "host": "elsewhere", "place": "boot pid:[1]", "process": "1-1", "beat": 1}
    values |= {"beat_at": START, "progress": {}} | changes
    await store.put(f"{FOLDER}/{number:05d}.json", orjson.dumps(values))


async def beating(store: Store) -> None:
    """Its heartbeat, until cancelled."""
    for beat in count(2):
        await anyio.sleep(10)
        await pretend(store, beat=beat)


@pytest.mark.parametrize("clock_is_off_s", [-300, 0, 300])
def test_a_session_whose_counter_changes_is_alive_whatever_the_clocks_say(clock_is_off_s):
    async def main() -> None:
        store = FaultyStore({})
        await pretend(store, beat_at=START + dt.timedelta(seconds=clock_is_off_s))
        waits: list[str] = []
        second = RunLeaseHolder(
            store, FOLDER, what="run r", on_wait=lambda other: waits.append(other.host), utcnow=utcnow
        )
        async with anyio.create_task_group() as group:
            group.start_soon(beating, store)
            with pytest.raises(StoppedError, match=r"run r is held by another runner \(elsewhere, process 1\)"):
                await second.acquire()
            group.cancel_scope.cancel()
        assert anyio.current_time() <= 12, "at its next heartbeat"
        assert waits == ["elsewhere"]

    run_virtual(main)


@pytest.mark.parametrize("clock_is_off_s", [-300, 0, 300])
def test_a_session_whose_counter_stands_still_is_taken_over_within_a_minute(clock_is_off_s):
    async def main() -> None:
        store = FaultyStore({})
        await pretend(store, beat_at=START + dt.timedelta(seconds=clock_is_off_s))
        second = model_manager(store)
        await second.acquire()
        assert second.number == 1
        assert 45 <= anyio.current_time() <= 60

    run_virtual(main)


def test_a_holder_keeps_its_counter_going():
    async def main() -> None:
        store = FaultyStore({})
        first = model_manager(store)
        await first.acquire()
        before = await read_lease(store, FOLDER)
        with anyio.move_on_after(25):
            await first.keep()
        after = await read_lease(store, FOLDER)
        assert before is not None
        assert after is not None
        assert after.beat == before.beat + 2

    run_virtual(main)


def test_an_observer_that_was_suspended_looks_again_before_it_judges():
    """Between its question and the answer a minute goes by for it, in which the holder beats on."""

    class Slow(FaultyStore):
        async def get(self, path: str) -> bytes | None:
            found = await super().get(path)
            await anyio.sleep(60)
            return found

    async def main() -> None:
        files: dict[str, bytes] = {}
        await pretend(FaultyStore(files))
        async with anyio.create_task_group() as group:
            group.start_soon(beating, FaultyStore(files))
            with pytest.raises(StoppedError, match="held by another runner"):
                await model_manager(Slow(files)).acquire()
            group.cancel_scope.cancel()

    run_virtual(main)


def test_a_process_of_this_boot_and_namespace_is_looked_at():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    runs = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    state = _state(runs.pid)
    assert state is not None

    async def main() -> None:
        store = FaultyStore({})
        await pretend(store, place=_process_location(), process=f"{gone.pid}-123")
        await model_manager(store).acquire()
        assert anyio.current_time() < 1, "one that is gone is replaced at once"
        await pretend(store, 2, place=_process_location(), process=f"{runs.pid}-{state.started}")
        with pytest.raises(StoppedError):
            await model_manager(store).acquire()
        assert anyio.current_time() < 1, "one that runs keeps it"
        runs.send_signal(signal.SIGSTOP)
        wait_for(lambda: (state := _state(runs.pid)) is not None and state.code == "T")
        await model_manager(store).acquire()
        assert anyio.current_time() > 45, "one that is suspended is judged by its heartbeat"

    try:
        run_virtual(main)
    finally:
        runs.kill()
        runs.communicate()


def test_the_same_host_name_and_process_in_another_namespace_mean_nothing():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    async def main() -> None:
        store = FaultyStore({})
        boot = _process_location().partition(" ")[0]
        await pretend(store, host=socket.gethostname(), place=f"{boot} pid:[1]", process=f"{gone.pid}-123")
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 100)
            await model_manager(store).acquire()
            assert anyio.current_time() >= 45
            group.cancel_scope.cancel()

    run_virtual(main)


def test_a_runner_whose_lease_was_taken_over_stops_and_changes_nothing_of_its_successor():
    async def main() -> None:
        store = FaultyStore({})
        first = model_manager(store)
        await first.acquire()
        await first.check()
        await pretend(store, 1)
        for act in (first.check, first.keep):
            with pytest.raises(StoppedError, match="run r was taken over by another runner"):
                await act()
        await first.beat()
        await first.release()
        lease = await read_lease(store, FOLDER)
        assert lease is not None
        assert (lease.number, lease.holder, lease.ended) == (1, "x", False)

    run_virtual(main)


@pytest.mark.parametrize("settled", [False, True])
def test_a_session_that_ended_or_is_damaged_keeps_nobody_out(settled):
    async def main() -> None:
        store = FaultyStore({})
        first = model_manager(store)
        await first.acquire()
        first.settled = settled
        await first.release()
        lease = await read_lease(store, FOLDER)
        assert lease is not None
        assert (lease.number, lease.ended, lease.settled) == (0, True, settled)
        second = model_manager(store)
        await second.acquire()
        assert second.number == 1
        await store.put(f"{FOLDER}/00002.json", b'{"holder": ')
        third = model_manager(store)
        await third.acquire()
        assert third.number == 3

    run_virtual(main)


def test_a_session_of_a_newer_version_is_alive_too():
    async def main() -> None:
        store = FaultyStore({})
        await pretend(store, something="new")
        async with anyio.create_task_group() as group:
            group.start_soon(beating, store)
            with pytest.raises(StoppedError, match="held by another runner"):
                await model_manager(store).acquire()
            group.cancel_scope.cancel()

    run_virtual(main)


def test_a_lease_beats_while_its_holder_prepares():
    async def main() -> None:
        store = FaultyStore({})
        first = model_manager(store)
        await first.acquire()
        before = await read_lease(store, FOLDER)
        async with first.beating():
            await anyio.sleep(25)
        after = await read_lease(store, FOLDER)
        assert before is not None
        assert after is not None
        assert after.beat == before.beat + 2
        with pytest.raises(OutputError, match="by itself"):
            async with first.beating():
                raise OutputError("by itself")

    run_virtual(main)


def test_what_a_dead_session_left_is_passed_on_before_the_next_one_is_visible():
    async def main() -> None:
        store = FaultyStore({})
        await pretend(store, progress={"owns_model": True})
        await anyio.sleep(60)
        left: list[RunLease] = []
        heir = RunLeaseHolder(store, FOLDER, what="run r", progress=lambda: {"left": len(left)}, utcnow=utcnow)
        await heir.acquire(on_left=left.append)
        assert [lease.progress for lease in left] == [{"owns_model": True}]
        lease = await read_lease(store, FOLDER)
        assert lease is not None
        assert (lease.number, lease.progress) == (1, {"left": 1})

    run_virtual(main)


@pytest.mark.parametrize("slower_s", [0.2, 0.3])
def test_of_two_that_find_the_same_dead_session_one_takes_over(slower_s: float) -> None:
    async def main() -> None:
        files: dict[str, bytes] = {}
        await pretend(FaultyStore(files))
        await anyio.sleep(60)
        ends: list[str] = []

        async def take(pause_s: float) -> None:
            store = FaultyStore(files, FaultInjector(pause=lambda: anyio.sleep(pause_s)))
            try:
                await model_manager(store).acquire()
            except StoppedError as error:
                ends.append(str(error))
            else:
                ends.append("has it")

        async with anyio.create_task_group() as group:
            group.start_soon(take, 0.2)
            group.start_soon(take, slower_s)
        refused, has_it = sorted(ends, key=lambda end: end == "has it")
        assert has_it == "has it"
        assert "is held by another runner" in refused

    run_virtual(main)


def test_a_lease_whose_creation_was_not_answered_is_held():
    class LosesAnswers(FaultyStore):
        async def put_new(self, path: str, data: bytes) -> bool:
            await super().put_new(path, data)
            return await super().put_new(path, data)  # as the second attempt of a client that retries

    async def main() -> None:
        await model_manager(LosesAnswers({})).acquire()

    run_virtual(main)
