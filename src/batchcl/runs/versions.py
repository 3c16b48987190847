"""What tells a version of an image from another: its S3 version, else its entity tag; of a local file size and time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import polars as pl

from batchcl.digests import SeenOnDisk
from batchcl.images import ImageRef

__all__ = ["SCHEMA", "names", "not_among", "not_in"]

SCHEMA: Final[dict[str, pl.DataType]] = {
    "uri": pl.String(),
    "version_id": pl.String(),
    "etag": pl.String(),
    "size_bytes": pl.Int64(),
    "last_modified": pl.Datetime("us", "UTC"),
}
"""The columns that tell it, of images and of results alike."""

_SLICE: Final = 10_000


def _listed(images: Sequence[ImageRef]) -> pl.DataFrame:
    """What tells the versions of `images`."""
    return pl.DataFrame(
        {
            "uri": [image.uri for image in images],
            "version_id": [image.version_id for image in images],
            "etag": [image.etag for image in images],
            "size_bytes": [image.size_bytes for image in images],
            "last_modified": [image.last_modified for image in images],
            "local": [image.local for image in images],
        },
        schema={**SCHEMA, "local": pl.Boolean()},
    )


def not_among(images: Sequence[ImageRef], frames: Sequence[pl.DataFrame]) -> list[bool]:
    """For each image, whether none of `frames`, which have the columns of `SCHEMA`, has this version of it."""
    pairs = _listed(images).with_row_index("n").join(pl.concat(frames), on="uri", suffix="_known")
    by_version = pl.col("version_id") == pl.col("version_id_known")
    by_etag = pl.col("version_id").is_null() & (pl.col("etag") == pl.col("etag_known"))
    by_time = (
        pl.col("local")
        & (pl.col("size_bytes") == pl.col("size_bytes_known"))
        & (pl.col("last_modified") == pl.col("last_modified_known"))
    )
    found = pairs.filter(
        by_version.fill_null(value=False) | by_etag.fill_null(value=False) | by_time.fill_null(value=False)
    )
    seen = set(found["n"])
    return [n not in seen for n in range(len(images))]


# a version's names, by each of what may tell it; null where that isn't known
_BY_VERSION: Final = pl.concat_str(pl.lit("v"), "version_id", pl.lit("\0"), "uri")
_BY_ETAG: Final = pl.concat_str(pl.lit("e"), "etag", pl.lit("\0"), "uri")
_BY_TIME: Final = pl.concat_str(
    pl.lit("t"),
    pl.col("size_bytes").cast(pl.String),
    pl.lit(" "),
    pl.col("last_modified").cast(pl.Int64).cast(pl.String),
    pl.lit("\0"),
    "uri",
)


def names(known: pl.DataFrame) -> Iterable[str]:
    """All names by which the versions in `known`, which has the columns of `SCHEMA`, may be asked for."""
    local = ~pl.col("uri").str.contains("^(s3|https?)://")
    for rows in known.iter_slices(_SLICE):
        found = rows.select(version=_BY_VERSION, etag=_BY_ETAG, time=pl.when(local).then(_BY_TIME))
        for column in found.get_columns():
            yield from column.drop_nulls()


def not_in(seen: SeenOnDisk, images: Sequence[ImageRef]) -> list[bool]:
    """For each image, whether none of its names is in `seen`."""
    without_version = pl.col("version_id").is_null()
    asked = _listed(images).select(
        version=_BY_VERSION, etag=pl.when(without_version).then(_BY_ETAG), time=pl.when(pl.col("local")).then(_BY_TIME)
    )
    return [not any(name is not None and name in seen for name in row) for row in asked.iter_rows()]
