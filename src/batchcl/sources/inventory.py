"""S3 Inventory: the files that a manifest names, verified by checksum, and the rows in them."""

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
from batchcl.errors import SourceError
from batchcl.sources.base import BadLine
from batchcl.sources.csv_lists import decoded_key
from batchcl.sources.files import open_list
from batchcl.sources.list_source import FrameChunk, ListChunk
from batchcl.sources.storage import StorageLocation
from batchcl.sources.tables import batches, columns_of, frame_of, in_short, sound_rows

__all__ = ["InventoryPart", "is_inventory_manifest", "open_inventory", "parse_as_of"]

MANIFEST: Final = "manifest.json"
_CHECKSUM: Final = "manifest.checksum"
_SYMLINK: Final = "symlink.txt"
_DATED: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}-\d{2}Z")
_HIVE: Final = re.compile(r"dt=(\d{4}-\d{2}-\d{2})-(\d{2}-\d{2})")
_DEPTH: Final = 3
"""A prefix may end before the source bucket and the inventory's name."""

MAX_MANIFEST_BYTES: Final = 64 * 1024 * 1024
"""A thousand data files take 0.2 MB of manifest.json."""

_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class _File:
    key: str
    md5: str | None


@dataclass(frozen=True, slots=True)
class _Manifest:
    """What manifest.json says: a CSV inventory's columns, None for Parquet and ORC, and the data files."""

    schema: tuple[str, ...] | None
    files: tuple[_File, ...]


def is_inventory_manifest(start: bytes) -> bool:
    """Whether a file that begins so is an inventory's manifest.json."""
    return start.lstrip().startswith(b"{") and b'"fileSchema"' in start and b'"files"' in start


def parse_as_of(text: str) -> str:
    """The last folder name of an inventory that `text` allows: a day such as 2026-11-20, or a whole folder name.

    Raises `SourceError`.
    """
    if _DATED.fullmatch(text):
        return text
    try:
        return f"{dt.date.fromisoformat(text).isoformat()}T99"
    except ValueError as error:
        raise SourceError(f"{text!r} is no day; write it like 2026-11-20, or 2026-11-20T01-00Z") from error


async def open_inventory(
    name: str, place: StorageLocation, *, all_versions: bool = False, as_of: str | None = None
) -> list[InventoryPart]:
    """The data files of the inventory that `name` leads to, fetched and checked.

    Args:
        name: of manifest.json, of symlink.txt, or of a folder, of whose inventories the newest complete one counts.
        place: where they lie.
        all_versions: keep versions that aren't the latest.
        as_of: with a folder: the newest one of this day or earlier.

    Raises:
        SourceError: there is none, it isn't complete, or a checksum is another.
    """
    if posixpath.basename(name) == _SYMLINK:
        return await _from_symlink(name, place, all_versions=all_versions)
    manifest_name = name
    if posixpath.basename(name) != MANIFEST:
        manifest_name = await _newest(name, place, None if as_of is None else parse_as_of(as_of))
    elif as_of is not None:
        raise SourceError(f"{name} is one inventory; --as-of goes with the folder of several")
    return await _parts(manifest_name, place, all_versions=all_versions)


async def _from_symlink(name: str, place: StorageLocation, *, all_versions: bool) -> list[InventoryPart]:
    """By the manifest.json of the same delivery; without it, Parquet and ORC files are read as they are."""
    text = await place.read(name, most_bytes=MAX_MANIFEST_BYTES)
    if text is None:
        raise SourceError(f"there is no {name}; check the path")
    folder = posixpath.dirname(name)
    found = _HIVE.fullmatch(posixpath.basename(folder))
    if found is not None:
        manifest = f"{posixpath.dirname(posixpath.dirname(folder))}/{found[1]}T{found[2]}Z/{MANIFEST}"
        if await place.read(manifest, most_bytes=MAX_MANIFEST_BYTES) is not None:
            return await _parts(manifest, place, all_versions=all_versions)
    keys = [line.strip() for line in text.decode(errors="replace").splitlines() if line.strip()]
    if not keys or not all(key.startswith("s3://") and key.endswith((".parquet", ".orc")) for key in keys):
        raise SourceError(
            f"{name} doesn't tell the columns of its files, and the manifest.json of the same day isn't beside it; "
            "name a manifest.json, or the inventory's folder"
        )
    files = [_File(key.removeprefix("s3://").partition("/")[2], None) for key in keys]
    data = f"{posixpath.dirname(posixpath.dirname(folder))}/data/"
    return await _fetched(files, name, data, place, schema=None, all_versions=all_versions)


async def _newest(name: str, place: StorageLocation, latest: str | None) -> str:
    """The manifest.json of the newest complete inventory below `name`."""
    root = name.rstrip("/") or name
    found = await _inventories(root, place, _DEPTH)
    if not found:
        raise SourceError(
            f"there is no S3 Inventory below {name}: no folder such as 2026-11-20T01-00Z with a {MANIFEST}; check "
            "the path"
        )
    if len(found) > 1:
        raise SourceError(f"{name} holds several inventories: {', '.join(sorted(found))}; name one of them")
    ((folder, dates),) = found.items()
    for date in sorted(dates, reverse=True):
        if latest is not None and date > latest:
            continue
        if await place.read(f"{folder}/{date}/{_CHECKSUM}", most_bytes=1024) is not None:
            return f"{folder}/{date}/{MANIFEST}"
    when = "" if latest is None else f" of {latest.removesuffix('T99')} or earlier"
    raise SourceError(
        f"no inventory{when} in {folder} is complete, as each lacks its {_CHECKSUM}; wait for it, or say another "
        "--as-of"
    )


