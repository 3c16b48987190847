"""Runs one job, from its sources to its summary: what `batchcl run` and `batchcl.run` do.

Everything that can refuse the job is checked first, in the order of cost: the job itself, credentials, the output root,
the run id, the sources, their buckets, the model, the first images. Then the run is recorded. The model is started only
when there is an image that needs a call.
"""

from __future__ import annotations

import datetime as dt
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread

from batchcl.__about__ import __version__
from batchcl.arns import ModelArn
from batchcl.aws.detect import LimitsDetector, open_detector
from batchcl.aws.names import matches_model
from batchcl.aws.session import Aws, AwsSettings
from batchcl.errors import ErrorCode, RefusedError, UsageError
from batchcl.events import Notice, Observer, Progress, SafeObserver, SilentObserver
from batchcl.images import MAX_BYTES_FITTABLE, MAX_BYTES_INLINE, ImageRef, Pause, no_pause
from batchcl.job import Job, fingerprint
from batchcl.loaders.open import open_reader
from batchcl.monitoring import OPTIONS, RunNames, monitored
from batchcl.monitoring import Targets as MonitoringTargets
from batchcl.quantities import pluralize
from batchcl.runs.layout import RunPaths, new_run_id
from batchcl.runs.lease import RunLease, RunLeaseHolder
from batchcl.runs.ledger import AllImages, Targets
from batchcl.runs.markers import published
from batchcl.runs.record import (
    RunRecord,
    describe_differences,
    read_record,
    read_sessions,
    read_summary,
    summary_of_session,
)
from batchcl.runs.store import Store
from batchcl.runs.worklist import WorkList
from batchcl.scoring.bounds import deadline_at, limit_to_descriptors
from batchcl.scoring.connections import open_manager, open_service
from batchcl.scoring.report_at_end import check_report, report_at_end
from batchcl.scoring.run_lease import hold_run_lease, make_run_lease
from batchcl.scoring.session import RunContext, Session
from batchcl.scoring.source_checks import CheckedSources, checks_of_attempts, closing_with, first_page
from batchcl.scoring.waiting import Waiter
from batchcl.scoring.work_list_writer import wait_for_calls, write_work_list
from batchcl.sources.select import SelectedPage
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary

if TYPE_CHECKING:
    from batchcl.runs.incremental import IncrementalFilter

__all__ = [
    "ResumeState",
    "acquire_lease",
    "called_images",
    "count_new_run",
    "execute",
    "find_resume_state",
    "incremental_filter",
    "new_record",
    "open_context",
    "open_store",
    "recorded_model",
    "recorded_run",
    "run",
    "score",
    "summary_of_done_run",
    "waiter_for_run",
]


async def run(
    job: Job, *, observer: Observer | None = None, stop_signal: StopSignal | None = None, aws: Aws | None = None
) -> Summary:
    """Score every image of `job` and publish the results below `job.out`.

    Each image becomes one row in `results/` or `failures/`. If `job.run_id` names an unfinished run, it is resumed; if
    the run is done, its summary is returned and no call is made. If the run started the model, the model is stopped at
    the end, also after an error. With `job.report`, a report about the run is written afterwards; a failure to write it
    is a notice.

    Args:
        job: what to score.
        observer: receives progress and notices; see `batchcl.events`.
        stop_signal: ends the run early on request.
        aws: session to use, such as an emulator's; default: the job's profile and region.

    Returns:
        The summary, also when more images failed than tolerated: see `Summary.tolerated`.

    Raises:
        UsageError: the job or a source is not valid, or the run id belongs to a different job.
        RefusedError: nothing was spent: credentials, access, region, model or output root are at fault.
        StoppedError: the run ended early. What is done is kept; `error.summary` contains the counts.
    """
    ends_at = deadline_at(job, begun_at=anyio.current_time(), now=dt.datetime.now(dt.UTC))
    stop_signal = stop_signal or StopSignal()
    observer = SafeObserver(observer or SilentObserver())
    names = RunNames(root=job.root, run_id=job.run_id, model=job.model)

    @cache
    def session() -> Aws:
        return aws or Aws(AwsSettings(profile=job.profile, region=job.region))

    async with monitored(MonitoringTargets.of(job), observer, stop_signal, names, session=session) as monitor:
        monitor.summary = await score(job, monitor, stop_signal, session(), ends_at=ends_at)
        return monitor.summary


