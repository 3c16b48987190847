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
from batchcl.runs.lease import LeaseKeeper, _started, read_lease
from batchcl.runs.store import Store
from sim.house import FaultyStore, Trouble
from virtual import run_virtual

PATHS = RunPaths("r")
START = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


def keeper(store: Store) -> LeaseKeeper:
    return LeaseKeeper(store, PATHS, utcnow=lambda: START + dt.timedelta(seconds=anyio.current_time()))


async def pretend(store: Store, **changes: object) -> None:
    """Somebody else's lease."""
    values = {"holder": "x", "host": "elsewhere", "process": "1-1", "beat_at": START, "progress": {}} | changes
    await store.put(PATHS.lease, orjson.dumps(values))


def test_a_second_runner_is_told_who_has_the_run():
    async def main() -> None:
        store = FaultyStore({})
        await pretend(store)
        await anyio.sleep(30)
        with pytest.raises(StoppedError, match=r"elsewhere, process 1, last seen 30 s ago"):
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
        lease = await read_lease(store, PATHS)
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
        await pretend(store, host=socket.gethostname(), process=f"{os.getpid()}-{_started(os.getpid())}")
        with pytest.raises(StoppedError):
            await keeper(store).acquire()

    run_virtual(main)


def test_a_runner_whose_lease_was_taken_over_stops():
    async def main() -> None:
        store = FaultyStore({})
        first = keeper(store)
        await first.acquire()
        await pretend(store)
        with pytest.raises(StoppedError, match="taken over by another runner"):
            await first.keep()
        await first.release()
        assert await read_lease(store, PATHS) is not None, "another's lease isn't ours to release"

    run_virtual(main)


def test_a_released_or_damaged_lease_keeps_nobody_away():
    async def main() -> None:
        store = FaultyStore({})
        first = keeper(store)
        await first.acquire()
        await first.release()
        assert await read_lease(store, PATHS) is None
        await store.put(PATHS.lease, b'{"holder": ')
        await keeper(store).acquire()

    run_virtual(main)


@pytest.mark.parametrize("slower_s", [0.2, 0.3])
def test_of_two_that_find_the_same_dead_lease_one_has_it(slower_s: float) -> None:
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
