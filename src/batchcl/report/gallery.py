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

from batchcl.report import choose
from batchcl.report.pictures import PICTURE_COLUMNS, Picture, fetch_pictures

if TYPE_CHECKING:
    from batchcl.analysis.truth import Truth
    from batchcl.aws.session import Aws

__all__ = ["GALLERY_COLUMNS", "Chosen", "GalleryPicture", "choose_pictures", "draw_pictures", "fit_pictures"]

GALLERY_COLUMNS: Final = tuple(dict.fromkeys((*PICTURE_COLUMNS, *choose.COLUMNS, "model")))
"""The columns of `Results.images()` that `choose_pictures` needs."""

_CONCURRENCY: Final = 8
_STEPS: Final = ((480, 80), (400, 75), (320, 70), (256, 60), (192, 50), (128, 40))
"""Longest side in pixels and JPEG quality, from the best. A card is 216 CSS pixels wide."""
_BYTES_PER_PIXEL: Final = 0.25
"""Of a JPEG of a detailed photograph at the first step; only decides which step is tried first."""
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
    images: pl.DataFrame,
    *,
    limit: int,
    frequent: Sequence[str],
    truth: Truth | None = None,
    baseline: pl.DataFrame | None = None,
) -> list[Chosen]:
    """Choose at most `limit` images, about the same number of each category, each image once.

    Args:
        images: with `GALLERY_COLUMNS`.
        limit: how many at most.
        frequent: the labels, the most frequent first.
        truth: for the wrong ones.
        baseline: for the changed ones, with `choose.COLUMNS`.

    Returns:
        The images, by category in the order of the page, in each the best first.
    """
    if not limit or images.is_empty():
        return []
    per_label = 1 + limit // (2 * max(1, len(frequent)))
    extremes = _by_turns(choose.extremes_per_label(images, per_label=per_label), frequent)
    ranked = {
        "changed": None if baseline is None else choose.changed(images, baseline, limit=limit),
        "wrong": None if truth is None else choose.wrong(images, truth, limit=limit),
        "uncertain": choose.most_uncertain(images, limit=limit),
        "least": extremes.filter(pl.col("rank") > 0).head(limit),
        "most": extremes.filter(pl.col("rank") <= 0).head(limit),
        "unlabelled": choose.without_label(images, limit=limit),
    }
    frames = {name: frame for name, frame in ranked.items() if frame is not None and not frame.is_empty()}
    takes = _take_in_turns({name: _identities(frame) for name, frame in frames.items()}, limit)
    of_image: dict[Any, list[str]] = {}
    for name, frame in frames.items():
        for identity in _identities(frame):
            of_image.setdefault(identity, []).append(name)
    return [_chosen(name, frames[name].row(number, named=True), of_image) for name in frames for number in takes[name]]


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
    return row["model_arn"], row["uri"], row["version_id"]


def _identities(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return frame.select("model_arn", "uri", "version_id").rows()


async def draw_pictures(chosen: Sequence[Chosen], *, aws: Aws, max_bytes: int) -> list[GalleryPicture]:
    """Read the chosen images and draw their boxes, at the size that should fit into `max_bytes`; see `fit_pictures`.

    Args:
        chosen: the images.
        aws: for images in S3.
        max_bytes: of all pictures together in the page.
    """
    max_px, quality = _STEPS[_first_step(len(chosen), max_bytes)]
    pictures: dict[int, Picture] = {}
    for has_boxes in (True, False):  # an image without boxes is not enlarged, which would cost bytes for nothing
        numbers = [number for number, each in enumerate(chosen) if _has_boxes(each.row) is has_boxes]
        fetched = fetch_pictures(
            pl.DataFrame([chosen[number].row for number in numbers], infer_schema_length=None),
            aws=aws,
            max_px=max_px,
            draw=has_boxes,
            quality=quality,
            concurrency=_CONCURRENCY,
        )
        if numbers:
            async with aclosing(fetched):
                pictures |= {numbers[each.row]: each async for each in fetched}
    return [GalleryPicture(chosen=each, picture=pictures[number]) for number, each in enumerate(chosen)]


def _has_boxes(row: Mapping[str, Any]) -> bool:
    return any(label["left"] is not None for label in row["labels"])


def _first_step(count: int, max_bytes: int) -> int:
    """The best step with which pictures of detailed photographs fit."""
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
