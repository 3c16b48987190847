"""Plans a job: counts images and calls, and estimates time and cost, without calling the model."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Final

import anyio

from batchcl.arns import ModelArn
from batchcl.aws.session import Aws
from batchcl.errors import OutputError
from batchcl.events import Observer, Progress, SilentObserver
from batchcl.images import check_limits
from batchcl.job import Job
from batchcl.lifetime.manager import DOLLARS_PER_UNIT_HOUR
from batchcl.quantities import MAX_UNITS
from batchcl.runs.incremental import IncrementalFilter
from batchcl.runs.store import Store
from batchcl.scoring.connections import open_service
from batchcl.scoring.source_checks import check_sources, first_page
from batchcl.summary import SourceCounts

__all__ = ["TPS_PER_UNIT", "Estimate", "Plan", "plan"]

TPS_PER_UNIT: Final = 2.8
"""Images per second of one inference unit in the example of AWS's pricing page; the real rate depends on the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Hours and cost with a number of inference units."""

    units: int
    images_per_second: float
    hours: float
    dollars: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(SourceCounts):
    """Counts and estimates of a job.

    Attributes:
        calls: images that need a call.
        skipped: images that violate a limit and need no call, by code.
        bytes: total size of the images that need a call, without those of unknown size.
        unknown_bytes: number of images of unknown size.
        estimates: for 1 to 5 inference units.
    """

    model: str
    calls: int
    skipped: dict[str, int]
    bytes: int
    unknown_bytes: int
    estimates: tuple[Estimate, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"unread": self.unread}


async def plan(job: Job, *, observer: Observer | None = None, aws: Aws | None = None) -> Plan:
    """Read all lists and S3 prefixes of the job and return the totals. Makes no call to Rekognition.

    Raises:
        UsageError: the job or a source is not valid.
        RefusedError: a bucket can't be read, or is in another region than the model.
    """
    images = calls = size_bytes = unknown_sizes = already_scored = already_failed = 0
    skipped: Counter[str] = Counter()
    observer, progress = observer or SilentObserver(), Progress()
    with ExitStack() as files:
        aws, model = await open_service(job, aws)
        now = dt.datetime.now(dt.UTC)
        sources = await check_sources(job, aws, model, files, now, observer=observer)
        incremental = await _incremental_filter(job, aws, model)
        progress.begin(anyio.current_time())
        observer.started(progress)
        async for page in await first_page(sources.selection.pages(), sources, job):
            selected = page.images
            if incremental is not None:
                statuses = await incremental.known(selected)
                already_scored += statuses.count("already_scored")
                already_failed += statuses.count("already_failed")
                selected = [image for image, status in zip(selected, statuses, strict=True) if status is None]
            images += len(selected)
            progress.planned = images
            for image in selected:
                if (reason := check_limits(image, fit=job.fit)) is not None:
                    skipped[reason.code] += 1
                else:
                    calls += 1
                    size_bytes += image.size_bytes or 0
                    unknown_sizes += image.size_bytes is None
    counts = sources.counts(planned=images, already_scored=already_scored, already_failed=already_failed)
    return Plan(
        **asdict(counts),
        model=model.text,
        calls=calls,
        skipped=dict(skipped.most_common()),
        bytes=size_bytes,
        unknown_bytes=unknown_sizes,
        estimates=tuple(_estimate(calls, units) for units in range(1, MAX_UNITS + 1)),
    )


async def _incremental_filter(job: Job, aws: Aws, model: ModelArn) -> IncrementalFilter | None:
    """Return the filter of an incremental job; None for other jobs, and if there is no output root yet."""
    if not job.incremental:
        return None
    try:
        store = await Store.open_async(job.root, aws=aws)
    except OutputError:
        return None
    return IncrementalFilter(store, model, fit=job.fit, retry_failed=job.retry_failed)


def _estimate(calls: int, units: int) -> Estimate:
    rate_tps = units * TPS_PER_UNIT
    hours = calls / rate_tps / 3600
    return Estimate(units=units, images_per_second=rate_tps, hours=hours, dollars=hours * units * DOLLARS_PER_UNIT_HOUR)
