"""The state of runs, read from the output root, on any machine, during a run or after it.

For a run that is done and was not touched since, only its summary is read. For others, markers and journals are read to
count the outcomes.
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
from batchcl.summary import BILLED_USES, SessionRecord, Summary

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from batchcl.runs.markers import Totals
    from batchcl.runs.worklist import WorkList

__all__ = ["RunState", "count_incomplete", "list_runs", "newest_run", "read_run_state"]

_AT_ONCE: Final = 64
_JOURNALS_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """The state of a run.

    Attributes:
        model: `<project>@<version>`; `model_arn` is the ARN.
        min_confidence: as requested, in percent; None for the model's own threshold.
        state: `done`; `running`: a process holds its lease; `stopped`: it ended early; `interrupted`: its process died;
            `damaged`: its files can't be read, see `reason`, and all other fields are None.
        planned: images on the work list so far; all of them once `listed`.
        unlabelled: scored images for which the model found no label.
        published: images whose outcome is in the tables.
        journalled: images whose outcome is in the journal but not in the tables yet.
        unresolved: failed images.
        retryable: unresolved images that `batchcl retry` scores again because they may succeed.
        fittable: failed and skipped images that may be scored with `batchcl retry --fit`.
        left: images without an outcome.
        rounds: retries that have added rows to the tables.
        unfinished_round: the retry that was started and has not ended, or None; `batchcl retry` continues it.
        sessions: number of processes that have worked on the run or recovered it.
        calls: DetectCustomLabels calls of all sessions, including `throttled` ones. For a session that is running or
            was killed, as of its last heartbeat.
        seconds: sum over all sessions, each from its first call to its last row.
        cost_usd: minimum cost of the model while the run had it running; None if no session started it.
        billed_start_s: seconds in which the model was billed before the first call; None if no session started it. The
            other `billed_…_s` are the seconds of scoring, of throttled calls, without a call, for the last responses,
            and for the stop; see `batchcl.lifetime.meter`.
        images_per_second: of the current session, or else of all sessions; None without calls.
        held_by: host and process that work on the run, or None.
        resumable: whether repeating `batchcl run` with this run id would continue the run.
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
    unlabelled: int | None = None
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
    billed_start_s: float | None = None
    billed_scoring_s: float | None = None
    billed_throttled_s: float | None = None
    billed_idle_s: float | None = None
    billed_tail_s: float | None = None
    billed_stop_s: float | None = None
    images_per_second: float | None = None
    held_by: str | None = None
    resumable: bool | None = None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


async def read_run_state(store: Store, run_id: str, *, now: dt.datetime) -> RunState | None:
    """The run's state, or None if there is no such run. Raises `OutputError` if a file is corrupt."""
    paths = RunPaths(run_id)
    reads: Sequence[Callable[[], Any]] = (
        lambda: read_summary(store, run_id),
        lambda: session_numbers(store, paths.sessions),
    )
    summary, numbers = await gather(lambda read: read(), reads, at_once=len(reads))
    if summary is not None and await _is_over(store, paths, summary, numbers):
        return _of_summary(summary)
    record = await read_record(store, run_id)
    return None if record is None else await _read_incomplete(store, record, summary, now=now)


async def _is_over(store: Store, paths: RunPaths, summary: Summary, numbers: Sequence[int]) -> bool:
    """Whether the run is done and its last session wrote the summary."""
    if summary.status != "done" or not summary.sessions or [each.number for each in summary.sessions] != [*numbers]:
        return False
    if not any(each.round for each in summary.sessions):
        return True
    from batchcl.runs.rounds import unfinished_round

    return await unfinished_round(store, paths) is None


async def _read_incomplete(store: Store, record: RunRecord, summary: Summary | None, *, now: dt.datetime) -> RunState:
    """The state of a run that may be incomplete: reads the markers, and the journals of incomplete shards."""
    from batchcl.runs.markers import published, read_totals, sum_totals
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
    complete = sum_totals((await read_totals(store, paths, rounds.items())).values())
    in_tables, journalled = await count_incomplete(store, paths, rounds)
    worklist = WorkList(store, paths)
    await worklist.open()  # last, because it may grow meanwhile: it then includes every image counted above
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
    """All runs of the root, the oldest first; runs with corrupt files come before all others."""

    async def state_of(run_id: str) -> RunState | None:
        try:
            return await read_run_state(store, run_id, now=now)
        except OutputError as error:
            return RunState(run_id=run_id, state="damaged", reason=str(error))

    states = await gather(state_of, await store.children(RUNS), at_once=_AT_ONCE)
    earliest = dt.datetime.min.replace(tzinfo=dt.UTC)
    return sorted(
        (state for state in states if state is not None), key=lambda state: (state.started_at or earliest, state.run_id)
    )


