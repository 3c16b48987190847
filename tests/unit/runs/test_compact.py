"""Compaction: large files instead of small ones, and no row lost or doubled wherever it is killed."""

from __future__ import annotations

import datetime as dt
import io
from collections import Counter

import anyio
import pyarrow.parquet as pq
import pytest

from batchcl.analysis.results import open_results
from batchcl.errors import BatchclError, StoppedError
from batchcl.images import ImageRef
from batchcl.runs.compact import _merge, compact, hidden_parts
from batchcl.runs.layout import RunPaths
from batchcl.runs.lease import EXPIRES_S, LeaseKeeper
from batchcl.runs.parts import PartSpec, shard_parts
from batchcl.runs.record import Summary, write_summary
from batchcl.runs.store import Store
from batchcl.scoring.outcome import Label, Scored
from tables import columns
from virtual import run_virtual

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
AGE = dt.timedelta(minutes=10)


def scored(run: str, n: int) -> Scored:
    uri = f"s3://b/{run}/{n:03}.jpg"
    image = ImageRef(uri=uri, bucket="b", key=f"{run}/{n:03}.jpg")
    return Scored(image=image, labels=(Label("cat", 90.0),), attempts=1, latency_ms=1.0, request_id="r", scored_at=NOW)


async def add_run(
    store: Store, run: str, *, day: int = 20, shards: int = 3, status: str = "done", ago_m: int = 60
) -> None:
    spec = PartSpec(run_id=run, model="m@1", date=dt.date(2026, 11, day))
    for shard in range(shards):
        images, entries = columns([scored(run, 10 * shard + n) for n in range(10)])
        for part in shard_parts(spec, shard, round_=0, images=images, new=entries, state=entries):
            assert part.data is not None
            await store.put(part.path, part.data)
    summary = Summary(
        run_id=run,
        status=status,  # type: ignore[arg-type]
        planned=10 * shards,
        scored=10 * shards,
        failed=0,
        skipped=0,
        calls=10 * shards,
        throttled=0,
        seconds=1.0,
        images_per_second=1.0,
        out="memory:",
        model="m",
        started_at=NOW,
        ended_at=NOW - dt.timedelta(minutes=ago_m),
    )
    await write_summary(store, summary)


async def uris(store: Store, *, leave_out: frozenset[str] = frozenset()) -> Counter[str]:
    found: Counter[str] = Counter()
    for file in await store.list_all("results"):
        data = await store.get(file.path)
        if data is not None and file.path not in leave_out:
            found.update(pq.read_table(io.BytesIO(data), columns=["uri"])["uri"].to_pylist())
    return found


async def names(store: Store) -> list[str]:
    return [file.path.rpartition("/")[2] for file in await store.list_all("results")]


def once(*runs: str, shards: int = 3) -> Counter[str]:
    return Counter(f"s3://b/{run}/{n:03}.jpg" for run in runs for n in range(10 * shards))


def test_parts_of_a_model_and_date_become_one_sorted_file():
    async def main() -> None:
        store = Store.memory()
        await add_run(store, "a")
        await add_run(store, "b")
        await add_run(store, "other-day", day=19)
        done = await compact(store, min_age=AGE, utcnow=lambda: NOW)
        assert [(len(each.inputs), each.rows) for each in done] == [(3, 30), (6, 60)]
        assert len(await store.list_all("results")) == 2
        assert await uris(store) == once("a", "b", "other-day")
        data = await store.get(done[1].output)
        assert data is not None
        table = pq.read_table(io.BytesIO(data))
        assert table["uri"].to_pylist() == sorted(table["uri"].to_pylist())
        assert set(table["run_id"].to_pylist()) == {"a", "b"}
        assert await compact(store, min_age=AGE, utcnow=lambda: NOW) == [], "a second time there is nothing to do"

    anyio.run(main)