async def score(
    job: Job,
    observer: Observer,
    stop_signal: StopSignal,
    aws: Aws,
    *,
    ends_at: float,
    sample_images: int | None = None,
) -> Summary:
    """`run` without monitoring; with `sample_images` only a sample is scored, without a minimum batch or report."""
    job = limit_to_descriptors(job, observer)
    check_report(job)
    with ExitStack() as files:
        with stop_signal.interruptible():
            _, resolved = await open_service(job, aws)
            await aws.check_credentials()
            store = await open_store(job, aws)
        check = checks_of_attempts(job, aws, files, observer=observer)

        async def attempt() -> Summary:
            async with AsyncExitStack() as listing:
                with stop_signal.interruptible():
                    model = await recorded_model(store, job, resolved)
                    if job.model not in (None, model.text):
                        observer.notice(Notice("model-found", f"model {job.model} is {model.text}"))
                    state = await find_resume_state(
                        job, model, store, run_id=waiter.run_id, check=partial(check, model), observer=observer
                    )
                    batch = None
                    if sample_images is None:
                        batch = await count_new_run(job, state, listing, observer=observer)
                if isinstance(batch, Summary):
                    return batch
                waiter.run_id = run_id = state.record.run_id
                report: AbstractAsyncContextManager[None] = nullcontext()
                if sample_images is None:
                    report = report_at_end(job, aws, observer, stop_signal, run_id=run_id, root=store.root)
                if state.summary is not None:
                    return await summary_of_done_run(job, state.summary, report, observer, followed=waiter.followed)
                async with (
                    report,
                    open_context(
                        job, aws, model, observer, stop_signal, run_id=run_id, root=store.root, ends_at=ends_at
                    ) as context,
                ):
                    return await execute(
                        job, replace(state, pages=batch), context, dead=waiter.dead, sample_images=sample_images
                    )

        waiter = waiter_for_run(job, store, observer=observer, stop_signal=stop_signal, ends_at=ends_at)
        return await waiter.run(attempt)


async def count_new_run(
    job: Job, state: ResumeState, listing: AsyncExitStack, *, observer: Observer
) -> Summary | AsyncIterator[SelectedPage] | None:
    """Return the summary of a run that is postponed because of `job.min_images`.

    Otherwise the images that were read to decide that, with all after them, if they need not be listed again. Only a
    run without a record is postponed. `listing` closes what is not read.
    """
    if state.is_resumed or state.sources is None or job.min_images is None:
        return None
    from batchcl.scoring.min_batch import MinBatch, count_batch, postponed_summary

    store, record = state.store, state.record
    min_batch = await MinBatch.of(job, store, record.model, now=record.started_at)
    incremental = incremental_filter(store, record, job, keep_index=True)
    if min_batch is None or incremental is None:
        return None
    pages = closing_with(listing, state.sources.selection.pages())
    batch = await count_batch(pages, incremental, enough=min_batch.min_images, fit=job.fit)
    reason = min_batch.reason(batch.calls)
    if reason is None or not batch.listed:
        return batch.pages
    text = f"run {record.run_id} is postponed: {reason}"
    fields: dict[str, str | int | float | None] = {"images": batch.images, "calls": batch.calls}
    observer.notice(Notice("postponed", text, fields | {"last_run": min_batch.last_run}))
    return postponed_summary(job, record, state.sources, batch, reason=reason, root=store.root)


