"""Small parts into large ones, partition by partition, without losing a row wherever it is killed.

For each group of parts: an intent names inputs and output; the output is written whole; the inputs are deleted; the
intent is deleted. A compaction that died is finished or undone from its intent by the next one.

A lease keeps compactions apart. Should one be taken for dead that only slept, nothing is lost either: a partition has
one intent at a time, inputs are deleted only under one's own, and no two attempts write an output of the same name.

What a reader sees meanwhile: batchcl's own commands read the intents and so see every row once. A reader of the bare
files, such as Athena, may see the rows of a group twice, from when the output is written until the inputs are gone;
it never misses one. A query that has listed files before they are deleted may fail to open one, and is to be repeated.

A part that is back after it was merged, as a runner was frozen while it wrote it, is removed by the next compaction
(`returned.py`); until then its rows are there twice.

Only `results/` of finished runs are touched: a run that goes on, or a retry that is open, keeps its parts. Partitions
stay as they are, so parts of different dates are not merged.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import anyio.to_thread
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from batchcl.errors import OutputError
from batchcl.runs.damage import intact
from batchcl.runs.layout import COMPACTED, RUNS, RunPaths, run_of
from batchcl.runs.lease import LeaseKeeper
from batchcl.runs.record import read_summary
from batchcl.runs.returned import merged_from, names_of, returned_parts
from batchcl.runs.schema import RESULTS, parquet_bytes
from batchcl.runs.store import Store, StoredFile

__all__ = ["Compaction", "compact", "hidden_parts"]

TARGET_BYTES: Final = 128 * 1024 * 1024
MIN_AGE: Final = dt.timedelta(minutes=10)
"""A run that ended so recently may still have a reader or a slow writer."""

_PATHS: Final = RunPaths(".compact")
_INTENTS: Final = f"{RUNS}/.compact/intents"


@dataclass(frozen=True, slots=True)
class Compaction:
    """One group: `inputs` became `output`, of `rows` rows; with `dry_run`, would become."""

    inputs: tuple[str, ...]
    output: str
    rows: int | None
    bytes_before: int
    bytes_after: int | None


async def compact(
    store: Store,
    *,
    target_bytes: int = TARGET_BYTES,
    min_age: dt.timedelta = MIN_AGE,
    dry_run: bool = False,
    on_left: Callable[[str, str], None] | None = None,
    utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
) -> list[Compaction]:
    """Merge the small parts of each partition of `results/` into files of about `target_bytes`.

    Args:
        store: the output root.
        target_bytes: compressed; a part of half that size or more is left alone. Memory is some ten times that.
        min_age: leave runs alone that ended more recently.
        dry_run: only tell.
        on_left: is told of each run whose small parts are left alone, and why.
        utcnow: the time.

    Raises:
        StoppedError: another compaction is at work.
        OutputError: the root can't be read or written, or somebody changed its parts meanwhile; nothing is lost.
    """
    finished = _Finished(store, before=utcnow() - min_age, on_left=on_left)
    if dry_run:
        files = await _parts(store)
        back = await returned_parts(store, files)
        return [_planned(group) for group in await _groups(_without(files, back), finished, target_bytes)]

    async def merge() -> list[Compaction]:
        await _recover(store)
        files = await _parts(store)
        back = await returned_parts(store, files)
        for path in back:
            await store.delete(path)
        return [await _merge(store, group) for group in await _groups(_without(files, back), finished, target_bytes)]

    lease = LeaseKeeper(store, _PATHS, utcnow=utcnow)
    await lease.acquire()
    try:
        return await lease.kept_during(merge)
    finally:
        await lease.release()


def hidden_parts(store: Store, parts: Collection[str]) -> frozenset[str]:
    """Which of `parts` a reader who wants every row once leaves out: inputs beside their output. Blocks."""
    hidden: set[str] = set()
    for file in store.list_now(_INTENTS):
        intent = store.get_now(file.path)
        if intent is not None:
            inputs, output = _read_intent(store.uri(file.path), intent)
            if output in parts:
                hidden.update(inputs)
    return frozenset(hidden)


async def _recover(store: Store) -> None:
    """Finish what has its output, and forget what has not: its inputs are all there."""
    for file in await store.list_all(_INTENTS):
        intent = await store.get(file.path)
        if intent is None:
            continue
        inputs, output = _read_intent(store.uri(file.path), intent)
        if await store.exists(output):
            for path in inputs:
                await store.delete(path)
        await store.delete(file.path)


class _Finished:
    """Knows which runs are over, and asks for each once."""

    def __init__(self, store: Store, *, before: dt.datetime, on_left: Callable[[str, str], None] | None = None) -> None:
        self._store = store
        self._before = before
        self._on_left = on_left
        self._known: dict[str, bool] = {}

    async def may_be_merged(self, path: str) -> bool:
        name = path.rpartition("/")[2]
        if name.startswith(COMPACTED):
            return True
        run_id = run_of(name)
        if run_id is None:
            return False
        if run_id not in self._known:
            reason = await self._left_for(run_id)
            self._known[run_id] = reason is None
            if reason is not None and self._on_left is not None:
                self._on_left(run_id, reason)
        return self._known[run_id]

    async def _left_for(self, run_id: str) -> str | None:
        """Why the run's parts stay as they are; None where they may be merged."""
        summary = await read_summary(self._store, run_id)
        if summary is None or summary.status != "done":
            return "isn't done"
        if summary.ended_at > self._before:
            return f"ended at {summary.ended_at:%Y-%m-%dT%H:%M:%SZ}, too recently for --min-age"
        names = {file.path.rpartition("/")[2] for file in await self._store.list_all(RunPaths(run_id).rounds)}
        over = all(name.removesuffix(".json") + ".done" in names for name in names if name.endswith(".json"))
        return None if over else "has a retry that isn't over"


