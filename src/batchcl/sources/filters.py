"""Which images of a list are taken, told from what the list says of each."""

from __future__ import annotations

import datetime as dt
import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from batchcl.images import ImageRef
from batchcl.sources.sample import Sample

__all__ = ["Filters", "Sieve", "filter_words"]

_UNKNOWN: Final = {"size_unknown": "size not known", "time_unknown": "time not known"}

_Judge: TypeAlias = Callable[[ImageRef], str | None]
"""Why an image is taken away, by the name of the filter, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What an image must be like to be taken.

    Attributes:
        include: globs, of which it fits any, if there is one.
        exclude: globs, of which it fits none, in whatever order they and `include` were given.
        newer_than: it was modified at that moment or later.
        older_than: it was modified before.
        min_size_bytes: it has as many bytes or more.
        max_size_bytes: it has as many bytes or fewer.
        where: says of images whether each fits a condition.
        sample: of those that are left, these.
        limit: of those, the first so many.

    Globs know `*`, `?` and `[…]`, tell upper from lower case, and `*` crosses `/`. One without `/` is held against the
    last part of the key, one with `/` against the whole key (for a local file: its path). An image of which the list
    doesn't tell the size or time passes no filter that asks for it.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    newer_than: dt.datetime | None = None
    older_than: dt.datetime | None = None
    min_size_bytes: int | None = None
    max_size_bytes: int | None = None
    where: Callable[[Sequence[ImageRef]], Sequence[bool]] | None = None
    sample: Sample | None = None
    limit: int | None = None


def filter_words(name: str) -> str:
    """What took images away, in words: the flag, or what was missing for it."""
    return _UNKNOWN.get(name) or f"--{name.replace('_', '-')}"


class Sieve:
    """The filters that judge each image by itself: all but the sample and the limit."""

    def __init__(self, filters: Filters) -> None:
        self._where = filters.where
        self._judges: list[_Judge] = []
        if filters.include:
            self._judges.append(_included([_Glob(pattern) for pattern in filters.include]))
        if filters.exclude:
            self._judges.append(_excluded([_Glob(pattern) for pattern in filters.exclude]))
        if filters.newer_than is not None or filters.older_than is not None:
            self._judges.append(_timely(filters.newer_than, filters.older_than))
        if filters.min_size_bytes is not None or filters.max_size_bytes is not None:
            self._judges.append(_sized(filters.min_size_bytes, filters.max_size_bytes))

    @property
    def takes_all(self) -> bool:
        """Whether there is no such filter."""
        return not self._judges and self._where is None

    def reasons(self, images: Sequence[ImageRef]) -> list[str | None]:
        """For each image the first filter that takes it away, by its name among `Job`'s fields; None where it stays.

        Where the list doesn't tell what a filter asks for, it is `size_unknown` or `time_unknown`.
        """
        found = [self._reason(image) for image in images]
        if self._where is not None:
            left = [at for at, reason in enumerate(found) if reason is None]
            for at, fits in zip(left, self._where([images[at] for at in left]), strict=True):
                if not fits:
                    found[at] = "where"
        return found

    def _reason(self, image: ImageRef) -> str | None:
        for judge in self._judges:
            if (reason := judge(image)) is not None:
                return reason
        return None


def _included(globs: Sequence[_Glob]) -> _Judge:
    return lambda image: None if any(glob.fits(image.key) for glob in globs) else "include"


def _excluded(globs: Sequence[_Glob]) -> _Judge:
    return lambda image: "exclude" if any(glob.fits(image.key) for glob in globs) else None


def _timely(newer_than: dt.datetime | None, older_than: dt.datetime | None) -> _Judge:
    def judge(image: ImageRef) -> str | None:
        moment = image.last_modified
        if moment is None:
            return "time_unknown"
        if newer_than is not None and moment < newer_than:
            return "newer_than"
        return "older_than" if older_than is not None and moment >= older_than else None

    return judge


def _sized(least: int | None, most: int | None) -> _Judge:
    def judge(image: ImageRef) -> str | None:
        size = image.size_bytes
        if size is None:
            return "size_unknown"
        if least is not None and size < least:
            return "min_size"
        return "max_size" if most is not None and size > most else None

    return judge


class _Glob:
    def __init__(self, pattern: str) -> None:
        self._whole = "/" in pattern
        self._match = re.compile(fnmatch.translate(pattern)).match

    def fits(self, key: str) -> bool:
        return self._match(key if self._whole else key.rpartition("/")[2]) is not None
