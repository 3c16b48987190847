"""S3 Inventory: finds a complete inventory, verifies its files by checksum, and reads their rows.

Layout (S3 user guide, "Amazon S3 Inventory"): below SOURCE-BUCKET/INVENTORY-NAME, a dated folder with manifest.json and
manifest.checksum for each delivery, `data/` with the data files, and `hive/dt=…/symlink.txt` for Athena.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv

from batchcl.concurrency import gather
from batchcl.errors import ErrorCode, SourceError
from batchcl.sources.base import INVENTORY_MANIFEST, BadLine
from batchcl.sources.csv_lists import decoded_key
from batchcl.sources.files import open_list
from batchcl.sources.list_source import FrameChunk, ListChunk
from batchcl.sources.storage import StorageLocation
from batchcl.sources.tables import batches, columns_of, first_line, frame_of, split_valid_rows

__all__ = ["InventoryPart", "is_inventory_manifest", "open_inventory", "parse_as_of"]

_CHECKSUM_FILE: Final = "manifest.checksum"
_SYMLINK_FILE: Final = "symlink.txt"
_DATED_FOLDER: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}-\d{2}Z")
_HIVE_FOLDER: Final = re.compile(r"dt=(\d{4}-\d{2}-\d{2})-(\d{2}-\d{2})")
_MAX_DEPTH: Final = 3
"""Levels of folders that are searched: the named folder may be above the source bucket and the inventory's name."""

MAX_MANIFEST_BYTES: Final = 64 * 1024 * 1024
"""Largest manifest.json that is read; a thousand data files take 0.2 MB."""

_CONCURRENT_DOWNLOADS: Final = 4


@dataclass(frozen=True, slots=True)
class _DataFile:
    key: str
    md5: str | None


@dataclass(frozen=True, slots=True)
class _Manifest:
    """manifest.json: the columns of a CSV inventory (None for Parquet and ORC), and the data files."""

    schema: tuple[str, ...] | None
    files: tuple[_DataFile, ...]


def is_inventory_manifest(start: bytes) -> bool:
    """Whether a file that begins with `start` is an inventory's manifest.json."""
    return start.lstrip().startswith(b"{") and b'"fileSchema"' in start and b'"files"' in start


def parse_as_of(text: str) -> str:
    """The greatest folder name that `--as-of TEXT` accepts: TEXT is a day such as 2026-11-20, or a folder name.

    Raises `SourceError`.
    """
    if _DATED_FOLDER.fullmatch(text):
        return text
    try:
        return f"{dt.date.fromisoformat(text).isoformat()}T99"
    except ValueError as error:
        raise SourceError(
            f"{text!r} is not a day; write it as 2026-11-20, or 2026-11-20T01-00Z", code=ErrorCode.INVALID_ARGUMENT
        ) from error


async def open_inventory(
    name: str, storage: StorageLocation, *, all_versions: bool = False, as_of: str | None = None
) -> list[InventoryPart]:
    """The data files of an inventory, downloaded and verified.

    Args:
        name: manifest.json, symlink.txt, or a folder, in which the newest complete inventory is chosen.
        storage: where `name` is.
        all_versions: keep versions other than the latest.
        as_of: for a folder: choose the newest inventory of this day or earlier.

    Raises:
        SourceError: there is no complete inventory, or a checksum differs.
    """
    if posixpath.basename(name) == _SYMLINK_FILE:
        return await _from_symlink(name, storage, all_versions=all_versions)
    manifest_name = name
    if posixpath.basename(name) != INVENTORY_MANIFEST:
        manifest_name = await _newest_manifest(name, storage, None if as_of is None else parse_as_of(as_of))
    elif as_of is not None:
        raise SourceError(
            f"{name} is a single inventory; with --as-of, name the folder that contains several",
            code=ErrorCode.INVALID_INVENTORY,
        )
    return await _manifest_parts(manifest_name, storage, all_versions=all_versions)


