"""Recovery of runs whose process died: publish their journalled outcomes and fence off the old process.

A recovery takes over the run's lease, then cuts the journal of every incomplete shard, including those without entries.
A process that was only suspended either sees the new lease before it opens a shard, or fails to create the next segment
of a shard that was cut. A recovery does not complete the run; repeating the run's command resumes it.
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
_COPIED: Final = ("round", "owns_model")
"""Heartbeat fields that a recovery copies from the dead session, so that the next session of the run finds them.

The counters of the dead session stay in its own file.
"""


async def recover_runs(
    store: Store,
    model: str,
    *,
    own_run_id: str,
    require_all: bool,
    utcnow: Callable[[], dt.datetime],
    on_alive: Callable[[RunRecord, RunLease], None],
) -> list[str]:
    """Publish the journalled outcomes of all other runs of `model` whose process died; returns the ids of these runs.

    Runs whose last session has settled have nothing to publish; their file names show it, so they are not read.

    Args:
        store: the output root.
        model: ARN.
        own_run_id: id of the caller's run, which is excluded.
        require_all: whether a run that can't be recovered is an error; if not, it is skipped.
        utcnow: the current time.
        on_alive: called for each run that a process is working on; may raise `StoppedError`.

    Raises:
        OutputError: with `require_all`, a run may have rows that can't be published because a file is corrupt.
        StoppedError: raised by `on_alive`.
    """

    def raise_if_required(run_id: str, error: OutputError) -> None:
        if require_all:
            raise OutputError(
                f"recovering run {run_id} failed, so images that it has scored may be missing in the tables: {error}; "
                "or run without --incremental",
                code=error.code,
            ) from error

    async def inspect(run_id: str) -> tuple[RunRecord, RunLease, bool] | None:
        try:
            lease = await unsettled_lease(store, RunPaths(run_id).sessions)
            record = None if lease is None else await read_record(store, run_id)
            if lease is not None and record is not None and record.model == model:
                return record, lease, await is_alive(store, RunPaths(run_id).sessions, lease)
        except OutputError as error:
            raise_if_required(run_id, error)
        return None

    async def recover(run: tuple[RunRecord, RunLease, bool] | None) -> str | None:
        if run is None:
            return None
        record, lease, alive = run
        if not alive:
            try:
                await _recover(store, record, lease, utcnow=utcnow)
            except OutputError as error:
                raise_if_required(record.run_id, error)
                return None
            except StoppedError:
                pass  # another process took it over in the meantime
            else:
                return record.run_id
        on_alive(record, lease)
        return None

    others = [run_id for run_id in await store.children(RUNS) if run_id != run_name(own_run_id)]
    unsettled = await gather(inspect, others, at_once=_READS_AT_ONCE)
    return [run_id for run_id in await gather(recover, unsettled, at_once=_RUNS_AT_ONCE) if run_id is not None]


async def _recover(store: Store, record: RunRecord, dead: RunLease, *, utcnow: Callable[[], dt.datetime]) -> None:
    copied = {name: value for name, value in dead.progress.items() if name in _COPIED}
    progress = copied | {"stops_model": False}  # a recovery doesn't stop the model
    sessions = RunPaths(record.run_id).sessions
    lease = RunLeaseHolder(store, sessions, what=f"run {record.run_id}", progress=lambda: progress, utcnow=utcnow)
    await lease.acquire(dead=dead)
    async with lease.writing_heartbeats():
        await publish_leftovers(store, record, writer=lease.holder, cut_all=True)
    lease.settled = True
    await lease.release()


async def publish_leftovers(store: Store, record: RunRecord, *, writer: str, cut_all: bool = False) -> None:
    """Cut and publish what earlier sessions of a run have journalled in incomplete shards. Requires the run's lease.

    Args:
        store: the output root.
        record: the run's record.
        writer: identifies this process in the journal.
        cut_all: also cut shards without entries, to fence off their writer.

    Raises:
        StoppedError: another process is working on the run.
    """
    paths, spec = RunPaths(record.run_id), record.part_spec()
    worklist = WorkList(store, paths)
    await worklist.open()
    targets, incomplete = await _incomplete_shards(store, paths, worklist)
    journalled = {int(name) for name in await store.children(paths.journals)}
    shards = [shard for shard in incomplete if cut_all or shard in journalled]
    publish = partial(_publish_shard, store, spec, worklist, targets, writer=writer, cut_all=cut_all)
    await gather(publish, shards, at_once=_SHARDS_AT_ONCE)


async def _incomplete_shards(store: Store, paths: RunPaths, worklist: WorkList) -> tuple[Targets, list[int]]:
    """The images of the current round, and its shards that are not complete."""
    done = await published(store, paths)
    number = await unfinished_round(store, paths)
    if number is None:
        return AllImages(worklist, done), [shard for shard in range(worklist.shards) if shard not in done]
    current = await read_round(store, paths, number)
    targets = FailedImages(current, published=done, totals=await read_totals(store, paths, done.items()))
    return targets, [shard async for shard in targets.shards()]


async def _publish_shard(
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
    current, earlier = of_round(content.entries, targets.round)
    if set(targets.positions(shard, images, earlier)) <= set(positions(current)):
        last = latest(content.entries)
        await write_marker(store, paths, shard, round_=targets.round, entries=last, images=images)
