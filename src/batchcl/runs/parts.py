"""From the outcomes of a complete shard to its published parts: the same names and rows, whoever makes them."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from batchcl.runs.layout import RunPaths
from batchcl.runs.schema import failures_table, parquet_bytes, results_table
from batchcl.scoring.outcome import Failed, Outcome, Scored

__all__ = ["Part", "PartSpec", "shard_parts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartSpec:
    """What all parts of a run have in common."""

    run_id: str
    model: str
    date: dt.date
    min_confidence: float | None = None
    max_results: int | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A file to put; `data` is None for one that must not be there, as it would have no rows."""

    path: str
    data: bytes | None


def shard_parts(
    spec: PartSpec, shard: int, *, round_: int, new: Sequence[Outcome], left: Sequence[Failed]
) -> list[Part]:
    """The shard's parts for a round, in the order in which they must be put. Takes CPU, not I/O.

    Args:
        spec: the run's.
        shard: its number.
        round_: 0 for the run, n for its n-th retry, which adds a part of its own to `results/`.
        new: outcomes of this round; those that were scored make the part in `results/`.
        left: all rows that `failures/` has for the shard from now on.
    """
    paths = RunPaths(spec.run_id)
    scored = [outcome for outcome in new if isinstance(outcome, Scored)]
    parts = []
    if scored:
        rows = results_table(
            scored, run_id=spec.run_id, min_confidence=spec.min_confidence, max_results=spec.max_results
        )
        path = paths.part("results", model=spec.model, date=spec.date, shard=shard, round_=round_)
        parts.append(Part(path, parquet_bytes(rows, run_id=spec.run_id)))
    path = paths.part("failures", model=spec.model, date=spec.date, shard=shard)
    if left:
        rows = failures_table(left, run_id=spec.run_id)
        parts.append(Part(path, parquet_bytes(rows, run_id=spec.run_id)))
    elif round_:
        parts.append(Part(path, None))
    return parts