async def _from_symlink(name: str, storage: StorageLocation, *, all_versions: bool) -> list[InventoryPart]:
    """Use the manifest.json of the same delivery; without one, read Parquet and ORC files without verification."""
    text = await storage.read(name, max_bytes=MAX_MANIFEST_BYTES)
    if text is None:
        raise SourceError(f"{name} does not exist; check the path", code=ErrorCode.SOURCE_NOT_FOUND)
    folder = posixpath.dirname(name)
    match = _HIVE_FOLDER.fullmatch(posixpath.basename(folder))
    if match is not None:
        manifest = f"{posixpath.dirname(posixpath.dirname(folder))}/{match[1]}T{match[2]}Z/{INVENTORY_MANIFEST}"
        if await storage.read(manifest, max_bytes=MAX_MANIFEST_BYTES) is not None:
            return await _manifest_parts(manifest, storage, all_versions=all_versions)
    keys = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    if not keys or not all(key.startswith("s3://") and key.endswith((".parquet", ".orc")) for key in keys):
        raise SourceError(
            f"{name} does not describe the columns of its files, and there is no manifest.json of the same day; "
            "name a manifest.json, or the inventory's folder",
            code=ErrorCode.INVALID_INVENTORY,
        )
    files = [_DataFile(key.removeprefix("s3://").partition("/")[2], None) for key in keys]
    data = f"{posixpath.dirname(posixpath.dirname(folder))}/data/"
    return await _data_parts(files, name, data, storage, schema=None, all_versions=all_versions)


async def _newest_manifest(name: str, storage: StorageLocation, latest: str | None) -> str:
    """The manifest.json of the newest complete inventory below `name`."""
    root = name.rstrip("/") or name
    inventories = await _dated_folders(root, storage, _MAX_DEPTH)
    if not inventories:
        raise SourceError(
            f"{name} contains no S3 Inventory: there is no folder such as 2026-11-20T01-00Z with a "
            f"{INVENTORY_MANIFEST}; check the path",
            code=ErrorCode.INVALID_INVENTORY,
        )
    if len(inventories) > 1:
        raise SourceError(
            f"{name} contains several inventories: {', '.join(sorted(inventories))}; name one of them",
            code=ErrorCode.INVALID_INVENTORY,
        )
    ((folder, dates),) = inventories.items()
    for date in sorted(dates, reverse=True):
        if latest is not None and date > latest:
            continue
        if await storage.read(f"{folder}/{date}/{_CHECKSUM_FILE}", max_bytes=1024) is not None:
            return f"{folder}/{date}/{INVENTORY_MANIFEST}"
    when = "" if latest is None else f" of {latest.removesuffix('T99')} or earlier"
    raise SourceError(
        f"no inventory{when} in {folder} is complete (none has a {_CHECKSUM_FILE}); wait for the delivery, or change "
        "--as-of",
        code=ErrorCode.INVALID_INVENTORY,
    )


async def _dated_folders(folder: str, storage: StorageLocation, depth: int) -> dict[str, list[str]]:
    """The folders at most `depth` levels deep that contain dated folders: path → names of the dated folders."""
    names = await storage.folders(folder)
    dated = [name for name in names if _DATED_FOLDER.fullmatch(name)]
    if dated:
        return {folder: dated}
    inventories: dict[str, list[str]] = {}
    if depth > 1:
        for name in names:
            if name not in {"data", "hive"}:
                inventories |= await _dated_folders(f"{folder}/{name}", storage, depth - 1)
    return inventories


