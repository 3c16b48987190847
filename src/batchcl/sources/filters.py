"""Filters on images, and deterministic samples."""

from __future__ import annotations

import datetime as dt
import fnmatch
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import polars as pl

from batchcl.errors import UsageError
from batchcl.images import ImageRef
from batchcl.sources.base import name_of

__all__ = ["ALL_RANKS", "FilterChain", "Filters", "Sample", "SmallestRanks", "describe_filters"]

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


def describe_filters(name: str) -> str:
    """What took images away, in words: the flag, or what was missing for it."""
    return _UNKNOWN.get(name) or f"--{name.replace('_', '-')}"


class FilterChain:
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


ALL_RANKS: Final = (1 << 64) - 1
"""No rank is larger."""

_TEXT: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<percent>%?)")
_RANK_BYTES: Final = 8
_WAITING: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """So many images, or about so large a share of them; `seed` says which."""

    count: int | None = None
    share: float | None = None
    seed: int = 0

    @classmethod
    def parse(cls, text: str, *, seed: int = 0) -> Sample:
        """Read `1000` or `2%`. Raises `UsageError`."""
        found = _TEXT.fullmatch(text)
        number = float(found["number"]) if found is not None else 0.0
        if found is not None and found["percent"] and 0 < number <= 100:  # noqa: PLR2004
            return cls(share=number / 100, seed=seed)
        if found is not None and not found["percent"] and number >= 1 and found["number"].isdigit():
            return cls(count=int(found["number"]), seed=seed)
        raise UsageError(f"{text!r} is no sample; write a count such as 1000 or a share such as 2%, up to 100%")

    def ranker(self) -> Callable[[ImageRef], int]:
        """Gives each image its rank, from 0 to `ALL_RANKS`: of its URI and version."""
        keyed = hashlib.blake2b(digest_size=_RANK_BYTES, key=str(self.seed).encode())

        def rank(image: ImageRef) -> int:
            one = keyed.copy()
            one.update(name_of(image).encode("utf-8", "surrogatepass"))
            return int.from_bytes(one.digest(), "big")

        return rank

    def cut(self) -> int:
        """The largest rank that is taken, as far as it doesn't depend on the list."""
        return ALL_RANKS if self.share is None else min(int(self.share * ALL_RANKS), ALL_RANKS)


class SmallestRanks:
    """The smallest of many ranks, in 8 bytes each of twice as many as are asked for."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._room = max(2 * count, _WAITING)
        self._kept = pl.Series(dtype=pl.UInt64)
        self._waiting: list[pl.Series] = []
        self._waiting_count = 0

    def add(self, ranks: Sequence[int]) -> None:
        """Take note of `ranks`."""
        self._waiting.append(pl.Series(ranks, dtype=pl.UInt64))
        self._waiting_count += len(ranks)
        if self._waiting_count >= self._room:
            self._settle()

    def largest(self) -> int:
        """The largest of the smallest ranks; `ALL_RANKS` where there are no more than asked for."""
        self._settle()
        if len(self._kept) < self._count:
            return ALL_RANKS
        return int(self._kept[-1])

    def _settle(self) -> None:
        self._kept = pl.concat([self._kept, *self._waiting]).sort().head(self._count)
        self._waiting, self._waiting_count = [], 0
