"""What a list file is, told by its content; where that fits several kinds, nothing is guessed."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from batchcl.choices import SourceKind
from batchcl.errors import SourceError
from batchcl.images import EXTENSIONS
from batchcl.sources.base import IMAGE_STARTS
from batchcl.sources.csv_lists import BUCKET
from batchcl.sources.files import START_BYTES, start_of
from batchcl.sources.inventory import is_inventory_manifest
from batchcl.sources.tar import is_tar
from batchcl.sources.text_lists import refuse_utf16
from batchcl.spellings import Spelling, spellings

__all__ = ["detect_kind", "is_columnar"]

_TABLE_MAGIC: Final = (b"PAR1", b"ORC")
_LOOKED_AT: Final = 100
_HEADING: Final = re.compile(r"[A-Za-z][A-Za-z0-9_ -]*")
_SCHEME: Final = re.compile(r"[a-z0-9]+://")
_BATCH_HEADINGS: Final = frozenset({"bucket", "key", "versionid", "version_id"})
_COMMA_KINDS: Final = (SourceKind.KEYS, SourceKind.BATCH_CSV, SourceKind.LABEL_CSV)


def detect_kind(name: str, path: Path, *, folder: Path | None, wants_table: bool, wants_field: bool) -> SourceKind:
    """The kind of the file at `path`. Blocks.

    Args:
        name: as messages call it.
        path: of the file or its copy.
        folder: what paths in a labelled CSV are relative to; None where the list can't name files of this machine.
        wants_table: columns are named, so that text is a table with a header.
        wants_field: a field is named, so that JSON is JSON Lines with it.

    Raises:
        SourceError: the file is no list, or could be several kinds: it names them.
    """
    magic = _magic(path)
    if magic.startswith(IMAGE_STARTS):
        return SourceKind.IMAGE
    if magic.startswith(_TABLE_MAGIC):
        return SourceKind.TABLE
    start = start_of(path, name)
    if is_tar(start):
        return SourceKind.TAR
    refuse_utf16(start, name)
    lines = _lines(start)
    if not lines:
        raise SourceError(f"{name} is empty; it names no image")
    if any(b"\0" in line for line in lines):
        raise SourceError(
            f"{name} is neither text nor a table, nor a PNG or JPEG image; name a list of images or a directory"
        )
    if lines[0].lstrip().startswith(b"{"):
        return _json_kind(name, start, lines, wants_field=wants_field)
    if wants_table:
        return SourceKind.TABLE
    return _text_kind(name, [line.decode(errors="replace") for line in lines], folder)


def is_columnar(path: Path) -> bool:
    """Whether the table at `path` is Parquet or ORC rather than text. Blocks."""
    return _magic(path).startswith(_TABLE_MAGIC)


def _magic(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _lines(start: bytes) -> list[bytes]:
    """The first whole lines that aren't blank; where there is no whole one, its beginning."""
    lines = start.splitlines()
    if len(start) >= START_BYTES and len(lines) > 1:
        lines.pop()
    return [line for line in lines if line][:_LOOKED_AT]


def _json_kind(name: str, start: bytes, lines: Sequence[bytes], *, wants_field: bool) -> SourceKind:
    if is_inventory_manifest(start):
        return SourceKind.INVENTORY
    if wants_field:
        return SourceKind.JSON_LINES
    try:
        entry: Any = orjson.loads(lines[0])
    except orjson.JSONDecodeError:
        entry = None
    if isinstance(entry, dict) and "source-ref" in entry:
        return SourceKind.MANIFEST
    if isinstance(entry, dict) and entry:
        fields = ", ".join(list(entry)[:8])
        raise SourceError(
            f"{name} starts like a manifest, but its first line has no source-ref, only {fields}; name the field with "
            "the image by --uri-field, or say what it is with --source-kind manifest or --source-kind keys"
        )
    raise SourceError(
        f"{name} starts like a manifest, but its first line is no JSON object with a source-ref; mend it, or say "
        "what it is with --source-kind manifest or --source-kind keys"
    )


