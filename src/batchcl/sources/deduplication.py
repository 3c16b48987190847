"""Removes images that are named more than once, by one source or by several, without losing any.

An image is a duplicate only if it was selected before. That an earlier source named it is not enough: an S3 prefix does
not contain every key of a key list that starts with it, and of two rows about an image, filters may select the second.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

import anyio.to_thread

from batchcl.images import ImageRef
from batchcl.name_set import NameSet
from batchcl.sources.base import Source, image_key

if TYPE_CHECKING:
    import polars as pl

__all__ = ["NO_NAMES", "Deduplication", "HashLog", "HashSet"]

_HASH_SEED: Final = 7


class Deduplication:
    """Remembers which images were selected.

    Two images are the same if name and version are equal. S3 listings don't report versions: there, two images are the
    same if the entity tag and the time (to the second) are equal.

    Memory is 16 bytes, or 32 with an entity tag, for each selected image that may be named again. Nothing is stored for
    the overlap of two exhaustive sources, because everything that the later one names there is a duplicate.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._seen = NameSet()

    @property
    def possible(self) -> bool:
        """Whether any image may be named more than once."""
        return len(self._sources) > 1 or any(source.repeats for source in self._sources)

    async def restore(self, number: int, earlier: AsyncIterable[tuple[int, Sequence[ImageRef]]]) -> None:
        """Resume in source `number`.

        `earlier` yields the images selected before, with the number of the first source that may have named them.
        """
        repeats = self._sources[number].repeats
        async for first, images in earlier:
            later = range(number + (first == number), len(self._sources))
            if not later and not repeats:
                return
            await self._remember(images, later)
            if repeats:
                await self._remember_exact([images[at] for at in repeats.positions(_keys(images))])

    async def new(self, number: int, images: Sequence[ImageRef]) -> list[bool]:
        """For each image of source `number`, whether it is new; new images are remembered."""
        is_new = [True] * len(images)
        repeats = self._sources[number].repeats
        candidates: list[int] = []
        if repeats:
            keys = _keys(images)
            candidates = repeats.positions(keys)
            for at, is_first in zip(candidates, keys.gather(candidates).is_first_distinct(), strict=True):
                is_new[at] = is_first
        covered = await self._is_covered(number, images)
        for at in range(len(images)) if number else candidates:
            is_new[at] = (
                is_new[at] and not covered[at] and not any(name in self._seen for name in _lookup_names(images[at]))
            )
        await self._remember_exact([images[at] for at in candidates if is_new[at]])
        if number + 1 < len(self._sources):
            selected = [image for image, new in zip(images, is_new, strict=True) if new]
            await self._remember(selected, range(number + 1, len(self._sources)))
        return is_new

    async def _remember_exact(self, images: Sequence[ImageRef]) -> None:
        """Remember images that their own source names again."""
        if images:
            await anyio.to_thread.run_sync(self._seen.update, [_exact_name(image) for image in images])

    async def _remember(self, images: Sequence[ImageRef], numbers: range) -> None:
        """Remember images that one of the sources `numbers` may name again."""
        needed = [False] * len(images)
        for number in numbers:
            may_name = await self._sources[number].may_name(images)
            if any(may_name):
                covered = await self._is_covered(number, images)
                needed = [
                    each or (may and not known) for each, may, known in zip(needed, may_name, covered, strict=True)
                ]
        names = [name for image, is_needed in zip(images, needed, strict=True) if is_needed for name in _names(image)]
        if names:
            await anyio.to_thread.run_sync(self._seen.update, names)

    async def _is_covered(self, number: int, images: Sequence[ImageRef]) -> list[bool]:
        """For each image of the source, whether it and an earlier source are exhaustive and both name the image."""
        covered = [False] * len(images)
        if self._sources[number].exhaustive:
            for earlier in self._sources[:number]:
                if earlier.exhaustive:
                    covered = [one or other for one, other in zip(covered, await earlier.may_name(images), strict=True)]
        return covered


def _keys(images: Sequence[ImageRef]) -> pl.Series:
    import polars as pl

    return pl.Series([image_key(image) for image in images], dtype=pl.String)


def _names(image: ImageRef) -> Iterator[str]:
    """The names under which a selected image is remembered."""
    yield _exact_name(image)
    if (content := _content_name(image)) is not None:
        yield f"{content}\0{image.version_id is not None}"


def _lookup_names(image: ImageRef) -> Iterator[str]:
    """The names under which the same image would have been remembered.

    Images that both have a version id are compared by it alone, so the content is looked up among the others.
    """
    yield _exact_name(image)
    if (content := _content_name(image)) is not None:
        yield f"{content}\0{image.version_id is None}"


def _exact_name(image: ImageRef) -> str:
    return f"{image.uri}\0{image.key}\0{image.version_id or ''}"


def _content_name(image: ImageRef) -> str | None:
    if image.etag is None or image.last_modified is None:
        return None
    return f"{image.uri}\0{image.key}\0{image.etag}\0{image.last_modified:%Y-%m-%dT%H:%M:%S}"


class HashSet:
    """A set of names as 64-bit hashes, 8 bytes each: no false negatives, and very few false positives."""

    def __init__(self, hashes: pl.Series | None) -> None:
        """`hashes` are sorted; None for the empty set."""
        self._hashes = hashes

    @classmethod
    def of(cls, batches: Iterable[pl.Series]) -> HashSet:
        """The set of all names in `batches`. Blocks."""
        import polars as pl

        hashes = [names.hash(_HASH_SEED) for names in batches]
        return cls(pl.concat(hashes).unique().sort() if hashes else None)

    def __bool__(self) -> bool:
        return self._hashes is not None and len(self._hashes) > 0

    def positions(self, names: pl.Series) -> list[int]:
        """The positions in `names` of those that are in the set."""
        if self._hashes is None or not self:
            return []
        hashes = names.hash(_HASH_SEED)
        at = self._hashes.search_sorted(hashes).clip(upper_bound=len(self._hashes) - 1)
        return (self._hashes.gather(at) == hashes).arg_true().to_list()


NO_NAMES: Final = HashSet(None)
"""The repeats of a source without duplicates."""


class HashLog:
    """Finds the candidates for duplicates in a long list, with 8 bytes per name. Thread-safe.

    Only names whose hash occurs twice are candidates; `Deduplication` compares those exactly.
    """

    def __init__(self) -> None:
        import polars as pl

        self._lock = threading.Lock()
        self._hashes = pl.Series(dtype=pl.UInt64)

    def add(self, names: pl.Series) -> None:
        """Add `names`. Blocks."""
        hashes = names.hash(_HASH_SEED)
        with self._lock:
            self._hashes.append(hashes)

    def repeats(self) -> HashSet:
        """The names that were added more than once; empties the log. Blocks; needs 8 more bytes per name."""
        with self._lock:
            ordered, self._hashes = self._hashes.sort(), self._hashes.clear()
        return HashSet(ordered.filter(ordered == ordered.shift(1)).unique().sort())
