"""One job from its sources to its summary: what `batchcl run` and `batchcl.run` do.

Everything that can refuse the job is looked at first, from cheap to dear: the job itself, credentials, the output root,
the run id, the sources, their buckets, the model, the first image. Only then is the model started and the run recorded.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import anyio
import anyio.to_thread

from batchcl.__about__ import __version__
from batchcl.aws.arn import ModelArn
from batchcl.aws.buckets import check_buckets
from batchcl.aws.detect import open_detector
from batchcl.aws.keeper import ModelKeeper
from batchcl.aws.lifecycle import Units
from batchcl.aws.session import Aws
from batchcl.errors import (
    BatchclError,
    FatalCallError,
    OutputError,
    RefusedError,
    SourceError,
    StoppedError,
    UsageError,
)
from batchcl.images import ImageRef
from batchcl.job import Job, fingerprint
from batchcl.pacing.controller import RateController
from batchcl.pacing.pacer import AdaptivePacer
from batchcl.runs.layout import new_run_id
from batchcl.runs.parts import PartSink, PartSpec
from batchcl.runs.record import RunRecord, Summary, differences, read_record, read_summary, write_summary
from batchcl.runs.store import Store
from batchcl.scoring.engine import Engine, EngineSettings
from batchcl.scoring.events import Notice, Observer, Progress, SilentObserver
from batchcl.scoring.service import service_of
from batchcl.scoring.shards import sharded
from batchcl.scoring.stopper import Stopper
from batchcl.sources.base import Checked, Source
from batchcl.sources.recognise import open_sources
from batchcl.sources.select import Filters, selected

__all__ = ["checked_sources", "filters_of", "first_page", "run", "run_sync"]

_EMULATED_UNITS = Units(5)
"""The run's own emulator costs nothing, so it gets all there are."""


async def run(job: Job, *, observer: Observer | None = None, stopper: Stopper | None = None) -> Summary:
    """Score every image of `job` and publish the results below `job.out`.

    Each image of the list ends as one row in `results/` or `failures/`. A run id that is done already returns its
    summary and makes no call. The model is stopped at the end if the run started it, whatever the end.

    Args:
        job: what to score.
        observer: watches; see `batchcl.scoring.events`.
        stopper: ask it to end the run early.

    Returns:
        The summary, also when more images failed than tolerated: see `Summary.tolerated`.

    Raises:
        UsageError: the job or a source is wrong.
        RefusedError: nothing was spent: credentials, access, region, model or output root are at fault.
        StoppedError: it ended early; what is done is kept, and `summary` of the error tells how far it came.
    """
    observer = observer or SilentObserver()
    stopper = stopper or Stopper()
    with ExitStack() as files:
        async with service_of(job) as (aws, model):
            with stopper.interruptible():
                await aws.check_credentials()
                store = await _open_store(job, aws)
                record = _record(job, model)
                if (earlier := await _earlier(store, record)) is not None:
                    observer.notice(Notice("already-done", f"run {earlier.run_id} is done already; nothing to do"))
                    return earlier
                sources, bad_lines = await checked_sources(job, aws, model, files, observer)
            async with (
                aws.rekognition(region=model.region) as control,
                open_detector(
                    aws,
                    model,
                    min_confidence=job.min_confidence,
                    max_results=job.max_results,
                    connections=job.max_in_flight,
                ) as detector,
            ):
                units = job.units or (_EMULATED_UNITS if job.emulator else None)
                keeper = ModelKeeper(
                    control,
                    model,
                    units=units,
                    keep=job.keep_model,
                    free=job.emulator,
                    observer=observer,
                    stopper=stopper,
                )
                with stopper.interruptible():
                    await keeper.check()
                    images = await first_page(selected(sources, filters_of(job)), job)
                    if not await record.create(store):
                        raise UsageError(f"run {record.run_id} was just started by somebody else in {job.out}")
                pacer = AdaptivePacer(RateController(), max_tps=job.max_tps)
                progress = Progress(dollars=keeper.dollars)
                spec = PartSpec(
                    run_id=record.run_id,
                    model=model.name,
                    date=record.date,
                    min_confidence=job.min_confidence,
                    max_results=job.max_results,
                )
                engine = Engine(
                    detector,
                    pacer,
                    PartSink(store, spec),
                    keeper,
                    progress=progress,
                    settings=EngineSettings(max_in_flight=job.max_in_flight),
                    observer=observer,
                )
                scoring = _Scoring(job, store, record, engine, keeper, progress, observer, stopper, bad_lines)
                return await scoring.run(images)


def run_sync(job: Job, *, observer: Observer | None = None) -> Summary:
    """`run` for callers without an event loop; the same arguments, result and errors."""
    return anyio.run(partial(run, job, observer=observer))


def filters_of(job: Job) -> Filters:
    """Which images the job takes."""
    return Filters(include=job.include, exclude=job.exclude, limit=job.limit)


async def checked_sources(
    job: Job, aws: Aws, model: ModelArn, files: ExitStack, observer: Observer
) -> tuple[list[Source], int]:
    """The job's sources, each looked at, and their buckets; and how many bad lines will be left out."""
    out = None if "://" in job.out else await anyio.to_thread.run_sync(Path(job.out).absolute)
    sources = await open_sources(
        job.sources,
        files,
        aws=aws,
        region=model.region,
        kind=job.source_kind,
        skip_bad_lines=job.skip_bad_lines,
        leave_out=out,
    )
    found = [await source.check() for source in sources]
    for source, checked in zip(sources, found, strict=True):
        _tell_bad_lines(source, checked, observer)
    buckets = frozenset[str]().union(*(checked.buckets for checked in found))
    if buckets:
        await check_buckets(aws, buckets, region=model.region)
    return sources, sum(checked.bad_count for checked in found)


