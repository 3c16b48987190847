"""The images that earlier runs have scored or failed on, as a source: the tables of an output root.

A condition is asked of rows: one for each label of a scored image, one for a scored image without labels, one for a
failed or skipped image. An image is taken when any of its rows fits. Newer dates come first, so where several nights
know an image, its facts are those of the latest one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import anyio.to_thread
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batchcl.aws.session import Aws
from batchcl.errors import SourceError
from batchcl.images import ImageRef
from batchcl.runs.layout import PartName, run_name
from batchcl.runs.published import PublishedPart, later_parts, published_parts, read_part
from batchcl.runs.schema import FAILURES, RESULTS
from batchcl.runs.store import Store
from batchcl.sources.base import local_image
from batchcl.sources.list_source import FrameChunk, ImageChunk, ListChunk, ListSource
from batchcl.sources.tables import frame_of, in_short
from batchcl.sources.where import Condition

__all__ = ["MEMBERS", "NOT_FITTING", "RESOLVED", "open_outcomes"]

RESOLVED: Final = "earlier failures"
"""Failures of images that the same run has called for again since."""

NOT_FITTING: Final = "where"
"""What the rows are counted as that the condition passes over."""

MEMBERS: Final = "members of archives"
"""Where in its archive one lies is not in the tables, so they are left out and told."""

_BATCH_ROWS: Final = 16_384
_IMAGE: Final = ("run_id", "uri", "version_id")
_FACTS: Final = ("bucket", "key", "version_id", "etag", "size_bytes", "last_modified", "extra")
_TABLES: Final = {
    name: pl.DataFrame(schema.empty_table()).schema for name, schema in (("results", RESULTS), ("failures", FAILURES))
}
_OF_A_LABEL: Final = {"label": "name"} | {name: name for name in ("confidence", "left", "top", "width", "height")}
_SAME: Final = {"code": "error_code", "message": "error_message", "size": "size_bytes"}
_MODEL_AND_DATE: Final[dict[str, pl.DataType]] = {"model": pl.String(), "date": pl.Date()}
_MEMBER: Final = r"(?i)\.tar#"

_ROW: Final = "row of the file"


def _columns() -> dict[str, pl.DataType]:
    """What a condition may name."""
    label = {"label": pl.String()} | {name: pl.Float32() for name in _OF_A_LABEL if name != "label"}
    of_labels = {"top_confidence": pl.Float32(), "label_count": pl.UInt32()}
    both = {name: kind for table in _TABLES.values() for name, kind in table.items() if name != "labels"}
    both |= {"status": pl.String(), **label, **of_labels, **_MODEL_AND_DATE}
    return both | {name: both[known] for name, known in _SAME.items()}


COLUMNS: Final = _columns()


async def open_outcomes(root: str, *, aws: Aws, where: Condition | None, leave_out_run: str | None) -> ListSource:
    """The images below the output root that fit `where`, each once.

    Args:
        root: a directory or `s3://bucket/prefix`.
        aws: for S3.
        where: a condition; None for all.
        leave_out_run: a run whose own rows don't count, as it is the one that asks.

    Raises:
        UsageError: the condition is none, or names no column of the tables.
        OutputError: there is no output root, or it can't be read.
    """
    if where is not None:
        where.check(COLUMNS)

    store = await Store.open_async(root, aws=aws)

    def find() -> list[_OutcomesPart]:
        parts = [part for part in published_parts(store) if not _is_of(part, leave_out_run)]
        newest_first = sorted(parts, key=lambda part: (part.date, part.name, part.table), reverse=True)
        later = later_parts(parts)
        return [_OutcomesPart(store, part, where, later.get(part, ())) for part in newest_first]

    return ListSource(root, await anyio.to_thread.run_sync(find, abandon_on_cancel=True), is_explicit=False)


def _is_of(part: PublishedPart, run_id: str | None) -> bool:
    written = PartName.parse(part.name)
    return run_id is not None and written is not None and written.run == run_name(run_id)


class _OutcomesPart:
    """One published file. Failures that one of the `later` files resolves or repeats don't count. See `Part`."""

    def __init__(
        self, store: Store, part: PublishedPart, condition: Condition | None, later: Sequence[PublishedPart]
    ) -> None:
        self.name = part.uri
        self._store = store
        self._part = part
        self._condition = condition
        self._later = later

    def chunks(self) -> Iterator[ListChunk]:
        """The rows that fit, some thousand read at a time. Blocks."""
        try:
            resolved = self._resolved()
            with pq.ParquetFile(self._store.open_file(self._part.path)) as file:
                wanted = [name for name in self._wanted() if name in file.schema_arrow.names]
                for batch in file.iter_batches(_BATCH_ROWS, columns=wanted, use_threads=False):
                    yield self._chunk(frame_of(batch), resolved)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"can't read {self.name}: {in_short(error)}; restore it, or leave it out") from error

    def _resolved(self) -> pl.DataFrame | None:
        """The images of the later files; None where there are none. Memory is that of one shard's names."""
        if not self._later:
            return None
        schema = pa.schema([RESULTS.field(name) for name in _IMAGE])
        tables = [read_part(self._store, part, schema) for part in self._later]
        return pl.DataFrame(pa.concat_tables(tables))

    def _wanted(self) -> list[str]:
        """The columns of the file to read."""
        asked = frozenset() if self._condition is None else self._condition.names
        asked |= {_SAME[name] for name in asked & _SAME.keys()}
        if asked & {*_OF_A_LABEL, "top_confidence", "label_count"}:
            asked |= {"labels"}
        if self._later:
            asked |= {*_IMAGE}
        return [name for name in _TABLES[self._part.table] if name in asked or name in _FACTS]

    def _chunk(self, rows: pl.DataFrame, resolved: pl.DataFrame | None) -> ListChunk:
        frame = rows if resolved is None else rows.join(resolved, on=_IMAGE, how="anti", nulls_equal=True)
        fitting = frame if self._condition is None else _fitting(frame, self._condition, self._part)
        is_scored = pl.lit(self._part.table == "results").alias("any_name")
        facts = fitting.select(*_FACTS, is_scored).filter(~pl.col("key").str.contains(_MEMBER))
        counts = {
            RESOLVED: rows.height - frame.height,
            NOT_FITTING: frame.height - fitting.height,
            MEMBERS: fitting.height - facts.height,
        }
        left_out = {what: count for what, count in counts.items() if count}
        if (facts["bucket"] == "").any():
            images = [
                _in_s3(row)
                if row["bucket"]
                else replace(local_image(row["key"], extra=row["extra"]), any_name=row["any_name"])
                for row in facts.iter_rows(named=True)
            ]
            return ImageChunk(images, left_out=left_out)
        return FrameChunk(facts, rows.height, left_out=left_out)


