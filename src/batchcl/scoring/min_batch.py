"""The minimum batch: a run with few images that need a call is postponed, for a limited time.

Starting a model, waiting for the last responses and stopping it are paid for in every run. A postponed run leaves
nothing in the output root: a later incremental run finds its images.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from batchcl.errors import OutputError
from batchcl.images import ImageRef, Pause, check_limits
from batchcl.job import Job
from batchcl.outcomes import KnownStatus
from batchcl.quantities import clock_text, pluralize
from batchcl.runs.layout import STARTS, run_of_start, started_since
from batchcl.runs.record import RunRecord, read_record, read_sessions, read_summary
from batchcl.runs.store import Store
from batchcl.scoring.source_checks import CheckedSources, chained
from batchcl.scoring.work_list_writer import AHEAD_IMAGES, KnownImages
from batchcl.sources.select import SelectedPage
from batchcl.summary import Summary

__all__ = ["CountedBatch", "MinBatch", "count_batch", "postponed_summary", "with_pauses"]

_EARLY: Final = 0.01
"""Share of `max_wait` by which a run may begin too early: schedules don't begin on the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MinBatch:
    """The minimum batch of a job, while the last run of its model that scored was started less than `max_wait` ago.

    Attributes:
        min_images: a run with fewer images that need a call is postponed.
        last_run: id of the last run that scored.
        text: says when it began.
    """

    min_images: int
    last_run: str
    text: str

    @classmethod
    async def of(cls, job: Job, store: Store, model_arn: str, *, now: dt.datetime) -> MinBatch | None:
        """Return None if no run is to be postponed: no minimum is set, or the last run that scored is too long ago.

        Runs that were started within `max_wait` are read, the newest first, until one has scored.
        """
        if job.min_images is None or job.max_wait_s is None:
            return None
        since = now - dt.timedelta(seconds=job.max_wait_s * (1 - _EARLY))
        for file in reversed(await store.list_all(STARTS)):
            if not started_since(file.path, since):
                return None
            run = run_of_start(file.path)
            if (started_at := await _start_if_scored(store, run, model_arn)) is not None:
                ago = clock_text((now - started_at).total_seconds())
                text = f"the last run that scored began {ago} ago, and --max-wait is {job.max_wait}"
                return cls(min_images=job.min_images, last_run=run, text=text)
        return None

    def reason(self, calls: int) -> str | None:
        """Why a run is postponed in which this many images need a call; None if it isn't."""
        if calls >= self.min_images:
            return None
        verb = "needs" if calls == 1 else "need"
        return f"{pluralize(calls, 'image')} {verb} a call, and --min-images is {self.min_images:,}; {self.text}"


async def _start_if_scored(store: Store, run: str, model_arn: str) -> dt.datetime | None:
    """When the run was started, if one of its calls was answered by this model; None also if its files are damaged."""
    try:
        summary = await read_summary(store, run)
        if summary is not None and summary.scored:
            return summary.started_at if summary.model == model_arn else None
        record = await read_record(store, run)
        if record is None or record.model != model_arn:
            return None
        return record.started_at if any(each.images for each in await read_sessions(store, run)) else None
    except OutputError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedBatch:
    """The images of a job, counted until there are enough of them.

    Attributes:
        listed: all of them.
        images: without those with an earlier outcome.
        calls: images that need a call.
        already_scored: images with a result.
        already_failed: images with a permanent failure.
        pages: the images from the first one on; None if they have to be listed again.
    """

    listed: int
    images: int
    calls: int
    already_scored: int
    already_failed: int
    pages: AsyncIterator[SelectedPage] | None


async def count_batch(
    pages: AsyncIterator[SelectedPage], incremental: KnownImages, *, enough: int, fit: bool
) -> CountedBatch:
    """Read `pages` until `enough` images need a call. Up to 20,000 images are kept, so that they are listed once."""
    kept: list[SelectedPage] | None = []
    listed = images = calls = already_scored = already_failed = 0
    async for page in pages:
        listed += len(page.images)
        if kept is not None:
            kept.append(page)
        if listed > AHEAD_IMAGES:
            kept = None
        statuses = await incremental.known(page.images)
        already_scored += statuses.count("already_scored")
        already_failed += statuses.count("already_failed")
        images += statuses.count(None)
        calls += _count_calls(page.images, statuses, fit=fit)
        if calls >= enough:
            break
    return CountedBatch(
        listed=listed,
        images=images,
        calls=calls,
        already_scored=already_scored,
        already_failed=already_failed,
        pages=None if kept is None else chained(kept, pages),
    )


def _count_calls(images: Sequence[ImageRef], statuses: Sequence[KnownStatus | None], *, fit: bool) -> int:
    return sum(
        status is None and check_limits(image, fit=fit) is None for image, status in zip(images, statuses, strict=True)
    )


async def with_pauses(pages: AsyncIterator[SelectedPage], pause: Pause) -> AsyncIterator[SelectedPage]:
    """Yield `pages`, and pause after each."""
    async for page in pages:
        yield page
        await pause(len(page.images))


def postponed_summary(
    job: Job, record: RunRecord, sources: CheckedSources, batch: CountedBatch, *, reason: str, root: str
) -> Summary:
    """Return the summary of a run that is postponed: `planned` are the images that it would have scored or skipped."""
    counts = sources.counts(
        planned=batch.images, already_scored=batch.already_scored, already_failed=batch.already_failed
    )
    return Summary(
        **asdict(counts),
        run_id=record.run_id,
        status="postponed",
        scored=0,
        failed=0,
        skipped=0,
        calls=0,
        throttled=0,
        seconds=0.0,
        images_per_second=0.0,
        out=root,
        model=record.model,
        min_confidence=job.min_confidence,
        started_at=record.started_at,
        ended_at=dt.datetime.now(dt.UTC),
        reason=reason,
    )
