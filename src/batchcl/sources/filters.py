"""Filters on images, and deterministic samples."""

from __future__ import annotations

import datetime as dt
import fnmatch
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from batchcl.errors import UsageError
from batchcl.images import ImageRef
from batchcl.sources.base import image_key

if TYPE_CHECKING:
    import polars as pl

__all__ = ["ALL_RANKS", "FilterChain", "Filters", "Sample", "SmallestRanks", "describe_filters"]

_UNKNOWN: Final = {"size_unknown": "size not known", "time_unknown": "time not known"}

_Filter: TypeAlias = Callable[[ImageRef], str | None]
"""Returns the name of the filter if it excludes the image, otherwise None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which images are selected.

    Attributes:
        include: globs; if any, an image must match at least one of them.
        exclude: globs; an image must not match any of them, independent of the order of options.
        newer_than: modified at this time or later.
        older_than: modified before this time.
        min_size_bytes: smallest size.
        max_size_bytes: largest size.
        where: evaluates a condition on images.
        sample: applied to the images that pass the filters above.
        limit: the maximum number of images, applied last.

    Globs support `*`, `?` and `[…]`, are case-sensitive, and `*` matches `/`. A glob without `/` is matched with the
    last part of the key, one with `/` with the whole key (for a local file: its path). Filters on size or time exclude
    images whose list does not report it.
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
    """The filter in words: its flag, or what was unknown for it."""
    return _UNKNOWN.get(name) or f"--{name.replace('_', '-')}"


class FilterChain:
    """The filters that apply to each image separately: all except the sample and the limit."""

    def __init__(self, filters: Filters) -> None:
        self._where = filters.where
        self._filters: list[_Filter] = []
        if filters.include:
            self._filters.append(_include_filter([_Glob(pattern) for pattern in filters.include]))
        if filters.exclude:
            self._filters.append(_exclude_filter([_Glob(pattern) for pattern in filters.exclude]))
        if filters.newer_than is not None or filters.older_than is not None:
            self._filters.append(_time_filter(filters.newer_than, filters.older_than))
        if filters.min_size_bytes is not None or filters.max_size_bytes is not None:
            self._filters.append(_size_filter(filters.min_size_bytes, filters.max_size_bytes))

    @property
    def is_empty(self) -> bool:
        """Whether there is no such filter."""
        return not self._filters and self._where is None

    def reasons(self, images: Sequence[ImageRef]) -> list[str | None]:
        """For each image the first filter that excludes it, named as in `Job`'s fields; None where it passes.

        The name is `size_unknown` or `time_unknown` where the list does not report what the filter needs.
        """
        reasons = [self._reason(image) for image in images]
        if self._where is not None:
            passed = [at for at, reason in enumerate(reasons) if reason is None]
            for at, matches in zip(passed, self._where([images[at] for at in passed]), strict=True):
                if not matches:
                    reasons[at] = "where"
        return reasons

    def _reason(self, image: ImageRef) -> str | None:
        for each in self._filters:
            if (reason := each(image)) is not None:
                return reason
        return None


def _include_filter(globs: Sequence[_Glob]) -> _Filter:
    return lambda image: None if any(glob.matches(image.key) for glob in globs) else "include"


def _exclude_filter(globs: Sequence[_Glob]) -> _Filter:
    return lambda image: "exclude" if any(glob.matches(image.key) for glob in globs) else None


def _time_filter(newer_than: dt.datetime | None, older_than: dt.datetime | None) -> _Filter:
    def reason(image: ImageRef) -> str | None:
        time = image.last_modified
        if time is None:
            return "time_unknown"
        if newer_than is not None and time < newer_than:
            return "newer_than"
        return "older_than" if older_than is not None and time >= older_than else None

    return reason


def _size_filter(min_bytes: int | None, max_bytes: int | None) -> _Filter:
    def reason(image: ImageRef) -> str | None:
        size = image.size_bytes
        if size is None:
            return "size_unknown"
        if min_bytes is not None and size < min_bytes:
            return "min_size"
        return "max_size" if max_bytes is not None and size > max_bytes else None

    return reason


class _Glob:
    def __init__(self, pattern: str) -> None:
        self._whole_key = "/" in pattern
        self._match = re.compile(fnmatch.translate(pattern)).match

    def matches(self, key: str) -> bool:
        return self._match(key if self._whole_key else key.rpartition("/")[2]) is not None


ALL_RANKS: Final = (1 << 64) - 1
"""The largest possible rank."""

_SAMPLE: Final = re.compile(r"(?P<number>\d+(?:\.\d+)?)(?P<percent>%?)")
_RANK_BYTES: Final = 8
_MIN_BUFFER: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A number of images (`count`), or about a `share` (0 to 1) of them. Deterministic for a `seed`."""

    count: int | None = None
    share: float | None = None
    seed: int = 0

    @classmethod
    def parse(cls, text: str, *, seed: int = 0) -> Sample:
        """Parse `1000` or `2%`. Raises `UsageError`."""
        match = _SAMPLE.fullmatch(text)
        number = float(match["number"]) if match is not None else 0.0
        if match is not None and match["percent"] and 0 < number <= 100:  # noqa: PLR2004 - per cent
            return cls(share=number / 100, seed=seed)
        if match is not None and not match["percent"] and number >= 1 and match["number"].isdigit():
            return cls(count=int(match["number"]), seed=seed)
        raise UsageError(
            f"{text!r} is not a valid sample; write a count such as 1000, or a percentage such as 2%, at most 100%"
        )

    def ranker(self) -> Callable[[ImageRef], int]:
        """A function that returns the rank of an image, 0 to `ALL_RANKS`: a hash of its URI and version."""
        seeded = hashlib.blake2b(digest_size=_RANK_BYTES, key=str(self.seed).encode())

        def rank(image: ImageRef) -> int:
            digest = seeded.copy()
            digest.update(image_key(image).encode("utf-8", "surrogatepass"))
            return int.from_bytes(digest.digest(), "big")

        return rank

    def max_rank(self) -> int:
        """The largest rank in the sample of a share; `ALL_RANKS` for a count, whose limit depends on the images."""
        return ALL_RANKS if self.share is None else min(int(self.share * ALL_RANKS), ALL_RANKS)


class SmallestRanks:
    """Finds the `count` smallest of many ranks; memory is 8 bytes for each of twice `count`."""

    def __init__(self, count: int) -> None:
        import polars as pl

        self._count = count
        self._buffer_size = max(2 * count, _MIN_BUFFER)
        self._smallest = pl.Series(dtype=pl.UInt64)
        self._buffer: list[pl.Series] = []
        self._buffered = 0

    def add(self, ranks: Sequence[int]) -> None:
        """Add `ranks`."""
        import polars as pl

        self._buffer.append(pl.Series(ranks, dtype=pl.UInt64))
        self._buffered += len(ranks)
        if self._buffered >= self._buffer_size:
            self._merge()

    def largest(self) -> int:
        """The largest of the `count` smallest ranks; `ALL_RANKS` if fewer than `count` were added."""
        self._merge()
        if len(self._smallest) < self._count:
            return ALL_RANKS
        return int(self._smallest[-1])

    def _merge(self) -> None:
        import polars as pl

        self._smallest = pl.concat([self._smallest, *self._buffer]).sort().head(self._count)
        self._buffer, self._buffered = [], 0