async def first_page(pages: AsyncIterator[list[ImageRef]], job: Job) -> AsyncIterator[list[ImageRef]]:
    """`pages` unchanged, but read up to the first image: `SourceError` if there is none."""
    async for first in pages:
        return _chained(first, pages)
    named = ", ".join(job.sources)
    why = " that --include and --exclude let through" if job.include or job.exclude else ""
    raise SourceError(f"there is no image in {named}{why}; check the prefix or path, or run `batchcl plan`")


async def _chained(first: list[ImageRef], rest: AsyncIterator[list[ImageRef]]) -> AsyncIterator[list[ImageRef]]:
    yield first
    async for page in rest:
        yield page


def _tell_bad_lines(source: Source, checked: Checked, observer: Observer) -> None:
    for line in checked.bad_lines:
        observer.notice(
            Notice(
                "bad-line", f"left out: {source.description} line {line.number}: {line.reason}", {"line": line.number}
            )
        )
    if unseen := checked.bad_count - len(checked.bad_lines):
        observer.notice(Notice("bad-line", f"left out: {unseen} more lines of {source.description}"))


async def _open_store(job: Job, aws: Aws) -> Store:
    store = await anyio.to_thread.run_sync(lambda: Store.open(job.out, aws=aws, create=True))
    await store.check_writable()
    return store


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


async def _earlier(store: Store, record: RunRecord) -> Summary | None:
    """The summary of a finished run of the same id and fingerprint; None when the id is new."""
    old = await read_record(store, record.run_id)
    if old is None:
        return None
    if old.fingerprint != record.fingerprint:
        raise UsageError(
            f"run {record.run_id} in {store.root} scored something else: "
            f"{differences(old.scored_as, record.scored_as)}; use another --run-id"
        )
    summary = await read_summary(store, record.run_id)
    if summary is None or summary.status != "done":
        raise UsageError(
            f"run {record.run_id} in {store.root} was started before and did not finish; use another --run-id"
        )
    return summary


@dataclass(slots=True)
class _Scoring:
    """The part of a run that spends money."""

    job: Job
    store: Store
    record: RunRecord
    engine: Engine
    keeper: ModelKeeper
    progress: Progress
    observer: Observer
    stopper: Stopper
    bad_lines: int

    async def run(self, images: AsyncIterator[list[ImageRef]]) -> Summary:
        self.observer.notice(Notice("started", f"run {self.record.run_id} into {self.store.root}"))
        failure: BatchclError | None = None
        try:
            async with self.keeper.running():
                self.progress.begin(anyio.current_time())
                self.observer.started(self.progress)
                try:
                    with self.stopper.calling(self._drain):
                        await self.engine.run(sharded(images, self.job.shard_size))
                finally:
                    self.progress.end(anyio.current_time())
        except BatchclError as error:
            failure = error
        if failure is None and not self._complete():
            failure = self.stopper.error or _lost(self.progress)
        summary = self._summary(failure)
        with suppress(OutputError) if failure is not None else ExitStack():
            await write_summary(self.store, summary)
        if failure is not None:
            raise _as_end(failure, spent=self.engine.answered, summary=summary)
        return summary

    def _drain(self) -> None:
        self.observer.notice(Notice("drain", f"{self.stopper.error}: no more calls; those in flight end and are kept"))
        self.engine.drain()

    def _complete(self) -> bool:
        progress = self.progress
        return progress.listed and progress.planned == progress.scored + progress.failed + progress.skipped

    def _summary(self, failure: BatchclError | None) -> Summary:
        now = self.progress.snapshot(anyio.current_time())
        called = now.scored + now.failed
        return Summary(
            run_id=self.record.run_id,
            status="done" if failure is None else "stopped",
            planned=now.planned,
            scored=now.scored,
            failed=now.failed,
            skipped=now.skipped,
            calls=now.calls,
            throttled=now.throttled,
            seconds=round(now.elapsed_s, 3),
            images_per_second=round(called / now.elapsed_s, 3) if now.elapsed_s > 0 else 0.0,
            out=self.store.root,
            model=self.record.model,
            started_at=self.record.started_at,
            ended_at=dt.datetime.now(dt.UTC),
            tolerated=not self.job.tolerance.exceeded(failed=now.failed, scored=now.scored),
            cost_usd=self.keeper.dollars(),
            bad_lines=self.bad_lines,
            reason=None if failure is None else str(failure),
        )


def _lost(progress: Progress) -> BatchclError:
    return BatchclError(
        f"the engine ended with {progress.planned} images planned, but {progress.scored} scored, {progress.failed} "
        f"failed and {progress.skipped} skipped; this is a bug in batchcl"
    )


def _as_end(failure: BatchclError, *, spent: bool, summary: Summary) -> BatchclError:
    """`failure` as the end of a run: refused when nothing was scored, stopped when something was."""
    end: BatchclError
    if isinstance(failure, StoppedError):
        end = failure
    elif isinstance(failure, FatalCallError):
        end = StoppedError(str(failure)) if spent else RefusedError(str(failure))
    elif isinstance(failure, RefusedError | UsageError) and spent:
        end = StoppedError(str(failure))
    else:
        end = failure
    end.summary = summary
    end.__cause__ = failure if end is not failure else failure.__cause__
    return end
