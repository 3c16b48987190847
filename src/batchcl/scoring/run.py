"""One job from its sources to its summary: what `batchcl run` and `batchcl.run` do.

Everything that can refuse the job is looked at first, from cheap to dear: the job itself, credentials, the output root,
the run id, the sources, their buckets, the model, the first image. Only then is the run recorded, and the model started
when there is an image to call for.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import anyio
import anyio.to_thread

from batchcl.__about__ import __version__
from batchcl.arns import ModelArn
from batchcl.aws.detect import LimitsDetector, open_detector
from batchcl.aws.names import is_named
from batchcl.aws.session import Aws
from batchcl.errors import RefusedError, UsageError
from batchcl.events import Notice, Observer, Progress, SafeObserver, SilentObserver
from batchcl.images import MAX_BYTES_FITTABLE, MAX_BYTES_INLINE, ImageRef, Pause, no_pause
from batchcl.imaging.decode import require_pillow
from batchcl.job import Job, fingerprint
from batchcl.loaders.fitting import open_fitting_reader
from batchcl.loaders.open import open_reader
from batchcl.quantities import counted
from batchcl.runs.admission import admit
from batchcl.runs.incremental import IncrementalFilter
from batchcl.runs.layout import RunPaths, new_run_id
from batchcl.runs.lease import RunLeaseHolder
from batchcl.runs.ledger import AllImages
from batchcl.runs.markers import published
from batchcl.runs.record import RunRecord, differences, read_record, read_summary
from batchcl.runs.recovery import publish_leftovers
from batchcl.runs.store import Store
from batchcl.runs.worklist import WorkList
from batchcl.scoring.bounds import within_descriptors
from batchcl.scoring.connections import open_manager, service_of
from batchcl.scoring.run_lease import hold_run_lease, lease_of
from batchcl.scoring.session import RunContext, Session
from batchcl.scoring.source_checks import CheckedSources, check_sources, closed_by, first_page
from batchcl.scoring.work_list_writer import freeze_all, leave_room_for_calls
from batchcl.sources.select import SelectedPage
from batchcl.stop_signal import StopSignal
from batchcl.summary import Summary

__all__ = [
    "ResumeState",
    "admitted",
    "execute",
    "find_resume_state",
    "known_versions",
    "open_model",
    "open_store",
    "run",
    "run_sync",
]


async def run(job: Job, *, observer: Observer | None = None, stopper: StopSignal | None = None) -> Summary:
    """Score every image of `job` and publish the results below `job.out`.

    Each image of the list ends as one row in `results/` or `failures/`. A run id that was begun before goes on from
    what is journalled; one that is done returns its summary and makes no call. The model is stopped at the end if the
    run started it, whatever the end.

    Args:
        job: what to score.
        observer: watches; see `batchcl.events`.
        stopper: ask it to end the run early.

    Returns:
        The summary, also when more images failed than tolerated: see `Summary.tolerated`.

    Raises:
        UsageError: the job or a source is wrong, or the run id is that of another job.
        RefusedError: nothing was spent: credentials, access, region, model or output root are at fault.
        StoppedError: it ended early; what is done is kept, and `summary` of the error tells how far it came.
    """
    begun_at = anyio.current_time()
    observer = SafeObserver(observer or SilentObserver())
    stopper = stopper or StopSignal()
    job = within_descriptors(job, observer)
    with ExitStack() as files:
        async with service_of(job) as (aws, named):
            with stopper.interruptible():
                await aws.check_credentials()
                store = await open_store(job, aws)
                model = await _recorded(store, job, named)
                if job.model not in (None, model.text):
                    observer.notice(Notice("model-found", f"{job.model} is {model.text}"))
                check = partial(check_sources, job, aws, model, files, observer=observer)
                found = await find_resume_state(job, model, store, check=check, observer=observer)
                if found.summary is not None:
                    observer.notice(Notice("already-done", f"run {found.record.run_id} is done already; nothing to do"))
                    return _judged(found.summary, job)
            run_id, root = found.record.run_id, store.root
            async with open_model(
                job, aws, model, observer, stopper, run_id=run_id, root=root, begun_at=begun_at
            ) as means:
                return await execute(job, found, means)


async def _recorded(store: Store, job: Job, model: ModelArn) -> ModelArn:
    """The model of the run that is resumed, where the job names it: a newer one of the name is another model."""
    record = None if job.run_id is None or job.model is None else await read_record(store, job.run_id)
    if record is None or job.model is None:
        return model
    recorded = ModelArn.parse(record.model)
    return recorded if is_named(recorded, job.model) else model


async def execute(job: Job, found: ResumeState, means: RunContext) -> Summary:
    """Take the lease of the run that was found and score what is left of it; `run` without AWS around it."""
    store, worklist, listing = found.store, found.worklist, found.listing
    keeper, observer = means.keeper, means.observer
    progress = Progress(dollars=keeper.dollars)
    pause = partial(leave_room_for_calls, worklist, progress)
    lease = lease_of(store, RunPaths(found.record.run_id), progress, keeper, observer=observer, utcnow=means.utcnow)
    async with AsyncExitStack() as lists, AsyncExitStack() as held:
        with means.stopper.interruptible():
            if found.calls_left:
                await keeper.check()

            async def take(record: RunRecord) -> None:
                hold = partial(held.enter_async_context, hold_run_lease(lease, keeper, means.stopper))
                if job.incremental:
                    await admitted(job, store, record, means, lease=lease, take=hold)
                else:
                    await hold()
                if lease.follows_unsettled:
                    async with lease.beating():
                        await publish_leftovers(store, record, writer=lease.holder, cut_all=True)

            record, pages = await _begin(job, found, take, lists, pause=pause)
            done = await published(store, RunPaths(record.run_id))
        observer.notice(Notice("started", f"run {record.run_id} into {store.root}"))
        _show_list(worklist, progress, observer)
        known = known_versions(store, record, job, pause=pause, keep_index=True)
        freeze = None
        if listing is not None and worklist.totals is None:
            freeze = partial(
                freeze_all,
                worklist,
                pages,
                shard_size=job.shard_size,
                incremental=known,
                tally=listing.tally,
                on_frozen=partial(_show_list, worklist, progress, observer),
            )
        session = Session(
            job=job,
            store=store,
            record=record,
            worklist=worklist,
            targets=AllImages(worklist, done),
            published=done,
            means=means,
            lease=lease,
            held=held,
            progress=progress,
            known=known.known if known is not None and lease.number else None,
            listing=freeze,
        )
        return await session.run()


async def admitted(
    job: Job,
    store: Store,
    record: RunRecord,
    means: RunContext,
    *,
    lease: RunLeaseHolder,
    take: Callable[[], Awaitable[None]],
) -> None:
    """Take the run's lease unless another run may be scoring the same images; say which dead runs were recovered."""
    recovered = await admit(store, record, lease, take=take, allow_overlap=job.allow_overlap, utcnow=means.utcnow)
    if recovered:
        text = f"published what was left of {counted(len(recovered), 'run')} whose process died: {', '.join(recovered)}"
        means.observer.notice(Notice("recovered", text, {"runs": len(recovered)}))


