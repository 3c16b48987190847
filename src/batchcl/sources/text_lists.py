"""Text lists with one image per line: key lists, manifests and other JSON Lines."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import Any, Final

import orjson

from batchcl.errors import SourceError
from batchcl.groundtruth import parse_line
from batchcl.images import ImageRef
from batchcl.sources.base import BadLabel, BadLabels, BadLine, local_image, referenced_image, refuse_url, s3_image
from batchcl.sources.files import open_list
from batchcl.sources.list_source import ImageChunk, ListChunk
from batchcl.spellings import BYTE_ORDER_MARK

__all__ = [
    "CHUNK",
    "MAX_LINE_BYTES",
    "FieldParser",
    "LinePart",
    "ManifestParser",
    "check_length",
    "chunked",
    "numbered_lines",
    "parse_key_line",
    "refuse_utf16",
    "skip_line",
    "skip_mark",
]

MAX_LINE_BYTES: Final = 4 * 1024 * 1024
"""Longer lines are bad lines; a manifest line with ten thousand boxes has about 1 MB."""

CHUNK: Final = 1000
"""Lines per chunk."""

_MARK_BYTES: Final = 64
_MIN_NUL_BYTES: Final = 4
"""Text in which at least so many bytes, every second one, are NUL is taken for UTF-16."""

Entry = ImageRef | BadLine | BadLabel


class LinePart:
    """A text file; `parse` converts a line to its image or raises `SourceError`. Blank lines are skipped."""

    def __init__(self, name: str, path: Path, parse: Callable[[bytes], ImageRef | BadLabel]) -> None:
        self.name = name
        self._path = path
        self._parse = parse

    def chunks(self) -> Iterator[ListChunk]:
        """See `ListPart`."""
        with open_list(self._path, self.name) as file:
            skip_mark(file, self.name)
            yield from chunked(self._entry(number, line) for number, line in numbered_lines(file))

    def _entry(self, number: int, line: bytes) -> Entry:
        try:
            check_length(line)
            entry = self._parse(line)
            return replace(entry, number=number) if isinstance(entry, BadLabel) else entry
        except SourceError as error:
            return BadLine(number, str(error))


def parse_key_line(line: bytes, *, may_be_local: bool = True) -> ImageRef:
    """The image that a line of a key list names. Raises `SourceError`. Blocks.

    Paths are relative to the working directory. A list in S3 can't name local files: there, `may_be_local` is false.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise SourceError("not UTF-8 text") from error
    if text.startswith("s3://"):
        return s3_image(text)
    if text.startswith(BYTE_ORDER_MARK):
        raise SourceError("it begins with a byte order mark, as when two files were joined; remove the mark")
    refuse_url(text)
    if "\0" in text:
        raise SourceError("it contains a NUL byte, so it is neither a key nor a path")
    if "://" in text:
        raise SourceError(f"{text!r} is neither s3://bucket/key nor a path")
    if not may_be_local:
        raise SourceError(f"{text!r} is not s3://bucket/key, and a list in S3 can't name local files")
    return local_image(text)


class ManifestParser:
    """Parses the lines of a Ground Truth manifest.

    A `source-ref` outside S3 is a path relative to the manifest, for offline work. A path that leads out of the
    manifest's directory is refused because the manifest may be untrusted.
    """

    def __init__(self, folder: Path | None, *, attribute: str | None = None) -> None:
        self._folder = folder
        self._attribute = attribute

    def __call__(self, line: bytes) -> ImageRef | BadLabel:
        """The image of `line`, with the line's labels in `extra`. Raises `SourceError`. Blocks.

        An unusable label does not make the line a bad one, because scoring needs only the reference.
        """
        truth = parse_line(line, attribute=self._attribute)
        try:
            image = referenced_image(truth.source_ref, self._folder, extra=truth.extra)
        except SourceError as error:
            raise SourceError(f"its source-ref: {error}") from error
        return BadLabel(image, truth.bad_labels[0]) if truth.bad_labels else image


