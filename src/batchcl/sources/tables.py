"""Tables of images: Parquet, ORC and CSV files with a column that names them. Keys are taken literally."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import orc

from batchcl.errors import SourceError
from batchcl.images import ImageRef
from batchcl.sources.base import BadLine, referred_image
from batchcl.sources.csv_lists import BUCKET, Row
from batchcl.sources.files import MAX_EXPANSION
from batchcl.sources.list_source import FrameChunk, ImageChunk, ListChunk

__all__ = ["Columns", "TablePart", "batches", "columns_of", "csv_header", "frame_of", "in_short", "sound_rows"]

BATCH_ROWS: Final = 16_384
MAX_VALUE_BYTES: Final = 64 * 1024
"""What an image is called takes 3 KB at most, and what a table tells of one hardly more."""

_BATCH_BYTES: Final = 64 * 1024 * 1024
_S3_URI: Final = r"(?s)^s3://([^/]+)/(.+)$"
_FACTS: Final = ("version_id", "etag", "size_bytes", "last_modified")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns name the image: `uri` alone, or `bucket` and `key`."""

    uri: str | None = None
    bucket: str | None = None
    key: str | None = None

    def among(self, available: Sequence[str]) -> Columns:
        """The columns to read of those that are there. Raises `SourceError` where they don't tell."""
        if len(set(available)) < len(available):
            raise SourceError(f"its columns {', '.join(available)} have no names of their own")
        chosen = self
        if self == Columns():
            by_uri, by_key = Columns(uri="uri"), Columns(bucket="bucket", key="key")
            chosen = by_uri if "uri" in available else by_key
        missing = [name for name in (chosen.uri, chosen.bucket, chosen.key) if name and name not in available]
        if missing:
            raise SourceError(
                f"it has no column {' and no column '.join(missing)}, but {', '.join(available) or 'none'}; name the "
                "one with s3://bucket/key by --uri-column, or two by --bucket-column and --key-column"
            )
        return chosen

    @property
    def names(self) -> tuple[str, ...]:
        """Of one column or two."""
        return tuple(name for name in (self.uri, self.bucket, self.key) if name)


class TablePart:
    """A Parquet or ORC file.

    The columns `version_id`, `etag`, `size_bytes` and `last_modified` tell of the image where they have such types; all
    others go to `extra` as JSON, but for binary ones, which are left behind.
    """

    def __init__(self, name: str, path: Path, columns: Columns, folder: Path | None) -> None:
        self.name = name
        self._path = path
        self._columns = columns
        self._folder = folder

    def chunks(self) -> Iterator[ListChunk]:
        """The rows in batches."""
        available = columns_of(self._path, self.name)
        try:
            chosen = self._columns.among(available)
        except SourceError as error:
            raise SourceError(f"{self.name}: {error}") from error
        first = 1
        for frame in batches(self._path, self.name):
            if not frame.height:
                continue
            yield self._chunk(frame, chosen, first)
            first += frame.height

    def _chunk(self, frame: pl.DataFrame, chosen: Columns, first: int) -> ListChunk:
        for name in chosen.names:
            if not isinstance(frame.schema[name], (pl.String, pl.Categorical, pl.Enum, pl.Null)):
                raise SourceError(f"{self.name}: its column {name} holds {frame.schema[name]}, not text")
        facts = [name for name in _FACTS if name not in chosen.names and _is_fact(name, frame.schema.get(name))]
        others = [
            name
            for name, kind in frame.schema.items()
            if name not in chosen.names and name not in facts and not isinstance(kind, pl.Binary)
        ]
        wanted = [_fact(name) for name in facts]
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
            return FrameChunk(*sound_rows(named, first))
        reference = pl.col(chosen.uri).cast(pl.String)
        named = frame.select(
            reference.str.extract(_S3_URI, 1).alias("bucket"), reference.str.extract(_S3_URI, 2).alias("key"), *wanted
        )
        if not named["key"].null_count():
            return FrameChunk(named, named.height)
        return self._row_by_row(frame[chosen.uri].cast(pl.String), named, first)

    def _row_by_row(self, references: pl.Series, named: pl.DataFrame, first: int) -> ListChunk:
        """Rows of which some are no S3 URIs."""
        images: list[ImageRef] = []
        bad: list[BadLine] = []
        rows = named.drop("bucket", "key")
        facts = rows.iter_rows(named=True) if rows.width else iter([{}] * references.len())
        for number, reference, row in zip(count(first), references, facts, strict=False):
            try:
                image = referred_image(reference or "", self._folder, extra=row.pop("extra", None))
                images.append(_with(image, row) if image.bucket else image)
            except SourceError as error:
                bad.append(BadLine(number, str(error)))
        return ImageChunk(images, bad)


def csv_header(columns: Columns, folder: Path | None) -> Callable[[Row], Callable[[Row], ImageRef]]:
    """For `CsvPart`: from a header to what reads the rows below it; other columns than the named ones go to `extra`."""

    def begin(header: Row) -> Callable[[Row], ImageRef]:
        return partial(_csv_row, header, columns.among(header), folder)

    return begin


