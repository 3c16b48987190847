"""Images as columns: how a shard of the work list is kept, and read one image at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import polars as pl
import pyarrow as pa

from batchcl.images import ArchiveMember, ImageRef
from batchcl.runs.schema import utf8

__all__ = ["IMAGES", "ImageRows", "image_table"]

IMAGES: Final = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("bucket", pa.string(), nullable=False),
        pa.field("key", pa.binary(), nullable=False),  # a local name need not be UTF-8
        pa.field("version_id", pa.string()),
        pa.field("etag", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("last_modified", pa.timestamp("us", tz="UTC")),
        pa.field("extra", pa.string()),
        pa.field("region", pa.string()),
        pa.field("archive", pa.binary()),
        pa.field("offset", pa.int64()),
        pa.field("any_name", pa.bool_()),
    ]
)
_ROWS_AT_ONCE: Final = 512
"""So many images are objects at a time."""


def image_table(images: Sequence[ImageRef]) -> pa.Table:
    """`images` with the columns of `IMAGES`, in their order."""
    columns: dict[str, list[Any]] = {
        "uri": [image.uri for image in images],
        "bucket": [image.bucket for image in images],
        "key": [utf8(image.key) for image in images],
        "version_id": [image.version_id for image in images],
        "etag": [image.etag for image in images],
        "size_bytes": [image.size_bytes for image in images],
        "last_modified": [image.last_modified for image in images],
        "extra": [image.extra for image in images],
        "region": [image.region for image in images],
        "archive": [None if image.member is None else utf8(image.member.archive) for image in images],
        "offset": [None if image.member is None else image.member.offset for image in images],
        "any_name": [image.any_name for image in images],
    }
    return pa.table([pa.array(columns[field.name], field.type) for field in IMAGES], schema=IMAGES)


class ImageRows:
    """The images of a table at `positions`, made while they are iterated; can be iterated again."""

    def __init__(self, table: pa.Table, positions: Sequence[int]) -> None:
        self._table = table
        self._positions = positions

    def __iter__(self) -> Iterator[ImageRef]:
        for start in range(0, len(self._positions), _ROWS_AT_ONCE):
            rows = self._table.take(pa.array(self._positions[start : start + _ROWS_AT_ONCE], pa.int32()))
            frame = pl.DataFrame(rows)  # of moments, pyarrow's own lists take seven times as long
            columns = [frame[field.name].to_list() for field in IMAGES]
            for (
                uri,
                bucket,
                key,
                version_id,
                etag,
                size_bytes,
                last_modified,
                extra,
                region,
                archive,
                offset,
                any_name,
            ) in zip(*columns, strict=True):
                yield ImageRef(
                    uri=uri,
                    bucket=bucket,
                    key=_text(key),
                    version_id=version_id,
                    etag=etag,
                    size_bytes=size_bytes,
                    last_modified=last_modified,
                    extra=extra,
                    region=region,
                    member=None if archive is None else ArchiveMember(_text(archive), offset),
                    any_name=any_name,
                )


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
