"""What a run would do, told without a single call to the model."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Final

from batchcl.arns import ModelArn
from batchcl.aws.session import Aws
from batchcl.errors import OutputError
from batchcl.events import Observer, SilentObserver
from batchcl.images import check_limits
from batchcl.job import Job
from batchcl.lifetime.manager import DOLLARS_PER_UNIT_HOUR
from batchcl.quantities import MAX_UNITS
from batchcl.runs.incremental import IncrementalFilter
from batchcl.runs.store import Store
from batchcl.scoring.connections import service_of
from batchcl.scoring.source_checks import check_sources, first_page

__all__ = ["TPS_PER_UNIT", "Estimate", "Plan", "plan"]

TPS_PER_UNIT: Final = 2.8
"""Images a second of one inference unit, as AWS's pricing example implies; the real figure depends on the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Time and money at so many inference units."""

    units: int
    images_per_second: float
    hours: float
    dollars: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would be done.

    Attributes:
        images: on the list.
        calls: images that cost a call.
        skipped: reason → images that cost none.
        bytes: of the images to call for, as far as the lists tell.
        unknown_bytes: images whose size no list tells.
        bad_lines: lines of the lists that name no image.
        repeated: images that the sources name more than once, beyond the first time.
        known: images left out by `incremental`, as their version has a result.
        known_failed: images left out by `incremental`, as their version has a permanent failure.
        lines: lines and rows of all lists; None where a source is no list.
        filtered: images left out by the filters.
        filtered_by: which filter → how many of them; `size_unknown` where no list told what `min_size` asks, and so on.
        left_out: lines that name something that is no image to score: what → how many.
        unread: lines behind those that `--limit` asked for.
        estimates: at 1 to 5 inference units.
    """

    model: str
    images: int
    calls: int
    skipped: dict[str, int]
    bytes: int
    unknown_bytes: int
    bad_lines: int
    repeated: int
    known: int
    known_failed: int
    lines: int | None
    filtered: int
    filtered_by: dict[str, int]
    left_out: dict[str, int]
    unread: int
    estimates: tuple[Estimate, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


async def plan(job: Job, *, observer: Observer | None = None) -> Plan:
    """Read the job's lists to their end and add up. Lists S3 prefixes, but makes no call to Rekognition.

    Raises:
        UsageError: the job or a source is wrong.
        RefusedError: a bucket can't be read or lies in another region than the model.
    """
    images = calls = size = unknown = scored = failed = 0
    skipped: Counter[str] = Counter()
    with ExitStack() as files:
        async with service_of(job) as (aws, model):
            now = dt.datetime.now(dt.UTC)
            listing = await check_sources(job, aws, model, files, now, observer=observer or SilentObserver())
            known = await _known(job, aws, model)
            async for page in await first_page(listing.selection.pages(), listing, job):
                listed = page.images
                if known is not None:
                    found = await known.known(listed)
                    scored += found.count("already_scored")
                    failed += found.count("already_failed")
                    listed = [image for image, each in zip(listed, found, strict=True) if each is None]
                images += len(listed)
                for image in listed:
                    if (reason := check_limits(image, fit=job.fit)) is not None:
                        skipped[reason.code] += 1
                    else:
                        calls += 1
                        size += image.size_bytes or 0
                        unknown += image.size_bytes is None
    tally = listing.tally(planned=images, known=scored, known_failed=failed)
    return Plan(
        model=model.text,
        images=images,
        calls=calls,
        skipped=dict(skipped.most_common()),
        bytes=size,
        unknown_bytes=unknown,
        bad_lines=listing.bad_lines,
        repeated=listing.selection.repeated,
        known=scored,
        known_failed=failed,
        lines=tally.lines,
        filtered=tally.filtered,
        filtered_by=listing.filtered,
        left_out=dict(tally.left_out),
        unread=tally.unread,
        estimates=tuple(_estimate(calls, units) for units in range(1, MAX_UNITS + 1)),
    )


async def _known(job: Job, aws: Aws, model: ModelArn) -> IncrementalFilter | None:
    """What `incremental` leaves out: nothing where there is no output root yet."""
    if not job.incremental:
        return None
    try:
        store = await Store.open_async(job.root, aws=aws)
    except OutputError:
        return None
    return IncrementalFilter(store, model, fit=job.fit, retry_failed=job.retry_failed)


def _estimate(calls: int, units: int) -> Estimate:
    rate = units * TPS_PER_UNIT
    hours = calls / rate / 3600
    return Estimate(units=units, images_per_second=rate, hours=hours, dollars=hours * units * DOLLARS_PER_UNIT_HOUR)