async def _inventories(folder: str, place: StorageLocation, depth: int) -> dict[str, list[str]]:
    """The folders that hold dated ones, with those."""
    names = await place.folders(folder)
    dated = [name for name in names if _DATED.fullmatch(name)]
    if dated:
        return {folder: dated}
    found: dict[str, list[str]] = {}
    if depth > 1:
        for name in names:
            if name not in {"data", "hive"}:
                found |= await _inventories(f"{folder}/{name}", place, depth - 1)
    return found


async def _parts(name: str, place: StorageLocation, *, all_versions: bool) -> list[InventoryPart]:
    data = await place.read(name, most_bytes=MAX_MANIFEST_BYTES)
    if data is None:
        raise SourceError(f"there is no {name}; check the path")
    checksum = await place.read(f"{name.removesuffix(MANIFEST)}{_CHECKSUM}", most_bytes=1024)
    if checksum is None:
        raise SourceError(
            f"{name} has no {_CHECKSUM} beside it, so the inventory isn't complete; wait for it, or copy it whole"
        )
    due = checksum.decode(errors="replace").strip().lower()
    seen = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if seen != due:
        raise SourceError(f"{name} has the MD5 {seen}, and its {_CHECKSUM} says {due}: it is damaged; fetch it anew")
    manifest = _read_manifest(data, name)
    folder = f"{posixpath.dirname(posixpath.dirname(name))}/data/"
    return await _fetched(manifest.files, name, folder, place, schema=manifest.schema, all_versions=all_versions)


async def _fetched(
    files: Sequence[_File],
    name: str,
    folder: str,
    place: StorageLocation,
    *,
    schema: Sequence[str] | None,
    all_versions: bool,
) -> list[InventoryPart]:
    """The data files on this machine, a few fetched at a time."""
    paths = await gather(lambda file: _fetch_file(file, name, folder, place), files, at_once=_AT_ONCE)
    return [
        InventoryPart(name=posixpath.basename(file.key), path=path, schema=schema, all_versions=all_versions)
        for file, path in zip(files, paths, strict=True)
    ]


async def _fetch_file(file: _File, name: str, folder: str, place: StorageLocation) -> Path:
    """The data file by its key, or beside the manifest.

    S3 writes keys with one slash where the inventory's prefix ends with `/`, so that the real one has two; and local
    copies may begin anywhere.
    """
    beside = folder + posixpath.basename(file.key)
    candidates = [beside]
    if name.startswith("s3://"):
        candidates = [f"s3://{name.removeprefix('s3://').partition('/')[0]}/{file.key}", beside]
    for candidate in dict.fromkeys(candidates):
        path = await place.fetch(candidate, md5=file.md5)
        if path is not None:
            return path
    raise SourceError(
        f"{name} lists the data file {file.key}, and it is not at {' or '.join(candidates)}; fetch it too"
    )


def _read_manifest(data: bytes, name: str) -> _Manifest:
    try:
        manifest = orjson.loads(data)
    except ValueError as error:
        raise SourceError(f"{name} is no JSON: {error}; fetch it anew") from error
    if not isinstance(manifest, dict):
        raise _odd(name, "it is no JSON object")
    kind, schema, files = (manifest.get(key) for key in ("fileFormat", "fileSchema", "files"))
    if kind not in {"CSV", "ORC", "Parquet"}:
        raise _odd(name, f"its fileFormat is {kind!r}, and CSV, ORC or Parquet is due")
    if not isinstance(schema, str) or not isinstance(files, list):
        raise _odd(name, "its fileSchema or its files are missing")
    columns = tuple(column.strip() for column in schema.split(",")) if kind == "CSV" else None
    if columns is not None and len(set(columns)) < len(columns):
        raise _odd(name, f"its fileSchema {schema!r} names a column twice")
    return _Manifest(columns, tuple(_file(entry, name) for entry in files))


def _file(entry: Any, name: str) -> _File:
    key, md5 = (entry.get("key"), entry.get("MD5checksum")) if isinstance(entry, Mapping) else (None, None)
    if not isinstance(key, str) or not isinstance(md5, str):
        raise _odd(name, "an entry of its files has no key or no MD5checksum")
    base = posixpath.basename(key)
    if not base or base in {".", ".."} or "\0" in key or os.sep in base:
        raise _odd(name, f"the key {key!r} of a data file has no name")
    return _File(key, md5)


def _odd(name: str, why: str) -> SourceError:
    return SourceError(f"{name} is no manifest of an S3 Inventory: {why}; name another one, or another --source-kind")


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

    def chunks(self) -> Iterator[ListChunk]:
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

    def _chunk(self, frame: pl.DataFrame, bad: list[BadLine], first: int) -> ListChunk:
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
