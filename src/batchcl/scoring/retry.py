"""Scores failed images of a run again: what `batchcl retry` and `batchcl.retry` do."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import cache, partial
from typing import Any

import anyio
import anyio.to_thread

from batchcl.aws.session import Aws, AwsSettings
from batchcl.choices import IfHeld
from batchcl.errors import ErrorCode, OutputError, StoppedError, UsageError, command
from batchcl.events import Notice, Observer, Progress, SafeObserver, SilentObserver
from batchcl.job import Job, job_of
from batchcl.monitoring import RunNames, Targets, monitored
from batchcl.outcomes import FAILURE_CODES
from batchcl.quantities import pluralize
from batchcl.runs.entries import FailureGroup, count_fittable
from batchcl.runs.layout import RunPaths, valid_run_id
from batchcl.runs.lease import RunLease
from batchcl.runs.markers import published, read_totals, sum_totals
from batchcl.runs.record import RunRecord, read_record, read_summary, summary_of_session
from batchcl.runs.recovery import publish_leftovers
from batchcl.runs.rounds import FailedImages, Round, end_round, last_round, open_round, read_round, unfinished_round
from batchcl.runs.store import Store
from batchcl.runs.worklist import WorkList
from batchcl.scoring.bounds import deadline_at, limit_to_descriptors
from batchcl.scoring.connections import open_service
from batchcl.scoring.run import acquire_lease, incremental_filter, open_context
from batchcl.scoring.run_lease import hold_run_lease, make_run_lease
from batchcl.scoring.session import RunContext, Session
from batchcl.scoring.waiting import Waiter
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary

__all__ = ["completes_followed_round", "execute_round", "job_of_round", "retry", "waiter_for_retry"]


async def retry(
    root: str,
    run_id: str,
    *,
    codes: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
    observer: Observer | None = None,
    stop_signal: StopSignal | None = None,
    aws: Aws | None = None,
) -> Summary:
    """Score the failed images of a finished run again, as a new round of the run.

    Images that are scored get rows in `results/`; images that fail again get another row in `failures/`. Permanent
    failures and skipped images are reported and not retried, unless `changes` contains `fit` and it may help. An
    interrupted round is resumed with its own codes and `fit`. For an incremental run, images that another run has
    scored in the meantime are not scored again.

    Args:
        root: the output root.
        run_id: a run that is done.
        codes: error codes to retry, such as `InternalServerError`; all if empty.
        changes: fields of `Job` to change: how the model is started, paced or reached, and `fit`.
        observer: receives progress and notices.
        stop_signal: ends the round early on request.
        aws: session to use, such as an emulator's; default: the profile and region of `changes` or of the run.

    Returns:
        The summary of the whole run after the round. `tolerated` does not count failures that the round did not retry:
        the run itself has counted them.

    Raises:
        UsageError: there is no such run, it is not done, or no image that failed with one of `codes` can succeed.
        RefusedError: nothing was spent.
        StoppedError: the round ended early; calling `retry` again resumes it.
    """
    valid_run_id(run_id)
    stop_signal = stop_signal or StopSignal()
    changes = dict(changes or {})
    observer = SafeObserver(observer or SilentObserver())

    @cache
    def session() -> Aws:
        return aws or Aws(AwsSettings(profile=changes.get("profile"), region=changes.get("region")))

    names = RunNames(root=root, run_id=run_id)
    async with monitored(Targets.read(changes), observer, stop_signal, names, session=session) as monitor:
        monitor.summary = await _retry(
            root,
            run_id,
            codes=codes,
            changes=changes,
            observer=monitor,
            stop_signal=stop_signal,
            aws=aws,
            session=session(),
        )
        return monitor.summary


async def _retry(
    root: str,
    run_id: str,
    *,
    codes: Sequence[str],
    changes: Mapping[str, Any],
    observer: Observer,
    stop_signal: StopSignal,
    aws: Aws | None,
    session: Aws,
) -> Summary:
    begun_at, now = anyio.current_time(), dt.datetime.now(dt.UTC)
    with stop_signal.interruptible():
        store = await Store.open_async(root, aws=session)
        record = await read_record(store, run_id)
        if record is None:
            raise UsageError(
                f"there is no run {run_id!r} in {root}; {command('runs', root)} lists them", code=ErrorCode.NO_SUCH_RUN
            )
        read_job = partial(job_of_round, store, record, {"out": root, **changes})
        job = await read_job()
        ends_at = deadline_at(job, begun_at=begun_at, now=now)
        if job.if_held is IfHeld.FAIL:
            await _read_end_of_run(store, run_id)
        if job.sse is not None:
            store = await Store.open_async(root, aws=session, encryption=job.encryption)
        await store.check_writable(single_writer=job.single_writer)
        aws, model = await open_service(job, aws)
        await aws.check_credentials()

    async def attempt() -> Summary:
        with stop_signal.interruptible():
            earlier = await _read_end_of_run(store, run_id)
            job = limit_to_descriptors(await read_job(), observer)
            if await completes_followed_round(store, earlier, job, codes=codes, followed=waiter.followed):
                observer.notice(Notice("completed-elsewhere", f"another process has done this retry of run {run_id}"))
                return earlier
        async with open_context(
            job, aws, model, observer, stop_signal, run_id=run_id, root=store.root, ends_at=ends_at
        ) as context:
            return await execute_round(job, store, record, earlier, context, codes=codes, dead=waiter.dead)

    waiter = waiter_for_retry(job, store, run_id, observer=observer, stop_signal=stop_signal, ends_at=ends_at)
    return await waiter.run(attempt)


async def _read_end_of_run(store: Store, run_id: str) -> Summary:
    """Return the summary of a run that is done, or of its retry. Raises `UsageError` if it is not done."""
    summary = await read_summary(store, run_id)
    if summary is None or (summary.status != "done" and summary.round == 0):
        raise UsageError(
            f"run {run_id} is not done; resume it first by its own `batchcl run` command with --run-id {run_id}",
            code=ErrorCode.RUN_NOT_DONE,
        )
    return summary


def waiter_for_retry(
    job: Job, store: Store, run_id: str, *, observer: Observer, stop_signal: StopSignal, ends_at: float
) -> Waiter:
    """Return the waiter for other processes that work on the run."""

    async def read_end(lease: RunLease) -> Summary | None:
        summary = await summary_of_session(store, run_id, lease.number)
        is_closed = await unfinished_round(store, RunPaths(run_id)) is None
        return summary if is_closed or (summary is not None and summary.status != "done") else None

    return Waiter(
        job=job,
        store=store,
        run_id=run_id,
        observer=observer,
        stop_signal=stop_signal,
        ends_at=ends_at,
        read_end=read_end,
    )


async def completes_followed_round(
    store: Store, summary: Summary, job: Job, *, codes: Sequence[str], followed: RunLease | None
) -> bool:
    """Whether `summary` is that of the round that this process has followed, with the settings that it asks for."""
    if followed is None or summary.status != "done" or summary.round != followed.progress.get("round"):
        return False
    last, is_open = await last_round(store, RunPaths(summary.run_id))
    if is_open or last != summary.round or not last:
        return False
    done = await read_round(store, RunPaths(summary.run_id), last)
    return (done.codes, done.fit) == (tuple(codes), job.fit)


async def job_of_round(store: Store, record: RunRecord, changes: Mapping[str, Any]) -> Job:
    """Return the job of the next round: the run's job with `changes`, and the `fit` of an interrupted round."""
    job = job_of(record.scored_as, record.settings, {"run_id": record.run_id, **changes})
    paths = RunPaths(record.run_id)
    number = await unfinished_round(store, paths)
    return job if number is None else job.model_copy(update={"fit": (await read_round(store, paths, number)).fit})


