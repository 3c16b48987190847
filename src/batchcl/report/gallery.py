"""Chooses the pictures of the report and makes them fit into its size limit."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread
import polars as pl

from batchcl.errors import CredentialsError, RefusedError
from batchcl.report import choose
from batchcl.report.pictures import PICTURE_COLUMNS, Picture, fetch_pictures

if TYPE_CHECKING:
    from batchcl.analysis.part_files import Batch
    from batchcl.analysis.results import Results
    from batchcl.analysis.truth import Truth
    from batchcl.aws.session import Aws

__all__ = ["Chosen", "GalleryPicture", "categories", "choose_pictures", "draw_pictures", "fit_pictures"]

_COLUMNS: Final = tuple(dict.fromkeys((*PICTURE_COLUMNS, *choose.COLUMNS)))
_MOST_CANDIDATES: Final = 20_000
_BOX: Final = ("left", "top", "width", "height")
_IDENTITY: Final = ("model_arn", "uri", "version_id")

_CONCURRENCY: Final = 8
_STEPS: Final = ((480, 80), (400, 75), (320, 70), (256, 60), (192, 50), (128, 40))
"""Longest side in pixels and JPEG quality, from the best. A card is 216 CSS pixels wide."""
_BYTES_PER_PIXEL: Final = 0.1
"""Of the square of a photograph's longest side; decides which step is tried first."""
_BASE64: Final = 4 / 3

