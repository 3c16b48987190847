"""Tables of images: Parquet, ORC and CSV files with columns that name the images. Keys are taken literally."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batchcl.errors import ErrorCode, SourceError
from batchcl.images import ImageRef
from batchcl.sources.base import BadLine, Columns, referenced_image
from batchcl.sources.csv_lists import BUCKET_NAME, Row
from batchcl.sources.files import MAX_EXPANSION
from batchcl.sources.list_source import FrameChunk, ImageChunk, ListChunk

__all__ = ["TablePart", "batches", "columns_of", "csv_header", "first_line", "frame_of", "split_valid_rows"]

BATCH_ROWS: Final = 16_384
MAX_VALUE_BYTES: Final = 64 * 1024
"""Average size of a value above which a column may be a decompression bomb; a URI has at most 3 KB."""

_BATCH_BYTES: Final = 64 * 1024 * 1024
_S3_URI: Final = r"(?s)^s3://([^/]+)/(.+)$"
_IMAGE_COLUMNS: Final = ("version_id", "etag", "size_bytes", "last_modified")


class TablePart:
    """A Parquet or ORC file.

    The columns `version_id`, `etag`, `size_bytes` and `last_modified` describe the image if they have the right types.
    All other columns are stored in `extra` as JSON, except binary ones.
    """

    def __init__(self, name: str, path: Path, columns: Columns, folder: Path | None) -> None:
        self.name = name
        self._path = path
        self._columns = columns
        self._folder = folder

    def chunks(self) -> Iterator[ListChunk]:
        """See `ListPart`."""
        available = columns_of(self._path, self.name)
        try:
            chosen = self._columns.among(available)
        except SourceError as error:
            raise SourceError(f"{self.name}: {error}", code=error.code) from error
        first = 1
        for frame in batches(self._path, self.name):
            if not frame.height:
                continue
            yield self._chunk(frame, chosen, first)
            first += frame.height

    def _chunk(self, frame: pl.DataFrame, chosen: Columns, first: int) -> ListChunk:
        for name in chosen.names:
            if not isinstance(frame.schema[name], (pl.String, pl.Categorical, pl.Enum, pl.Null)):
                raise SourceError(
                    f"{self.name}: its column {name} has the type {frame.schema[name]}, not text; name another column",
                    code=ErrorCode.UNKNOWN_LIST_FORMAT,
                )
        image_columns = [
            name
            for name in _IMAGE_COLUMNS
            if name not in chosen.names and _is_image_column(name, frame.schema.get(name))
        ]
        others = [
            name
            for name, dtype in frame.schema.items()
            if name not in chosen.names and name not in image_columns and not isinstance(dtype, pl.Binary)
        ]
        wanted = [pl.col(name).cast(pl.Int64) if name == "size_bytes" else pl.col(name) for name in image_columns]
        if others:
            wanted.append(pl.struct(others).struct.json_encode().alias("extra"))
        if chosen.uri is None:
            assert chosen.bucket is not None
            assert chosen.key is not None
            named = frame.select(
                pl.col(chosen.bucket).cast(pl.String).alias("bucket"),
                pl.col(chosen.key).cast(pl.String).alias("key"),
                *wanted,
            )
            return FrameChunk(*split_valid_rows(named, first))
        reference = pl.col(chosen.uri).cast(pl.String)
        named = frame.select(
            reference.str.extract(_S3_URI, 1).alias("bucket"), reference.str.extract(_S3_URI, 2).alias("key"), *wanted
        )
        if not named["key"].null_count():
            return FrameChunk(named, named.height)
        return self._row_by_row(frame[chosen.uri].cast(pl.String), named, first)

    def _row_by_row(self, references: pl.Series, named: pl.DataFrame, first: int) -> ListChunk:
        """A chunk in which some references are not S3 URIs; `named` has the other columns of the images."""
        images: list[ImageRef] = []
        bad: list[BadLine] = []
        others = named.drop("bucket", "key")
        rows = others.iter_rows(named=True) if others.width else iter([{}] * references.len())
        for number, reference, row in zip(count(first), references, rows, strict=False):
            try:
                image = referenced_image(reference or "", self._folder, extra=row.pop("extra", None))
                images.append(replace(image, **row) if image.bucket else image)
            except SourceError as error:
                bad.append(BadLine(number, str(error)))
        return ImageChunk(images, bad)


def csv_header(columns: Columns, folder: Path | None) -> Callable[[Row], Callable[[Row], ImageRef]]:
    """The `header` function of a `CsvPart` for tables: columns that don't name the image are stored in `extra`."""

    def begin(header: Row) -> Callable[[Row], ImageRef]:
        return partial(_csv_row, header, columns.among(header), folder)

    return begin


