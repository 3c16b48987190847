"""Score again what failed: what `batchcl retry` and `batchcl.retry` do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import anyio
import anyio.to_thread

from batchcl.aws.arn import ModelArn
from batchcl.aws.session import Aws, AwsSettings
from batchcl.errors import OutputError, StoppedError, UsageError
from batchcl.job import Job, job_of
from batchcl.quantities import counted
from batchcl.runs.known import KnownVersions
from batchcl.runs.layout import RunPaths
from batchcl.runs.markers import published, read_counts, total
from batchcl.runs.record import RunRecord, Summary, read_record, read_summary
from batchcl.runs.recovery import publish_leftovers
from batchcl.runs.rounds import FailedImages, count_codes, end_round, last_round, open_round
from batchcl.runs.store import Store
from batchcl.runs.worklist import WorkList
from batchcl.scoring.events import Contained, Notice, Observer, Progress, SilentObserver
from batchcl.scoring.score import admitted, open_model
from batchcl.scoring.service import service_of
from batchcl.scoring.session import Means, Session
from batchcl.scoring.stopper import Stopper
from batchcl.scoring.tenure import lease_of, tenure

__all__ = ["conduct_round", "retry"]


async def retry(
    root: str,
    run_id: str,
    *,
    codes: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
    observer: Observer | None = None,
    stopper: Stopper | None = None,
) -> Summary:
    """Score the failed images of a finished run again, as a new round of it.

    Images that are scored now get rows in `results/`; those that fail again get another row in `failures/`. A round
    that was interrupted is continued, with its own codes. Skipped images are left alone: they would be skipped again.
    Images of an incremental run that another run has scored meanwhile are not scored again.

    Args:
        root: the output root.
        run_id: a run that is done.
        codes: error codes to retry, such as `InternalServerError`; all if empty.
        changes: fields of `Job` to change: how the model is started, paced or reached, not what is scored.
        observer: watches.
        stopper: ask it to end the round early.

    Returns:
        The summary of the whole run after the round.

    Raises:
        UsageError: there is no such run, it is not done yet, or no image failed with any of `codes`.
        RefusedError: nothing was spent.
        StoppedError: it ended early; `retry` goes on.
    """
    begun_at = anyio.current_time()
    observer = Contained(observer or SilentObserver())
    stopper = stopper or Stopper()
    changes = dict(changes or {})
    session = Aws(AwsSettings(profile=changes.get("profile"), region=changes.get("region")))
    store = await anyio.to_thread.run_sync(lambda: Store.open(root, aws=session))
    record = await read_record(store, run_id)
    if record is None:
        raise UsageError(f"there is no run {run_id} in {root}; `batchcl runs {root}` lists them")
    earlier = await read_summary(store, run_id)
    if earlier is None or (earlier.status != "done" and earlier.round == 0):
        raise UsageError(f"run {run_id} is not done yet; end it first with `batchcl run` and the same --run-id")
    job = job_of(record.scored_as, record.settings, {"out": root, "run_id": run_id} | changes)
    await store.check_writable(single_writer=job.single_writer)
    async with (
        service_of(job) as (aws, model),
        open_model(job, aws, model, observer, stopper, run_id=run_id, root=store.root, begun_at=begun_at) as means,
    ):
        with stopper.interruptible():
            await aws.check_credentials()
        return await conduct_round(job, store, record, earlier, means, codes=codes)


async def conduct_round(
    job: Job,
    store: Store,
    record: RunRecord,
    earlier: Summary,
    means: Means,
    *,
    codes: Sequence[str],
) -> Summary:
    """Open the round and score its images; `retry` without AWS around it."""
    paths = RunPaths(record.run_id)
    keeper, observer = means.keeper, means.observer
    progress = Progress(dollars=keeper.dollars)
    last, is_open = await last_round(store, paths)
    number = last if is_open else last + 1
    lease = lease_of(store, paths, progress, keeper, round_=number, observer=observer, utcnow=means.utcnow)
    async with AsyncExitStack() as held:
        with means.stopper.interruptible():
            rounds = await published(store, paths)
            counts = await read_counts(store, paths, rounds.items())
            failed = total(counts.values()).failed
            if not failed and not is_open:
                observer.notice(Notice("nothing-failed", f"run {record.run_id} has no failures; nothing to do"))
                return earlier
            with_failures = [shard for shard, count in counts.items() if count.failed]
            by_code = await count_codes(store, paths, with_failures) if codes or is_open else {}
            if not is_open:
                _refuse_unknown(codes, sum(by_code.values(), Counter[str]()), record.run_id)
            await keeper.check()
            hold = partial(held.enter_async_context, tenure(lease, keeper))
            await admitted(job, store, record, means, lease=lease, take=hold)
            await lease.check()
            about = await open_round(store, paths, tuple(codes))
            if lease.follows_unsettled:
                async with lease.beating():
                    await publish_leftovers(store, record, writer=lease.holder, cut_all=True)
            rounds = await published(store, paths)
            counts = await read_counts(store, paths, rounds.items())
            worklist = WorkList(store, paths)
            await worklist.open()
        if about.codes and by_code:
            left = [by_code[shard] for shard in by_code if rounds[shard] < about.number]
            failed = sum(count[code] for count in left for code in set(about.codes))
        over = counted(failed, "failure")
        observer.notice(Notice("started", f"round {about.number} of run {record.run_id} over {over}"))
        progress.planned, progress.listed = failed, True
        session = Session(
            job=job,
            store=store,
            record=record,
            worklist=worklist,
            targets=FailedImages(about, published=rounds, counts=counts),
            published=rounds,
            means=means,
            lease=lease,
            held=held,
            progress=progress,
            needs_call=KnownVersions(store, ModelArn.parse(record.model)).fresh if job.incremental else None,
            earlier=total(counts.values()),
        )
        summary = await session.run()
    try:
        await end_round(store, paths, about.number)
    except OutputError as error:
        end = StoppedError(f"the round is scored, but could not be closed: {error}; `batchcl retry` closes it")
        end.summary = summary
        raise end from error
    return summary


def _refuse_unknown(codes: Sequence[str], known: Counter[str], run_id: str) -> None:
    """Raise `UsageError` where no image failed with any of `codes`: such a round would have nothing to do."""
    if codes and not any(known[code] for code in codes):
        named = ", ".join(f"{code} ({count:,})" for code, count in known.most_common())
        raise UsageError(f"no image of run {run_id} failed with --code {' or '.join(codes)}; the codes are {named}")
