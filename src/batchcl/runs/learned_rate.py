"""The rate that earlier runs have found for a model, kept in the output root so that the next run starts with it.

It is kept for each number of inference units. It is only a start: the run goes on measuring. It counts less with age,
and a file that can't be read counts nothing.
"""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from typing import Final

import orjson

from batchcl.runs.layout import pace_path
from batchcl.runs.store import Store

__all__ = ["LearnedRate", "read_learned", "write_learned"]

_HALF_LIFE: Final = dt.timedelta(days=7)
_MOST_TPS: Final = 10_000.0


@dataclass(frozen=True, slots=True)
class LearnedRate:
    """Calls a second that a model took, as found by the run that ended at `learned_at`.

    `is_lower_bound` where that run was never throttled, so that the model may take more.
    """

    tps: float
    learned_at: dt.datetime
    is_lower_bound: bool = False

    def weight(self, now: dt.datetime) -> float:
        """How much it counts, 1 when new and half as much every week; nothing when it comes from the future."""
        age = now - self.learned_at
        return 0.0 if age < -dt.timedelta(days=1) else min(1.0, 0.5 ** (age / _HALF_LIFE))

    def start_tps(self, now: dt.datetime, *, otherwise_tps: float) -> float:
        """Where to start: between this rate and `otherwise_tps`, in proportion, by its weight."""
        return otherwise_tps * math.exp(self.weight(now) * math.log(self.tps / otherwise_tps))


async def read_learned(store: Store, model: str, units: str) -> LearnedRate | None:
    """What was learned of `model`, an ARN, with these units; None where that is nothing, or nothing valid.

    Raises:
        OutputError: the output root can't be read.
    """
    data = await store.get(pace_path(model, units))
    if data is None:
        return None
    try:
        document = orjson.loads(data)
        learned_at = dt.datetime.fromisoformat(document["learned_at"])
        learned = LearnedRate(float(document["tps"]), learned_at, bool(document.get("is_lower_bound")))
    except (ValueError, TypeError, KeyError):
        return None
    return learned if 0 < learned.tps <= _MOST_TPS and learned.learned_at.tzinfo is not None else None


async def write_learned(store: Store, model: str, units: str, learned: LearnedRate) -> None:
    """Keep it for the next run; the last writer wins.

    Raises:
        OutputError: the output root can't be written.
    """
    document = {
        "tps": round(learned.tps, 3),
        "learned_at": learned.learned_at,
        "is_lower_bound": learned.is_lower_bound,
    }
    await store.put(pace_path(model, units), orjson.dumps(document, option=orjson.OPT_UTC_Z))
