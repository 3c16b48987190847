"""Runs whose process died: publish what they have journalled, and keep a suspended process from adding to it.

A recovery takes the run's lease over, then cuts the journal of every shard that is not complete, also of those without
an entry. A process that was only suspended either sees the new lease before it opens a shard, or fails to create the
next segment of one that was cut. It doesn't complete the run: the same command resumes it.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from functools import partial
from typing import Final

from batchcl.concurrency import gather
from batchcl.errors import OutputError, StoppedError
from batchcl.runs.entries import latest, of_round, positions
from batchcl.runs.journal import Journal
from batchcl.runs.layout import RUNS, RunPaths, run_name
from batchcl.runs.lease import RunLease, RunLeaseHolder, is_alive, unsettled_lease
from batchcl.runs.ledger import AllImages, Targets
from batchcl.runs.markers import published, read_totals, write_marker
from batchcl.runs.publish import PartSpec, publish_journal
from batchcl.runs.record import RunRecord, read_record
from batchcl.runs.rounds import FailedImages, read_round, unfinished_round
from batchcl.runs.store import Store
from batchcl.runs.worklist import WorkList

__all__ = ["publish_leftovers", "recover_runs"]

_SHARDS_AT_ONCE: Final = 8
_RUNS_AT_ONCE: Final = 4
_READS_AT_ONCE: Final = 64
_KEPT: Final = ("round", "owns_model")
"""Counters of a dead session that pass to its recovery: not what it spent, which stays in its own file."""


async def recover_runs(
    store: Store,
    model: str,
    *,
    besides: str,
    all_rows: bool,
    utcnow: Callable[[], dt.datetime],
    on_alive: Callable[[RunRecord, RunLease], None],
) -> list[str]:
    """Publish what the other runs of `model` have journalled whose process died; returns their ids.

    A run whose last session has settled has nothing to publish, and is not read: a list of names says so.

    Args:
        store: the output root.
        model: ARN.
        besides: the run id of the caller.
        all_rows: whether the caller relies on all of their rows; if not, runs that can't be recovered are passed over.
        utcnow: the time of day.
        on_alive: receives each run that a process works on; raises where that may not be.

    Raises:
        OutputError: a run may have rows that can't be published, as one of its files is damaged.
        StoppedError: by `on_alive`.
    """

    def pass_over(run_id: str, error: OutputError) -> None:
        if all_rows:
            raise OutputError(
                f"run {run_id} may have scored images that are not in the tables, and can't be recovered: {error}; or "
                "run without --incremental"
            ) from error

    async def look(run_id: str) -> tuple[RunRecord, RunLease, bool] | None:
        try:
            lease = await unsettled_lease(store, RunPaths(run_id).sessions)
            record = None if lease is None else await read_record(store, run_id)
            if lease is not None and record is not None and record.model == model:
                return record, lease, await is_alive(store, RunPaths(run_id).sessions, lease)
        except OutputError as error:
            pass_over(run_id, error)
        return None

    async def settle(found: tuple[RunRecord, RunLease, bool] | None) -> str | None:
        if found is None:
            return None
        record, lease, alive = found
        if not alive:
            try:
                await _recover(store, record, lease, utcnow=utcnow)
            except OutputError as error:
                pass_over(record.run_id, error)
                return None
            except StoppedError:
                pass  # another process has taken it over meanwhile
            else:
                return record.run_id
        on_alive(record, lease)
        return None

    others = [run_id for run_id in await store.children(RUNS) if run_id != run_name(besides)]
    found = await gather(look, others, at_once=_READS_AT_ONCE)
    return [run_id for run_id in await gather(settle, found, at_once=_RUNS_AT_ONCE) if run_id is not None]


async def _recover(store: Store, record: RunRecord, dead: RunLease, *, utcnow: Callable[[], dt.datetime]) -> None:
    kept = {name: value for name, value in dead.progress.items() if name in _KEPT}
    left = kept | {"stops_model": False}  # a recovery stops no model
    sessions = RunPaths(record.run_id).sessions
    lease = RunLeaseHolder(store, sessions, what=f"run {record.run_id}", progress=lambda: left, utcnow=utcnow)
    await lease.acquire(dead=dead)
    async with lease.beating():
        await publish_leftovers(store, record, writer=lease.holder, cut_all=True)
    lease.settled = True
    await lease.release()


async def publish_leftovers(store: Store, record: RunRecord, *, writer: str, cut_all: bool = False) -> None:
    """Cut and publish what earlier sessions of a run have journalled in shards that aren't complete.

    Args:
        store: the output root.
        record: the run's.
        writer: this process's name in the journal.
        cut_all: cut the shards without entries too.

    Raises:
        StoppedError: another process works on the run.
    """
    paths, spec = RunPaths(record.run_id), record.part_spec()
    worklist = WorkList(store, paths)
    await worklist.open()
    targets, shards = await _incomplete(store, paths, worklist)
    journalled = {int(name) for name in await store.children(paths.journals)}
    wanted = [shard for shard in shards if cut_all or shard in journalled]
    finish = partial(_finish, store, spec, worklist, targets, writer=writer, cut_all=cut_all)
    await gather(finish, wanted, at_once=_SHARDS_AT_ONCE)


async def _incomplete(store: Store, paths: RunPaths, worklist: WorkList) -> tuple[Targets, list[int]]:
    """What the round that is under way is about, and its shards that aren't complete."""
    done = await published(store, paths)
    number = await unfinished_round(store, paths)
    if number is None:
        return AllImages(worklist, done), [shard for shard in range(worklist.shards) if shard not in done]
    about = await read_round(store, paths, number)
    targets = FailedImages(about, published=done, totals=await read_totals(store, paths, done.items()))
    return targets, [shard async for shard in targets.shards()]


async def _finish(
    store: Store, spec: PartSpec, worklist: WorkList, targets: Targets, shard: int, *, writer: str, cut_all: bool
) -> None:
    paths = RunPaths(spec.run_id)
    journal = Journal(store, paths, shard, writer=writer)
    content = await journal.read()
    if content.uncut is not None or cut_all:
        await journal.cut()
    if not content.entries.num_rows:
        return
    images = await worklist.load(shard)
    content = await publish_journal(store, spec, shard, journal, images)
    written, earlier = of_round(content.entries, targets.round)
    if set(targets.positions(images, earlier)) <= set(positions(written)):
        state = latest(content.entries)
        await write_marker(store, paths, shard, round_=targets.round, entries=state, images=images)