async def _manifest_parts(name: str, storage: StorageLocation, *, all_versions: bool) -> list[InventoryPart]:
    data = await storage.read(name, max_bytes=MAX_MANIFEST_BYTES)
    if data is None:
        raise SourceError(f"{name} does not exist; check the path", code=ErrorCode.SOURCE_NOT_FOUND)
    checksum = await storage.read(f"{name.removesuffix(INVENTORY_MANIFEST)}{_CHECKSUM_FILE}", max_bytes=1024)
    if checksum is None:
        raise SourceError(
            f"the inventory of {name} is not complete: there is no {_CHECKSUM_FILE} next to it; wait for the "
            "delivery, or copy all of its files",
            code=ErrorCode.INVALID_INVENTORY,
        )
    expected = checksum.decode(errors="replace").strip().lower()
    actual = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if actual != expected:
        raise SourceError(
            f"{name} is corrupt: its MD5 is {actual}, expected {expected} by its {_CHECKSUM_FILE}; download it again",
            code=ErrorCode.CORRUPT_FILE,
        )
    manifest = _read_manifest(data, name)
    folder = f"{posixpath.dirname(posixpath.dirname(name))}/data/"
    return await _data_parts(manifest.files, name, folder, storage, schema=manifest.schema, all_versions=all_versions)


async def _data_parts(
    files: Sequence[_DataFile],
    name: str,
    folder: str,
    storage: StorageLocation,
    *,
    schema: Sequence[str] | None,
    all_versions: bool,
) -> list[InventoryPart]:
    """The data files, downloaded a few at a time."""
    paths = await gather(lambda file: _fetch_file(file, name, folder, storage), files, at_once=_CONCURRENT_DOWNLOADS)
    return [
        InventoryPart(name=posixpath.basename(file.key), path=path, schema=schema, all_versions=all_versions)
        for file, path in zip(files, paths, strict=True)
    ]


async def _fetch_file(file: _DataFile, name: str, folder: str, storage: StorageLocation) -> Path:
    """The data file at its key, or else in the `data/` folder of the manifest's inventory.

    Where the inventory's prefix ends with `/`, S3 writes keys with one slash in manifest.json although the real keys
    have two. Local copies may have any root.
    """
    in_data_folder = folder + posixpath.basename(file.key)
    candidates = [in_data_folder]
    if name.startswith("s3://"):
        candidates = [f"s3://{name.removeprefix('s3://').partition('/')[0]}/{file.key}", in_data_folder]
    for candidate in dict.fromkeys(candidates):
        path = await storage.fetch(candidate, md5=file.md5)
        if path is not None:
            return path
    raise SourceError(
        f"{name} lists the data file {file.key}, which is not at {' or '.join(candidates)}; copy it as well",
        code=ErrorCode.INVALID_INVENTORY,
    )


def _read_manifest(data: bytes, name: str) -> _Manifest:
    try:
        manifest = orjson.loads(data)
    except ValueError as error:
        raise SourceError(
            f"{name} is not valid JSON: {error}; download it again", code=ErrorCode.CORRUPT_FILE
        ) from error
    if not isinstance(manifest, dict):
        raise _invalid_manifest(name, "it is not a JSON object")
    file_format, schema, files = (manifest.get(key) for key in ("fileFormat", "fileSchema", "files"))
    if file_format not in {"CSV", "ORC", "Parquet"}:
        raise _invalid_manifest(name, f"its fileFormat is {file_format!r}, expected CSV, ORC or Parquet")
    if not isinstance(schema, str) or not isinstance(files, list):
        raise _invalid_manifest(name, "its fileSchema or files field is missing")
    columns = tuple(column.strip() for column in schema.split(",")) if file_format == "CSV" else None
    if columns is not None and len(set(columns)) < len(columns):
        raise _invalid_manifest(name, f"its fileSchema {schema!r} has duplicate columns")
    return _Manifest(columns, tuple(_data_file(entry, name) for entry in files))


def _data_file(entry: Any, name: str) -> _DataFile:
    key, md5 = (entry.get("key"), entry.get("MD5checksum")) if isinstance(entry, Mapping) else (None, None)
    if not isinstance(key, str) or not isinstance(md5, str):
        raise _invalid_manifest(name, "an entry of its files field has no key or no MD5checksum")
    base = posixpath.basename(key)
    if not base or base in {".", ".."} or "\0" in key or os.sep in base:
        raise _invalid_manifest(name, f"the key {key!r} of a data file is not valid")
    return _DataFile(key, md5)


