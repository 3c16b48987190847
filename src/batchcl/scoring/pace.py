"""Opens the pacer of a session with the rate that earlier sessions learned, and stores what this session learns."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from batchcl.errors import BatchclError, OutputError, StalledError, UnreachableError
from batchcl.events import Notice, Observer
from batchcl.pacing.controller import START_TPS, RateController
from batchcl.pacing.pacer import AdaptivePacer
from batchcl.quantities import Units
from batchcl.runs.learned_rate import LearnedRate, read_learned, write_learned
from batchcl.runs.store import Store
from batchcl.stop_signal import RECORDS, StopSignal

__all__ = ["LearningPacer", "open_pacer"]

_LEARNED_WEIGHT: Final = 0.5
"""A stored rate of at least this weight, which is halved every week, counts as measured: for one week."""

_WRITE_TIMEOUT_S: Final = 5.0
_OUTAGES: Final = (StalledError, UnreachableError)
"""Errors of sessions whose last throttled calls may not show the model's capacity; they don't lower the stored rate."""


class LearningPacer(AdaptivePacer):
    """A pacer that begins with the rate that earlier sessions learned for a model and its number of units.

    If the store can't be read, the rate has to be found again, which takes some seconds; the run continues. The notice
    `pace` reports the first rate.

    Args:
        store: the output root.
        model: its ARN; a retrained model of the same name has another ARN.
        units: returns the inference units that the model runs with; each number of units has its own rate.
        max_tps: hard limit of the rate.
        observer: receives the notice.
        utcnow: current time, for the age of the stored rate.

    Attributes:
        learned: the stored rate; None if there is none, or it was not read.
    """

    def __init__(
        self,
        store: Store,
        model: str,
        *,
        units: Callable[[], Units | None],
        max_tps: float | None,
        observer: Observer,
        utcnow: Callable[[], dt.datetime],
    ) -> None:
        self.learned: LearnedRate | None = None
        self._read_for: str | None = None
        self._store = store
        self._model = model
        self._units = units
        self._max_tps = max_tps
        self._observer = observer
        self._utcnow = utcnow
        super().__init__(self._make_controller(), max_tps=max_tps)

    async def read_learned(self) -> None:
        """Begin with the rate that is stored for the present number of units, unless that has been done."""
        if (units := _text(self._units())) == self._read_for:
            return
        self._read_for, self.learned = units, None
        with suppress(OutputError):
            self.learned = await read_learned(self._store, self._model, units)
        self.controller = self._make_controller()
        self._observer.notice(_start_notice(self.pace().rate_tps, self.learned))

    def _make_controller(self) -> RateController:
        learned, now = self.learned, self._utcnow()
        return RateController(
            start_tps=START_TPS if learned is None else learned.start_tps(now, default_tps=START_TPS),
            learned=learned is not None and not learned.is_lower_bound and learned.weight(now) >= _LEARNED_WEIGHT,
            ceiling_tps=math.inf if self._max_tps is None else self._max_tps,
        )


@asynccontextmanager
async def open_pacer(
    store: Store,
    model: str,
    *,
    units: Callable[[], Units | None],
    max_tps: float | None,
    observer: Observer,
    stop_signal: StopSignal,
    utcnow: Callable[[], dt.datetime],
    are_units_decided: bool = True,
) -> AsyncIterator[LearningPacer]:
    """Open a pacer for `model`; at the end of the block, the learned rate is stored, also after an error.

    A session that ended in an outage does not lower the stored rate. If the store can't be written, the run continues.
    The notice `pace-learned` reports the stored rate.

    Args:
        store: the output root.
        model: its ARN; a retrained model of the same name has another ARN.
        units: returns the inference units that the model runs with; each number of units has its own rate.
        max_tps: hard limit of the rate.
        observer: receives the notices.
        stop_signal: limits the time for storing the rate.
        utcnow: current time, for the age of the stored rate.
        are_units_decided: whether `units` is final; otherwise await `read_learned` once it is.
    """
    pacer = LearningPacer(store, model, units=units, max_tps=max_tps, observer=observer, utcnow=utcnow)
    if are_units_decided:
        await pacer.read_learned()
    is_outage = False
    try:
        yield pacer
    except BatchclError as error:
        is_outage = isinstance(error.__cause__ or error, _OUTAGES)
        raise
    finally:
        if (rate := _rate_to_store(pacer.controller, pacer.learned, utcnow(), is_outage=is_outage)) is not None:
            with stop_signal.bounded(RECORDS, shield=True, max_s=_WRITE_TIMEOUT_S), suppress(OutputError):
                await write_learned(store, model, _text(units()), rate)
                tps = round(rate.tps, 1)
                at_least = "at least " if rate.is_lower_bound else ""
                text = f"learned rate: {at_least}{tps} images per second; the next run starts with it"
                fields: dict[str, str | int | float | None] = {"tps": tps, "is_lower_bound": rate.is_lower_bound}
                observer.notice(Notice("pace-learned", text, fields))


def _rate_to_store(
    controller: RateController, before: LearnedRate | None, now: dt.datetime, *, is_outage: bool
) -> LearnedRate | None:
    """Return the rate that this session has measured, else a lower bound that exceeds the stored rate, else None."""
    if controller.measured_tps is not None and not is_outage:
        return LearnedRate(round(controller.measured_tps, 3), now)
    if controller.sustained_tps is None or (before is not None and before.tps >= controller.sustained_tps):
        return None
    return LearnedRate(round(controller.sustained_tps, 3), now, is_lower_bound=True)


def _text(units: Units | None) -> str:
    return "" if units is None else str(units)


def _start_notice(rate_tps: float, learned: LearnedRate | None) -> Notice:
    rate_tps = round(rate_tps, 1)
    fields: dict[str, str | int | float | None] = {"rate_tps": rate_tps, "learned_tps": None, "learned_at": None}
    if learned is None:
        return Notice("pace", f"calls start at {rate_tps} per second; no rate is known for this model yet", fields)
    learned_at = f"{learned.learned_at.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
    at_least = "at least " if learned.is_lower_bound else ""
    text = f"calls start at {rate_tps} per second; learned on {learned_at}: {at_least}{learned.tps:.1f}"
    return Notice("pace", text, fields | {"learned_tps": round(learned.tps, 1), "learned_at": learned_at})
