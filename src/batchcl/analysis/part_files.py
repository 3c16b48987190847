"""Reads published files: as a polars IO source, or in batches for computations whose rows don't fit into memory.

Both leave out rows that a later row of the same image replaces, and labels below the thresholds.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TypeVar

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from batchcl.analysis.newest import newest_rows
from batchcl.runs.published import PARTITION, PublishedPart, read_ahead, read_part, read_row_groups
from batchcl.runs.store import Store
from batchcl.thresholds import Thresholds

__all__ = ["Batch", "NewestRows", "PartFiles"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one file of `results/`, of one model.

    Attributes:
        model: `<project>@<version>`.
        model_arn: of all rows.
        date: `YYYY-MM-DD`, when the run started.
        rows: number of images.
        images: the columns that were asked for, one row per image.
        detections: one row per label: `image` (row number of its image), `label` (categorical), and the fields that
            were asked for.
    """

    model: str
    model_arn: str
    date: str
    rows: int
    images: pl.DataFrame
    detections: pl.DataFrame


class NewestRows:
    """Which rows of some files are the newest ones of their images; found when first needed. Thread-safe."""

    def __init__(self, store: Store, parts: Sequence[PublishedPart]) -> None:
        self._store = store
        self._parts = parts
        self._lock = threading.Lock()
        self._found: dict[PublishedPart, pl.Series] = {}
        self._models: set[str] = set()

    def of(self, models: Iterable[str]) -> Mapping[PublishedPart, pl.Series]:
        """As `newest_rows` returns, for the files of these models. Blocks."""
        with self._lock:
            new = set(models) - self._models
            self._found |= newest_rows(self._store, [part for part in self._parts if part.model in new])
            self._models |= new
            return dict(self._found)


@dataclass(frozen=True, slots=True)
class PartFiles:
    """Files of one table. Columns missing in a file are null; other columns are ignored.

    polars' `scan_parquet` isn't used because it runs on the streaming engine, whichever engine collects (see
    tests/unit/test_polars.py); `scan_pyarrow_dataset`, because it lets pyarrow filter, to which NULL is NOT IN ('x').

    Attributes:
        store: the output root.
        parts: the files.
        schema: the columns.
        run_id: only the rows of this run, if not None.
        arns: only the rows of these models, if any.
        newest: which rows are the newest of their images; None for all rows.
        thresholds: labels below them are left out.
    """

    store: Store
    parts: Sequence[PublishedPart]
    schema: pa.Schema
    run_id: str | None = None
    arns: Sequence[str] = ()
    newest: NewestRows | None = None
    thresholds: Thresholds | None = None

    def frames(
        self, columns: list[str] | None, predicate: pl.Expr | None, rows: int | None, _batch_rows: int | None
    ) -> Iterator[pl.DataFrame]:
        """Yield one frame per file, as polars expects from an IO source. Blocks.

        Args:
            columns: to return; None for all.
            predicate: which rows to return; None for all.
            rows: how many at most; None for all.

        Raises:
            OutputError: a file can't be read, or is damaged.
        """
        wanted = self.schema.names if columns is None else columns
        conditions = self._conditions() if predicate is None else [*self._conditions(), predicate]
        filtered_by = [name for condition in conditions for name in condition.meta.root_names()]
        schema = pa.schema([self.schema.field(name) for name in dict.fromkeys([*wanted, *filtered_by])])
        parts = self.parts if predicate is None else _in_partitions(self.parts, predicate)
        newest = {} if self.newest is None else self.newest.of(part.model for part in parts)
        left = math.inf if rows is None else rows
        for part, table in read_ahead(parts, lambda part: (part, read_part(self.store, part, schema))):
            frame = pl.DataFrame(table)
            if part in newest:
                frame = frame.filter(newest[part])
            if self.thresholds is not None and "labels" in frame.columns:
                frame = frame.with_columns(_labels_above(self.thresholds))
            frame = frame.filter(conditions) if conditions else frame
            if frame.height >= left:
                yield frame.select(wanted).head(int(left))
                return
            yield frame.select(wanted)
            left -= frame.height

    def map_batches(
        self, compute: Callable[[Batch], T], *, columns: Sequence[str] = (), fields: Sequence[str] = ()
    ) -> Iterator[T]:
        """Yield `compute(batch)` for each batch, in the order of the files. Called in worker threads; blocks.

        Args:
            compute: reduces a batch: what it returns may be in memory for all batches together.
            columns: of `Batch.images`.
            fields: of `Batch.detections`, besides `label`; `confidence` is always among them.

        Raises:
            OutputError: a file can't be read, or is damaged.
        """
        newest = {} if self.newest is None else self.newest.of(part.model for part in self.parts)

        def reduce(part: PublishedPart) -> list[T]:
            batches = self._batches(part, newest.get(part), columns, ("confidence", *fields))
            return [compute(batch) for batch in batches]

        for results in read_ahead(self.parts, reduce):
            yield from results

    def _conditions(self) -> list[pl.Expr]:
        run = [] if self.run_id is None else [pl.col("run_id") == self.run_id]
        return [*run, *([pl.col("model_arn").is_in(list(self.arns))] if self.arns else [])]

    def _batches(
        self, part: PublishedPart, newest: pl.Series | None, columns: Sequence[str], fields: Sequence[str]
    ) -> Iterator[Batch]:
        own_run = self.run_id if part.run is None else None  # an exported file may have rows of several runs
        names = dict.fromkeys([name for name in columns if name not in (*PARTITION.names, "model_arn")])
        stored = [*names, *(["run_id"] if own_run is not None and "run_id" not in names else [])]
        first = 0
        for arn, table in read_row_groups(self.store, part, stored, label_fields=("name", *fields)):
            kept = None if newest is None else newest.slice(first, table.num_rows).to_arrow()
            first += table.num_rows
            rows = table if kept is None else table.filter(kept)
            rows = rows if own_run is None else rows.filter(pc.equal(rows["run_id"], own_run))
            for model_arn in [arn] if arn is not None else rows["model_arn"].unique().to_pylist():
                if not self.arns or model_arn in self.arns:
                    of_model = rows if arn is not None else rows.filter(pc.equal(rows["model_arn"], model_arn))
                    yield self._batch(part, model_arn, of_model, columns, fields)

    def _batch(
        self, part: PublishedPart, model_arn: str, rows: pa.Table, columns: Sequence[str], fields: Sequence[str]
    ) -> Batch:
        labels = rows["labels"].combine_chunks()
        values = labels.flatten()
        detections = pl.DataFrame(
            {
                "image": pl.Series(pc.list_parent_indices(labels)),
                "label": pl.Series(values.field("name"), dtype=pl.Categorical),
                **{name: pl.Series(values.field(name)) for name in fields},
            }
        )
        if self.thresholds is not None:
            detections = detections.filter(_is_above(self.thresholds, pl.col("label"), pl.col("confidence")))
        constants = {"model": part.model, "model_arn": model_arn, "date": part.date}
        stored = pl.DataFrame([pl.Series(name, rows[name]) for name in columns if name not in constants])
        images = stored.with_columns(pl.lit(constants[name]).alias(name) for name in columns if name in constants)
        return Batch(part.model, model_arn, part.date, rows.num_rows, images, detections)