async def summary_of_done_run(
    job: Job,
    summary: Summary,
    report: AbstractAsyncContextManager[None],
    observer: Observer,
    *,
    followed: RunLease | None,
) -> Summary:
    """Return the summary of a run that is done; write the report if this process has waited for the end of the run."""
    if followed is None:
        observer.notice(Notice("already-done", f"run {summary.run_id} is already done; nothing to do"))
    else:
        text = f"run {summary.run_id} was completed by process {followed.process_name}"
        observer.notice(Notice("completed-elsewhere", text))
        async with report:
            pass
    return replace(summary, tolerated=not job.tolerance.exceeded(failed=summary.failed, scored=summary.scored))


def waiter_for_run(job: Job, store: Store, *, observer: Observer, stop_signal: StopSignal, ends_at: float) -> Waiter:
    """Return the waiter of `job.run_id`. Its attempts set `run_id` if the job has none."""

    async def read_end(lease: RunLease) -> Summary | None:
        return None if waiter.run_id is None else await summary_of_session(store, waiter.run_id, lease.number)

    async def is_done() -> bool:
        summary = None if job.run_id is None else await read_summary(store, job.run_id)
        return summary is not None and summary.status == "done"

    waiter = Waiter(
        job=job,
        store=store,
        run_id=job.run_id,
        observer=observer,
        stop_signal=stop_signal,
        ends_at=ends_at,
        read_end=read_end,
        is_done=is_done,
    )
    return waiter


async def recorded_model(store: Store, job: Job, model: ModelArn) -> ModelArn:
    """Return the model that the job refers to: `model`, or for a run that is resumed the model in its record.

    They differ if the job names a project without a version, whose newest version is another one by now.
    """
    record = None if job.run_id is None or job.model is None else await read_record(store, job.run_id)
    if record is None or job.model is None:
        return model
    recorded = ModelArn.parse(record.model)
    return recorded if matches_model(recorded, job.model) else model


async def execute(
    job: Job,
    state: ResumeState,
    context: RunContext,
    *,
    dead: RunLease | None = None,
    sample_images: int | None = None,
) -> Summary:
    """Acquire the lease of the run and score what is left: the second half of `run`, with open connections.

    Args:
        job: the job.
        state: what exists of the run.
        context: connections, observer and stop signal.
        dead: the run's last session, if that was found dead just now.
        sample_images: complete the work list first, then score a sample of this size, unless sessions of this run
            have called for as many images; None to score all.
    """
    if state.is_resumed and job.has_passed_deadline(since=state.record.started_at, now=context.utcnow()):
        context = replace(context, ends_at=anyio.current_time())
    store, worklist, sources = state.store, state.worklist, state.sources
    model_manager, observer = context.model_manager, context.observer
    progress = Progress(model=model_manager.use)
    pause = partial(wait_for_calls, worklist, progress) if sample_images is None else no_pause
    lease = make_run_lease(
        store, RunPaths(state.record.run_id), progress, model_manager, observer=observer, utcnow=context.utcnow
    )
    async with AsyncExitStack() as source_stack, AsyncExitStack() as held_lease:
        with context.stop_signal.interruptible():
            if state.calls_left:
                await model_manager.check()

            async def take_over(record: RunRecord) -> None:
                lease_block = hold_run_lease(lease, model_manager, context.stop_signal, dead=dead)
                hold = partial(held_lease.enter_async_context, lease_block)
                if job.incremental:
                    await acquire_lease(job, store, record, context, lease=lease, take=hold)
                else:
                    await hold()
                if lease.follows_unsettled:  # publish its outcomes, and cut its journals in case it is only suspended
                    from batchcl.runs.recovery import publish_leftovers

                    async with lease.writing_heartbeats():
                        await publish_leftovers(store, record, writer=lease.holder, cut_all=True)

            record, pages = await _begin(job, state, take_over, source_stack, pause=pause)
            published_rounds = await published(store, RunPaths(record.run_id))
        fields: dict[str, str | int | float | None] = {
            "run_id": record.run_id,
            "root": store.root,
            "model": record.model,
        }
        observer.notice(Notice("started", f"run {record.run_id} into {store.root}", fields))
        _report_work_list(worklist, progress, observer)
        incremental = incremental_filter(store, record, job, pause=pause, keep_index=True)
        write_list = None
        if sources is not None and worklist.totals is None:
            write_list = partial(
                write_work_list,
                worklist,
                pages,
                shard_size=job.shard_size,
                incremental=incremental,
                count_sources=sources.counts,
                on_frozen=partial(_report_work_list, worklist, progress, observer),
            )
        targets: Targets = AllImages(worklist, published_rounds)
        if sample_images is not None:
            with context.stop_signal.interruptible():
                lease.settled = True  # nothing is journalled yet
                observer.started(progress)
                async with lease.writing_heartbeats():
                    if write_list is not None:
                        await write_list()
                        write_list = None
                    enough = await called_images(store, record.run_id) >= sample_images
                    from batchcl.runs.sample import draw_sample

                    targets = await draw_sample(
                        worklist,
                        images=0 if enough else sample_images,
                        seed=record.run_id,
                        fit=job.fit,
                        published=published_rounds,
                    )
                lease.settled = False
        session = Session(
            job=job,
            store=store,
            record=record,
            worklist=worklist,
            targets=targets,
            published=published_rounds,
            context=context,
            lease=lease,
            held_lease=held_lease,
            progress=progress,
            # the first session has just applied the filter while it wrote the list
            find_known=incremental.known if incremental is not None and lease.number else None,
            write_work_list=write_list,
        )
        return await session.run()


