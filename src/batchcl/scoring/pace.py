"""The pacer of a session: it starts with what earlier sessions have learned of the model, and leaves what it learns."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from batchcl.aws.models import Units
from batchcl.errors import BatchclError, OutputError, StalledError, UnreachableError
from batchcl.events import Notice, Observer
from batchcl.pacing.controller import START_TPS, RateController
from batchcl.pacing.pacer import AdaptivePacer
from batchcl.runs.learned_rate import LearnedRate, read_learned, write_learned
from batchcl.runs.store import Store
from batchcl.stop_signal import RECORDS, StopSignal

__all__ = ["learning_pacer"]

_KNOWN_WEIGHT: Final = 0.5
_KEEP_S: Final = 5.0
_TROUBLE: Final = (StalledError, UnreachableError)
"""Ends of a session whose last refusals may not have been about the model's capacity."""


@asynccontextmanager
async def learning_pacer(
    store: Store,
    model: str,
    *,
    units: Callable[[], Units | None],
    max_tps: float | None,
    observer: Observer,
    stopper: StopSignal,
    utcnow: Callable[[], dt.datetime],
) -> AsyncIterator[AdaptivePacer]:
    """A pacer for `model`, an ARN, during the block; what it has learned is kept however that ends.

    A session that ends because nothing was answered any more does not lower what was known before.

    A store that can't read or keep the rate costs some seconds of finding it again, and never the run. The notices
    `pace` and `pace-learned` report where it begins and what is kept.

    Args:
        store: the output root.
        model: its ARN; a retrained model of the same name has another one.
        units: inference units that the model runs with; the rate is kept for each number.
        max_tps: never faster than this.
        observer: receives the notices.
        stopper: bounds what is kept in time.
        utcnow: the time of day, for the age of what was learned.
    """
    learned = None
    with suppress(OutputError):
        learned = await read_learned(store, model, _text(units()))
    now = utcnow()
    controller = RateController(
        start_tps=START_TPS if learned is None else learned.start_tps(now, otherwise_tps=START_TPS),
        learned=learned is not None and not learned.is_lower_bound and learned.weight(now) >= _KNOWN_WEIGHT,
        ceiling_tps=math.inf if max_tps is None else max_tps,
    )
    pacer = AdaptivePacer(controller, max_tps=max_tps)
    observer.notice(_begins(pacer.statistics().rate_tps, learned))
    is_in_trouble = False
    try:
        yield pacer
    except BatchclError as error:
        is_in_trouble = isinstance(error.__cause__ or error, _TROUBLE)
        raise
    finally:
        if (found := _found(controller, learned, utcnow(), is_in_trouble=is_in_trouble)) is not None:
            with stopper.bounded(RECORDS, shield=True, most_s=_KEEP_S), suppress(OutputError):
                await write_learned(store, model, _text(units()), found)
                tps = round(found.tps, 1)
                at_least = "at least " if found.is_lower_bound else ""
                text = f"the model took {at_least}{tps} images a second; the next run begins there"
                fields: dict[str, str | int | float | None] = {"tps": tps, "is_lower_bound": found.is_lower_bound}
                observer.notice(Notice("pace-learned", text, fields))


def _found(
    controller: RateController, before: LearnedRate | None, now: dt.datetime, *, is_in_trouble: bool
) -> LearnedRate | None:
    """What this session has found; None where that is nothing, or a lower bound below what is known already."""
    if controller.found_tps is not None and not is_in_trouble:
        return LearnedRate(round(controller.found_tps, 3), now)
    if controller.sustained_tps is None or (before is not None and before.tps >= controller.sustained_tps):
        return None
    return LearnedRate(round(controller.sustained_tps, 3), now, is_lower_bound=True)


def _text(units: Units | None) -> str:
    return "" if units is None else str(units)


def _begins(rate_tps: float, learned: LearnedRate | None) -> Notice:
    rate_tps = round(rate_tps, 1)
    fields: dict[str, str | int | float | None] = {"rate_tps": rate_tps, "learned_tps": None, "learned_at": None}
    if learned is None:
        return Notice("pace", f"calls begin at {rate_tps} a second; what the model takes is not known yet", fields)
    moment = f"{learned.learned_at.astimezone(dt.UTC):%Y-%m-%dT%H:%M:%SZ}"
    at_least = "at least " if learned.is_lower_bound else ""
    text = f"calls begin at {rate_tps} a second; the model took {at_least}{learned.tps:.1f} on {moment}"
    return Notice("pace", text, fields | {"learned_tps": round(learned.tps, 1), "learned_at": moment})