class FieldParser:
    """Parses JSON Lines whose field `field` names the image; the other fields are stored in `extra`.

    `field` is a key of the object or, if there is no such key, a dotted path such as `image.uri`.
    """

    def __init__(self, field: str, folder: Path | None) -> None:
        self._field = field
        self._folder = folder

    def __call__(self, line: bytes) -> ImageRef:
        """The image of `line`. Raises `SourceError`. Blocks."""
        try:
            entry = orjson.loads(line)
        except ValueError as error:
            raise SourceError(f"not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise SourceError("not a JSON object")
        reference = self._pop_field(entry)
        if not isinstance(reference, str):
            raise SourceError(f"its field {self._field!r} is not a string")
        try:
            extra = orjson.dumps(entry).decode() if entry else None
        except TypeError as error:  # orjson writes fewer nested levels than it reads
            raise SourceError(f"its fields can't be stored: {error}") from error
        return referenced_image(reference, self._folder, extra=extra)

    def _pop_field(self, entry: dict[str, Any]) -> Any:
        """Remove the field from `entry` and return its value."""
        if self._field in entry:
            return entry.pop(self._field)
        *path, last = self._field.split(".")
        inner: Any = entry
        for step in path:
            inner = inner.get(step) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or last not in inner:
            raise SourceError(
                f"it has no field {self._field!r}; its fields are {', '.join(map(repr, list(entry)[:8])) or 'none'}"
            )
        return inner.pop(last)


def chunked(entries: Iterator[Entry]) -> Iterator[ListChunk]:
    """`entries` in chunks of `CHUNK` lines."""
    images: list[ImageRef] = []
    bad: list[BadLine] = []
    labels = BadLabels()
    for entry in entries:
        if isinstance(entry, BadLine):
            bad.append(entry)
        elif isinstance(entry, BadLabel):
            images.append(entry.image)
            labels += BadLabels(1, f"line {entry.number}: {entry.reason}")
        else:
            images.append(entry)
        if len(images) + len(bad) >= CHUNK:
            yield ImageChunk(images, bad, bad_labels=labels)
            images, bad, labels = [], [], BadLabels()
    if images or bad:
        yield ImageChunk(images, bad, bad_labels=labels)


def numbered_lines(file: BufferedReader) -> Iterator[tuple[int, bytes]]:
    """The non-blank lines with their 1-based numbers, without line ends.

    An overlong line is truncated to `MAX_LINE_BYTES` + 1 bytes to bound memory. Only the line end is stripped, because
    other white space may belong to a key.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            skip_line(file)
        if stripped := line.removesuffix(b"\n").removesuffix(b"\r"):
            yield number, stripped


def check_length(line: bytes) -> None:
    """Raise `SourceError` if `line` is a truncated overlong line."""
    if len(line) > MAX_LINE_BYTES:
        raise SourceError(f"longer than {MAX_LINE_BYTES:,} bytes")


def skip_line(file: BufferedReader) -> None:
    """Skip the rest of the line without loading it whole."""
    while buffered := file.peek():
        end = buffered.find(b"\n") + 1
        file.read(end or len(buffered))
        if end:
            return


def skip_mark(file: BufferedReader, name: str) -> None:
    """Skip the byte order mark that Windows editors write. Raises `SourceError` for UTF-16."""
    refuse_utf16(file.peek(_MARK_BYTES), name)
    if file.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))


def refuse_utf16(start: bytes, name: str) -> None:
    """Raise `SourceError` if a file starts like UTF-16 text, which PowerShell and Excel write."""
    for encoding in ("UTF-16LE", "UTF-16BE"):
        mark = codecs.BOM_UTF16_LE if encoding == "UTF-16LE" else codecs.BOM_UTF16_BE
        high_bytes = start[encoding == "UTF-16LE" : 40 : 2]
        if start.startswith(mark) or (len(high_bytes) >= _MIN_NUL_BYTES and not any(high_bytes)):
            raise SourceError(f"{name} is {encoding} text; convert it: iconv -f {encoding} -t UTF-8 {name} > NEW")