async def execute_round(
    job: Job,
    store: Store,
    record: RunRecord,
    earlier: Summary,
    context: RunContext,
    *,
    codes: Sequence[str],
    dead: RunLease | None = None,
) -> Summary:
    """Open the round and score its images: the second half of `retry`, with open connections.

    `dead` is the run's last session, if that was found dead just now.
    """
    paths = RunPaths(record.run_id)
    model_manager, observer = context.model_manager, context.observer
    progress = Progress(model=model_manager.use)
    last, is_open = await last_round(store, paths)
    retry_round = await read_round(store, paths, last) if is_open else Round(last + 1, tuple(codes), job.fit)
    lease = make_run_lease(
        store, paths, progress, model_manager, round_=retry_round.number, observer=observer, utcnow=context.utcnow
    )
    async with AsyncExitStack() as held_lease:
        with context.stop_signal.interruptible():
            rounds = await published(store, paths)
            totals = await read_totals(store, paths, rounds.items())
            failures = sum_totals(totals.values()).failures
            _report_not_retried(failures, retry_round, observer)
            if not is_open and not retry_round.selected(failures):
                any_failed = any(group.status == "failed" for group in failures)
                if any_failed:
                    _check_codes(failures, retry_round, record.run_id)
                reason = "none of its failures can succeed" if any_failed else "it has no failures"
                observer.notice(Notice("nothing-failed", f"nothing to retry in run {record.run_id}: {reason}"))
                return replace(earlier, tolerated=True)
            await model_manager.check()
            lease_block = hold_run_lease(lease, model_manager, context.stop_signal, dead=dead)
            hold = partial(held_lease.enter_async_context, lease_block)
            await acquire_lease(job, store, record, context, lease=lease, take=hold)
            await lease.check()
            retry_round = await open_round(store, paths, retry_round)
            if retry_round.fit != job.fit:
                text = f"another retry of run {record.run_id} was started in the meantime; repeat the command"
                raise StoppedError(text)
            if lease.follows_unsettled:
                async with lease.writing_heartbeats():
                    await publish_leftovers(store, record, writer=lease.holder, cut_all=True)
            rounds = await published(store, paths)
            totals = await read_totals(store, paths, rounds.items())
            worklist = WorkList(store, paths)
            await worklist.open()
        targets = FailedImages(retry_round, published=rounds, totals=totals)
        images = f"{pluralize(targets.planned, 'image')} without result{', with --fit' if retry_round.fit else ''}"
        text = f"round {retry_round.number} of run {record.run_id}: {images}"
        fields: dict[str, str | int | float | None] = {
            "run_id": record.run_id,
            "root": store.root,
            "model": record.model,
        }
        observer.notice(Notice("started", text, fields))
        progress.planned, progress.listed = targets.planned, True
        incremental = incremental_filter(store, record, job)
        session = Session(
            job=job,
            store=store,
            record=record,
            worklist=worklist,
            targets=targets,
            published=rounds,
            context=context,
            lease=lease,
            held_lease=held_lease,
            progress=progress,
            find_known=None if incremental is None else incremental.known,
            earlier=sum_totals(totals.values()).counts,
        )
        summary = await session.run()
    try:
        await end_round(store, paths, retry_round.number)
    except OutputError as error:
        end = StoppedError(f"all images of the round are scored, but closing it failed: {error}; repeat the command")
        end.summary = summary
        raise end from error
    return summary


