"""The run lease: a second process is refused, and a dead one is replaced within a minute."""

from __future__ import annotations

import datetime as dt
import os
import signal
import socket
import subprocess
import sys
from itertools import count

import anyio
import orjson
import pytest

from batchcl.errors import OutputError, StoppedError
from batchcl.runs.following import HolderState, LeaseFollower
from batchcl.runs.layout import RunPaths
from batchcl.runs.lease import (
    RunLease,
    RunLeaseHolder,
    _process_location,
    _process_state,
    read_lease,
)
from batchcl.runs.store import Store
from servers import wait_for
from sim.fake_world import FaultInjector, FaultyStore
from virtual import run_virtual

FOLDER = RunPaths("r").sessions
START = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


def utcnow() -> dt.datetime:
    return START + dt.timedelta(seconds=anyio.current_time())


def holder_of(store: Store) -> RunLeaseHolder:
    return RunLeaseHolder(store, FOLDER, what="run r", utcnow=utcnow)


async def write_session(store: Store, number: int = 0, **changes: object) -> None:
    """Write the session file of a process on another machine."""
    values = {"holder": "x", "host": "elsewhere", "location": "boot pid:[1]", "process": "1-1", "heartbeats": 1}
    values |= {"heartbeat_at": START, "progress": {}} | changes
    await store.put(f"{FOLDER}/{number:05d}.json", orjson.dumps(values))


async def write_heartbeats(store: Store) -> None:
    """Write heartbeats of that session until cancelled."""
    for beat in count(2):
        await anyio.sleep(10)
        await write_session(store, heartbeats=beat)


@pytest.mark.parametrize("clock_is_off_s", [-300, 0, 300])
def test_a_session_with_heartbeats_is_alive_despite_clock_skew(clock_is_off_s):
    async def main() -> None:
        store = FaultyStore({})
        await write_session(store, heartbeat_at=START + dt.timedelta(seconds=clock_is_off_s))
        waits: list[str] = []
        second = RunLeaseHolder(
            store, FOLDER, what="run r", on_wait=lambda other: waits.append(other.host), utcnow=utcnow
        )
        async with anyio.create_task_group() as group:
            group.start_soon(write_heartbeats, store)
            with pytest.raises(StoppedError, match=r"run r is in use by another process \(1 on elsewhere\)"):
                await second.acquire()
            group.cancel_scope.cancel()
        assert anyio.current_time() <= 12, "refused at its next heartbeat"
        assert waits == ["elsewhere"]

    run_virtual(main)


@pytest.mark.parametrize("clock_is_off_s", [-300, 0, 300])
def test_a_session_without_heartbeats_is_replaced_in_a_minute(clock_is_off_s):
    async def main() -> None:
        store = FaultyStore({})
        await write_session(store, heartbeat_at=START + dt.timedelta(seconds=clock_is_off_s))
        second = holder_of(store)
        await second.acquire()
        assert second.number == 1
        assert 45 <= anyio.current_time() <= 60

    run_virtual(main)


def test_a_holder_increments_its_heartbeat_counter():
    async def main() -> None:
        store = FaultyStore({})
        first = holder_of(store)
        await first.acquire()
        before = await read_lease(store, FOLDER)
        with anyio.move_on_after(25):
            await first.keep()
        after = await read_lease(store, FOLDER)
        assert before is not None
        assert after is not None
        assert after.heartbeats == before.heartbeats + 2

    run_virtual(main)


def test_a_suspended_observer_checks_again():
    """A minute passes during each of its reads, in which the holder writes heartbeats."""

    class Slow(FaultyStore):
        async def get(self, path: str) -> bytes | None:
            data = await super().get(path)
            await anyio.sleep(60)
            return data

    async def main() -> None:
        files: dict[str, bytes] = {}
        await write_session(FaultyStore(files))
        async with anyio.create_task_group() as group:
            group.start_soon(write_heartbeats, FaultyStore(files))
            with pytest.raises(StoppedError, match="in use by another process"):
                await holder_of(Slow(files)).acquire()
            group.cancel_scope.cancel()

    run_virtual(main)


def test_processes_in_the_own_namespace_are_checked_directly():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    runs = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    state = _process_state(runs.pid)
    assert state is not None

    async def main() -> None:
        store = FaultyStore({})
        await write_session(store, location=_process_location(), process=f"{gone.pid}-123")
        await holder_of(store).acquire()
        assert anyio.current_time() < 1, "a dead process is replaced at once"
        await write_session(store, 2, location=_process_location(), process=f"{runs.pid}-{state.started}")
        with pytest.raises(StoppedError):
            await holder_of(store).acquire()
        assert anyio.current_time() < 1, "a running process is recognized at once"
        runs.send_signal(signal.SIGSTOP)
        wait_for(lambda: (state := _process_state(runs.pid)) is not None and state.code == "T")
        await holder_of(store).acquire()
        assert anyio.current_time() > 45, "for a suspended process, its heartbeats decide"

    try:
        run_virtual(main)
    finally:
        runs.kill()
        runs.communicate()


