"""Text files with an image a line."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import Final

from batchcl.errors import SourceError
from batchcl.images import ImageRef
from batchcl.sources.base import BadLabel, BadLabels, BadLine
from batchcl.sources.files import open_list
from batchcl.sources.listed import Chunk, ImageChunk

__all__ = [
    "CHUNK",
    "MAX_LINE_BYTES",
    "LinePart",
    "check_length",
    "chunked",
    "numbered_lines",
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

    def chunks(self) -> Iterator[Chunk]:
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


def chunked(entries: Iterator[Entry]) -> Iterator[Chunk]:
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
