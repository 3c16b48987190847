"""`--start-model auto`: with how many units the model is started; and a warning when a run will miss its deadline."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import anyio

from batchcl.aws.account import DEFAULTS
from batchcl.errors import OutputError
from batchcl.events import Notice, Observer, Progress
from batchcl.job import Job
from batchcl.lifetime.manager import ModelManager
from batchcl.prices import unit_hour_usd
from batchcl.quantities import MAX_UNITS, Units, period_text, pluralize
from batchcl.runs.spending import read_spending
from batchcl.runs.store import Store
from batchcl.scoring.budget import usd
from batchcl.scoring.estimates import (
    NEWEST,
    Estimate,
    Limits,
    Measurements,
    choose,
    measure,
    restart_images,
    restart_seconds,
)

__all__ = ["AutoUnitsChooser", "limits_of", "read_measurements"]

_RUNS_READ: Final = 3 * NEWEST
"""Newest runs of the root that are read: several models may take turns, and a run may have no call."""

_CHECK_EVERY_S: Final = 0.2
_WATCH_EVERY_S: Final = 30.0
_RATE_OVER_S: Final = 300.0
_WATCH_AFTER_S: Final = 120.0


async def read_measurements(store: Store | None, model_arn: str, *, observer: Observer) -> Measurements:
    """Return what the newest runs of the output root have measured for the model.

    Nothing is measured if there is no root, or if it can't be read, which is reported to `observer`.
    """
    if store is not None:
        try:
            return measure(await read_spending(store, newest=_RUNS_READ), model_arn)
        except OutputError as error:
            text = f"rate and start-up time are assumed, because reading earlier runs failed: {error}"
            observer.notice(Notice("not-measured", text, level="warning"))
    return measure((), model_arn)


def limits_of(job: Job, *, is_free: bool) -> Limits:
    """Return what bounds the rate of `job`, and the price of a unit."""
    return Limits(
        max_tps=job.max_tps, account_tps=DEFAULTS.calls_tps, unit_hour_usd=0.0 if is_free else unit_hour_usd()
    )


@dataclass(frozen=True, kw_only=True)
class AutoUnitsChooser:
    """Chooses the units of a session's model once enough is known, and compares the session with its deadline.

    Attributes:
        job: the job.
        store: the output root, with the sessions that have measured rates.
        model_arn: the model.
        model_manager: of the session.
        progress: of the session.
        images_left: returns the number of images on the work list without an outcome; None while unknown.
        ends_at: the deadline on the loop's clock; infinity without one.
        observer: receives the notices.
    """

    job: Job
    store: Store
    model_arn: str
    model_manager: ModelManager
    progress: Progress
    images_left: Callable[[], int | None]
    ends_at: float
    observer: Observer

    async def choose(self) -> None:
        """Choose, if the job says `auto` and the model is not up.

        Waits until the work list is complete, or so long that more images would not change the choice. The model is not
        billed meanwhile.
        """
        auto = self.model_manager.undecided
        if auto is None:
            return
        measurements = await read_measurements(self.store, self.model_arn, observer=self.observer)
        limits = limits_of(self.job, is_free=self.model_manager.is_free)

        def chosen_for(images: float) -> Estimate:
            left_s = self.ends_at - anyio.current_time()
            return choose(measurements, images, left_s=left_s, highest=auto.highest, limits=limits)

        while True:
            if (images := self.images_left()) is not None:
                chosen = chosen_for(images)
                if self.progress.listed or (images and chosen.units == chosen_for(math.inf).units):
                    break
            await anyio.sleep(_CHECK_EVERY_S)
        self.model_manager.choose_units(Units(chosen.units))
        self._report(chosen, images)

    def _report(self, chosen: Estimate, images: int) -> None:
        at_least = "" if self.progress.listed else "at least "
        text = (
            f"starting the model with {pluralize(chosen.units, 'inference unit')}: {at_least}"
            f"{pluralize(images, 'image')} take about {period_text(chosen.billed_s)} at "
            f"{chosen.images_per_second:.1f} images/s ({chosen.basis})"
        )
        if not self.model_manager.is_free:
            text += f" and cost about {usd(chosen.dollars)}"
        late_s = chosen.needed_s - (self.ends_at - anyio.current_time())
        if late_s > 0:
            text += f"; the deadline of {self.job.deadline} may be missed by {period_text(late_s)}"
        fields: dict[str, str | int | float | None] = {
            "units": chosen.units,
            "images": images,
            "billed_s": round(chosen.billed_s, 1),
            "dollars": round(chosen.dollars, 4),
            "basis": chosen.basis.value,
        }
        self.observer.notice(Notice("model-units", text, fields, level="warning" if late_s > 0 else "info"))

    async def watch_deadline(self) -> None:
        """Warn once if the run will miss its deadline at its present rate; say whether more units would help."""
        if self.ends_at == math.inf:
            return
        called: deque[tuple[float, int]] = deque(maxlen=round(_RATE_OVER_S / _WATCH_EVERY_S) + 1)
        while True:
            await anyio.sleep(_WATCH_EVERY_S)
            now, images = anyio.current_time(), self.images_left()
            if not self.progress.calls:
                continue
            called.append((now, self.progress.called))
            since, before = called[0]
            rate_tps = (self.progress.called - before) / (now - since) if now - since >= _WATCH_AFTER_S else 0.0
            if rate_tps and images and self.progress.listed:
                late_s = images / rate_tps - (self.ends_at - now)
                if late_s > 0:
                    await self._warn(images, rate_tps, late_s=late_s)
                    return

    async def _warn(self, images: int, rate_tps: float, *, late_s: float) -> None:
        units = self.model_manager.units
        left = math.ceil(late_s * rate_tps)
        text = (
            f"at {rate_tps:.1f} images/s{'' if units is None else f' with {units.words}'} the deadline of "
            f"{self.job.deadline} will be missed by {period_text(late_s)}, with {pluralize(left, 'image')} left"
        )
        if units is not None and (advice := await self._advice(images, rate_tps, units.highest, late_s=late_s)):
            text += f"; {advice}"
        fields: dict[str, str | int | float | None] = {"late_s": round(late_s), "images_left": left}
        self.observer.notice(Notice("deadline-missed", text, fields, level="warning"))

    async def _advice(self, images: int, rate_tps: float, units: int, *, late_s: float) -> str:
        """Whether it pays off to stop the model and start it with more units."""
        measurements = await read_measurements(self.store, self.model_arn, observer=self.observer)
        most_tps = measurements.most_tps(limits_of(self.job, is_free=True))
        restart_s = restart_seconds(measurements)
        left_s = images / rate_tps - late_s
        restart = f"a stop and a start take about {period_text(restart_s)}"
        best_tps = rate_tps
        for more in range(units + 1, MAX_UNITS + 1):
            tps = min(rate_tps * more / units, most_tps)
            if restart_s + images / tps <= left_s:
                return (
                    f"stop the run and the model, and repeat the command with --start-model {more} to meet it "
                    f"({restart})"
                )
            best_tps = max(best_tps, tps)
        from_images = restart_images(measurements, now_tps=rate_tps, then_tps=best_tps)
        if not math.isfinite(from_images):
            return "more units would not be faster"
        gain_s = images / rate_tps - restart_s - images / best_tps
        if images > from_images:
            return (
                f"more units can't meet it any more, but {MAX_UNITS} units would end {period_text(gain_s)} earlier "
                f"({restart})"
            )
        return (
            f"more units would not end earlier: {restart}, which pays off from {math.ceil(from_images):,} images left"
        )