async def _parts(store: Store) -> list[StoredFile]:
    return [file for file in await store.list_all("results") if file.path.endswith(".parquet")]


def _without(files: Sequence[StoredFile], paths: Collection[str]) -> list[StoredFile]:
    return [file for file in files if file.path not in paths]


async def _groups(files: Sequence[StoredFile], finished: _Finished, target_bytes: int) -> list[list[StoredFile]]:
    """Parts of one partition each that are worth merging, at most about the target together."""
    small = [file for file in files if file.size_bytes < target_bytes / 2 and await finished.may_be_merged(file.path)]
    groups: list[list[StoredFile]] = []
    for _, partition in groupby(small, key=lambda file: file.path.rpartition("/")[0]):
        group: list[StoredFile] = []
        for file in partition:
            if group and sum(each.size_bytes for each in group) + file.size_bytes > target_bytes:
                groups.append(group)
                group = []
            group.append(file)
        groups.append(group)
    return [group for group in groups if len(group) > 1]


def _planned(group: Sequence[StoredFile], *, attempt: str = "") -> Compaction:
    inputs = tuple(file.path for file in group)
    folder = inputs[0].rpartition("/")[0]
    digest = hashlib.sha256("\n".join((*inputs, attempt)).encode()).hexdigest()[:16]
    output = f"{folder}/{COMPACTED}{digest}.parquet"
    return Compaction(inputs, output, None, sum(file.size_bytes for file in group), None)


async def _merge(store: Store, group: Sequence[StoredFile]) -> Compaction:
    plan = _planned(group, attempt=secrets.token_hex(8))
    parts = []
    for path in plan.inputs:
        data = await store.get(path)
        if data is None:
            raise _taken_over(store)
        parts.append((store.uri(path), data))
    rows, merged = await anyio.to_thread.run_sync(_merged, parts)
    partition = hashlib.sha256(plan.output.rpartition("/")[0].encode()).hexdigest()[:16]
    intent, said = f"{_INTENTS}/{partition}.json", orjson.dumps({"inputs": plan.inputs, "output": plan.output})
    await store.put_mine(intent, said, what="what it merges")
    if not all([await store.exists(path) for path in plan.inputs]):
        await store.delete(intent)  # another compaction was done with them before ours could begin
        raise _taken_over(store)
    await store.put(plan.output, merged)
    if await store.get(intent) != said:
        # Somebody took us for dead and undid the intent: the inputs, or another output, have these rows.
        await store.delete(plan.output)
        raise _taken_over(store)
    for path in plan.inputs:
        await store.delete(path)
    await store.delete(intent)
    return Compaction(plan.inputs, plan.output, rows, plan.bytes_before, len(merged))


def _taken_over(store: Store) -> OutputError:
    return OutputError(f"another compaction took over {store.root}; nothing is lost, run it again")


def _merged(parts: Sequence[tuple[str, bytes]]) -> tuple[int, bytes]:
    tables, earlier = [], []
    for where, data in parts:
        with intact(where):
            tables.append(pq.read_table(io.BytesIO(data), schema=RESULTS))
            earlier.append(names_of(pq.read_metadata(io.BytesIO(data)).metadata))
    rows = pa.concat_tables(tables).sort_by([("uri", "ascending"), ("run_id", "ascending")])
    return rows.num_rows, parquet_bytes(rows, run_id=None, merged=merged_from([where for where, _ in parts], earlier))


def _read_intent(where: str, data: bytes) -> tuple[list[str], str]:
    with intact(where):
        intent = orjson.loads(data)
        return intent["inputs"], intent["output"]
