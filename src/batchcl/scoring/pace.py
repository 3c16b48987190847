"""The pacer of a session: it starts with what earlier sessions have learned of the model, and leaves what it learns."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio

from batchcl.errors import OutputError
from batchcl.pacing.controller import START_TPS, RateController
from batchcl.pacing.pacer import AdaptivePacer
from batchcl.runs.learned import LearnedRate, read_learned, write_learned
from batchcl.runs.store import Store

__all__ = ["learning_pacer"]

_KNOWN_WEIGHT: Final = 0.5
_KEEP_S: Final = 5.0


@asynccontextmanager
async def learning_pacer(
    store: Store, model: str, *, max_tps: float | None, utcnow: Callable[[], dt.datetime]
) -> AsyncIterator[AdaptivePacer]:
    """A pacer for `model` (`<project>@<version>`) during the block; what it has learned is kept however that ends.

    A store that can't read or keep the rate costs some seconds of finding it again, and never the run.

    Args:
        store: the output root.
        model: its name.
        max_tps: never faster than this.
        utcnow: tells the age of what was learned.
    """
    learned = None
    with suppress(OutputError):
        learned = await read_learned(store, model)
    now = utcnow()
    controller = RateController(
        start_tps=START_TPS if learned is None else learned.start_tps(now, otherwise_tps=START_TPS),
        learned=learned is not None and learned.weight(now) >= _KNOWN_WEIGHT,
        ceiling_tps=math.inf if max_tps is None else max_tps,
    )
    pacer = AdaptivePacer(controller, max_tps=max_tps)
    try:
        yield pacer
    finally:
        if pacer.learned_tps is not None:
            with anyio.move_on_after(_KEEP_S, shield=True), suppress(OutputError):
                await write_learned(store, model, LearnedRate(pacer.learned_tps, utcnow()))
