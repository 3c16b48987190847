"""Schema v1 of the tables `results/` and `failures/`, and the conversion of journal entries to rows.

A column is filled from the column of the same name of the journal (`ENTRIES`) or of the work list (`IMAGES`), or by
`results_table` and `failures_table`.

The files have the key-value metadata `batchcl.schema` and `batchcl.version`; those that a run has written also have
`batchcl.run_id` and `batchcl.model_arn`. Within v1, columns may be added at the end; a change of meaning requires v2,
which versions that know v1 only refuse to read. See docs/compatibility.md.
"""

from __future__ import annotations

import io
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

from batchcl.__about__ import __version__
from batchcl.errors import OutputError
from batchcl.images import escape_name

__all__ = [
    "FAILURES",
    "LABEL",
    "POINT",
    "RESULTS",
    "SCHEMA_VERSION",
    "UTC_US",
    "failures_table",
    "open_part",
    "parquet_bytes",
    "results_table",
    "utf8",
]

SCHEMA_VERSION: Final = "1"
ROW_GROUP_ROWS: Final = 128 * 1024

UTC_US: Final = pa.timestamp("us", tz="UTC")

_IDENTITY: Final[list[pa.Field]] = [
    pa.field("run_id", pa.string(), nullable=False),
    pa.field("model_arn", pa.string(), nullable=False),
    pa.field("uri", pa.string(), nullable=False),
    pa.field("bucket", pa.string(), nullable=False),
    pa.field("key", pa.string(), nullable=False),
    pa.field("version_id", pa.string()),
    pa.field("etag", pa.string()),
    pa.field("size_bytes", pa.int64()),
    pa.field("last_modified", UTC_US),
]

POINT: Final = pa.struct([pa.field("x", pa.float32()), pa.field("y", pa.float32())])

LABEL: Final = pa.struct(
    [
        pa.field("name", pa.string()),
        pa.field("confidence", pa.float32()),
        pa.field("left", pa.float32()),
        pa.field("top", pa.float32()),
        pa.field("width", pa.float32()),
        pa.field("height", pa.float32()),
        pa.field("polygon", pa.list_(POINT)),
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
        pa.field("fitted", pa.string()),
    ]
)
"""One row per scored image; `labels` is empty if no label is above the threshold."""

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
        pa.field("fit", pa.bool_(), nullable=False),
    ]
)
"""One row per round and image that failed or was skipped, with the reason.

A failure is resolved if the same run has a row for the image in `results/`.
"""


def results_table(
    images: pa.Table,
    entries: pa.Table,
    *,
    run_id: str,
    model_arn: str,
    min_confidence: float | None,
    max_results: int | None,
) -> pa.Table:
    """Rows of `results/`, sorted by uri and version.

    Args:
        images: the images of the shard, with the columns of `IMAGES`.
        entries: of scored images, with the columns of `ENTRIES`.
        run_id: of all rows.
        model_arn: of all rows.
        min_confidence: as requested, in percent; None for the model's own threshold.
        max_results: as requested; None for all.
    """
    rows = entries.num_rows
    return _table(
        RESULTS,
        images,
        entries,
        {
            "run_id": pa.repeat(pa.scalar(run_id), rows),
            "model_arn": pa.repeat(pa.scalar(model_arn), rows),
            "min_confidence": pa.repeat(pa.scalar(min_confidence, pa.float32()), rows),
            "max_results": pa.repeat(pa.scalar(max_results, pa.int32()), rows),
            "scored_at": entries["at"],
        },
    )


def failures_table(images: pa.Table, entries: pa.Table, *, run_id: str, model_arn: str) -> pa.Table:
    """Rows of `failures/`, sorted by uri and version; `entries` are of failed and skipped images."""
    return _table(
        FAILURES,
        images,
        entries,
        {
            "run_id": pa.repeat(pa.scalar(run_id), entries.num_rows),
            "model_arn": pa.repeat(pa.scalar(model_arn), entries.num_rows),
            "error_code": entries["code"],
            "error_message": entries["message"],
            "failed_at": entries["at"],
        },
    )


def parquet_bytes(table: pa.Table, *, run_id: str | None = None, model_arn: str | None = None) -> bytes:
    """`table` as a zstd Parquet file; equal rows give equal bytes. Omit `run_id` for rows of several runs."""
    metadata = {"batchcl.schema": SCHEMA_VERSION, "batchcl.version": __version__}
    if run_id is not None and model_arn is not None:
        metadata |= {"batchcl.run_id": run_id, "batchcl.model_arn": model_arn}
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(metadata),
        sink,
        compression="zstd",
        row_group_size=ROW_GROUP_ROWS,
        write_statistics=True,
    )
    return sink.getvalue()


def open_part(file: BinaryIO, where: str, **options: Any) -> pq.ParquetFile:
    """Open a file of the tables; `options` are those of `ParquetFile`. A file without a schema version has v1.

    Raises:
        OutputError: it has another schema version, so its columns may mean something else.
    """
    parquet = pq.ParquetFile(file, **options)
    metadata = parquet.metadata.metadata or {}
    schema = metadata.get(b"batchcl.schema", SCHEMA_VERSION.encode()).decode()
    if schema != SCHEMA_VERSION:
        parquet.close()
        version = metadata.get(b"batchcl.version", b"?").decode()
        raise OutputError(
            f"{where} has schema {schema} of batchcl {version}, and this is batchcl {__version__}, which reads schema "
            f"{SCHEMA_VERSION}; use batchcl {version} or later"
        )
    return parquet


def _table(schema: pa.Schema, images: pa.Table, entries: pa.Table, more: dict[str, Any]) -> pa.Table:
    """A table with the columns of `schema`, each from `more`, the entries, or the images of the entries."""
    import pyarrow.compute as pc

    selected = images.take(entries["position"])
    columns = {name: selected[name] for name in selected.column_names} | {"key": _printable(selected["key"])}
    columns |= {name: entries[name] for name in entries.column_names} | more
    table = pa.table([columns[field.name] for field in schema], schema=schema)
    keys = pa.table({"uri": table["uri"], "version_id": table["version_id"].fill_null("")})
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names])
    return table.take(order).combine_chunks()


def utf8(name: str) -> bytes:
    """The bytes of a file name on disk; names of local files need not be UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def _printable(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """`keys` as text; names of local files that are not UTF-8 are escaped."""
    try:
        return keys.cast(pa.string())
    except pa.ArrowInvalid:
        names = [key.decode("utf-8", "surrogateescape") for key in keys.to_pylist()]
        return pa.chunked_array([[escape_name(name) for name in names]], pa.string())
