"""The published results and failures of an output root as a source of images.

A condition is evaluated on rows: one per label of a scored image, one for a scored image without labels, one for a
failed or skipped image. An image is selected if any of its rows matches. Newer dates are read first, so size, time and
entity tag of an image are those of its latest run.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import anyio.to_thread
import polars as pl
import pyarrow as pa

from batchcl.aws.session import Aws
from batchcl.errors import ErrorCode, SourceError
from batchcl.images import ImageRef
from batchcl.runs.layout import PartName, run_name
from batchcl.runs.published import PublishedPart, published_parts, read_part, resolving_parts
from batchcl.runs.schema import FAILURES, RESULTS, open_part
from batchcl.runs.store import Store
from batchcl.sources.base import MEMBERS, NOT_FITTING, local_image
from batchcl.sources.list_source import FrameChunk, ImageChunk, ListChunk, ListSource
from batchcl.sources.tables import BATCH_ROWS, first_line, frame_of
from batchcl.sources.where import Condition

__all__ = [
    "COLUMNS",
    "ROW_INDEX",
    "condition_columns",
    "condition_rows",
    "open_published_images",
]

_RESOLVED: Final = "earlier failures"
"""Counts failures that a later file of the same run replaces."""

_IMAGE: Final = ("run_id", "uri", "version_id")
_IMAGE_COLUMNS: Final = ("bucket", "key", "version_id", "etag", "size_bytes", "last_modified", "extra")
_TABLES: Final = {
    name: pl.DataFrame(schema.empty_table()).schema for name, schema in (("results", RESULTS), ("failures", FAILURES))
}
_LABEL_COLUMNS: Final = {"label": "name"} | {name: name for name in ("confidence", "left", "top", "width", "height")}
_ALIASES: Final = {"code": "error_code", "message": "error_message", "size": "size_bytes"}
_MODEL_AND_DATE: Final[dict[str, pl.DataType]] = {"model": pl.String(), "date": pl.Date()}
_MEMBER: Final = r"(?i)\.tar#"

ROW_INDEX: Final = "row of the frame"
"""The column of `condition_rows` with the number of the image's row."""


def _columns() -> dict[str, pl.DataType]:
    """The columns that a condition may use."""
    columns = {name: dtype for table in _TABLES.values() for name, dtype in table.items() if name != "labels"}
    columns |= {"status": pl.String(), "label": pl.String()}
    columns |= {name: pl.Float32() for name in _LABEL_COLUMNS if name != "label"}
    columns |= {"top_confidence": pl.Float32(), "label_count": pl.UInt32(), **_MODEL_AND_DATE}
    return columns | {alias: columns[name] for alias, name in _ALIASES.items()}


COLUMNS: Final = _columns()
"""The columns that a condition may use; `Condition.check` takes them."""


async def open_published_images(root: str, *, aws: Aws, where: Condition | None, exclude_run: str | None) -> ListSource:
    """The images below the output root that match `where`, each once.

    Args:
        root: a directory or `s3://bucket/prefix`.
        aws: for S3.
        where: a condition; None for all images.
        exclude_run: a run whose rows are ignored, because it is the run that reads this source.

    Raises:
        UsageError: the condition is not valid for the columns of the tables.
        OutputError: there is no output root, or it can't be read.
    """
    if where is not None:
        where.check(COLUMNS)

    store = await Store.open_async(root, aws=aws)

    def list_parts() -> list[_PublishedPart]:
        parts = [part for part in published_parts(store) if not _is_part_of(part, exclude_run)]
        newest_first = sorted(parts, key=lambda part: (part.date, part.name, part.table), reverse=True)
        later = resolving_parts(parts)
        return [_PublishedPart(store, part, where, later.get(part, ())) for part in newest_first]

    return ListSource(root, await anyio.to_thread.run_sync(list_parts, abandon_on_cancel=True), is_explicit=False)


def _is_part_of(part: PublishedPart, run_id: str | None) -> bool:
    written = PartName.parse(part.name)
    return run_id is not None and written is not None and written.run == run_name(run_id)


