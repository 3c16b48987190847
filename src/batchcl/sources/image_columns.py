"""Images as the columns that `--where` may ask for: what the list tells of each, and the other columns of the list."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import orjson
import polars as pl

from batchcl.errors import UsageError
from batchcl.images import ImageRef, escaped
from batchcl.sources.base import Source
from batchcl.sources.where import Condition

__all__ = ["ImageCondition", "condition_on"]

_OWN: Final[Mapping[str, tuple[pl.DataType, Callable[[ImageRef], Any]]]] = {
    "uri": (pl.String(), lambda image: escaped(image.uri)),
    "bucket": (pl.String(), lambda image: image.bucket),
    "key": (pl.String(), lambda image: escaped(image.key)),
    "version_id": (pl.String(), lambda image: image.version_id),
    "etag": (pl.String(), lambda image: image.etag),
    "size": (pl.Int64(), lambda image: image.size_bytes),
    "size_bytes": (pl.Int64(), lambda image: image.size_bytes),
    "last_modified": (pl.Datetime("us", "UTC"), lambda image: image.last_modified),
    "extra": (pl.String(), lambda image: image.extra),
}


class ImageCondition:
    """A condition asked of images, a page at a time.

    Beside the image's own columns it knows those that its list has: numbers are floats, truth values are such, all
    else is text, nested values as JSON. What the list says of an image in another type than of the first ones is null.
    """

    def __init__(self, condition: Condition, kinds: Mapping[str, pl.DataType]) -> None:
        """`kinds` are those of the list's columns that the condition may name."""
        self._condition = condition
        self._own = {name: column for name, column in _OWN.items() if name in condition.names}
        self._kinds = {name: kind for name, kind in kinds.items() if name in condition.names and name not in _OWN}
        schema = {name: kind for name, (kind, _) in self._own.items()} | self._kinds
        condition.check(schema, known=[*_OWN, *(name for name in kinds if name not in _OWN)])

    def __call__(self, images: Sequence[ImageRef]) -> list[bool]:
        """For each image whether it fits. Raises `UsageError` where that can't be told for such values."""
        columns = [pl.Series("", [True] * len(images))]  # a condition need not name any column
        columns += [
            pl.Series(name, [told(image) for image in images], kind) for name, (kind, told) in self._own.items()
        ]
        if self._kinds:
            entries = [_entry(image) for image in images]
            columns += [
                pl.Series(name, [_cast(entry.get(name), kind) for entry in entries], kind)
                for name, kind in self._kinds.items()
            ]
        return self._condition.holds(pl.DataFrame(columns)).to_list()


async def condition_on(condition: Condition, sources: Iterable[Source]) -> ImageCondition:
    """`condition` for the images of `sources`, whose first pages tell which columns there are beside the image's own.

    Where it names none of those, no page is read.

    Raises:
        UsageError: there is no such column, or the condition is none for such columns.
        BatchclError: a source can't be read.
    """
    with suppress(UsageError):
        return ImageCondition(condition, {})
    values: dict[str, list[Any]] = {}
    for source in sources:
        for image in await _first_page(source):
            for name, value in _entry(image).items():
                values.setdefault(name, []).append(value)
    return ImageCondition(condition, {name: _kind(found) for name, found in values.items()})


async def _first_page(source: Source) -> list[ImageRef]:
    pages = source.pages()
    try:
        return await anext(pages, [])
    finally:
        if isinstance(pages, AsyncGenerator):
            await pages.aclose()


def _entry(image: ImageRef) -> dict[str, Any]:
    entry = None if image.extra is None else orjson.loads(image.extra)
    return entry if isinstance(entry, dict) else {}


def _kind(values: Iterable[Any]) -> pl.DataType:
    types = {type(value) for value in values if value is not None}
    if types and types <= {int, float}:
        return pl.Float64()
    return pl.Boolean() if types == {bool} else pl.String()


def _cast(value: Any, kind: pl.DataType) -> Any:
    if value is None:
        return None
    if kind == pl.Float64():
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    if kind == pl.Boolean():
        return value if isinstance(value, bool) else None
    return escaped(value) if isinstance(value, str) else orjson.dumps(value).decode()
