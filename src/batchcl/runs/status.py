"""What became of a run, told from the output root alone, on any machine, while it goes on or after."""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass
from typing import Any, Final

from batchcl.runs.entries import counts
from batchcl.runs.journal import Journal
from batchcl.runs.layout import RUNS, RunPaths
from batchcl.runs.lease import Lease, read_lease
from batchcl.runs.markers import Totals, published, read_totals, total
from batchcl.runs.record import RunRecord, Summary, read_record, read_summary
from batchcl.runs.rounds import Round, unfinished_round
from batchcl.runs.store import Store
from batchcl.runs.together import together
from batchcl.runs.worklist import WorkList
from batchcl.scoring.outcome import Counts

__all__ = ["RunState", "list_runs", "look", "newest_run"]

_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A run as the output root shows it.

    Attributes:
        state: `done`; `running` while a runner holds it; `stopped` when it ended early; `interrupted` when its runner
            died without a word.
        planned: images on the list so far; all of them once `listed`.
        published: images whose outcome is in the tables.
        journalled: images with a durable outcome that is not in the tables yet.
        unresolved: failed images.
        retryable: of those, images that `batchcl retry` scores again, as they may succeed.
        fittable: failed and skipped images that may be scored with `batchcl retry --fit`.
        left: images without an outcome.
        rounds: retries that have put rows into the table.
        unfinished_round: the retry that was begun and isn't over, or None; `batchcl retry` goes on with it.
        held_by: who works on it, or None.
        images_per_second: of the runner that holds it, else of the last session that ended; None where it made no call.
        resumable: whether the same `batchcl run` would go on with it.
    """

    run_id: str
    model: str
    started_at: dt.datetime
    state: str
    listed: bool
    planned: int
    scored: int
    failed: int
    skipped: int
    published: int
    journalled: int
    unresolved: int
    retryable: int
    fittable: int
    left: int
    rounds: int
    unfinished_round: int | None
    images_per_second: float | None
    held_by: str | None
    resumable: bool
    reason: str | None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


async def look(store: Store, run_id: str, *, now: dt.datetime) -> RunState | None:
    """The run's state, or None if there is no such run. Reads markers, and the journals of unpublished shards."""
    record = await read_record(store, run_id)
    if record is None:
        return None
    paths = RunPaths(run_id)
    summary = await read_summary(store, run_id)
    lease = await read_lease(store, paths.sessions)
    rounds = await published(store, paths)
    complete = total((await read_totals(store, paths, rounds.items())).values())
    in_tables, journalled = await _of_incomplete(store, paths, rounds)
    worklist = WorkList(store, paths)
    await worklist.open()  # last, as it grows: what has its outcome stands on it
    return _state(
        record,
        summary,
        lease=lease if lease is not None and lease.seems_alive(now) else None,
        worklist=worklist,
        complete=complete,
        in_tables=in_tables,
        journalled=journalled,
        rounds=max(rounds.values(), default=0),
        unfinished=await unfinished_round(store, paths),
    )


async def list_runs(store: Store, *, now: dt.datetime) -> list[RunState]:
    """All runs of the root, the oldest first."""
    states = await together(lambda run_id: look(store, run_id, now=now), await store.children(RUNS), at_once=_AT_ONCE)
    return sorted((state for state in states if state is not None), key=lambda each: (each.started_at, each.run_id))


async def newest_run(store: Store) -> str | None:
    """The id of the run that began last, or None where there is none. Reads the runs' records alone."""
    records = await together(lambda run_id: read_record(store, run_id), await store.children(RUNS), at_once=_AT_ONCE)
    newest = max(
        (each for each in records if each is not None), key=lambda each: (each.started_at, each.run_id), default=None
    )
    return None if newest is None else newest.run_id


async def _of_incomplete(store: Store, paths: RunPaths, rounds: dict[int, int]) -> tuple[Counts, Counts]:
    """Outcomes in shards that no round has completed: those in the tables, and those that are only journalled."""
    names = await store.children(paths.journals)
    in_tables, journalled = Counts(), Counts()
    for shard in (int(name) for name in names if name.isdigit() and int(name) not in rounds):
        content = await Journal(store, paths, shard, writer="").read()
        in_tables += sum((counts(chunk.entries) for chunk in content.chunks), Counts())
        journalled += Counts() if content.uncut is None else counts(content.uncut.entries)
    return in_tables, journalled


def _state(
    record: RunRecord,
    summary: Summary | None,
    *,
    lease: Lease | None,
    worklist: WorkList,
    complete: Totals,
    in_tables: Counts,
    journalled: Counts,
    rounds: int,
    unfinished: int | None,
) -> RunState:
    in_parts = complete.counts + in_tables
    both = in_parts + journalled
    listed = worklist.totals is not None
    was_done = summary is not None and (summary.status == "done" or summary.round > 0)  # only what is done is retried
    finished = was_done and listed and in_parts.done == worklist.images
    if lease is not None:
        state = "running"
    elif finished:
        state = "done"
    else:
        state = "stopped" if summary is not None and summary.status == "stopped" else "interrupted"
    return RunState(
        run_id=record.run_id,
        model=record.model_name,
        started_at=record.started_at,
        state=state,
        listed=listed,
        planned=worklist.images - both.already_scored - both.already_failed,
        scored=both.scored,
        failed=both.failed,
        skipped=both.skipped,
        published=in_parts.done,
        journalled=journalled.done,
        unresolved=both.failed,
        retryable=Round(0).selected(complete.failures),
        fittable=sum(number for group, number in complete.failures.items() if group.fit_may_help),
        left=worklist.images - both.done,
        rounds=rounds,
        unfinished_round=unfinished,
        images_per_second=_rate(summary, lease),
        held_by=None if lease is None else f"{lease.host}, process {lease.process.partition('-')[0]}",
        resumable=lease is None and not finished,
        reason=None if summary is None else summary.reason,
    )


def _rate(summary: Summary | None, lease: Lease | None) -> float | None:
    if lease is not None:
        return lease.progress.get("images_per_second") if lease.progress.get("calls") else None
    return summary.images_per_second if summary is not None and summary.calls else None
