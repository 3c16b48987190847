"""What became of a run, told from the output root alone, on any machine, while it goes on or after.

Of a run that is done, and on which nobody has worked since, the summary is read alone. Of any other one, all that it
takes to count its outcomes.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from batchcl.arns import ModelArn
from batchcl.concurrency import gather
from batchcl.errors import OutputError
from batchcl.outcomes import Counts
from batchcl.runs.layout import RUNS, STARTS, RunPaths, run_of_start, start_path
from batchcl.runs.lease import RunLease, read_leases, session_numbers
from batchcl.runs.record import RunRecord, read_record, read_summary, total_spent
from batchcl.runs.store import Store
from batchcl.summary import SessionRecord, Summary

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batchcl.runs.markers import Totals
    from batchcl.runs.worklist import WorkList

__all__ = ["RunState", "list_runs", "look", "newest_run"]

_AT_ONCE: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A run as the output root shows it.

    Attributes:
        model: its name; `model_arn` is its ARN.
        min_confidence: that was asked for; None where it was left to the model.
        state: `done`; `running` while a runner holds it; `stopped` when it ended early; `interrupted` when its runner
            died without a word; `damaged` when its files can't be read, with the `reason`, and nothing else is known.
        planned: images on the list so far; all of them once `listed`.
        published: images whose outcome is in the tables.
        journalled: images with a durable outcome that is not in the tables yet.
        unresolved: failed images.
        retryable: of those, images that `batchcl retry` scores again, as they may succeed.
        fittable: failed and skipped images that may be scored with `batchcl retry --fit`.
        left: images without an outcome.
        rounds: retries that have put rows into the table.
        unfinished_round: the retry that was begun and isn't over, or None; `batchcl retry` goes on with it.
        sessions: processes that have worked on it, or recovered it.
        calls: DetectCustomLabels calls of all sessions, `throttled` ones included; of one at work or killed, as of its
            last heartbeat.
        seconds: of all sessions, each from its first call to its last row.
        cost_usd: what the model cost while the run had it running, at least; None where no session started it.
        images_per_second: of the runner that holds it, else of all sessions; None where they made no call.
        held_by: who works on it, or None.
        resumable: whether the same `batchcl run` would go on with it.
    """

    run_id: str
    model: str | None = None
    model_arn: str | None = None
    min_confidence: float | None = None
    started_at: dt.datetime | None = None
    state: str
    listed: bool | None = None
    planned: int | None = None
    scored: int | None = None
    failed: int | None = None
    skipped: int | None = None
    published: int | None = None
    journalled: int | None = None
    unresolved: int | None = None
    retryable: int | None = None
    fittable: int | None = None
    left: int | None = None
    rounds: int | None = None
    unfinished_round: int | None = None
    sessions: int | None = None
    calls: int | None = None
    throttled: int | None = None
    seconds: float | None = None
    cost_usd: float | None = None
    images_per_second: float | None = None
    held_by: str | None = None
    resumable: bool | None = None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


async def look(store: Store, run_id: str, *, now: dt.datetime) -> RunState | None:
    """The run's state, or None if there is no such run. Raises `OutputError` for a damaged one."""
    paths = RunPaths(run_id)
    reads: Sequence[Callable[[], Any]] = (
        lambda: read_summary(store, run_id),
        lambda: session_numbers(store, paths.sessions),
    )
    summary, numbers = await gather(lambda read: read(), reads, at_once=len(reads))
    if summary is not None and await _is_over(store, paths, summary, numbers):
        return _of_summary(summary)
    record = await read_record(store, run_id)
    return None if record is None else await _look_closely(store, record, summary, now=now)


async def _is_over(store: Store, paths: RunPaths, summary: Summary, numbers: Sequence[int]) -> bool:
    """Whether the run is done, and the session that wrote the summary was the last one to work on it."""
    if summary.status != "done" or not summary.sessions or [each.number for each in summary.sessions] != [*numbers]:
        return False
    if not any(each.round for each in summary.sessions):
        return True
    from batchcl.runs.rounds import unfinished_round

    return await unfinished_round(store, paths) is None


async def _look_closely(store: Store, record: RunRecord, summary: Summary | None, *, now: dt.datetime) -> RunState:
    """Read the markers, and the journals of shards that aren't complete."""
    from batchcl.runs.markers import published, read_totals, total
    from batchcl.runs.rounds import unfinished_round
    from batchcl.runs.worklist import WorkList

    paths = RunPaths(record.run_id)
    reads: Sequence[Callable[[], Any]] = (
        lambda: read_leases(store, paths.sessions),
        lambda: published(store, paths),
        lambda: unfinished_round(store, paths),
    )
    leases, rounds, unfinished = await gather(lambda read: read(), reads, at_once=len(reads))
    lease = leases[-1] if leases else None
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
        unfinished=unfinished,
        sessions=[SessionRecord.of(each.number, each.progress) for each in leases],
    )