def _csv_row(header: Row, chosen: Columns, folder: Path | None, row: Row) -> ImageRef:
    if len(row) != len(header):
        raise SourceError(f"it has {len(row)} fields, and the header {len(header)}")
    entry = dict(zip(header, row, strict=True))
    if chosen.uri is not None:
        reference = entry.pop(chosen.uri)
    else:
        bucket, key = (entry.pop(name) for name in chosen.names)
        if BUCKET.fullmatch(bucket) is None or not key:
            raise SourceError(f"{bucket!r} and {key!r} are no bucket and key")
        reference = f"s3://{bucket}/{key}"
    facts: dict[str, Any] = {name: entry.pop(name) or None for name in ("version_id", "etag") if name in entry}
    image = referred_image(reference, folder, extra=orjson.dumps(entry).decode() if entry else None)
    return _with(image, facts) if image.bucket else image


def _with(image: ImageRef, facts: dict[str, Any]) -> ImageRef:
    return ImageRef(uri=image.uri, bucket=image.bucket, key=image.key, extra=image.extra, **facts)


def columns_of(path: Path, name: str) -> list[str]:
    """The columns of a Parquet or ORC file. Blocks. Raises `SourceError`."""
    try:
        if _is_orc(path):
            return list(orc.ORCFile(path).schema.names)
        return list(pq.read_schema(path).names)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(name, error) from error


def batches(path: Path, name: str, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
    """The rows of a Parquet or ORC file, some ten thousand at a time. Blocks. Raises `SourceError`."""
    wanted = None if columns is None else list(columns)
    try:
        if _is_orc(path):
            # orc.ORCFile reads whole stripes, in which a value that is repeated a billion times has some bytes
            rows = ds.dataset(path, format="orc").scanner(
                columns=wanted, batch_size=BATCH_ROWS, batch_readahead=0, fragment_readahead=0, use_threads=False
            )
            for batch in rows.to_batches():
                yield frame_of(batch)
        else:
            with pq.ParquetFile(path) as parquet:
                _refuse_bomb(parquet.metadata, name)
                for batch in parquet.iter_batches(_batch_rows(parquet.metadata), columns=wanted, use_threads=False):
                    yield frame_of(batch)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(name, error) from error


def _batch_rows(metadata: pq.FileMetaData) -> int:
    """Fewer rows where they are large."""
    size = sum(int(metadata.row_group(number).total_byte_size) for number in range(metadata.num_row_groups))
    return max(min(BATCH_ROWS, _BATCH_BYTES * int(metadata.num_rows) // max(size, 1)), 1)


def _refuse_bomb(metadata: pq.FileMetaData, name: str) -> None:
    """Raise `SourceError` for values that take more memory than the name of any image, or what is told of one."""
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            size = chunk.total_uncompressed_size
            if size > _BATCH_BYTES + MAX_VALUE_BYTES * chunk.num_values and size > MAX_EXPANSION * (
                chunk.total_compressed_size
            ):
                raise SourceError(
                    f"{name} grows to more than {MAX_EXPANSION} times its size in its column {chunk.path_in_schema}, "
                    "as no table of images does; leave that column out if it is meant"
                )


def sound_rows(frame: pl.DataFrame, first: int) -> tuple[pl.DataFrame, int, list[BadLine]]:
    """The rows that name a bucket and a key, how many there were, and the others, numbered from `first`."""
    sound = frame.select(
        pl.col("bucket").str.contains(f"^{BUCKET.pattern}$").fill_null(value=False)
        & (pl.col("key").str.len_bytes() > 0).fill_null(value=False)
    ).to_series()
    if sound.all():
        return frame, frame.height, []
    bad = [
        BadLine(first + at, f"{bucket!r} and {key!r} are no bucket and key")
        for at, bucket, key in zip(
            (~sound).arg_true().to_list(),
            *(frame.filter(~sound)[name].to_list() for name in ("bucket", "key")),
            strict=True,
        )
    ]
    return frame.filter(sound), frame.height, bad


def _fact(name: str) -> pl.Expr:
    if name == "size_bytes":
        return pl.col(name).cast(pl.Int64)
    return pl.col(name)


def _is_fact(name: str, kind: pl.DataType | None) -> bool:
    if name == "size_bytes":
        return kind is not None and kind.is_integer()
    if name == "last_modified":
        return isinstance(kind, pl.Datetime) and kind.time_zone == "UTC"
    return isinstance(kind, pl.String)


def frame_of(batch: pa.RecordBatch) -> pl.DataFrame:
    """The rows for polars."""
    frame = pl.from_arrow(pa.table(batch))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _is_orc(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(3) == b"ORC"


def _unreadable(name: str, error: Exception) -> SourceError:
    return SourceError(f"can't read {name}: {in_short(error)}; the file is damaged or no table, so write it anew")


def in_short(error: Exception) -> str:
    """The first line of Arrow's words, to go on behind."""
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