async def called_images(store: Store, run_id: str) -> int:
    """Return how many images the sessions of the run have called for."""
    return sum(each.images for each in await read_sessions(store, run_id))


async def acquire_lease(
    job: Job,
    store: Store,
    record: RunRecord,
    context: RunContext,
    *,
    lease: RunLeaseHolder,
    take: Callable[[], Awaitable[None]],
) -> None:
    """Acquire the run's lease with `take`, unless another run may score the same images.

    Dead runs of the model are recovered, and reported.
    """
    from batchcl.runs.admission import admit

    recovered = await admit(store, record, lease, take=take, allow_overlap=job.allow_overlap, utcnow=context.utcnow)
    if recovered:
        text = f"published the rows of {pluralize(len(recovered), 'run')} that had ended early: {', '.join(recovered)}"
        context.observer.notice(Notice("recovered", text, {"runs": len(recovered)}))


async def open_store(job: Job, aws: Aws) -> Store:
    """Open the job's output root, and check that it can be written."""
    store = await Store.open_async(job.root, aws=aws, create=True, encryption=job.encryption)
    await store.check_writable(single_writer=job.single_writer)
    return store


@asynccontextmanager
async def open_context(
    job: Job,
    aws: Aws,
    model: ModelArn,
    observer: Observer,
    stop_signal: StopSignal,
    *,
    run_id: str,
    root: str,
    ends_at: float,
) -> AsyncIterator[RunContext]:
    """Open everything that a session needs to call the model; connections are closed at the end of the block."""
    if job.fit:
        from batchcl.extras import require_extra

        require_extra("images", "--fit")
    aws.credentials.on_wait = lambda why: observer.notice(Notice("credentials-failing", f"{why}; retrying"))
    async with AsyncExitStack() as stack:
        model_manager = await stack.enter_async_context(
            open_manager(
                job,
                aws,
                model,
                run_id=run_id,
                root=root,
                observer=observer,
                stop_signal=stop_signal,
                ends_at=ends_at,
            )
        )
        reader = await stack.enter_async_context(
            open_reader(
                aws,
                region=model.region,
                connections=job.max_in_flight,
                max_bytes=MAX_BYTES_FITTABLE if job.fit else MAX_BYTES_INLINE,
            )
        )
        fitting = None
        if job.fit:
            from batchcl.loaders.fitting import open_fitting_reader

            fitting = await stack.enter_async_context(open_fitting_reader(reader, aws, region=model.region))
        detector = await stack.enter_async_context(
            open_detector(
                aws,
                model,
                transport=job.transport,
                min_confidence=job.min_confidence,
                max_results=job.max_results,
                connections=job.max_in_flight,
                reader=fitting or reader,
            )
        )
        yield RunContext(
            model_manager=model_manager,
            detector=detector if job.fit else LimitsDetector(detector, reader),
            observer=observer,
            stop_signal=stop_signal,
            ends_at=ends_at,
            preparer=fitting,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeState:
    """What exists of a run, new or resumed, before the session begins.

    Attributes:
        store: the output root.
        record: of the run; for a new run, the record to create.
        is_resumed: whether the record exists in the output root.
        worklist: its work list.
        sources: the sources; None if they are not needed, because the work list is complete.
        pages: the images of a new run, if some of them have been read already.
        calls_left: whether images may need a call.
        summary: of a run that is done; None otherwise.
    """

    store: Store
    record: RunRecord
    is_resumed: bool
    worklist: WorkList
    sources: CheckedSources | None
    calls_left: bool
    summary: Summary | None
    pages: AsyncIterator[SelectedPage] | None = None


async def find_resume_state(
    job: Job,
    model: ModelArn,
    store: Store,
    *,
    check: Callable[[dt.datetime], Awaitable[CheckedSources]],
    observer: Observer,
    run_id: str | None = None,
) -> ResumeState:
    """Read the state of the run from `store`, and check its sources with `check(started_at)` if they are needed.

    `run_id` is the id of a run without `job.run_id`, if it has one already.
    """
    record = new_record(job, model, run_id)
    paths = RunPaths(record.run_id)
    worklist = WorkList(store, paths)
    old = await recorded_run(store, record)
    summary = None
    published_shards = 0
    if old is not None:
        summary = await read_summary(store, record.run_id)
        await worklist.open()
        published_shards = len(await published(store, paths))
    is_done = summary is not None and summary.status == "done"
    if old is not None and not is_done:
        observer.notice(Notice("resuming", f"resuming run {record.run_id}"))
    sources = None
    if worklist.totals is None and not is_done:
        sources = await check((old or record).started_at)
        if old is None:
            record = replace(record, lists=sources.digests, bad_lines=dict(sources.bad))
        _check_lists_unchanged(old or record, sources)
    return ResumeState(
        store=store,
        record=old or record,
        is_resumed=old is not None,
        worklist=worklist,
        sources=sources,
        calls_left=worklist.totals is None or published_shards < worklist.shards,
        summary=summary if is_done else None,
    )


async def _begin(
    job: Job,
    state: ResumeState,
    take_over: Callable[[RunRecord], Awaitable[None]],
    source_stack: AsyncExitStack,
    *,
    pause: Pause,
) -> tuple[RunRecord, AsyncIterator[SelectedPage]]:
    """Record the run and take it over; return its record and the images that are not on the work list yet.

    Args:
        job: the job.
        state: of the run.
        take_over: acquires the lease of the run.
        source_stack: closes sources that are not read to the end.
        pause: awaited after each page of a source.
    """
    record, worklist = state.record, state.worklist
    first = None
    sources = state.sources
    if sources is not None and not worklist.shards:
        check_readable = partial(_check_first_images, sources, incremental_filter(state.store, record, job))
        pages = sources.selection.pages(pause=pause)
        if state.pages is not None:
            from batchcl.scoring.min_batch import with_pauses

            pages = with_pauses(state.pages, pause)
        pages = closing_with(source_stack, pages)
        first = await first_page(pages, sources, job, check_readable=check_readable)
    if not state.is_resumed and not await record.create(state.store):
        record = await recorded_run(state.store, record) or record
    await take_over(record)
    await worklist.open()  # again: another process may have extended it before the lease was acquired
    if first is not None and worklist.bookmark is None:
        return record, first
    if sources is None:
        return record, _no_pages()
    rest = sources.selection.pages(worklist.bookmark, earlier=worklist.frozen_images(), pause=pause)
    return record, closing_with(source_stack, rest)


async def _check_first_images(
    sources: CheckedSources, incremental: IncrementalFilter | None, images: Sequence[ImageRef], /, *, is_all: bool
) -> None:
    """Raise `RefusedError` if a sample of the first `images` can't be read.

    Not raised if `images` are all images of the sources and `incremental` excludes them: no call is needed.
    """
    try:
        await sources.check_readable(images, is_all=is_all)
    except RefusedError:
        if incremental is None or not is_all or None in await incremental.known(images):
            raise


def incremental_filter(
    store: Store, record: RunRecord, job: Job, *, pause: Pause = no_pause, keep_index: bool = False
) -> IncrementalFilter | None:
    """Return the filter of images with an earlier outcome; None for a run that is not incremental."""
    if not job.incremental:
        return None
    from batchcl.runs.incremental import IncrementalFilter

    model = ModelArn.parse(record.model)
    return IncrementalFilter(
        store, model, fit=job.fit, retry_failed=job.retry_failed, pause=pause, keep_index=keep_index
    )


async def _no_pages() -> AsyncIterator[SelectedPage]:
    none: tuple[SelectedPage, ...] = ()
    for page in none:
        yield page


def _report_work_list(worklist: WorkList, progress: Progress, observer: Observer) -> None:
    progress.planned = worklist.images
    progress.listed = worklist.totals is not None
    if worklist.totals is not None and (worklist.totals.already_scored or worklist.totals.already_failed):
        scored, failed = worklist.totals.already_scored, worklist.totals.already_failed
        text = f"excluded: {pluralize(scored, 'image')} already scored, {failed:,} failed permanently before"
        observer.notice(Notice("incremental", text, {"already_scored": scored, "already_failed": failed}))


def new_record(job: Job, model: ModelArn, run_id: str | None) -> RunRecord:
    """Return the record of a run of `job` that begins now; `run_id` is its id if the job has none."""
    now = dt.datetime.now(dt.UTC)
    scored_as = job.scored_as(model)
    return RunRecord(
        run_id=job.run_id or run_id or new_run_id(now),
        model=model.text,
        fingerprint=fingerprint(scored_as),
        scored_as=scored_as,
        settings=job.model_dump(mode="json", exclude={*scored_as, *OPTIONS, "if_held"}),
        started_at=now,
        version=__version__,
    )


async def recorded_run(store: Store, record: RunRecord) -> RunRecord | None:
    """Return the recorded run with this id; None if there is none. Raises `UsageError` if it is of another job."""
    old = await read_record(store, record.run_id)
    if old is not None and old.run_id != record.run_id:
        raise UsageError(
            f"--run-id {record.run_id} is the folder name of run {old.run_id!r} in {store.root}; "
            f"use --run-id {shlex.quote(old.run_id)} to resume it, or another --run-id",
            code=ErrorCode.RUN_ID_TAKEN,
        )
    if old is not None and old.fingerprint != record.fingerprint:
        raise UsageError(
            f"run {record.run_id} in {store.root} was started with other settings: "
            f"{describe_differences(old.scored_as, record.scored_as)}; use another --run-id",
            code=ErrorCode.RUN_ID_TAKEN,
        )
    return old


def _check_lists_unchanged(record: RunRecord, sources: CheckedSources) -> None:
    """Raise `UsageError` if a list file has changed: an unfinished work list can't be continued from another file."""
    for name, digest in sources.digests.items():
        if record.lists.get(name, digest) != digest:
            raise UsageError(
                f"{name} has changed since run {record.run_id} started; restore it, or use another --run-id",
                code=ErrorCode.RUN_ID_TAKEN,
            )
