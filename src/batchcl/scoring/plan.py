"""Plans a job: counts images and calls, and estimates time and cost, without calling the model."""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, Final

import anyio
import anyio.to_thread
import polars as pl
import pyarrow as pa

from batchcl.arns import ModelArn
from batchcl.aws.session import Aws
from batchcl.errors import OutputError
from batchcl.events import Observer, Progress, SilentObserver
from batchcl.images import ImageRef, check_limits
from batchcl.job import Job
from batchcl.quantities import MAX_UNITS, AutoUnits, Units
from batchcl.runs.incremental import IncrementalFilter
from batchcl.runs.record import read_record
from batchcl.runs.store import Store
from batchcl.scoring.auto_units import limits_of, read_measurements
from batchcl.scoring.connections import open_service, start_units
from batchcl.scoring.estimates import Estimate, Limits, Measurements, choose, restart_images, restart_seconds
from batchcl.scoring.min_batch import MinBatch
from batchcl.scoring.source_checks import check_sources, first_page
from batchcl.summary import SourceCounts

__all__ = ["ContentCounter", "DeadlinePlan", "Plan", "plan"]

_DIGEST_BYTES: Final = 8
"""The probability that any two of 10 million contents have the same digest is 3 in a million."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlinePlan:
    """How a job meets its deadline, by the slow end of the estimates and a margin: `Estimate.needed_s`.

    Attributes:
        units: the cheapest number of inference units that meets it; if none does, the fastest.
        is_met: whether these units meet it.
        needed_s: time that they need, start-up included.
        left_s: time until the deadline, if the run starts now.
        start_by: latest start that meets it; None for a deadline that is a duration, which counts from the start.
        dollars: typical cost.
        is_met_as_requested: whether the units that the job starts the model with meet it; None with auto, or without.
        restart_s: time without calls while a model is stopped and started with another number of units.
        restart_images: number of images left from which that saves time, from 1 unit, or from the requested number, to
            `units`; None if `units` are not faster.
    """

    units: int
    is_met: bool
    needed_s: float
    left_s: float
    start_by: dt.datetime | None
    dollars: float
    is_met_as_requested: bool | None
    restart_s: float
    restart_images: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(SourceCounts):
    """Counts and estimates of a job.

    Attributes:
        calls: images that need a call.
        skipped: images that violate a limit and need no call, by code.
        bytes: total size of the images that need a call, without those of unknown size.
        unknown_bytes: number of images of unknown size.
        identical: objects in S3 whose ETag and size are those of another object of the plan.
        repeated: of those, all but one of each content.
        repeated_dollars: what scoring the repeated ones costs; they are scored all the same.
        estimates: for 1 to 5 inference units, and for auto-scaling if the job asks for it.
        start_s: typical time from the start of the model until it is RUNNING, which is not billed.
        start_s_low: of the fastest start.
        start_s_high: of the slowest start.
        starts: number of starts that were measured; 0 if the time is assumed.
        overhead_s: billed seconds per run without calls, which are part of the estimates.
        is_free: whether the model costs nothing, because it is emulated.
        deadline: how to meet the job's deadline; None if it has none.
        postponed: why `run` would postpone the job now, because of `min_images`; None if it would not.
    """

    model: str
    calls: int
    skipped: dict[str, int]
    bytes: int
    unknown_bytes: int
    identical: int
    repeated: int
    repeated_dollars: float
    estimates: tuple[Estimate, ...]
    start_s: float
    start_s_low: float
    start_s_high: float
    starts: int
    overhead_s: float
    is_free: bool
    deadline: DeadlinePlan | None
    postponed: str | None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"unread": self.unread}


async def plan(job: Job, *, observer: Observer | None = None, aws: Aws | None = None) -> Plan:
    """Read all lists and S3 prefixes of the job and return the totals. Makes no call to Rekognition.

    The estimates are based on the sessions of the same model in the job's output root, if there are any.

    Raises:
        UsageError: the job or a source is not valid.
        RefusedError: a bucket can't be read, or is in another region than the model.
    """
    images = calls = size_bytes = unknown_sizes = already_scored = already_failed = 0
    skipped: Counter[str] = Counter()
    contents = ContentCounter()
    observer, progress = observer or SilentObserver(), Progress()
    with ExitStack() as files:
        aws, model = await open_service(job, aws)
        now = dt.datetime.now(dt.UTC)
        sources = await check_sources(job, aws, model, files, now, observer=observer)
        store = await _open_root(job, aws)
        incremental = _incremental_filter(job, store, model)
        measurements = await read_measurements(store, model.text, observer=observer)
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
                    contents.add(image)
                    size_bytes += image.size_bytes or 0
                    unknown_sizes += image.size_bytes is None
    counts = sources.counts(planned=images, already_scored=already_scored, already_failed=already_failed)
    is_free = aws.settings.is_emulator
    limits, units = limits_of(job, is_free=is_free), start_units(job, is_emulator=is_free)
    identical, repeated = await anyio.to_thread.run_sync(contents.count)
    estimates = _estimates(measurements, calls, units, limits)
    left_s = job.deadline_s(now)
    deadline = None
    if left_s is not None:
        deadline = _deadline_plan(job, measurements, calls, units, limits, now=now, left_s=left_s)
    usual = estimates[0 if deadline is None else deadline.units - 1]
    priced = next((each for each in estimates if each.is_requested), usual)
    return Plan(
        **asdict(counts),
        model=model.text,
        calls=calls,
        skipped=dict(skipped.most_common()),
        bytes=size_bytes,
        unknown_bytes=unknown_sizes,
        identical=identical,
        repeated=repeated,
        repeated_dollars=priced.image_dollars * repeated,
        estimates=estimates,
        start_s=measurements.start_s.typical,
        start_s_low=measurements.start_s.low,
        start_s_high=measurements.start_s.high,
        starts=measurements.starts,
        overhead_s=measurements.overhead_s,
        is_free=is_free,
        deadline=deadline,
        postponed=None if store is None else await _reason_to_postpone(job, store, model, calls, now=now),
    )


async def _reason_to_postpone(job: Job, store: Store, model: ModelArn, calls: int, *, now: dt.datetime) -> str | None:
    if job.run_id is not None and await read_record(store, job.run_id) is not None:
        return None
    min_batch = await MinBatch.of(job, store, model.text, now=now)
    return None if min_batch is None else min_batch.reason(calls)


async def _open_root(job: Job, aws: Aws) -> Store | None:
    """Return the output root; None if there is none yet."""
    try:
        return await Store.open_async(job.root, aws=aws)
    except OutputError:
        return None


def _incremental_filter(job: Job, store: Store | None, model: ModelArn) -> IncrementalFilter | None:
    """Return the filter of an incremental job; None for other jobs, and if there is no output root yet."""
    if not job.incremental or store is None:
        return None
    return IncrementalFilter(store, model, fit=job.fit, retry_failed=job.retry_failed)


def _estimates(
    measurements: Measurements, calls: int, units: Units | AutoUnits | None, limits: Limits
) -> tuple[Estimate, ...]:
    shown = [Units(number) for number in range(1, MAX_UNITS + 1)]
    if isinstance(units, Units) and units not in shown:
        shown.append(units)
    return tuple(measurements.estimate(calls, each, limits=limits, is_requested=each == units) for each in shown)


def _deadline_plan(
    job: Job,
    measurements: Measurements,
    calls: int,
    units: Units | AutoUnits | None,
    limits: Limits,
    *,
    now: dt.datetime,
    left_s: float,
) -> DeadlinePlan:
    highest = units.highest if isinstance(units, AutoUnits) else MAX_UNITS
    chosen = choose(measurements, calls, left_s=left_s, highest=highest, limits=limits)
    is_met = chosen.needed_s <= left_s
    requested = measurements.estimate(calls, units, limits=limits) if isinstance(units, Units) else None
    before = requested or measurements.estimate(calls, Units(1), limits=limits)
    from_images = restart_images(measurements, now_tps=before.images_per_second, then_tps=chosen.images_per_second)
    return DeadlinePlan(
        units=chosen.units,
        is_met=is_met,
        needed_s=chosen.needed_s,
        left_s=left_s,
        start_by=now + dt.timedelta(seconds=left_s - chosen.needed_s) if is_met and job.ends_at_time_of_day else None,
        dollars=chosen.dollars,
        is_met_as_requested=None if requested is None else requested.needed_s <= left_s,
        restart_s=restart_seconds(measurements),
        restart_images=math.ceil(from_images) if math.isfinite(from_images) else None,
    )


class ContentCounter:
    """Counts objects with the same ETag and size; takes 8 bytes for each object, and 16 while it counts."""

    def __init__(self) -> None:
        self._digests = bytearray()

    def add(self, image: ImageRef) -> None:
        """Add an image, unless its ETag is unknown or its archive's."""
        if image.etag is not None and image.member is None:
            content = f"{image.etag} {image.size_bytes}".encode()
            self._digests += blake2b(content, digest_size=_DIGEST_BYTES).digest()

    def count(self) -> tuple[int, int]:
        """Return the number of objects that share their content with another one, and that without one of each."""
        objects = len(self._digests) // _DIGEST_BYTES
        digests = pa.Array.from_buffers(pa.uint64(), objects, [None, pa.py_buffer(self._digests)])
        in_order = pl.Series(digests).sort()
        is_repeated = (in_order == in_order.shift(1)).fill_null(value=False)
        is_first = ~is_repeated & is_repeated.shift(-1, fill_value=False)
        repeated = int(is_repeated.sum())
        return repeated + int(is_first.sum()), repeated