def _report_not_retried(failures: Counter[FailureGroup], retry_round: Round, observer: Observer) -> None:
    """Report the images without a result that the round does not retry, by status and code, and why."""
    rest = {
        group: number
        for group, number in failures.items()
        if retry_round.names(group) and not retry_round.selects(group)
    }
    for status, code in sorted({(group.status, group.code) for group in rest}):
        of_code = {group: number for group, number in rest.items() if (group.status, group.code) == (status, code)}
        images = sum(of_code.values())
        fixable = count_fittable(of_code)
        text = f"not retried: {pluralize(images, 'image')} {status} with {code}{_reason(code)}"
        if fixable:
            text += f"; `batchcl retry --fit` may score {fixable:,} of them"
        fields: dict[str, str | int | float | None] = {"code": code, "images": images, "fit_may_help": fixable}
        observer.notice(Notice("not-retried", text, fields))


def _reason(code: str) -> str:
    known = FAILURE_CODES.get(code)
    return "" if known is None else f" ({known.reason})"


def _check_codes(failures: Counter[FailureGroup], retry_round: Round, run_id: str) -> None:
    """Raise `UsageError` if codes were given and no image that failed with one of them can succeed."""
    if not retry_round.codes:
        return
    codes = " or ".join(retry_round.codes)
    of_codes = [group for group in failures if retry_round.names(group)]
    if of_codes:
        fit = "add --fit, or " if any(group.fit_may_help for group in of_codes) else ""
        raise UsageError(
            f"no image of run {run_id} that failed with --code {codes} can succeed: these failures are permanent; "
            f"{fit}replace the images and score them with `batchcl run --incremental`",
            code=ErrorCode.NOTHING_TO_RETRY,
        )
    by_code: Counter[str] = Counter()
    for group, number in failures.items():
        if retry_round.fit or group.status == "failed":
            by_code[group.code] += number
    known = ", ".join(f"{code} ({number:,})" for code, number in by_code.most_common()) or "none"
    raise UsageError(
        f"no image of run {run_id} failed with --code {codes}; its codes: {known}", code=ErrorCode.NOTHING_TO_RETRY
    )