def _labels_above(thresholds: Thresholds) -> pl.Expr:
    """The column `labels` without those below the thresholds."""
    label = pl.element().struct
    above = _is_above(thresholds, label.field("name"), label.field("confidence"))
    return pl.col("labels").list.eval(pl.element().filter(above))


def _is_above(thresholds: Thresholds, label: pl.Expr, confidence: pl.Expr) -> pl.Expr:
    # results store 32-bit numbers; as a 64-bit number, 70.1 is greater than the stored 70.1
    default = pl.lit(thresholds.default or 0.0, pl.Float32)
    if not thresholds.labels:
        return confidence >= default
    names = list(thresholds.labels)
    values = pl.Series(list(thresholds.labels.values()), dtype=pl.Float32)
    minimum = label.cast(pl.String).replace_strict(names, values, default=default, return_dtype=pl.Float32)
    return confidence >= minimum


def _in_partitions(parts: Sequence[PublishedPart], predicate: pl.Expr) -> list[PublishedPart]:
    """Return the parts whose model and date satisfy the conditions of `predicate` on these columns alone."""
    conditions = [each for each in _conjuncts(predicate) if set(each.meta.root_names()) <= set(PARTITION.names)]
    names = [pl.Series(name, [getattr(part, name) for part in parts], pl.String) for name in PARTITION.names]
    dated = pl.DataFrame(names).with_columns(pl.col("date").str.to_date("%Y-%m-%d", strict=False))
    return [parts[number] for number in dated.with_row_index().filter(*conditions)["index"]]


def _conjuncts(predicate: pl.Expr) -> list[pl.Expr]:
    """Return the conditions that `predicate` joins with AND."""
    for first, second in permutations(predicate.meta.pop(), 2):
        if (first & second).meta.eq(predicate):
            return [*_conjuncts(first), *_conjuncts(second)]
    return [predicate]