def test_what_is_not_over_or_large_enough_is_left_alone():
    async def main() -> None:
        store = Store.memory()
        await add_run(store, "stopped", status="stopped")
        await add_run(store, "fresh", ago_m=1)
        await add_run(store, "retried", day=18)
        await store.put_new(RunPaths("retried").round(1), b"[]")
        before = await names(store)
        left: dict[str, str] = {}
        assert await compact(store, min_age=AGE, utcnow=lambda: NOW, on_left=left.__setitem__) == []
        assert await names(store) == before
        assert left.keys() == {"stopped", "fresh", "retried"}
        assert left["stopped"] == "isn't done"
        assert left["fresh"].endswith("too recently for --min-age")
        assert left["retried"] == "has a retry that isn't over"
        await add_run(store, "large", day=17)
        assert await compact(store, min_age=AGE, utcnow=lambda: NOW, target_bytes=100) == []

    anyio.run(main)


def test_a_dry_run_changes_nothing():
    async def main() -> None:
        store = Store.memory()
        await add_run(store, "a")
        before = [file.path for file in await store.list_all("")]
        assert len(await compact(store, min_age=AGE, utcnow=lambda: NOW, dry_run=True)) == 1
        assert [file.path for file in await store.list_all("")] == before

    anyio.run(main)


def test_two_compactions_at_once_are_kept_apart():
    async def main() -> None:
        store = Store.memory()
        await add_run(store, "a")
        other = LeaseKeeper(store, RunPaths(".compact"), utcnow=lambda: NOW)
        await other.acquire()
        with pytest.raises(StoppedError):
            await compact(store, min_age=AGE, utcnow=lambda: NOW)

    anyio.run(main)


class Slow(Store):
    """Each operation takes a while before it takes effect."""

    async def get(self, path):
        await anyio.sleep(1)
        return await super().get(path)

    async def put(self, path, data):
        await anyio.sleep(1)
        await super().put(path, data)

    async def put_new(self, path, data):
        await anyio.sleep(1)
        return await super().put_new(path, data)

    async def delete(self, path):
        await anyio.sleep(1)
        await super().delete(path)


def test_of_two_compactions_that_overlap_after_all_neither_loses_or_repeats_a_row():
    """As where one slept, lost its lease and woke up again: whenever the other one began."""

    async def one(lag_s: float) -> None:
        store = Slow("memory:", Store.memory()._backend)
        await add_run(store, "a")
        group = await store.list_all("results")
        ends: list[str] = []

        async def merge(wait_s: float) -> None:
            await anyio.sleep(wait_s)
            try:
                await _merge(store, group)
                ends.append("done")
            except BatchclError:
                ends.append("gave way")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(merge, 0.0)
            tasks.start_soon(merge, lag_s)
        assert await uris(store) == once("a"), (lag_s, ends)
        assert ends.count("done") == 1
        assert not await store.list_all("runs/.compact")

    for lag_s in range(14):
        run_virtual(one, lag_s + 0.5, grace_s=0.005)


def test_a_compaction_that_takes_long_keeps_its_lease():
    async def main() -> None:
        store = Slow("memory:", Store.memory()._backend)
        for n in range(40):
            await add_run(store, f"r{n:02}", shards=1)
        refused: list[str] = []

        async def second() -> None:
            await anyio.sleep(EXPIRES_S + 5)
            with pytest.raises(StoppedError) as caught:
                await compact(store, min_age=AGE, utcnow=utcnow)
            refused.append(str(caught.value))

        def utcnow() -> dt.datetime:
            return NOW + dt.timedelta(seconds=anyio.current_time())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(second)
            assert len(await compact(store, min_age=AGE, utcnow=utcnow)) == 1
        assert "held by another runner" in refused[0]

    run_virtual(main, grace_s=0.005)


class Killed(BaseException):
    """The process is gone."""