def _text_kind(name: str, lines: Sequence[str], folder: Path | None) -> SourceKind:
    """A key list, unless its lines have commas: then what each kind would make of them decides."""
    rows = [_row(line) for line in lines]
    if all("," in line for line in lines):
        candidates = _comma_kinds(lines, rows, folder)
        if len(candidates) == 1 and not _is_header(rows[0]):
            return candidates[0]
        raise _ambiguous(name, "commas", candidates or _COMMA_KINDS)
    if any("," in line and _like_labels(row) for line, row in zip(lines, rows, strict=True)):
        raise _ambiguous(name, "commas", [SourceKind.KEYS, SourceKind.LABEL_CSV])
    if all("\t" in line for line in lines):
        raise _ambiguous(name, "tabs", [SourceKind.KEYS])
    _refuse_other_text(name, lines, folder)
    return SourceKind.KEYS


def _comma_kinds(lines: Sequence[str], rows: Sequence[Sequence[str]], folder: Path | None) -> list[SourceKind]:
    """What a list with commas in all of its lines may be."""
    as_keys = all(line.startswith("s3://") for line in lines) or any(_is_file(folder, line) for line in lines)
    candidates = []
    if as_keys or not all(rows):
        candidates.append(SourceKind.KEYS)
    if all(_like_batch(row) for row in rows):
        candidates.append(SourceKind.BATCH_CSV)
    if all(_like_labels(row) for row in rows) and (
        as_keys or all(_is_file(folder, row[0], below=True) for row in rows)
    ):
        candidates.append(SourceKind.LABEL_CSV)
    return candidates


def _ambiguous(name: str, what: str, kinds: Sequence[SourceKind]) -> SourceError:
    listed = " or ".join(f"--source-kind {kind}" for kind in kinds)
    return SourceError(
        f"{name} has {what} in its lines, so it could be several kinds of list; say which with {listed}, or, for a "
        "CSV table with a header, name its columns by --uri-column, or --bucket-column and --key-column"
    )


def _refuse_other_text(name: str, lines: Sequence[str], folder: Path | None) -> None:
    """Any text could be a list of paths: one that names nothing, or begins with a heading, is taken for none."""
    names_image = [_SCHEME.match(line) is not None or _is_file(folder, line) for line in lines]
    if not any(names_image):
        if (other := _other_spelling(folder, lines[0])) is not None:
            raise SourceError(
                f"{name} names no file that is there: {lines[0][:80]!r} is not, and {other.name[:80]!r} is; its names "
                f"are {other.what}; {other.advice}"
            )
        raise SourceError(
            f"{name} is no list that batchcl knows: of its first lines, such as {lines[0][:80]!r}, none is "
            "s3://bucket/key or a file that is there; check the working directory, or say --source-kind keys"
        )
    if not names_image[0] and all(names_image[1:]) and _HEADING.fullmatch(lines[0]):
        raise SourceError(
            f"{name} has a first line {lines[0]!r} that may be a header; name the column by --uri-column, or say "
            "--source-kind keys where it is a file"
        )


def _other_spelling(folder: Path | None, name: str) -> Spelling | None:
    """Another spelling of a name, of which there is a file or which is an S3 URI."""
    for other in spellings(name):
        if _SCHEME.match(other.name) or _is_file(folder, other.name):
            return other
    return None


def _row(line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


def _like_batch(row: Sequence[str]) -> bool:
    """`bucket,key[,versionId]` with a key that can be URL-encoded; what has an image's name is no bucket."""
    return (
        len(row) in {2, 3}
        and BUCKET.fullmatch(row[0]) is not None
        and not row[0].lower().endswith(tuple(EXTENSIONS))
        and re.search(r"%(?![0-9A-Fa-f]{2})| ", row[1]) is None
    )


def _is_header(row: Sequence[str]) -> bool:
    """Whether a line that could be of S3 Batch Operations is the header of a table."""
    return bool(row) and all(heading.strip().lower() in _BATCH_HEADINGS for heading in row)


def _like_labels(row: Sequence[str]) -> bool:
    """An image's name, and labels behind it that don't look like one."""
    endings = tuple(EXTENSIONS)
    return len(row) > 1 and row[0].lower().endswith(endings) and not row[-1].lower().endswith(endings)


def _is_file(folder: Path | None, name: str, *, below: bool = False) -> bool:
    """Whether a list may name a file of this machine so: from the working directory, or `below` the folder."""
    try:
        return folder is not None and (folder / name if below else Path(name)).is_file()
    except (OSError, ValueError):
        return False
