"""The lease: an early, friendly refusal, and a takeover within a minute."""

from __future__ import annotations

import datetime as dt
import os
import socket
import subprocess
import sys

import anyio
import orjson
import pytest

from batchcl.errors import StoppedError
from batchcl.runs.layout import RunPaths
from batchcl.runs.lease import Lease, LeaseKeeper, _started, read_lease
from batchcl.runs.store import Store
from sim.house import FaultyStore, Trouble
from virtual import run_virtual

FOLDER = RunPaths("r").sessions
START = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


def utcnow() -> dt.datetime:
    return START + dt.timedelta(seconds=anyio.current_time())


def keeper(store: Store) -> LeaseKeeper:
    return LeaseKeeper(store, FOLDER, what="run r", utcnow=utcnow)


async def pretend(store: Store, number: int = 0, **changes: object) -> None:
    """Another process's session."""
    values = {"holder": "x", "host": "elsewhere", "process": "1-1", "beat_at": START, "progress": {}} | changes
    await store.put(f"{FOLDER}/{number:05d}.json", orjson.dumps(values))


def test_a_second_runner_is_told_who_has_the_run():
    async def main() -> None:
        store = FaultyStore({})
        await pretend(store)
        await anyio.sleep(30)
        with pytest.raises(StoppedError, match=r"elsewhere, process 1, last heartbeat 30 s ago"):
            await keeper(store).acquire()

    run_virtual(main)


def test_a_holder_that_beats_keeps_the_run_and_one_that_died_loses_it_within_a_minute():
    async def main() -> None:
        store = FaultyStore({})
        first = keeper(store)
        await first.acquire()
        await pretend(store, holder=first.holder)  # as seen from another machine
        with anyio.move_on_after(300):
            await first.keep()
        lease = await read_lease(store, FOLDER)
        assert lease is not None
        assert lease.holder == first.holder
        assert (START + dt.timedelta(seconds=300) - lease.beat_at).total_seconds() <= 10
        await pretend(store, beat_at=lease.beat_at)
        await anyio.sleep(60)
        await keeper(store).acquire()

    run_virtual(main)


def test_a_process_of_this_machine_that_is_gone_is_known_to_be_dead():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()

    async def main() -> None:
        store = FaultyStore({})
        await pretend(store, host=socket.gethostname(), process=f"{gone.pid}-123")
        await keeper(store).acquire()
        await pretend(store, 2, host=socket.gethostname(), process=f"{os.getpid()}-{_started(os.getpid())}")
        with pytest.raises(StoppedError):
            await keeper(store).acquire()

    run_virtual(main)


def test_a_runner_whose_lease_was_taken_over_stops_and_changes_nothing_of_its_successor():
    async def main() -> None:
        store = FaultyStore({})
        first = keeper(store)
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
        first = keeper(store)
        await first.acquire()
        first.settled = settled
        await first.release()
        lease = await read_lease(store, FOLDER)
        assert lease is not None
        assert (lease.number, lease.ended, lease.settled) == (0, True, settled)
        second = keeper(store)
        await second.acquire()
        assert second.number == 1
        await store.put(f"{FOLDER}/00002.json", b'{"holder": ')
        third = keeper(store)
        await third.acquire()
        assert third.number == 3

    run_virtual(main)


def test_what_a_dead_session_left_is_passed_on_before_the_next_one_is_visible():
    async def main() -> None:
        store = FaultyStore({})
        await pretend(store, progress={"owns_model": True})
        await anyio.sleep(60)
        left: list[Lease] = []
        heir = LeaseKeeper(store, FOLDER, what="run r", progress=lambda: {"left": len(left)}, utcnow=utcnow)
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
            store = FaultyStore(files, Trouble(pause=lambda: anyio.sleep(pause_s)))
            try:
                await keeper(store).acquire()
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
        await keeper(LosesAnswers({})).acquire()

    run_virtual(main)
