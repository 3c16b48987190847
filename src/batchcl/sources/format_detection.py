"""Detects the format of a list file by its content. If several formats match, it is an error, not a guess."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from batchcl.choices import SourceKind
from batchcl.errors import ErrorCode, SourceError
from batchcl.images import EXTENSIONS
from batchcl.sources.base import IMAGE_MAGIC
from batchcl.sources.csv_lists import BUCKET_NAME
from batchcl.sources.files import START_BYTES, start_of
from batchcl.sources.inventory import is_inventory_manifest
from batchcl.sources.tar import is_tar
from batchcl.sources.text_lists import refuse_utf16
from batchcl.spellings import Spelling, spellings

__all__ = ["detect_kind", "is_columnar"]

_TABLE_MAGIC: Final = (b"PAR1", b"ORC")
_SAMPLED_LINES: Final = 100
_HEADING: Final = re.compile(r"[A-Za-z][A-Za-z0-9_ -]*")
_SCHEME: Final = re.compile(r"[a-z0-9]+://")
_BATCH_HEADINGS: Final = frozenset({"bucket", "key", "versionid", "version_id"})
_COMMA_KINDS: Final = (SourceKind.KEYS, SourceKind.BATCH_CSV, SourceKind.LABEL_CSV)


def detect_kind(name: str, path: Path, *, folder: Path | None, wants_table: bool, wants_field: bool) -> SourceKind:
    """The kind of the file at `path`. Blocks.

    Args:
        name: the file's name in messages.
        path: the file or a copy of it.
        folder: what paths in a labelled CSV are relative to; None if the list can't name local files.
        wants_table: the user named columns, so text is a table with a header.
        wants_field: the user named a field, so JSON is JSON Lines with that field.

    Raises:
        SourceError: the file is not a list, or could have several formats, which the message lists.
    """
    magic = _magic(path)
    if magic.startswith(IMAGE_MAGIC):
        return SourceKind.IMAGE
    if magic.startswith(_TABLE_MAGIC):
        return SourceKind.TABLE
    start = start_of(path, name)
    if is_tar(start):
        return SourceKind.TAR
    refuse_utf16(start, name)
    lines = _lines(start)
    if not lines:
        raise SourceError(f"{name} is empty; name a list with at least one image", code=ErrorCode.EMPTY_SOURCE)
    if any(b"\0" in line for line in lines):
        raise SourceError(
            f"{name} is not text, a table, or a PNG or JPEG image; name a list of images or a directory",
            code=ErrorCode.UNKNOWN_LIST_FORMAT,
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
    """The first complete non-blank lines; if there is none, the beginning of the first line."""
    lines = start.splitlines()
    if len(start) >= START_BYTES and len(lines) > 1:
        lines.pop()
    return [line for line in lines if line][:_SAMPLED_LINES]


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
            f"{name} looks like a manifest, but its first line has no source-ref, only {fields}; name the field of "
            "the image with --uri-field, or add --source-kind manifest or --source-kind keys",
            code=ErrorCode.UNKNOWN_LIST_FORMAT,
        )
    raise SourceError(
        f"{name} looks like a manifest, but its first line is not a JSON object with a source-ref; fix it, or add "
        "--source-kind manifest or --source-kind keys",
        code=ErrorCode.UNKNOWN_LIST_FORMAT,
    )


def _text_kind(name: str, lines: Sequence[str], folder: Path | None) -> SourceKind:
    """A key list, or for lines with commas, the only kind of list that all lines can be."""
    rows = [_row(line) for line in lines]
    if all("," in line for line in lines):
        candidates = _comma_kinds(lines, rows, folder)
        if len(candidates) == 1 and not _is_header(rows[0]):
            return candidates[0]
        raise _ambiguous(name, "commas", candidates or _COMMA_KINDS)
    if any("," in line and _looks_like_label_row(row) for line, row in zip(lines, rows, strict=True)):
        raise _ambiguous(name, "commas", [SourceKind.KEYS, SourceKind.LABEL_CSV])
    if all("\t" in line for line in lines):
        raise _ambiguous(name, "tabs", [SourceKind.KEYS])
    _refuse_other_text(name, lines, folder)
    return SourceKind.KEYS


def _comma_kinds(lines: Sequence[str], rows: Sequence[Sequence[str]], folder: Path | None) -> list[SourceKind]:
    """The kinds that a list with commas in all of its lines may have."""
    may_be_keys = all(line.startswith("s3://") for line in lines) or any(_is_file(folder, line) for line in lines)
    candidates = []
    if may_be_keys or not all(rows):
        candidates.append(SourceKind.KEYS)
    if all(_looks_like_batch_row(row) for row in rows):
        candidates.append(SourceKind.BATCH_CSV)
    if all(_looks_like_label_row(row) for row in rows) and (
        may_be_keys or all(_is_file(folder, row[0], below=True) for row in rows)
    ):
        candidates.append(SourceKind.LABEL_CSV)
    return candidates


def _ambiguous(name: str, separators: str, kinds: Sequence[SourceKind]) -> SourceError:
    options = " or ".join(f"--source-kind {kind}" for kind in kinds)
    return SourceError(
        f"{name} has {separators} in its lines, so its format is ambiguous; add {options}, or, for a CSV table with a "
        "header, name its columns with --uri-column, or --bucket-column and --key-column",
        code=ErrorCode.UNKNOWN_LIST_FORMAT,
    )


def _refuse_other_text(name: str, lines: Sequence[str], folder: Path | None) -> None:
    """Raise `SourceError` for text without any existing file, or with a header: any text may be a list of paths."""
    names_image = [_SCHEME.match(line) is not None or _is_file(folder, line) for line in lines]
    if not any(names_image):
        if (other := _existing_spelling(folder, lines[0])) is not None:
            raise SourceError(
                f"the files that {name} names don't exist: {lines[0][:80]!r} does not, but {other.name[:80]!r} does; "
                f"its names are {other.what}; {other.advice}",
                code=ErrorCode.SOURCE_NOT_FOUND,
            )
        raise SourceError(
            f"{name} is not a known kind of list: none of its first lines, such as {lines[0][:80]!r}, is "
            "s3://bucket/key or an existing file; check the working directory, or add --source-kind keys",
            code=ErrorCode.UNKNOWN_LIST_FORMAT,
        )
    if not names_image[0] and all(names_image[1:]) and _HEADING.fullmatch(lines[0]):
        raise SourceError(
            f"the first line of {name}, {lines[0]!r}, may be a header; name the column with --uri-column, or add "
            "--source-kind keys if it is a file",
            code=ErrorCode.UNKNOWN_LIST_FORMAT,
        )


def _existing_spelling(folder: Path | None, name: str) -> Spelling | None:
    """Another spelling of a name that is an existing file or an S3 URI."""
    for other in spellings(name):
        if _SCHEME.match(other.name) or _is_file(folder, other.name):
            return other
    return None


def _row(line: str) -> list[str]:
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error:
        return []


def _looks_like_batch_row(row: Sequence[str]) -> bool:
    """Whether a row may be `bucket,key[,versionId]` with a URL-encoded key; buckets don't have an image's extension."""
    return (
        len(row) in {2, 3}
        and BUCKET_NAME.fullmatch(row[0]) is not None
        and not row[0].lower().endswith(tuple(EXTENSIONS))
        and re.search(r"%(?![0-9A-Fa-f]{2})| ", row[1]) is None
    )


def _is_header(row: Sequence[str]) -> bool:
    """Whether a row that looks like one of S3 Batch Operations is the header of a table."""
    return bool(row) and all(heading.strip().lower() in _BATCH_HEADINGS for heading in row)


def _looks_like_label_row(row: Sequence[str]) -> bool:
    """Whether a row may be an image followed by labels, the last of which does not have an image's extension."""
    endings = tuple(EXTENSIONS)
    return len(row) > 1 and row[0].lower().endswith(endings) and not row[-1].lower().endswith(endings)


def _is_file(folder: Path | None, name: str, *, below: bool = False) -> bool:
    """Whether `name` is an existing file, relative to the working directory, or with `below` to the folder."""
    try:
        return folder is not None and (folder / name if below else Path(name)).is_file()
    except (OSError, ValueError):
        return False
