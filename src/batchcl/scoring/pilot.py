"""The pilot of a run: scores a random sample of its images, and estimates the rest from the measured rate.

The rate is the number of images that were called for, divided by the seconds in which calls were made. Its 95 %
interval is that of a Poisson count: as wide as if the service times of single images varied as much as their mean.
Rates of other numbers of units are in proportion to the units.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final

import anyio

from batchcl.arns import ModelArn
from batchcl.aws.session import Aws, AwsSettings
from batchcl.errors import OutputError, UsageError
from batchcl.events import Notice, Observer, SafeObserver, SilentObserver
from batchcl.job import Job
from batchcl.quantities import MAX_UNITS, Units, period_text, pluralize
from batchcl.runs.layout import RunPaths
from batchcl.runs.record import RunRecord, read_record, read_sessions, total_spent
from batchcl.runs.sample import draw_sample
from batchcl.runs.status import read_run_state
from batchcl.runs.store import Store
from batchcl.runs.worklist import WorkList
from batchcl.scoring.auto_units import limits_of, read_measurements
from batchcl.scoring.bounds import deadline_at
from batchcl.scoring.budget import usd
from batchcl.scoring.connections import open_service
from batchcl.scoring.estimates import Basis, Estimate, Spread, calling_s
from batchcl.scoring.run import called_images, new_record, recorded_model, recorded_run, score
from batchcl.stop_signal import StopSignal
from batchcl.summary import SessionRecord

__all__ = ["PILOT_IMAGES", "Pilot", "PilotProposal", "PilotRate", "pilot", "propose", "rate_of", "read_pilot"]

PILOT_IMAGES: Final = 300
"""The rate of 300 images is known to 11 %."""

_Z: Final = 1.96
_RISING_S: Final = 20.0
"""The pacer doubles its rate every two seconds from 5 calls per second. Up to 14, the capacity of five units in AWS's
pricing example, it makes 13 calls too few; in 20 s these are 5 % of the images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotRate:
    """A rate with its 95 % interval, in images per second.

    Attributes:
        images: that were called for.
        seconds: in which calls were made.
        tps: the rate.
        tps_low: the lower end of the interval.
        tps_high: the upper end of the interval.
        units: inference units, such as `2`; None if unknown.
        is_lower_bound: no call was throttled, or calls were made for less than 20 s, in most of which the
            rate was still rising.
    """

    images: int
    seconds: float
    tps: float
    tps_low: float
    tps_high: float
    units: str | None
    is_lower_bound: bool

    @property
    def per_unit(self) -> Spread | None:
        """The rate of one unit; None if the number of units is unknown."""
        if self.units is None:
            return None
        return Spread(self.tps, self.tps_low, self.tps_high) * (1 / Units.parse(self.units).minimum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilot:
    """What the pilot of a run has measured, and what the rest of the run needs.

    Attributes:
        is_done: whether no image is left.
        planned: images of the run.
        left: images without an outcome.
        calls_left: images of `left` that need a call, as estimated from the sample.
        rate: measured by this run; None if nothing was called.
        cost_usd: cost of the model so far; None if the run did not start it.
        start_s: seconds until a started model is RUNNING.
        starts: number of starts that `start_s` is the median of; 0 if it is assumed.
        is_free: whether the model costs nothing, because it is emulated.
        estimates: of the calls that are left, with 1 to 5 inference units; empty if the measured ones are unknown.
        read_at: from here the end times count.
    """

    run_id: str
    out: str
    model: str
    is_done: bool
    planned: int
    scored: int
    failed: int
    skipped: int
    left: int
    calls_left: int
    rate: PilotRate | None
    cost_usd: float | None
    start_s: float
    starts: int
    is_free: bool
    estimates: tuple[Estimate, ...]
    read_at: dt.datetime

    def ends_at(self, estimate: Estimate) -> dt.datetime:
        """When the run would end with these units, if it was continued now; includes the start of the model."""
        needed_s = self.start_s + estimate.billed_s if self.calls_left else 0.0
        return self.read_at + dt.timedelta(seconds=round(needed_s))

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        values = asdict(self)
        if self.rate is not None:
            values["rate"]["per_unit"] = None if self.rate.per_unit is None else asdict(self.rate.per_unit)
        for shown, estimate in zip(values["estimates"], self.estimates, strict=True):
            shown["ends_at"] = self.ends_at(estimate)
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class PilotProposal:
    """What a pilot will do.

    Attributes:
        images: that it calls for.
        billed_s: seconds of the model.
        dollars: its cost; None if the job does not start the model.
        text: the same in words.
    """

    images: int
    billed_s: float
    dollars: float | None
    text: str


async def pilot(
    job: Job,
    *,
    images: int = PILOT_IMAGES,
    observer: Observer | None = None,
    stop_signal: StopSignal | None = None,
    aws: Aws | None = None,
) -> Pilot:
    """Score a random sample of the job's images, and estimate the rest of the run.

    The work list of the run is completed first. Then a sample, which the run id determines, is scored as a part of the
    run: `run` with the same job and run id scores the rest. A model that the pilot started is stopped. If the run has
    called for as many images already, nothing is scored.

    Args:
        job: what to score.
        images: size of the sample, of images that need a call.
        observer: receives progress and notices.
        stop_signal: ends the pilot early on request; repeating it, or `run`, resumes.
        aws: session to use, such as an emulator's; default: the job's profile and region.

    Raises:
        UsageError: the job or a source is not valid, or the run id belongs to a different job.
        RefusedError: nothing was spent.
        StoppedError: the pilot ended early. What is done is kept.
    """
    ends_at = deadline_at(job, begun_at=anyio.current_time(), now=dt.datetime.now(dt.UTC))
    stop_signal = stop_signal or StopSignal()
    observer = SafeObserver(observer or SilentObserver())
    aws = aws or Aws(AwsSettings(profile=job.profile, region=job.region))
    with stop_signal.interruptible():
        proposal = await propose(job, images=images, aws=aws, observer=observer)
    if isinstance(proposal, Pilot):
        text = f"run {proposal.run_id} has called for the images of the sample; reporting what it has measured"
        observer.notice(Notice("pilot-recorded", text, {"run_id": proposal.run_id}))
        return proposal
    summary = await score(job, observer, stop_signal, aws, ends_at=ends_at, sample_images=images)
    store = await Store.open_async(job.root, aws=aws)
    record = await read_record(store, summary.run_id)
    assert record is not None
    return await read_pilot(job, store, record, images=images, is_free=aws.settings.is_emulator, observer=observer)


async def propose(job: Job, *, images: int, aws: Aws, observer: Observer) -> Pilot | PilotProposal:
    """Return what a pilot will do, or its result if the run has called for enough images. Reads the output root only.

    Raises:
        UsageError: `images` is not positive, or the run id belongs to a different job.
    """
    if images < 1:
        raise UsageError(f"a pilot of {images} images is not possible; use at least 1")
    _, model = await open_service(job, aws)
    is_free, store, old = aws.settings.is_emulator, None, None
    with suppress(OutputError):  # there is no output root yet, or `score` reports the error
        store = await Store.open_async(job.root, aws=aws)
        model = await recorded_model(store, job, model)
        old = None if job.run_id is None else await recorded_run(store, new_record(job, model, None))
    left = images
    if old is not None and store is not None:
        worklist = WorkList(store, RunPaths(old.run_id))
        await worklist.open()
        if worklist.totals is not None:
            images = (await draw_sample(worklist, images=images, seed=old.run_id, fit=job.fit)).images
        left = max(0, images - await called_images(store, old.run_id))
        if not left and worklist.totals is not None:
            return await read_pilot(job, store, old, images=images, is_free=is_free, observer=observer)
    measurements = await read_measurements(store, model.text, observer=observer)
    units = job.units if isinstance(job.units, Units) else Units(1)
    estimate = measurements.estimate(left, units, limits=limits_of(job, is_free=is_free))
    text = (
        f"this scores {pluralize(left, 'image')} with {model.name}: about {period_text(estimate.billed_s)} of the model"
    )
    if job.units is None:
        return PilotProposal(
            images=left,
            billed_s=estimate.billed_s,
            dollars=None,
            text=f"{text}, which must be running; its cost is not part of this run",
        )
    how = "at an assumed rate" if estimate.basis is Basis.ASSUMED else f"at a {estimate.basis} rate"
    return PilotProposal(
        images=left,
        billed_s=estimate.billed_s,
        dollars=estimate.dollars,
        text=f"{text}, which costs about {usd(estimate.dollars)}, at most {usd(estimate.dollars_high)} ({how})",
    )


async def read_pilot(
    job: Job, store: Store, record: RunRecord, *, images: int, is_free: bool, observer: Observer
) -> Pilot:
    """Read from the output root what the sessions of the run have measured. Its work list must be complete."""
    now = dt.datetime.now(dt.UTC)
    worklist = WorkList(store, RunPaths(record.run_id))
    await worklist.open()
    state = await read_run_state(store, record.run_id, now=now)
    assert state is not None
    left, scored, failed = state.left or 0, state.scored or 0, state.failed or 0
    sample = await draw_sample(worklist, images=images, seed=record.run_id, fit=job.fit)
    calls_left = min(left, max(0, round(worklist.images * sample.share) - scored - failed))
    sessions = [each for each in await read_sessions(store, record.run_id) if not each.round]
    rate = rate_of(sessions)
    measurements = await read_measurements(store, record.model, observer=observer)
    estimates: Sequence[Estimate] = ()
    if rate is not None and rate.units is not None:
        measured = replace(
            measurements,
            rates={rate.units: Spread(rate.tps, rate.tps_low, rate.tps_high)},
            sessions={rate.units: len(sessions)},
        )
        estimate = partial(measured.estimate, calls_left, limits=limits_of(job, is_free=is_free))
        estimates = [estimate(units, is_requested=units == job.units) for units in map(Units, range(1, MAX_UNITS + 1))]
    return Pilot(
        run_id=record.run_id,
        out=store.root,
        model=ModelArn.parse(record.model).text,
        is_done=state.state == "done",
        planned=state.planned or 0,
        scored=scored,
        failed=failed,
        skipped=state.skipped or 0,
        left=left,
        calls_left=calls_left,
        rate=rate,
        cost_usd=total_spent(sessions)["cost_usd"],
        start_s=measurements.start_s.typical,
        starts=measurements.starts,
        is_free=is_free,
        estimates=tuple(estimates),
        read_at=now,
    )


def rate_of(sessions: Sequence[SessionRecord]) -> PilotRate | None:
    """Return the rate of the newest session that made calls, together with the others with as many units."""
    called = [each for each in sessions if each.images and calling_s(each) > 0]
    if not called:
        return None
    units = called[-1].units
    alike = [each for each in called if each.units == units]
    images, seconds = sum(each.images for each in alike), sum(map(calling_s, alike))
    root = math.sqrt(images)  # of a Poisson count; its standard deviation is 1/2
    return PilotRate(
        images=images,
        seconds=round(seconds, 3),
        tps=images / seconds,
        tps_low=max(0.0, root - _Z / 2) ** 2 / seconds,
        tps_high=(root + _Z / 2) ** 2 / seconds,
        units=units,
        is_lower_bound=seconds < _RISING_S or not any(each.throttled for each in alike),
    )