def _csv_row(header: Row, chosen: Columns, folder: Path | None, row: Row) -> ImageRef:
    if len(row) != len(header):
        raise SourceError(f"expected {len(header)} fields as in the header; got {len(row)}")
    entry = dict(zip(header, row, strict=True))
    if chosen.uri is not None:
        reference = entry.pop(chosen.uri)
    else:
        bucket, key = (entry.pop(name) for name in chosen.names)
        if BUCKET_NAME.fullmatch(bucket) is None or not key:
            raise SourceError(f"{bucket!r} and {key!r} are not a bucket and a key")
        reference = f"s3://{bucket}/{key}"
    version_id, etag = (entry.pop(name, None) or None for name in ("version_id", "etag"))
    image = referenced_image(reference, folder, extra=orjson.dumps(entry).decode() if entry else None)
    return replace(image, version_id=version_id, etag=etag) if image.bucket else image


def columns_of(path: Path, name: str) -> list[str]:
    """The column names of a Parquet or ORC file. Blocks. Raises `SourceError`."""
    try:
        if _is_orc(path):
            from pyarrow import orc

            return list(orc.ORCFile(path).schema.names)
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(name, error) from error


def batches(path: Path, name: str, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
    """The rows of a Parquet or ORC file in batches of at most `BATCH_ROWS`. Blocks. Raises `SourceError`."""
    wanted = None if columns is None else list(columns)
    try:
        if _is_orc(path):
            import pyarrow.dataset as ds

            # orc.ORCFile reads whole stripes, in which a billion repetitions of a value may occupy a few bytes
            rows = ds.dataset(path, format="orc").scanner(
                columns=wanted, batch_size=BATCH_ROWS, batch_readahead=0, fragment_readahead=0, use_threads=False
            )
            for batch in rows.to_batches():
                yield frame_of(batch)
        else:
            with pq.ParquetFile(path) as parquet:
                _refuse_decompression_bomb(parquet.metadata, name)
                for batch in parquet.iter_batches(_batch_rows(parquet.metadata), columns=wanted, use_threads=False):
                    yield frame_of(batch)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(name, error) from error


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """Rows per batch: fewer if rows are large."""
    size = sum(int(metadata.row_group(number).total_byte_size) for number in range(metadata.num_row_groups))
    return max(min(BATCH_ROWS, _BATCH_BYTES * int(metadata.num_rows) // max(size, 1)), 1)


def _refuse_decompression_bomb(metadata: pq.FileMetaData, name: str) -> None:
    """Raise `SourceError` for a column whose values are too large and too highly compressed for a table of images."""
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            size = chunk.total_uncompressed_size
            if size > _BATCH_BYTES + MAX_VALUE_BYTES * chunk.num_values and size > MAX_EXPANSION * (
                chunk.total_compressed_size
            ):
                raise SourceError(
                    f"{name}: its column {chunk.path_in_schema} decompresses to more than {MAX_EXPANSION} times its "
                    "size, like a decompression bomb; write the table without that column",
                    code=ErrorCode.CORRUPT_FILE,
                )


def split_valid_rows(frame: pl.DataFrame, first: int) -> tuple[pl.DataFrame, int, list[BadLine]]:
    """The rows with a valid bucket and key, the number of all rows, and the invalid rows, numbered from `first`."""
    is_valid = frame.select(
        pl.col("bucket").str.contains(f"^{BUCKET_NAME.pattern}$").fill_null(value=False)
        & (pl.col("key").str.len_bytes() > 0).fill_null(value=False)
    ).to_series()
    if is_valid.all():
        return frame, frame.height, []
    bad = [
        BadLine(first + at, f"{bucket!r} and {key!r} are not a bucket and a key")
        for at, bucket, key in zip(
            (~is_valid).arg_true().to_list(),
            *(frame.filter(~is_valid)[name].to_list() for name in ("bucket", "key")),
            strict=True,
        )
    ]
    return frame.filter(is_valid), frame.height, bad


def _is_image_column(name: str, dtype: pl.DataType | None) -> bool:
    if name == "size_bytes":
        return dtype is not None and dtype.is_integer()
    if name == "last_modified":
        return isinstance(dtype, pl.Datetime) and dtype.time_zone == "UTC"
    return isinstance(dtype, pl.String)


def frame_of(batch: pa.RecordBatch) -> pl.DataFrame:
    """The rows of an Arrow batch."""
    frame = pl.from_arrow(pa.table(batch))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _is_orc(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(3) == b"ORC"


def _unreadable(name: str, error: Exception) -> SourceError:
    return SourceError(
        f"can't read {name}: {first_line(error)}; the file is corrupt or not a table, so create it again",
        code=ErrorCode.CORRUPT_FILE,
    )


def first_line(error: Exception) -> str:
    """The first line of an error message of Arrow, without its full stop."""
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
