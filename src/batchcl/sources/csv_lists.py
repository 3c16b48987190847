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
from batchcl.groundtruth import multilabel_attribute
from batchcl.images import ImageRef
from batchcl.sources.base import BadLine, referenced_image
from batchcl.sources.files import open_list
from batchcl.sources.list_source import ListChunk
from batchcl.sources.text_lists import MAX_LINE_BYTES, Entry, chunked, skip_line, skip_mark

__all__ = ["BUCKET_NAME", "CsvPart", "LabelRows", "batch_row", "decoded_key"]

BUCKET_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,253}[a-zA-Z0-9]")
"""A valid bucket name; old buckets in us-east-1 may have more characters than new ones."""

_INVALID_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_MAX_BATCH_FIELDS: Final = 3

Row = list[str]


def decoded_key(text: str) -> str:
    """The URL-decoded key; `+` and `%20` are spaces.

    Raises `SourceError` if `text` is not valid URL-encoding, so that a list of literal keys isn't corrupted.
    """
    if "%" not in text and "+" not in text:
        return text
    if (match := _INVALID_ESCAPE.search(text)) is not None:
        raise SourceError(
            f"the key {text!r} is not URL-encoded, which this kind of list requires: the % at position "
            f"{match.start() + 1} does not begin an escape"
        )
    try:
        return unquote_plus(text, errors="strict")
    except UnicodeDecodeError as error:
        raise SourceError(f"the URL-decoded key {text!r} is not UTF-8") from error


def batch_row(row: Row) -> ImageRef:
    """The image of a row `bucket,key[,versionId]` with a URL-encoded key. Raises `SourceError`."""
    if not 1 < len(row) <= _MAX_BATCH_FIELDS:
        raise SourceError(f"expected bucket,key[,versionId]; got {len(row)} fields")
    bucket, encoded, *version = row
    if BUCKET_NAME.fullmatch(bucket) is None:
        raise SourceError(f"{bucket!r} is not a bucket name")
    key = decoded_key(encoded)
    if not key:
        raise SourceError("the key is empty")
    return ImageRef(uri=f"s3://{bucket}/{key}", bucket=bucket, key=key, version_id=(version or [""])[0] or None)


class LabelRows:
    """Parses rows `image,label,…`; the image is `s3://bucket/key` or a path below the list's directory, literally.

    The labels are stored in `extra` in Ground Truth's multi-label format, which `batchcl evaluate` reads.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def __call__(self, row: Row) -> ImageRef:
        """The image of `row`. Raises `SourceError`. Blocks."""
        image, *labels = row
        if not image:
            raise SourceError("its first field, the image, is empty")
        nonempty = [label for label in labels if label]
        extra = orjson.dumps(multilabel_attribute("labels", nonempty)).decode() if nonempty else None
        return referenced_image(image, self._folder, extra=extra)


class CsvPart:
    """A CSV file; `parse` converts a row to its image or raises `SourceError`.

    Instead of `parse`, `header` may be given: a function of the first row that returns the parser of the other rows.
    A bad row is reported by the number of its last line.
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
        """See `ListPart`."""
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
                yield BadLine(reader.line_num, f"not valid CSV: {error}")
            except SourceError as error:
                if parse is None:
                    raise SourceError(f"{self.name}: {error}", code=error.code) from error
                yield BadLine(reader.line_num, str(error))


def _text(file: BufferedReader) -> Iterator[str]:
    """The lines with their line ends. Invalid UTF-8 becomes surrogates, which `_clean` refuses with their row."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            if not line.endswith(b"\n"):
                skip_line(file)
            line = b'"overlong"x\n'  # invalid CSV, so that the row is a bad one
        yield line.decode("utf-8", "surrogateescape")


def _clean(row: Sequence[str]) -> Row:
    """The row; raises `SourceError` if it is not UTF-8."""
    for value in row:
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise SourceError("not UTF-8 text") from error
    return list(row)