async def newest_run(store: Store) -> str | None:
    """The id of the run that was started last, or None if there is none.

    The start times are in the file names below `runs/.starts`. The records of runs without such a file are read; files
    that don't match a run's record are ignored. Raises `OutputError` if the record of the newest run is corrupt.
    """

    async def record_of(run_id: str) -> RunRecord | None:
        try:
            return await read_record(store, run_id)
        except OutputError:
            return None  # with neither a valid record nor a start file, it may not be a run

    reads: Sequence[Callable[[], Any]] = (lambda: store.children(RUNS), lambda: store.list_all(STARTS))
    runs, starts = await gather(lambda read: read(), reads, at_once=len(reads))
    with_start = {run_of_start(file.path) for file in starts}
    without_start = await gather(record_of, [run_id for run_id in runs if run_id not in with_start], at_once=_AT_ONCE)
    candidates = [record for record in without_start if record is not None]
    for file in reversed(starts):
        run_id = run_of_start(file.path)
        record = await read_record(store, run_id) if run_id in runs else None
        if record is not None and start_path(run_id, record.started_at) == file.path:
            candidates.append(record)
            break
    newest = max(candidates, key=lambda record: (record.started_at, record.run_id), default=None)
    return None if newest is None else newest.run_id


async def count_incomplete(store: Store, paths: RunPaths, without: Collection[int]) -> tuple[Counts, Counts]:
    """Outcomes in the tables, and in the journal only, of all shards with a journal except those of `without`."""
    from batchcl.runs.entries import counts
    from batchcl.runs.journal import Journal

    async def count(shard: int) -> tuple[Counts, Counts]:
        content = await Journal(store, paths, shard, writer="").read()
        in_tables = sum((counts(chunk.entries) for chunk in content.chunks), Counts())
        return in_tables, Counts() if content.uncut is None else counts(content.uncut.entries)

    shards = [int(name) for name in await store.children(paths.journals) if name.isdigit()]
    found = await gather(count, [shard for shard in shards if shard not in without], at_once=_JOURNALS_AT_ONCE)
    return sum((each for each, _ in found), Counts()), sum((each for _, each in found), Counts())


def _of_summary(summary: Summary) -> RunState:
    """The state of a run that is done, from its summary."""
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
        unlabelled=summary.unlabelled,
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
    billed_s = spent.pop("billed_s")
    del spent["cost_by_month"]
    billed = {f"billed_{use}_s": billed_s.get(use, 0.0) if billed_s else None for use in BILLED_USES}
    return {"sessions": len(sessions)} | spent | {"images_per_second": rate} | billed


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

    published = complete.counts + in_tables
    durable = published + journalled
    listed = worklist.totals is not None
    was_done = summary is not None and (summary.status == "done" or summary.round > 0)  # only done runs are retried
    finished = was_done and listed and published.done == worklist.images
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
        planned=worklist.images - durable.already_scored - durable.already_failed,
        scored=durable.scored,
        failed=durable.failed,
        skipped=durable.skipped,
        unlabelled=durable.unlabelled,
        published=_outcomes(published),
        journalled=_outcomes(journalled),
        unresolved=durable.failed,
        retryable=Round(0).selected(complete.failures),
        fittable=count_fittable(complete.failures),
        left=worklist.images - durable.done,
        rounds=rounds,
        unfinished_round=unfinished,
        held_by=None if lease is None else f"{lease.host}, process {lease.process.partition('-')[0]}",
        resumable=lease is None and not finished,
        reason=None if summary is None else summary.reason,
        **_spent(sessions) | ({} if lease is None else {"images_per_second": _rate(lease)}),
    )


def _outcomes(counts: Counts) -> int:
    """Images that the run itself has scored, failed or skipped; without those that `--incremental` excluded."""
    return counts.scored + counts.failed + counts.skipped


def _rate(lease: RunLease) -> float | None:
    return lease.progress.get("images_per_second") if lease.progress.get("calls") else None