def run_sync(job: Job, *, observer: Observer | None = None) -> Summary:
    """`run` for callers without an event loop; the same arguments, result and errors."""
    return anyio.run(partial(run, job, observer=observer))


async def open_store(job: Job, aws: Aws) -> Store:
    """The job's output root, which can be written."""
    store = await Store.open_async(job.root, aws=aws, create=True, encryption=job.encryption)
    await store.check_writable(single_writer=job.single_writer)
    return store


@asynccontextmanager
async def open_model(
    job: Job,
    aws: Aws,
    model: ModelArn,
    observer: Observer,
    stopper: StopSignal,
    *,
    run_id: str,
    root: str,
    begun_at: float,
) -> AsyncIterator[RunContext]:
    """What a session that calls the model works with; connections are open during the block."""
    if job.fit:
        require_pillow("--fit")
    aws.credentials.on_wait = lambda why: observer.notice(Notice("credentials-failing", f"{why}; trying again"))
    async with AsyncExitStack() as stack:
        keeper = await stack.enter_async_context(
            open_manager(
                job,
                aws,
                model,
                run_id=run_id,
                root=root,
                observer=observer,
                stopper=stopper,
                begun_at=begun_at,
            )
        )
        reader = await stack.enter_async_context(
            open_reader(
                aws,
                region=model.region,
                connections=job.max_in_flight,
                most_bytes=MAX_BYTES_FITTABLE if job.fit else MAX_BYTES_INLINE,
            )
        )
        fitting = None
        if job.fit:
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
            keeper=keeper,
            detector=detector if job.fit else LimitsDetector(detector, reader),
            observer=observer,
            stopper=stopper,
            begun_at=begun_at,
            preparer=fitting,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeState:
    """What there is of the run before it begins: all of it, when `summary` is there; nothing, when not `old`."""

    store: Store
    record: RunRecord
    old: bool
    worklist: WorkList
    listing: CheckedSources | None
    calls_left: bool
    summary: Summary | None