def _invalid_manifest(name: str, reason: str) -> SourceError:
    return SourceError(
        f"{name} is not the manifest of an S3 Inventory: {reason}; name another file, or change --source-kind",
        code=ErrorCode.INVALID_INVENTORY,
    )


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
    """One data file of an inventory.

    Attributes:
        name: the file's name in messages.
        path: the file or a copy of it.
        schema: the columns of a CSV file, from the inventory's manifest; None for Parquet and ORC.
        all_versions: keep versions other than the latest.
    """

    name: str
    path: Path
    schema: Sequence[str] | None
    all_versions: bool = False

    def chunks(self) -> Iterator[ListChunk]:
        """See `ListPart`; excludes delete markers."""
        available = (
            set(columns_of(self.path, self.name))
            if self.schema is None
            else {_CSV_NAMES[name] for name in self.schema if name in _CSV_NAMES}
        )
        wanted = [name for name in _CSV_NAMES.values() if name in available]
        if not {"bucket", "key"} <= available:
            raise SourceError(
                f"{self.name} has no columns for bucket and key, so it is not part of an S3 Inventory; name another "
                "one",
                code=ErrorCode.INVALID_INVENTORY,
            )
        if "version_id" in available and "is_latest" not in available and not self.all_versions:
            raise SourceError(
                f"{self.name} lists versions but not which are the latest; score all with --all-versions, or configure "
                "the inventory to include the field IsLatest",
                code=ErrorCode.INVALID_INVENTORY,
            )
        first = 1
        for frame, bad in self._csv() if self.schema is not None else ((each, []) for each in self._table(wanted)):
            chunk = self._chunk(frame, bad, first)
            first += chunk.lines
            yield chunk

    def _chunk(self, frame: pl.DataFrame, bad: list[BadLine], first: int) -> ListChunk:
        ignored: dict[str, int] = {}
        numbered = frame.with_row_index("row", offset=first)
        if "is_delete_marker" in frame.columns:
            numbered = _drop_rows(
                numbered, pl.col("is_delete_marker").fill_null(value=False), "delete markers", ignored
            )
        if "is_latest" in frame.columns and not self.all_versions:
            numbered = _drop_rows(numbered, ~pl.col("is_latest").fill_null(value=True), "older versions", ignored)
        if self.schema is not None:
            numbered, undecoded = _decode_keys(numbered)
            bad = [*bad, *undecoded]
        rows = numbered["row"]
        valid, _, invalid = split_valid_rows(numbered.select(_image_columns(numbered.schema)), 0)
        bad += [BadLine(int(rows[each.number]), each.reason) for each in invalid]
        bad.sort(key=lambda each: each.number)
        return FrameChunk(valid, valid.height + len(bad) + sum(ignored.values()), bad, ignored)

    def _table(self, wanted: Sequence[str]) -> Iterator[pl.DataFrame]:
        """The rows of a Parquet or ORC file, with times in UTC."""
        for frame in batches(self.path, self.name, wanted):
            dtype = frame.schema.get("last_modified_date")
            if isinstance(dtype, pl.Datetime):
                time = pl.col("last_modified_date").dt.cast_time_unit("us")
                time = time.dt.convert_time_zone("UTC") if dtype.time_zone else time.dt.replace_time_zone("UTC")
                frame = frame.with_columns(time)  # noqa: PLW2901 - the same rows
            yield frame

    def _csv(self) -> Iterator[tuple[pl.DataFrame, list[BadLine]]]:
        """The rows of a CSV file, and those with a wrong number of fields."""
        assert self.schema is not None
        bad: list[BadLine] = []

        def refuse(row: Any) -> str:
            bad.append(BadLine(row.number or 0, f"expected {row.expected_columns} fields; got {row.actual_columns}"))
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
                        encoding="latin-1",  # with UTF-8, one invalid byte would fail the whole file, not its row
                    ),
                    parse_options=pacsv.ParseOptions(invalid_row_handler=refuse),
                    convert_options=pacsv.ConvertOptions(
                        include_columns=known, column_types=dict.fromkeys(known, pa.string()), strings_can_be_null=False
                    ),
                )
                for batch in reader:
                    frame = frame_of(batch).rename({name: _CSV_NAMES[name] for name in known})
                    batch_bad, bad[:] = list(bad), []
                    yield _parsed_columns(frame), batch_bad
        except pa.ArrowException as error:
            if "Empty CSV file" in str(error):
                return
            raise SourceError(
                f"can't read {self.name}: {first_line(error)}; it is not a CSV file of an S3 Inventory, so download it "
                "again",
                code=ErrorCode.CORRUPT_FILE,
            ) from error


