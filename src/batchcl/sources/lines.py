"""Text files with an image a line."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Final

from batchcl.errors import SourceError
from batchcl.images import ImageRef
from batchcl.sources.base import BadLine
from batchcl.sources.files import open_list
from batchcl.sources.listed import Chunk, ImageChunk

__all__ = ["CHUNK", "MAX_LINE_BYTES", "LinePart", "check_length", "chunked", "numbered_lines", "skip_line", "skip_mark"]

MAX_LINE_BYTES: Final = 4 * 1024 * 1024
"""A manifest line with ten thousand boxes has about 1 MB; a longer line than this isn't one."""

CHUNK: Final = 1000
"""Lines a chunk."""

Entry = ImageRef | BadLine


class LinePart:
    """A text file; `parse` turns a line into its image or raises `SourceError`.

    Blank lines count for the numbering and are passed over.
    """

    def __init__(self, name: str, path: Path, parse: Callable[[bytes], ImageRef]) -> None:
        self.name = name
        self._path = path
        self._parse = parse

    def chunks(self) -> Iterator[Chunk]:
        """The lines, some at a time."""
        with open_list(self._path, self.name) as file:
            skip_mark(file)
            yield from chunked(self._entry(number, line) for number, line in numbered_lines(file))

    def _entry(self, number: int, line: bytes) -> Entry:
        try:
            check_length(line)
            return self._parse(line)
        except SourceError as error:
            return BadLine(number, str(error))


def chunked(entries: Iterator[Entry]) -> Iterator[Chunk]:
    """`entries` in chunks."""
    images: list[ImageRef] = []
    bad: list[BadLine] = []
    for entry in entries:
        if isinstance(entry, ImageRef):
            images.append(entry)
        else:
            bad.append(entry)
        if len(images) + len(bad) >= CHUNK:
            yield ImageChunk(images, bad)
            images, bad = [], []
    if images or bad:
        yield ImageChunk(images, bad)


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


def skip_mark(file: BufferedReader) -> None:
    """Pass over the byte order mark that Windows' editors write; it belongs to no key."""
    if file.peek(len(codecs.BOM_UTF8)).startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
