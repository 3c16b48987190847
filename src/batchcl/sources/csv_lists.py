"""CSV lists: S3 Batch Operations manifests, the Custom Labels guide's `image,label,…`, and tables with a header.

Sources: S3 user guide, "Specifying a manifest"; Custom Labels guide, "Creating a manifest file from a CSV file".
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Final
from urllib.parse import unquote_plus

import orjson

from batchcl.errors import SourceError
from batchcl.groundtruth import multilabel
from batchcl.images import ImageRef
from batchcl.sources.base import BadLine, referred_image
from batchcl.sources.files import open_list
from batchcl.sources.list_source import ListChunk
from batchcl.sources.text_lists import MAX_LINE_BYTES, Entry, chunked, skip_line, skip_mark

__all__ = ["BUCKET", "CsvPart", "LabelRows", "batch_row", "decoded_key"]

BUCKET: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,253}[a-zA-Z0-9]")
"""What a bucket may be called; old ones of us-east-1 had fewer rules."""

_NO_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_MOST_BATCH_FIELDS: Final = 3

Row = list[str]


def decoded_key(text: str) -> str:
    """The key behind its URL-encoding, in which a space is `+` or `%20`.

    Raises `SourceError` where `text` can't be URL-encoded, so that a list of literal keys isn't corrupted.
    """
    if "%" not in text and "+" not in text:
        return text
    if (found := _NO_ESCAPE.search(text)) is not None:
        raise SourceError(
            f"the key {text!r} is not URL-encoded, as keys in such a list have to be: its % at {found.start() + 1} "
            "begins no escape"
        )
    try:
        return unquote_plus(text, errors="strict")
    except UnicodeDecodeError as error:
        raise SourceError(f"the key {text!r} is no UTF-8 once it is decoded") from error


def batch_row(row: Row) -> ImageRef:
    """The image of a line `bucket,key[,versionId]` with a URL-encoded key. Raises `SourceError`."""
    if not 1 < len(row) <= _MOST_BATCH_FIELDS:
        raise SourceError(f"it has {len(row)} fields, and bucket,key or bucket,key,versionId is due")
    bucket, encoded, *version = row
    if BUCKET.fullmatch(bucket) is None:
        raise SourceError(f"{bucket!r} is no bucket's name")
    key = decoded_key(encoded)
    if not key:
        raise SourceError("it has no key")
    return ImageRef(uri=f"s3://{bucket}/{key}", bucket=bucket, key=key, version_id=(version or [""])[0] or None)


class LabelRows:
    """Reads lines `image,label,…`: the image is `s3://bucket/key` or a path below the list, taken literally.

    Its labels go to `extra` as Ground Truth writes several labels of an image, so `batchcl evaluate` reads them.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def __call__(self, row: Row) -> ImageRef:
        """The image of `row`. Raises `SourceError`. Blocks."""
        image, *labels = row
        if not image:
            raise SourceError("it names no image")
        named = [label for label in labels if label]
        extra = orjson.dumps(multilabel("labels", named)).decode() if named else None
        return referred_image(image, self._folder, extra=extra)


class CsvPart:
    """A CSV file; `parse` turns a row into its image or raises `SourceError`.

    With `header`, the first row goes to it and gives the function for the others. The number of a bad row is
    that of its last line.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        parse: Callable[[Row], ImageRef] | None = None,
        *,
        header: Callable[[Row], Callable[[Row], ImageRef]] | None = None,
    ) -> None:
        self.name = name
        self._path = path
        self._parse = parse
        self._header = header

    def chunks(self) -> Iterator[ListChunk]:
        """The rows, some at a time."""
        with open_list(self._path, self.name) as file:
            skip_mark(file, self.name)
            yield from chunked(self._entries(file))

    def _entries(self, file: BufferedReader) -> Iterator[Entry]:
        reader = csv.reader(_text(file), strict=True)
        parse = self._parse
        while True:
            try:
                row = next(reader, None)
                if row is None:
                    return
                if not row:
                    continue
                if parse is None:
                    assert self._header is not None
                    parse = self._header(_clean(row))
                    continue
                yield parse(_clean(row))
            except csv.Error as error:
                yield BadLine(reader.line_num, f"it is no CSV: {error}")
            except SourceError as error:
                if parse is None:
                    raise SourceError(f"{self.name}: {error}") from error
                yield BadLine(reader.line_num, str(error))


def _text(file: BufferedReader) -> Iterator[str]:
    """Lines with their ends; what is no UTF-8 is marked, to be refused with its row, and so is an overlong line."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            if not line.endswith(b"\n"):
                skip_line(file)
            line = b'"overlong"x\n'  # strict CSV refuses it
        yield line.decode("utf-8", "surrogateescape")


def _clean(row: Sequence[str]) -> Row:
    for value in row:
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise SourceError("it is not UTF-8 text") from error
    return list(row)
