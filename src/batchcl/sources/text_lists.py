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
from batchcl.sources.base import BadLabel, BadLabels, BadLine, local_image, referred_image, refuse_url, s3_image
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
"""A manifest line with ten thousand boxes has about 1 MB; a longer line than this isn't one."""

CHUNK: Final = 1000
"""Lines a chunk."""

_MARK_BYTES: Final = 64
_ENOUGH_TO_TELL: Final = 4
"""So many NUL bytes, one in two, are no accident."""

Entry = ImageRef | BadLine | BadLabel


class LinePart:
    """A text file; `parse` turns a line into its image or raises `SourceError`.

    Blank lines count for the numbering and are passed over.
    """

    def __init__(self, name: str, path: Path, parse: Callable[[bytes], ImageRef | BadLabel]) -> None:
        self.name = name
        self._path = path
        self._parse = parse

    def chunks(self) -> Iterator[ListChunk]:
        """The lines, some at a time."""
        with open_list(self._path, self.name) as file:
            skip_mark(file, self.name)
            yield from chunked(self._entry(number, line) for number, line in numbered_lines(file))

    def _entry(self, number: int, line: bytes) -> Entry:
        try:
            check_length(line)
            found = self._parse(line)
            return replace(found, number=number) if isinstance(found, BadLabel) else found
        except SourceError as error:
            return BadLine(number, str(error))


def chunked(entries: Iterator[Entry]) -> Iterator[ListChunk]:
    """`entries` in chunks."""
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
    """Lines that aren't blank, with their numbers and without their ends.

    Of an overlong one only the first bytes come, so that memory stays bounded. Other white space than the line end may
    belong to a key, and stays.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            skip_line(file)
        if stripped := line.removesuffix(b"\n").removesuffix(b"\r"):
            yield number, stripped


def check_length(line: bytes) -> None:
    """Raise `SourceError` where `line` is only the beginning of an overlong one."""
    if len(line) > MAX_LINE_BYTES:
        raise SourceError(f"it is longer than {MAX_LINE_BYTES:,} bytes")


def skip_line(file: BufferedReader) -> None:
    """Pass over the rest of the line, in the room of a buffer."""
    while waiting := file.peek():
        end = waiting.find(b"\n") + 1
        file.read(end or len(waiting))
        if end:
            return


def refuse_utf16(start: bytes, name: str) -> None:
    """Raise `SourceError` where a text begins like UTF-16, which PowerShell and Excel write."""
    for encoding in ("UTF-16LE", "UTF-16BE"):
        mark = codecs.BOM_UTF16_LE if encoding == "UTF-16LE" else codecs.BOM_UTF16_BE
        ascii_only = start[encoding == "UTF-16LE" : 40 : 2]
        if start.startswith(mark) or (len(ascii_only) >= _ENOUGH_TO_TELL and not any(ascii_only)):
            raise SourceError(f"{name} is {encoding} text; convert it: iconv -f {encoding} -t UTF-8 {name} > NEW")


def skip_mark(file: BufferedReader, name: str) -> None:
    """Pass over the byte order mark that Windows' editors write; it belongs to no key. Refuses UTF-16."""
    refuse_utf16(file.peek(_MARK_BYTES), name)
    if file.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))


def parse_key_line(line: bytes, *, may_be_local: bool = True) -> ImageRef:
    """The image that `line` names; paths are relative to the working directory. Raises `SourceError`. Blocks.

    A list that isn't on this machine names no files on it: there, `may_be_local` is false.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise SourceError("it is not UTF-8 text") from error
    if text.startswith("s3://"):
        return s3_image(text)
    if text.startswith(BYTE_ORDER_MARK):
        raise SourceError("it begins with a byte order mark, as where two files were joined; remove the mark")
    refuse_url(text)
    if "\0" in text:
        raise SourceError("it holds a NUL byte, so it is neither a key nor a path")
    if "://" in text:
        raise SourceError(f"{text!r} is neither s3://bucket/key nor a path")
    if not may_be_local:
        raise SourceError(f"{text!r} is not s3://bucket/key, and a list in S3 names no files of this machine")
    return local_image(text)


class ManifestParser:
    """Reads a manifest's lines.

    A `source-ref` that isn't in S3 is a path relative to the manifest, for offline work; one that leads out of the
    manifest's directory is refused, as a manifest may come from somebody else.
    """

    def __init__(self, folder: Path | None, *, attribute: str | None = None) -> None:
        self._folder = folder
        self._attribute = attribute

    def __call__(self, line: bytes) -> ImageRef | BadLabel:
        """The image of `line`, with the line's labels in `extra`. Raises `SourceError`. Blocks.

        Scoring needs the reference alone, so labels that can't be used make no line bad.
        """
        truth = parse_line(line, attribute=self._attribute)
        try:
            image = referred_image(truth.source_ref, self._folder, extra=truth.extra)
        except SourceError as error:
            raise SourceError(f"its source-ref: {error}") from error
        return BadLabel(image, truth.bad_labels[0]) if truth.bad_labels else image


class FieldParser:
    """Reads JSON Lines whose field `field` names the image; the others go to `extra`.

    `field` is the name of a key of the object, or, where there is no such key, a path into it: `image.uri`.
    """

    def __init__(self, field: str, folder: Path | None) -> None:
        self._field = field
        self._folder = folder

    def __call__(self, line: bytes) -> ImageRef:
        """The image of `line`. Raises `SourceError`. Blocks."""
        try:
            entry = orjson.loads(line)
        except ValueError as error:
            raise SourceError(f"it is not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise SourceError("it is no JSON object")
        reference = self._taken(entry)
        if not isinstance(reference, str):
            raise SourceError(f"its field {self._field!r} is no string")
        try:
            extra = orjson.dumps(entry).decode() if entry else None
        except TypeError as error:  # orjson writes fewer levels than it reads
            raise SourceError(f"it can't be kept: {error}") from error
        return referred_image(reference, self._folder, extra=extra)

    def _taken(self, entry: dict[str, Any]) -> Any:
        """The field's value, which leaves the entry."""
        if self._field in entry:
            return entry.pop(self._field)
        *path, last = self._field.split(".")
        inner: Any = entry
        for step in path:
            inner = inner.get(step) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or last not in inner:
            raise SourceError(
                f"it has no field {self._field!r}; it has {', '.join(map(repr, list(entry)[:8])) or 'none'}"
            )
        return inner.pop(last)