def test_a_follower_sees_a_death_in_its_namespace_at_once():
    runs = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    state = _process_state(runs.pid)
    assert state is not None

    async def main() -> None:
        store = FaultyStore({})
        await write_session(store, location=_process_location(), process=f"{runs.pid}-{state.started}")
        follower = LeaseFollower(store, FOLDER)
        assert await follower.read() is HolderState.ALIVE
        await follower.wait()
        assert anyio.current_time() == pytest.approx(10, abs=0.1)
        runs.kill()
        runs.wait()
        await follower.wait()
        assert anyio.current_time() == pytest.approx(11, abs=0.1)
        assert await follower.read() is HolderState.DEAD
        await follower.wait()
        assert anyio.current_time() == pytest.approx(21, abs=0.1), "a dead session is not read each second"

    try:
        run_virtual(main)
    finally:
        runs.kill()
        runs.communicate()


def test_a_restarted_container_replaces_its_predecessor_at_once():
    """Both are PID 1, and the kernel gives the number of the ended namespace to the next one."""

    async def main() -> None:
        store = FaultyStore({})
        await write_session(store, location=_process_location(), process=f"{os.getpid()}-123")
        await holder_of(store).acquire()
        assert anyio.current_time() < 1

    run_virtual(main)


def test_processes_in_other_namespaces_are_not_checked():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    async def main() -> None:
        store = FaultyStore({})
        boot = _process_location().partition(" ")[0]
        await write_session(store, host=socket.gethostname(), location=f"{boot} pid:[1]", process=f"{gone.pid}-123")
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 100)
            await holder_of(store).acquire()
            assert anyio.current_time() >= 45
            group.cancel_scope.cancel()

    run_virtual(main)


def test_after_a_takeover_the_old_process_stops():
    async def main() -> None:
        store = FaultyStore({})
        first = holder_of(store)
        await first.acquire()
        await first.check()
        await write_session(store, 1)
        for act in (first.check, first.keep):
            with pytest.raises(StoppedError, match="run r was taken over by another process"):
                await act()
        await first.write_heartbeat()
        await first.release()
        lease = await read_lease(store, FOLDER)
        assert lease is not None
        assert (lease.number, lease.holder, lease.ended) == (1, "x", False)

    run_virtual(main)


@pytest.mark.parametrize("settled", [False, True])
def test_ended_and_corrupt_sessions_do_not_block(settled):
    async def main() -> None:
        store = FaultyStore({})
        first = holder_of(store)
        await first.acquire()
        first.settled = settled
        await first.release()
        lease = await read_lease(store, FOLDER)
        assert lease is not None
        assert (lease.number, lease.ended, lease.settled) == (0, True, settled)
        second = holder_of(store)
        await second.acquire()
        assert second.number == 1
        await store.put(f"{FOLDER}/00002.json", b'{"holder": ')
        third = holder_of(store)
        await third.acquire()
        assert third.number == 3

    run_virtual(main)


def test_sessions_of_newer_versions_are_understood():
    async def main() -> None:
        store = FaultyStore({})
        await write_session(store, something="new")
        async with anyio.create_task_group() as group:
            group.start_soon(write_heartbeats, store)
            with pytest.raises(StoppedError, match="in use by another process"):
                await holder_of(store).acquire()
            group.cancel_scope.cancel()

    run_virtual(main)


def test_heartbeats_are_written_during_a_block():
    async def main() -> None:
        store = FaultyStore({})
        first = holder_of(store)
        await first.acquire()
        before = await read_lease(store, FOLDER)
        async with first.writing_heartbeats():
            await anyio.sleep(25)
        after = await read_lease(store, FOLDER)
        assert before is not None
        assert after is not None
        assert after.heartbeats == before.heartbeats + 2
        with pytest.raises(OutputError, match="by itself"):
            async with first.writing_heartbeats():
                raise OutputError("by itself")

    run_virtual(main)


def test_progress_can_include_what_a_dead_session_left():
    async def main() -> None:
        store = FaultyStore({})
        await write_session(store, progress={"owns_model": True})
        await anyio.sleep(60)
        left: list[RunLease] = []
        successor = RunLeaseHolder(store, FOLDER, what="run r", progress=lambda: {"left": len(left)}, utcnow=utcnow)
        await successor.acquire(on_left=left.append)
        assert [lease.progress for lease in left] == [{"owns_model": True}]
        lease = await read_lease(store, FOLDER)
        assert lease is not None
        assert (lease.number, lease.progress) == (1, {"left": 1})

    run_virtual(main)


@pytest.mark.parametrize("slower_s", [0.2, 0.3])
def test_one_of_two_processes_replaces_a_dead_session(slower_s: float) -> None:
    async def main() -> None:
        files: dict[str, bytes] = {}
        await write_session(FaultyStore(files))
        await anyio.sleep(60)
        ends: list[str] = []

        async def take(pause_s: float) -> None:
            store = FaultyStore(files, FaultInjector(pause=lambda: anyio.sleep(pause_s)))
            try:
                await holder_of(store).acquire()
            except StoppedError as error:
                ends.append(str(error))
            else:
                ends.append("has it")

        async with anyio.create_task_group() as group:
            group.start_soon(take, 0.2)
            group.start_soon(take, slower_s)
        refused, has_it = sorted(ends, key=lambda end: end == "has it")
        assert has_it == "has it"
        assert "is in use by another process" in refused

    run_virtual(main)


def test_a_lease_with_a_lost_response_is_held():
    class LosesAnswers(FaultyStore):
        async def put_new(self, path: str, data: bytes) -> bool:
            await super().put_new(path, data)
            return await super().put_new(path, data)  # like the second attempt of a client that retries

    async def main() -> None:
        await holder_of(LosesAnswers({})).acquire()

    run_virtual(main)
