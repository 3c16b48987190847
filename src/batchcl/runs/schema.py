"""The tables that users read: schema v1 of `results/` and `failures/`, and how outcomes become rows.

Version and run stand in the file's key-value metadata (`batchcl.schema`, `batchcl.version`, `batchcl.run_id`). A new
column may come at the end within v1; a change of meaning makes v2.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from batchcl.__about__ import __version__
from batchcl.images import ImageRef
from batchcl.scoring.outcome import Failed, Label, Scored

__all__ = [
    "FAILURES",
    "LABEL",
    "RESULTS",
    "SCHEMA_VERSION",
    "UTC_US",
    "failures_table",
    "label_row",
    "parquet_bytes",
    "results_table",
    "utf8",
]

SCHEMA_VERSION: Final = "1"
ROW_GROUP_ROWS: Final = 128 * 1024

UTC_US: Final = pa.timestamp("us", tz="UTC")

_IDENTITY: Final[list[pa.Field]] = [
    pa.field("run_id", pa.string(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("bucket", pa.string(), nullable=False),
    pa.field("key", pa.string(), nullable=False),
    pa.field("version_id", pa.string()),
    pa.field("etag", pa.string()),
    pa.field("size_bytes", pa.int64()),
    pa.field("last_modified", UTC_US),
]

LABEL: Final = pa.struct(
    [
        pa.field("name", pa.string()),
        pa.field("confidence", pa.float32()),
        pa.field("left", pa.float32()),
        pa.field("top", pa.float32()),
        pa.field("width", pa.float32()),
        pa.field("height", pa.float32()),
        pa.field("polygon", pa.list_(pa.struct([pa.field("x", pa.float32()), pa.field("y", pa.float32())]))),
    ]
)

RESULTS: Final = pa.schema(
    [
        *_IDENTITY,
        pa.field("labels", pa.list_(LABEL), nullable=False),
        pa.field("min_confidence", pa.float32()),
        pa.field("max_results", pa.int32()),
        pa.field("attempts", pa.int16(), nullable=False),
        pa.field("latency_ms", pa.float32(), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("scored_at", UTC_US, nullable=False),
        pa.field("extra", pa.string()),
    ]
)
"""One row an image that was scored; an image without any label above the threshold has an empty `labels`."""

FAILURES: Final = pa.schema(
    [
        *_IDENTITY,
        pa.field("status", pa.string(), nullable=False),
        pa.field("error_code", pa.string(), nullable=False),
        pa.field("error_message", pa.string(), nullable=False),
        pa.field("attempts", pa.int16(), nullable=False),
        pa.field("round", pa.int16(), nullable=False),
        pa.field("failed_at", UTC_US, nullable=False),
        pa.field("extra", pa.string()),
    ]
)
"""One row an image that failed or was skipped, with the reason."""

_Row = TypeVar("_Row", Scored, Failed)


def results_table(
    scored: Sequence[Scored], *, run_id: str, min_confidence: float | None, max_results: int | None
) -> pa.Table:
    """Rows of `results/`, sorted by uri and version."""
    return _table(
        scored,
        RESULTS,
        run_id,
        lambda rows: {
            "labels": [[label_row(label) for label in row.labels] for row in rows],
            "min_confidence": [min_confidence] * len(rows),
            "max_results": [max_results] * len(rows),
            "attempts": [row.attempts for row in rows],
            "latency_ms": [row.latency_ms for row in rows],
            "request_id": [row.request_id for row in rows],
            "scored_at": [row.scored_at for row in rows],
        },
    )


def failures_table(failed: Sequence[Failed], *, run_id: str) -> pa.Table:
    """Rows of `failures/`, sorted by uri and version."""
    return _table(
        failed,
        FAILURES,
        run_id,
        lambda rows: {
            "status": [row.status for row in rows],
            "error_code": [row.code for row in rows],
            "error_message": [row.message for row in rows],
            "attempts": [row.attempts for row in rows],
            "round": [row.round for row in rows],
            "failed_at": [row.failed_at for row in rows],
        },
    )


def parquet_bytes(table: pa.Table, *, run_id: str | None) -> bytes:
    """`table` as one zstd Parquet file; the same rows make the same bytes. No `run_id` for rows of several runs."""
    metadata = {"batchcl.schema": SCHEMA_VERSION, "batchcl.version": __version__}
    if run_id is not None:
        metadata["batchcl.run_id"] = run_id
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        compression="zstd",
        row_group_size=ROW_GROUP_ROWS,
        write_statistics=True,
    )
    return sink.getvalue()


def _table(
    outcomes: Sequence[_Row],
    schema: pa.Schema,
    run_id: str,
    columns: Callable[[Sequence[_Row]], dict[str, list[Any]]],
) -> pa.Table:
    rows = sorted(outcomes, key=lambda row: (row.image.uri, row.image.version_id or ""))
    images = [row.image for row in rows]
    values = _identity(images, run_id) | columns(rows) | {"extra": [image.extra for image in images]}
    return pa.table([pa.array(values[field.name], field.type) for field in schema], schema=schema)


def _identity(images: Sequence[ImageRef], run_id: str) -> dict[str, list[Any]]:
    return {
        "run_id": [run_id] * len(images),
        "uri": [image.uri for image in images],
        "bucket": [image.bucket for image in images],
        "key": [_printable(image.key) for image in images],
        "version_id": [image.version_id for image in images],
        "etag": [image.etag for image in images],
        "size_bytes": [image.size_bytes for image in images],
        "last_modified": [image.last_modified for image in images],
    }


def utf8(name: str) -> bytes:
    """`name` as the bytes that it has on disk; a local one need not be UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def _printable(key: str) -> str:
    """`key`, or for a file name that isn't UTF-8 its escaped form, as Parquet holds only UTF-8."""
    return key if key.isascii() else key.encode("utf-8", "backslashreplace").decode()


def label_row(label: Label) -> dict[str, Any]:
    """One element of `labels`."""
    left, top, width, height = label.box if label.box is not None else (None, None, None, None)
    polygon = None if label.polygon is None else [{"x": x, "y": y} for x, y in label.polygon]
    return {
        "name": label.name,
        "confidence": label.confidence,
        "left": left,
        "top": top,
        "width": width,
        "height": height,
        "polygon": polygon,
    }