class _PublishedPart:
    """One published file as a `ListPart`. Failures of images that are also in one of the `later` files are excluded."""

    def __init__(
        self, store: Store, part: PublishedPart, condition: Condition | None, later: Sequence[PublishedPart]
    ) -> None:
        self.name = part.uri
        self._store = store
        self._part = part
        self._condition = condition
        self._later = later

    def chunks(self) -> Iterator[ListChunk]:
        """See `ListPart`; one chunk per batch of rows."""
        try:
            resolved = self._resolved()
            with open_part(self._store.open_file(self._part.path), self.name) as file:
                wanted = [name for name in self._wanted() if name in file.schema_arrow.names]
                for batch in file.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False):
                    yield self._chunk(frame_of(batch), resolved)
        except (pa.ArrowException, OSError) as error:
            raise SourceError(
                f"can't read {self.name}: {first_line(error)}; restore it from a backup, or remove it",
                code=ErrorCode.CORRUPT_FILE,
            ) from error

    def _resolved(self) -> pl.DataFrame | None:
        """The images of the later files, or None; memory is bounded by the names of one shard."""
        if not self._later:
            return None
        schema = pa.schema([RESULTS.field(name) for name in _IMAGE])
        tables = [read_part(self._store, part, schema) for part in self._later]
        return pl.DataFrame(pa.concat_tables(tables))

    def _wanted(self) -> list[str]:
        """The columns of the file to read."""
        needed = frozenset() if self._condition is None else condition_columns(self._condition)
        if self._later:
            needed |= {*_IMAGE}
        return [name for name in _TABLES[self._part.table] if name in needed or name in _IMAGE_COLUMNS]

    def _chunk(self, rows: pl.DataFrame, resolved: pl.DataFrame | None) -> ListChunk:
        frame = rows if resolved is None else rows.join(resolved, on=_IMAGE, how="anti", nulls_equal=True)
        matching = frame if self._condition is None else _matching_images(frame, self._condition, self._part)
        is_scored = pl.lit(self._part.table == "results").alias("any_extension")
        images = matching.select(*_IMAGE_COLUMNS, is_scored).filter(~pl.col("key").str.contains(_MEMBER))
        counts = {
            _RESOLVED: rows.height - frame.height,
            NOT_FITTING: frame.height - matching.height,
            MEMBERS: matching.height - images.height,
        }
        ignored = {what: count for what, count in counts.items() if count}
        if (images["bucket"] == "").any():
            return ImageChunk([_image(row) for row in images.iter_rows(named=True)], ignored=ignored)
        return FrameChunk(images, rows.height, ignored=ignored)


def _matching_images(frame: pl.DataFrame, condition: Condition, part: PublishedPart) -> pl.DataFrame:
    """The images of which any row matches the condition."""
    constants = {"model": pl.lit(part.model), "date": pl.lit(dt.date.fromisoformat(part.date))}
    if part.table == "results":
        constants["status"] = pl.lit("scored")
    rows = condition_rows(frame.with_columns(**constants), condition)
    return frame[rows.filter(condition.matches(rows))[ROW_INDEX].unique(maintain_order=True)]


def condition_columns(condition: Condition) -> frozenset[str]:
    """The columns of the tables that `condition` needs, besides other words in its text."""
    needed = condition.names | {_ALIASES[name] for name in condition.names & _ALIASES.keys()}
    return needed | {"labels"} if needed & {*_LABEL_COLUMNS, "top_confidence", "label_count"} else needed


def condition_rows(frame: pl.DataFrame, condition: Condition) -> pl.DataFrame:
    """The rows on which `condition` is evaluated, with the columns of `COLUMNS` that it uses, and `ROW_INDEX`.

    If it uses a column of labels, there is one row per label and one for an image without labels, with `label`,
    `confidence`, `left`, `top`, `width` and `height`; otherwise one per image.

    Args:
        frame: rows of one or both tables with the columns `condition_columns`.
        condition: on columns of `COLUMNS`.
    """
    rows = frame.with_row_index(ROW_INDEX)
    if "labels" in frame.columns:
        confidences = pl.col("labels").list.eval(pl.element().struct.field("confidence"))
        rows = rows.with_columns(
            confidences.list.max().alias("top_confidence"), pl.col("labels").list.len().alias("label_count")
        )
        if condition.names & _LABEL_COLUMNS.keys():
            rows = rows.explode("labels", empty_as_null=True, keep_nulls=True).with_columns(
                pl.col("labels").struct.field(field).alias(name) for name, field in _LABEL_COLUMNS.items()
            )
        rows = rows.drop("labels")
    rows = rows.with_columns(pl.col(name).alias(alias) for alias, name in _ALIASES.items() if name in rows.columns)
    missing = [name for name in COLUMNS if name in condition.names and name not in rows.columns]
    return rows.with_columns(pl.lit(None, COLUMNS[name]).alias(name) for name in missing)


def _image(row: dict[str, Any]) -> ImageRef:
    if row["bucket"]:
        return ImageRef(uri=f"s3://{row['bucket']}/{row['key']}", **row)
    return replace(local_image(row["key"], extra=row["extra"]), any_extension=row["any_extension"])
