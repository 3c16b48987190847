"""The call rate that earlier runs measured for a model: the initial rate of the next run.

Stored in the output root per model and number of inference units. Its weight decreases with age. A file that can't be
decoded is ignored.
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
_MAX_TPS: Final = 10_000.0


@dataclass(frozen=True, slots=True)
class LearnedRate:
    """Calls per second that a model accepted, measured by the run that ended at `learned_at`.

    `is_lower_bound`: that run found no limit, so the model may accept more.
    """

    tps: float
    learned_at: dt.datetime
    is_lower_bound: bool = False

    def weight(self, now: dt.datetime) -> float:
        """Weight of this rate: 1 when new, halved every week, 0 if `learned_at` is more than a day in the future."""
        age = now - self.learned_at
        return 0.0 if age < -dt.timedelta(days=1) else min(1.0, 0.5 ** (age / _HALF_LIFE))

    def start_tps(self, now: dt.datetime, *, default_tps: float) -> float:
        """The initial rate: the weighted geometric mean of this rate and `default_tps`."""
        return default_tps * math.exp(self.weight(now) * math.log(self.tps / default_tps))


async def read_learned(store: Store, model: str, units: str) -> LearnedRate | None:
    """The stored rate of `model`, an ARN, with `units`; None if there is none or the file is corrupt.

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
    return learned if 0 < learned.tps <= _MAX_TPS and learned.learned_at.tzinfo is not None else None


async def write_learned(store: Store, model: str, units: str, learned: LearnedRate) -> None:
    """Store the rate for the next run; the last writer wins.

    Raises:
        OutputError: the output root can't be written.
    """
    document = {
        "tps": round(learned.tps, 3),
        "learned_at": learned.learned_at,
        "is_lower_bound": learned.is_lower_bound,
    }
    await store.put(pace_path(model, units), orjson.dumps(document, option=orjson.OPT_UTC_Z))