def _parsed_columns(frame: pl.DataFrame) -> pl.DataFrame:
    """Parse a CSV's text columns; a text that can't be parsed becomes null."""
    parsed: dict[str, pl.Expr] = {
        "size": pl.col("size").cast(pl.Int64, strict=False),
        "last_modified_date": pl.col("last_modified_date")
        .str.to_datetime("%Y-%m-%dT%H:%M:%S%.fZ", time_unit="us", strict=False)
        .dt.replace_time_zone("UTC"),
        **{name: pl.col(name).str.to_lowercase() == "true" for name in _FLAGS},
    }
    return frame.with_columns([parsed[name] for name in frame.columns if name in parsed])


def _image_columns(schema: Mapping[str, Any]) -> list[pl.Expr]:
    """The columns of an inventory, renamed to the fields of `ImageRef`."""
    columns = [pl.col("bucket").cast(pl.String), pl.col("key").cast(pl.String)]
    if "version_id" in schema:
        version = pl.col("version_id")
        # the version id of an object older than versioning is "null"; as the latest version it needs no id
        unversioned = (version == "") | (
            (version == "null") & (pl.col("is_latest") if "is_latest" in schema else pl.lit(value=False))
        )
        columns.append(pl.when(unversioned).then(None).otherwise(version).alias("version_id"))
    if "e_tag" in schema:
        etag = pl.col("e_tag").str.strip_chars('"')
        columns.append(pl.when(etag == "").then(None).otherwise(etag).alias("etag"))
    if "size" in schema:
        columns.append(pl.col("size").cast(pl.Int64).alias("size_bytes"))
    if "last_modified_date" in schema:
        columns.append(pl.col("last_modified_date").alias("last_modified"))
    return columns


def _drop_rows(frame: pl.DataFrame, unwanted: pl.Expr, what: str, ignored: dict[str, int]) -> pl.DataFrame:
    """`frame` without the `unwanted` rows, whose number is stored as `ignored[what]`."""
    kept = frame.filter(~unwanted)
    if kept.height < frame.height:
        ignored[what] = frame.height - kept.height
    return kept


def _from_latin1(text: str) -> str:
    """The UTF-8 text whose bytes were decoded as Latin-1."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeDecodeError as error:
        raise SourceError("not UTF-8 text") from error


def _decode_keys(frame: pl.DataFrame) -> tuple[pl.DataFrame, list[BadLine]]:
    """`frame` with URL-decoded keys, and the rows whose keys can't be decoded."""
    encoded = frame["key"].str.contains(r"[%+]|[^\x00-\x7f]").arg_true()
    if not len(encoded):
        return frame, []
    keys: list[str | None] = []
    bad: list[BadLine] = []
    rows = frame["row"].gather(encoded).to_list()
    for row, text in zip(rows, frame["key"].gather(encoded).to_list(), strict=True):
        try:
            keys.append(decoded_key(_from_latin1(text)))
        except SourceError as error:
            bad.append(BadLine(row, str(error)))
            keys.append(None)
    decoded = frame.with_columns(frame["key"].clone().scatter(encoded, pl.Series(keys, dtype=pl.String)).alias("key"))
    return (decoded.filter(pl.col("key").is_not_null()), bad) if bad else (decoded, [])
