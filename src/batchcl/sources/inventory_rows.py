"""The data files of an S3 Inventory: CSV without header but with URL-encoded keys, Parquet and ORC with literal ones.

Source: S3 user guide, "Amazon S3 Inventory", with its lists of fields and formats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv

from batchcl.errors import SourceError
from batchcl.sources.base import BadLine
from batchcl.sources.csv_rows import decoded_key
from batchcl.sources.files import open_list
from batchcl.sources.listed import Chunk, FrameChunk
from batchcl.sources.tables import batches, columns_of, frame_of, in_short, sound_rows

__all__ = ["InventoryPart"]

_CSV_NAMES: Final = {
    "Bucket": "bucket",
    "Key": "key",
    "VersionId": "version_id",
    "IsLatest": "is_latest",
    "IsDeleteMarker": "is_delete_marker",
    "Size": "size",
    "LastModifiedDate": "last_modified_date",
    "ETag": "e_tag",
}
_FLAGS: Final = ("is_latest", "is_delete_marker")
_BLOCK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryPart:
    """One data file.

    Attributes:
        name: as messages call it.
        path: of the file or its copy.
        schema: the columns of a CSV file, from the inventory's manifest; None for Parquet and ORC.
        all_versions: keep versions that aren't the latest.
    """

    name: str
    path: Path
    schema: Sequence[str] | None
    all_versions: bool = False

    def chunks(self) -> Iterator[Chunk]:
        """The objects in batches, without delete markers."""
        available = (
            set(columns_of(self.path, self.name))
            if self.schema is None
            else {_CSV_NAMES[name] for name in self.schema if name in _CSV_NAMES}
        )
        wanted = [name for name in _CSV_NAMES.values() if name in available]
        if not {"bucket", "key"} <= available:
            raise SourceError(
                f"{self.name} has no columns of buckets and keys, as an S3 Inventory has; name a whole one"
            )
        if "version_id" in available and "is_latest" not in available and not self.all_versions:
            raise SourceError(
                f"{self.name} names versions and doesn't tell which are the latest; score them all with "
                "--all-versions, or have the inventory made with its field IsLatest"
            )
        first = 1
        for frame, bad in self._csv() if self.schema is not None else ((each, []) for each in self._table(wanted)):
            chunk = self._chunk(frame, bad, first)
            first += chunk.lines
            yield chunk

    def _chunk(self, frame: pl.DataFrame, bad: list[BadLine], first: int) -> Chunk:
        left_out: dict[str, int] = {}
        numbered = frame.with_row_index("row", offset=first)
        if "is_delete_marker" in frame.columns:
            numbered = _without(numbered, pl.col("is_delete_marker").fill_null(value=False), "delete markers", left_out)
        if "is_latest" in frame.columns and not self.all_versions:
            numbered = _without(numbered, ~pl.col("is_latest").fill_null(value=True), "older versions", left_out)
        if self.schema is not None:
            numbered, undecoded = _decoded(numbered)
            bad = [*bad, *undecoded]
        rows = numbered["row"]
        sound, _, unsound = sound_rows(numbered.select(_facts(numbered.schema)), 0)
        bad += [BadLine(int(rows[each.number]), each.reason) for each in unsound]
        bad.sort(key=lambda each: each.number)
        return FrameChunk(sound, sound.height + len(bad) + sum(left_out.values()), bad, left_out)

    def _table(self, wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
        for frame in batches(self.path, self.name, wanted):
            when = frame.schema.get("last_modified_date")
            if isinstance(when, pl.Datetime):
                moment = pl.col("last_modified_date").dt.cast_time_unit("us")
                moment = moment.dt.convert_time_zone("UTC") if when.time_zone else moment.dt.replace_time_zone("UTC")
                frame = frame.with_columns(moment)  # noqa: PLW2901 - the same rows
            yield frame

    def _csv(self) -> Iterator[tuple[pl.DataFrame, list[BadLine]]]:
        assert self.schema is not None
        bad: list[BadLine] = []

        def refuse(row: Any) -> str:
            bad.append(
                BadLine(row.number or 0, f"it has {row.actual_columns} fields, and {row.expected_columns} are due")
            )
            return "skip"

        known = [name for name in self.schema if name in _CSV_NAMES]
        try:
            with open_list(self.path, self.name) as file:
                reader = pacsv.open_csv(
                    file,
                    read_options=pacsv.ReadOptions(
                        column_names=list(self.schema),
                        block_size=_BLOCK_BYTES,
                        use_threads=False,
                        encoding="latin-1",  # bytes that are no UTF-8 would end the file rather than their row
                    ),
                    parse_options=pacsv.ParseOptions(invalid_row_handler=refuse),
                    convert_options=pacsv.ConvertOptions(
                        include_columns=known, column_types=dict.fromkeys(known, pa.string()), strings_can_be_null=False
                    ),
                )
                for batch in reader:
                    told, bad[:] = list(bad), []
                    yield _typed(frame_of(batch).rename({name: _CSV_NAMES[name] for name in known})), told
        except pa.ArrowException as error:
            if "Empty CSV file" in str(error):
                return
            raise SourceError(
                f"can't read {self.name}: {in_short(error)}; it is no CSV as an S3 Inventory has it"
            ) from error


def _typed(frame: pl.DataFrame) -> pl.DataFrame:
    """A CSV's texts as what they tell; a text that tells nothing is null."""
    texts: dict[str, pl.Expr] = {
        "size": pl.col("size").cast(pl.Int64, strict=False),
        "last_modified_date": pl.col("last_modified_date")
        .str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", time_unit="us", strict=False)
        .dt.replace_time_zone("UTC"),
        **{name: pl.col(name).str.to_lowercase() == "true" for name in _FLAGS},
    }
    return frame.with_columns([texts[name] for name in frame.columns if name in texts])


