"""From the outcomes of a complete shard to its published parts: the same names and rows, whoever makes them."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

import pyarrow as pa

from batchcl.runs.entries import of_status
from batchcl.runs.layout import RunPaths
from batchcl.runs.schema import failures_table, parquet_bytes, results_table

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
    spec: PartSpec, shard: int, *, round_: int, images: pa.Table, new: pa.Table, state: pa.Table
) -> list[Part]:
    """The shard's parts for a round, in the order in which they must be put. Takes CPU, not I/O.

    Args:
        spec: the run's.
        shard: its number.
        round_: 0 for the run, n for its n-th retry, which adds a part of its own to `results/`.
        images: of the shard, with the columns of `IMAGES`.
        new: entries of this round; those that were scored make the part in `results/`.
        state: the last entry of each image; the others make the part in `failures/`.
    """
    paths = RunPaths(spec.run_id)
    scored, left = of_status(new, scored=True), of_status(state, scored=False)
    parts = []
    if scored.num_rows:
        rows = results_table(
            images, scored, run_id=spec.run_id, min_confidence=spec.min_confidence, max_results=spec.max_results
        )
        path = paths.part("results", model=spec.model, date=spec.date, shard=shard, round_=round_)
        parts.append(Part(path, parquet_bytes(rows, run_id=spec.run_id)))
    path = paths.part("failures", model=spec.model, date=spec.date, shard=shard)
    if left.num_rows:
        rows = failures_table(images, left, run_id=spec.run_id)
        parts.append(Part(path, parquet_bytes(rows, run_id=spec.run_id)))
    elif round_:
        parts.append(Part(path, None))
    return parts