async def list_runs(store: Store, *, now: dt.datetime) -> list[RunState]:
    """All runs of the root, the oldest first; damaged ones before all others, with the reason."""

    async def one(run_id: str) -> RunState | None:
        try:
            return await look(store, run_id, now=now)
        except OutputError as error:
            return RunState(run_id=run_id, state="damaged", reason=str(error))

    states = await gather(one, await store.children(RUNS), at_once=_AT_ONCE)
    first = dt.datetime.min.replace(tzinfo=dt.UTC)
    return sorted(
        (state for state in states if state is not None), key=lambda each: (each.started_at or first, each.run_id)
    )


async def newest_run(store: Store) -> str | None:
    """The id of the run that began last, or None where there is none.

    The names below `runs/.starts` tell when runs began. A run without one there is read; a name without a run that
    began at that time is passed over. Raises `OutputError` where the newest one is damaged.
    """

    async def record_of(run_id: str) -> RunRecord | None:
        try:
            return await read_record(store, run_id)
        except OutputError:
            return None  # without a record and a name it isn't known to be a run

    reads: Sequence[Callable[[], Any]] = (lambda: store.children(RUNS), lambda: store.list_all(STARTS))
    runs, starts = await gather(lambda read: read(), reads, at_once=len(reads))
    named = {run_of_start(file.path) for file in starts}
    unnamed = await gather(record_of, [run_id for run_id in runs if run_id not in named], at_once=_AT_ONCE)
    found = [record for record in unnamed if record is not None]
    for file in reversed(starts):
        run_id = run_of_start(file.path)
        record = await read_record(store, run_id) if run_id in runs else None
        if record is not None and start_path(run_id, record.started_at) == file.path:
            found.append(record)
            break
    newest = max(found, key=lambda each: (each.started_at, each.run_id), default=None)
    return None if newest is None else newest.run_id


async def _of_incomplete(store: Store, paths: RunPaths, rounds: dict[int, int]) -> tuple[Counts, Counts]:
    """Outcomes in shards that no round has completed: those in the tables, and those that are only journalled."""
    from batchcl.runs.entries import counts
    from batchcl.runs.journal import Journal

    names = await store.children(paths.journals)
    in_tables, journalled = Counts(), Counts()
    for shard in (int(name) for name in names if name.isdigit() and int(name) not in rounds):
        content = await Journal(store, paths, shard, writer="").read()
        in_tables += sum((counts(chunk.entries) for chunk in content.chunks), Counts())
        journalled += Counts() if content.uncut is None else counts(content.uncut.entries)
    return in_tables, journalled


def _of_summary(summary: Summary) -> RunState:
    """The state of a run on which nobody has worked since it was done."""
    return RunState(
        run_id=summary.run_id,
        model=ModelArn.parse(summary.model).name,
        model_arn=summary.model,
        min_confidence=summary.min_confidence,
        started_at=summary.started_at,
        state="done",
        listed=True,
        planned=summary.planned,
        scored=summary.scored,
        failed=summary.failed,
        skipped=summary.skipped,
        published=summary.planned,
        journalled=0,
        unresolved=summary.failed,
        retryable=summary.retryable,
        fittable=summary.fittable,
        left=0,
        rounds=summary.round,
        unfinished_round=None,
        resumable=False,
        reason=summary.reason,
        **_spent(summary.sessions),
    )


def _spent(sessions: Sequence[SessionRecord]) -> dict[str, Any]:
    spent = total_spent(sessions)
    rate = spent["images_per_second"] if spent["calls"] else None
    return {"sessions": len(sessions)} | spent | {"images_per_second": rate}


def _state(
    record: RunRecord,
    summary: Summary | None,
    *,
    lease: RunLease | None,
    worklist: WorkList,
    complete: Totals,
    in_tables: Counts,
    journalled: Counts,
    rounds: int,
    unfinished: int | None,
    sessions: Sequence[SessionRecord],
) -> RunState:
    from batchcl.runs.entries import count_fittable
    from batchcl.runs.rounds import Round

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
        model_arn=record.model,
        min_confidence=record.scored_as["min_confidence"],
        started_at=record.started_at,
        state=state,
        listed=listed,
        planned=worklist.images - both.already_scored - both.already_failed,
        scored=both.scored,
        failed=both.failed,
        skipped=both.skipped,
        published=_outcomes(in_parts),
        journalled=_outcomes(journalled),
        unresolved=both.failed,
        retryable=Round(0).selected(complete.failures),
        fittable=count_fittable(complete.failures),
        left=worklist.images - both.done,
        rounds=rounds,
        unfinished_round=unfinished,
        held_by=None if lease is None else f"{lease.host}, process {lease.process.partition('-')[0]}",
        resumable=lease is None and not finished,
        reason=None if summary is None else summary.reason,
        **_spent(sessions) | ({} if lease is None else {"images_per_second": _rate(lease)}),
    )


def _outcomes(counts: Counts) -> int:
    """Images that this run has an outcome of its own of."""
    return counts.scored + counts.failed + counts.skipped


def _rate(lease: RunLease) -> float | None:
    return lease.progress.get("images_per_second") if lease.progress.get("calls") else None