async def find_resume_state(
    job: Job,
    model: ModelArn,
    store: Store,
    *,
    check: Callable[[dt.datetime], Awaitable[CheckedSources]],
    observer: Observer,
) -> ResumeState:
    """Look for the run in `store`, and at its sources where they are needed: `check` is given the run's start."""
    record = _record(job, model)
    paths = RunPaths(record.run_id)
    worklist = WorkList(store, paths)
    old = await _same(store, record)
    summary = None
    done = 0
    if old is not None:
        summary = await read_summary(store, record.run_id)
        observer.notice(Notice("resuming", f"run {record.run_id} was begun before"))
        await worklist.open()
        done = len(await published(store, paths))
    finished = summary is not None and summary.status == "done"
    listing = None
    if worklist.totals is None and not finished:
        listing = await check((old or record).started_at)
        if old is None:
            record = replace(record, lists=listing.digests, bad_lines=dict(listing.bad))
        _check_lists(old or record, listing)
    return ResumeState(
        store=store,
        record=old or record,
        old=old is not None,
        worklist=worklist,
        listing=listing,
        calls_left=worklist.totals is None or done < worklist.shards,
        summary=summary if finished else None,
    )


async def _begin(
    job: Job,
    found: ResumeState,
    take: Callable[[RunRecord], Awaitable[None]],
    lists: AsyncExitStack,
    *,
    pause: Pause,
) -> tuple[RunRecord, AsyncIterator[SelectedPage]]:
    """Record the run and take its lease; the record that counts, and the images that are not on the work list yet.

    Lists that are not read to their end are closed with `lists`.
    """
    record, worklist = found.record, found.worklist
    first = None
    listing = found.listing
    if listing is not None and not worklist.shards:
        known = known_versions(found.store, record, job)
        look = partial(_try_reading, listing, known)
        first = await first_page(closed_by(lists, listing.selection.pages(pause=pause)), listing, job, look=look)
    if not found.old and not await record.create(found.store):
        record = await _same(found.store, record) or record
    await take(record)
    await worklist.open()  # as the last holder left it
    if first is not None and worklist.bookmark is None:
        return record, first
    if found.listing is None:
        return record, _no_pages()
    rest = found.listing.selection.pages(worklist.bookmark, earlier=worklist.frozen_images(), pause=pause)
    return record, closed_by(lists, rest)


async def _try_reading(
    listing: CheckedSources, known: IncrementalFilter | None, images: Sequence[ImageRef], /, *, is_all: bool
) -> None:
    """Refuse images that can't be read, but for missing ones that are known already: they cost no call."""
    try:
        await listing.try_reading(images, is_all=is_all)
    except RefusedError:
        if known is None or not is_all or None in await known.known(images):
            raise


def known_versions(
    store: Store, record: RunRecord, job: Job, *, pause: Pause = no_pause, keep_index: bool = False
) -> IncrementalFilter | None:
    """What an incremental run leaves out; None for another one."""
    if not job.incremental:
        return None
    model = ModelArn.parse(record.model)
    return IncrementalFilter(
        store, model, fit=job.fit, retry_failed=job.retry_failed, pause=pause, keep_index=keep_index
    )


async def _no_pages() -> AsyncIterator[SelectedPage]:
    none: tuple[SelectedPage, ...] = ()
    for page in none:
        yield page


def _show_list(worklist: WorkList, progress: Progress, observer: Observer) -> None:
    progress.planned = worklist.images
    progress.listed = worklist.totals is not None
    if worklist.totals is not None and (worklist.totals.known or worklist.totals.known_failed):
        known, failed = worklist.totals.known, worklist.totals.known_failed
        text = f"left out: {counted(known, 'image')} already scored, {failed:,} failed permanently before"
        observer.notice(Notice("known", text, {"known": known, "known_failed": failed}))


def _record(job: Job, model: ModelArn) -> RunRecord:
    now = dt.datetime.now(dt.UTC)
    scored_as = job.scored_as(model)
    return RunRecord(
        run_id=job.run_id or new_run_id(now),
        model=model.text,
        fingerprint=fingerprint(scored_as),
        scored_as=scored_as,
        settings=job.model_dump(mode="json", exclude=set(scored_as)),
        started_at=now,
        version=__version__,
    )


async def _same(store: Store, record: RunRecord) -> RunRecord | None:
    """The record of an earlier session of the same run; None when the id is new, `UsageError` when it is another's."""
    old = await read_record(store, record.run_id)
    if old is not None and old.run_id != record.run_id:
        raise UsageError(f"{record.run_id} in {store.root} is the name of run {old.run_id!r}; use that as --run-id")
    if old is not None and old.fingerprint != record.fingerprint:
        raise UsageError(
            f"run {record.run_id} in {store.root} scored something else: "
            f"{differences(old.scored_as, record.scored_as)}; use another --run-id"
        )
    return old


def _check_lists(record: RunRecord, listing: CheckedSources) -> None:
    """A listing that was cut short can only go on in the same list."""
    for name, digest in listing.digests.items():
        if record.lists.get(name, digest) != digest:
            raise UsageError(
                f"{name} has changed since run {record.run_id} began to read it; restore it, or use another --run-id"
            )


def _judged(summary: Summary, job: Job) -> Summary:
    """`summary` by today's tolerance."""
    return replace(summary, tolerated=not job.tolerance.exceeded(failed=summary.failed, scored=summary.scored))