class Fragile(Store):
    """Dies at the `at`th change of the store, before or after it takes effect; tells `seen` what a reader then sees."""

    at = 0
    after = False
    changes = 0

    async def _change(self, change):
        self.changes += 1
        if self.changes == self.at and not self.after:
            raise Killed
        answer = await change
        if self.changes == self.at:
            raise Killed
        return answer

    async def put(self, path, data):
        return await self._change(super().put(path, data))

    async def put_new(self, path, data):
        return await self._change(super().put_new(path, data))

    async def delete(self, path):
        return await self._change(super().delete(path))


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_change_no_row_is_lost_and_the_next_one_finishes(after):
    async def one(at: int) -> bool:
        steady = Store.memory()
        await add_run(steady, "a")
        await add_run(steady, "b")
        fragile = Fragile("memory:", steady._backend)
        fragile.at, fragile.after = at, after
        alive = False
        try:
            await compact(fragile, min_age=AGE, utcnow=lambda: NOW)
        except* Killed:
            alive = True
        every = once("a", "b")
        seen = await uris(steady)
        assert set(seen) == set(every), "a reader misses nothing"
        assert max(seen.values()) <= 2
        parts = {file.path for file in await steady.list_all("results")}
        assert await uris(steady, leave_out=hidden_parts(steady, parts)) == every, "and batchcl sees each row once"
        later = NOW + dt.timedelta(minutes=5)
        await compact(steady, min_age=AGE, utcnow=lambda: later)
        assert await uris(steady) == every
        assert len(await steady.list_all("results")) == 1
        return alive

    async def main() -> int:
        at = 1
        while await one(at):
            at += 1
        return at

    assert anyio.run(main) > 10


@pytest.mark.parametrize("later", [(), ("b",)], ids=["merged once", "merged again"])
def test_a_part_that_a_frozen_runner_writes_after_it_was_merged_is_removed(later):
    async def main() -> None:
        store = Store.memory()
        await add_run(store, "a")
        parts = {file.path: await store.get(file.path) for file in await store.list_all("results")}
        await compact(store, min_age=AGE, utcnow=lambda: NOW)
        for run in later:
            await add_run(store, run)
            await compact(store, min_age=AGE, utcnow=lambda: NOW)
        (path, data), *_ = parts.items()
        assert data is not None
        await store.put(path, data)
        await add_run(store, "c")
        assert max((await uris(store)).values()) == 2
        planned = await compact(store, min_age=AGE, utcnow=lambda: NOW, dry_run=True)
        assert path not in planned[0].inputs
        assert await store.exists(path), "a dry run removes nothing"
        await compact(store, min_age=AGE, utcnow=lambda: NOW)
        assert await uris(store) == once("a", "c", *later)

    anyio.run(main)


def test_a_part_of_a_merged_ones_name_with_other_rows_is_never_removed():
    """As of a run that somebody has deleted by hand and made again under its id."""

    async def main() -> None:
        store = Store.memory()
        await add_run(store, "a", shards=2)
        await compact(store, min_age=AGE, utcnow=lambda: NOW)
        await add_run(store, "a", shards=3)
        first, second, third = [name for name in await names(store) if name.startswith("a-")]
        spare = await store.get(f"results/model=m@1/date=2026-11-20/{third}")
        assert spare is not None
        await store.put(f"results/model=m@1/date=2026-11-20/{second}", spare)
        await store.delete(f"results/model=m@1/date=2026-11-20/{third}")
        done = await compact(store, min_age=AGE, utcnow=lambda: NOW)
        assert [path.rpartition("/")[2] for each in done for path in each.inputs][:1] == [second]
        assert first not in await names(store)
        assert await uris(store) == once("a", shards=3)

    anyio.run(main)


def test_readers_follow_merged_parts_to_their_runs(tmp_path):
    async def main() -> None:
        store = Store.open(str(tmp_path))
        await add_run(store, "a")
        await add_run(store, "b")
        await compact(store, min_age=AGE, utcnow=lambda: NOW)

    anyio.run(main)
    assert open_results(str(tmp_path), run_id="a").images().collect().height == 30
    assert open_results(str(tmp_path)).images().collect()["uri"].n_unique() == 60