def _facts(schema: Mapping[str, Any]) -> list[pl.Expr]:
    """The columns under the names of `ImageRef`."""
    found = [pl.col("bucket").cast(pl.String), pl.col("key").cast(pl.String)]
    if "version_id" in schema:
        version = pl.col("version_id")
        # the version of an object from before versioning is called "null": the latest one needs no name
        unversioned = (version == "") | (
            (version == "null") & (pl.col("is_latest") if "is_latest" in schema else pl.lit(value=False))
        )
        found.append(pl.when(unversioned).then(None).otherwise(version).alias("version_id"))
    if "e_tag" in schema:
        etag = pl.col("e_tag").str.strip_chars('"')
        found.append(pl.when(etag == "").then(None).otherwise(etag).alias("etag"))
    if "size" in schema:
        found.append(pl.col("size").cast(pl.Int64).alias("size_bytes"))
    if "last_modified_date" in schema:
        found.append(pl.col("last_modified_date").alias("last_modified"))
    return found


def _without(frame: pl.DataFrame, unwanted: pl.Expr, what: str, left_out: dict[str, int]) -> pl.DataFrame:
    kept = frame.filter(~unwanted)
    if kept.height < frame.height:
        left_out[what] = frame.height - kept.height
    return kept


def _utf8(text: str) -> str:
    """`text`, whose bytes were taken for Latin-1 characters, as what they are."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeDecodeError as error:
        raise SourceError("it is not UTF-8 text") from error


def _decoded(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[BadLine]]:
    """`frame` with its keys decoded, and the rows whose keys can't be."""
    encoded = frame["key"].str.contains(r"[%+]|[^\x00-\x7f]").arg_true()
    if not len(encoded):
        return frame, []
    keys: list[str | None] = []
    bad: list[BadLine] = []
    rows = frame["row"].gather(encoded).to_list()
    for row, text in zip(rows, frame["key"].gather(encoded).to_list(), strict=True):
        try:
            keys.append(decoded_key(_utf8(text)))
        except SourceError as error:
            bad.append(BadLine(row, str(error)))
            keys.append(None)
    decoded = frame.with_columns(frame["key"].clone().scatter(encoded, pl.Series(keys, dtype=pl.String)).alias("key"))
    return (decoded.filter(pl.col("key").is_not_null()), bad) if bad else (decoded, [])