_TITLES: Final = {
    "changed": "Changed since the baseline",
    "wrong": "Wrong according to the truth",
    "uncertain": "Most uncertain",
    "least": "Least confident per label",
    "most": "Most confident per label",
    "unlabelled": "Without a label",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """An image of the gallery.

    Attributes:
        category: key of its heading.
        reason: why it is in this category.
        also: headings of other categories that it would be in.
        row: its row of `Results.images()`.
    """

    category: str
    reason: str
    also: tuple[str, ...]
    row: Mapping[str, Any]

    @property
    def title(self) -> str:
        """The heading of the category."""
        return _TITLES[self.category]


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryPicture:
    """A chosen image and its picture."""

    chosen: Chosen
    picture: Picture


def choose_pictures(
    results: Results,
    *,
    limit: int,
    frequent: Sequence[str],
    truth: Truth | None = None,
    changes: Mapping[str, str] | None = None,
) -> list[Chosen]:
    """Choose at most `limit` images, about the same number of each category, each image once. Blocks.

    Args:
        results: the images.
        limit: how many at most.
        frequent: the labels, the most frequent first.
        truth: for the wrong ones.
        changes: uri → reason of images that have changed since the baseline, the best first.

    Returns:
        The images, by category in the order of the page, in each the best first.
    """
    if not limit:
        return []
    ranked = partial(_ranked, limit=limit, frequent=frequent, truth=truth, changes=changes or {})
    candidates = _candidates(results, lambda images: _union(ranked(images)))
    if candidates.is_empty():
        return []
    frames = {name: frame for name, frame in ranked(candidates).items() if not frame.is_empty()}
    takes = _take_in_turns({name: _identities(frame) for name, frame in frames.items()}, limit)
    of_image: dict[Any, list[str]] = {}
    for name, frame in frames.items():
        for identity in _identities(frame):
            of_image.setdefault(identity, []).append(name)
    chosen = [
        _chosen(name, frames[name].row(number, named=True), of_image) for name in frames for number in takes[name]
    ]
    return _with_polygons(results, chosen)


def _ranked(
    images: pl.DataFrame, *, limit: int, frequent: Sequence[str], truth: Truth | None, changes: Mapping[str, str]
) -> dict[str, pl.DataFrame]:
    """The images of each category, the best first, at most `limit` of each, with their `reason`."""
    per_label = 1 + limit // (2 * max(1, len(frequent)))
    extremes = _by_turns(choose.extremes_per_label(images, per_label=per_label), frequent)
    return {
        "changed": _changed(images, changes).head(limit),
        "wrong": images.clear() if truth is None else choose.wrong(images, truth, limit=limit),
        "uncertain": choose.most_uncertain(images, limit=limit),
        "least": extremes.filter(pl.col("rank") > 0).head(limit),
        "most": extremes.filter(pl.col("rank") <= 0).head(limit),
        "unlabelled": choose.without_label(images, limit=limit),
    }


def _changed(images: pl.DataFrame, changes: Mapping[str, str]) -> pl.DataFrame:
    reasons = pl.DataFrame(
        {"uri": list(changes), "reason": list(changes.values()), "rank": range(len(changes))},
        schema={"uri": pl.String, "reason": pl.String, "rank": pl.Float64},
    )
    return images.join(reasons, on="uri", how="inner").sort("rank")


def _union(ranked: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """The images of all categories, each once, without reasons."""
    frames = [frame.select(_COLUMNS) for frame in ranked.values()]
    return pl.concat(frames).unique(_IDENTITY, keep="first", maintain_order=True)


def _candidates(results: Results, best: Callable[[pl.DataFrame], pl.DataFrame]) -> pl.DataFrame:
    """Rows from which the same images are chosen as from all rows; read in batches, of which `best` remain."""
    found = pl.DataFrame()
    for part in results.map_batches(lambda batch: best(_images(batch)), columns=_STORED, fields=_BOX):
        found = pl.concat([found, part]) if found.height else part
        if found.height > _MOST_CANDIDATES:
            found = best(found)
    return found


_STORED: Final = tuple(name for name in _COLUMNS if name != "labels")


def _images(batch: Batch) -> pl.DataFrame:
    """The images of a batch with their labels, without polygons."""
    label = pl.struct(pl.col("label").cast(pl.String).alias("name"), "confidence", *_BOX)
    labels = batch.detections.group_by("image", maintain_order=True).agg(label.alias("labels"))
    numbered = batch.images.with_row_index("image").with_columns(pl.col("image").cast(labels.schema["image"]))
    joined = numbered.join(labels, on="image", how="left", maintain_order="left")
    return joined.with_columns(pl.col("labels").fill_null([])).select(_COLUMNS)


def _with_polygons(results: Results, chosen: Sequence[Chosen]) -> list[Chosen]:
    """`chosen` with their stored rows."""
    uris = [each.row["uri"] for each in chosen]
    rows = results.images().filter(pl.col("uri").is_in(uris)).select(PICTURE_COLUMNS).collect(engine="in-memory")
    stored = {_identity(row): row for row in rows.iter_rows(named=True)}
    return [replace(each, row=stored[_identity(each.row)]) for each in chosen]


def _chosen(category: str, row: dict[str, Any], of_image: Mapping[Any, Sequence[str]]) -> Chosen:
    others = [_TITLES[name] for name in of_image[_identity(row)] if name != category]
    return Chosen(category=category, reason=row["reason"], also=tuple(dict.fromkeys(others)), row=row)


def _by_turns(extremes: pl.DataFrame, frequent: Sequence[str]) -> pl.DataFrame:
    """One image of each label, the most frequent label first, then a second one of each, and so on."""
    order = pl.DataFrame({"label": frequent}, schema={"label": pl.String}).with_row_index("frequency")
    turn = pl.int_range(pl.len()).over("label", pl.col("rank") > 0).alias("turn")
    return (
        extremes.with_columns(turn)
        .join(order, on="label", how="left", maintain_order="left")
        .sort("turn", "frequency", nulls_last=True, maintain_order=True)
    )


def _take_in_turns(ranked: Mapping[str, Sequence[Any]], limit: int) -> dict[str, list[int]]:
    """From each category in turn its best image that isn't taken yet; the numbers of those taken, by category."""
    taken: set[Any] = set()
    takes: dict[str, list[int]] = {name: [] for name in ranked}
    left = {name: iter(enumerate(identities)) for name, identities in ranked.items()}
    for name in cycle(ranked):
        if len(taken) == limit or not left:
            return takes
        if name not in left:
            continue
        for number, identity in left[name]:
            if identity not in taken:
                taken.add(identity)
                takes[name].append(number)
                break
        else:
            del left[name]
    return takes


def _identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _IDENTITY)


def _identities(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return frame.select(_IDENTITY).rows()


async def draw_pictures(chosen: Sequence[Chosen], *, aws: Aws, max_bytes: int) -> list[GalleryPicture]:
    """Read the chosen images and draw their boxes, at the size that should fit into `max_bytes`; see `fit_pictures`.

    An image that can't be read has an error in place of its picture; so have all if credentials are missing.

    Args:
        chosen: the images.
        aws: for images in S3.
        max_bytes: of all pictures together in the page.
    """
    max_px, quality = _STEPS[_first_step(len(chosen), max_bytes)]
    pictures: dict[int, Picture] = {}
    for has_boxes in (True, False):  # an image without boxes is not enlarged, which would cost bytes for nothing
        numbers = [number for number, each in enumerate(chosen) if _has_boxes(each.row) is has_boxes]
        if not numbers:
            continue
        fetched = fetch_pictures(
            pl.DataFrame([chosen[number].row for number in numbers], infer_schema_length=None),
            aws=aws,
            max_px=max_px,
            draw=has_boxes,
            quality=quality,
            concurrency=_CONCURRENCY,
        )
        try:
            async with aclosing(fetched):
                async for each in fetched:
                    pictures[numbers[each.row]] = each
        except (CredentialsError, RefusedError) as error:  # the rest of the report doesn't need the images
            for row, number in enumerate(numbers):
                pictures.setdefault(number, Picture(row=row, error=str(error)))
    return [GalleryPicture(chosen=each, picture=pictures[number]) for number, each in enumerate(chosen)]


def _has_boxes(row: Mapping[str, Any]) -> bool:
    return any(label["left"] is not None for label in row["labels"])


def _first_step(count: int, max_bytes: int) -> int:
    """The best step with which photographs usually fit."""
    each = max_bytes / max(1, count) / _BASE64
    fitting = (step for step, (side, _) in enumerate(_STEPS) if side * side * _BYTES_PER_PIXEL <= each)
    return next(fitting, len(_STEPS) - 1)


async def fit_pictures(
    pictures: Sequence[GalleryPicture], *, size_of: Callable[[Sequence[GalleryPicture]], int], max_bytes: int
) -> list[GalleryPicture]:
    """Shrink the pictures, and then leave out some of each category, until the page with them fits.

    Args:
        pictures: the best first within each category.
        size_of: the size of the page with these pictures, in bytes.
        max_bytes: of the page.
    """
    fitting = list(pictures)
    for max_px, quality in _STEPS:
        if size_of(fitting) <= max_bytes:
            return fitting
        fitting = await anyio.to_thread.run_sync(partial(_shrunk, fitting, max_px, quality))
    while fitting and size_of(fitting) > max_bytes:
        excess = size_of(fitting) / max_bytes
        fitting = _best(fitting, min(len(fitting) - 1, int(len(fitting) / excess)))
    return fitting


def _best(pictures: Sequence[GalleryPicture], count: int) -> list[GalleryPicture]:
    """The best `count` pictures, from each category in turn."""
    by_category: dict[str, list[int]] = {}
    for number, each in enumerate(pictures):
        by_category.setdefault(each.chosen.category, []).append(number)
    takes = _take_in_turns(by_category, count)
    kept = {by_category[name][number] for name, numbers in takes.items() for number in numbers}
    return [each for number, each in enumerate(pictures) if number in kept]


def _shrunk(pictures: Sequence[GalleryPicture], max_px: int, quality: int) -> list[GalleryPicture]:
    return [replace(each, picture=_smaller(each.picture, max_px, quality)) for each in pictures]


def _smaller(picture: Picture, max_px: int, quality: int) -> Picture:
    """`picture` with at most `max_px` and in this quality, if that needs fewer bytes."""
    from PIL import Image

    if not picture.jpeg:
        return picture
    image = Image.open(io.BytesIO(picture.jpeg), formats=["JPEG"])
    image.thumbnail((max_px, max_px))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    jpeg = buffer.getvalue()
    if len(jpeg) >= len(picture.jpeg):
        return picture
    return replace(picture, jpeg=jpeg, width=image.width, height=image.height)


def categories(pictures: Sequence[GalleryPicture]) -> Iterator[tuple[str, list[GalleryPicture]]]:
    """The pictures by heading, in the order of the page."""
    for name, title in _TITLES.items():
        of_category = [each for each in pictures if each.chosen.category == name]
        if of_category:
            yield title, of_category