def _fitting(frame: pl.DataFrame, condition: Condition, part: PublishedPart) -> pl.DataFrame:
    """The images of which any row fits."""
    asked = frame.with_row_index(_ROW)
    if "labels" in frame.columns:
        confidences = pl.col("labels").list.eval(pl.element().struct.field("confidence"))
        asked = asked.with_columns(
            confidences.list.max().alias("top_confidence"), pl.col("labels").list.len().alias("label_count")
        )
        if condition.names & _OF_A_LABEL.keys():
            asked = asked.explode("labels", empty_as_null=True, keep_nulls=True).with_columns(
                pl.col("labels").struct.field(field).alias(name) for name, field in _OF_A_LABEL.items()
            )
        asked = asked.drop("labels")
    given = {
        "model": pl.lit(part.model),
        "date": pl.lit(dt.date.fromisoformat(part.date)),
    }
    if part.table == "results":
        given["status"] = pl.lit("scored")
    asked = asked.with_columns(**given)
    asked = asked.with_columns(pl.col(known).alias(name) for name, known in _SAME.items() if known in asked.columns)
    missing = [name for name in COLUMNS if name in condition.names and name not in asked.columns]
    asked = asked.with_columns(pl.lit(None, COLUMNS[name]).alias(name) for name in missing)
    rows = asked.filter(condition.holds(asked))[_ROW].unique(maintain_order=True)
    return frame[rows]


def _in_s3(row: dict[str, object]) -> ImageRef:
    return ImageRef(uri=f"s3://{row['bucket']}/{row['key']}", **row)  # type: ignore[arg-type]
