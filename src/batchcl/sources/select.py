"""Which images of the sources a run takes: globs and a limit, over all sources in order."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from batchcl.images import ImageRef
from batchcl.sources.base import Source

__all__ = ["Filters", "selected"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """An image is taken when it fits any `include` (or there is none) and no `exclude`.

    Globs know `*`, `?` and `[…]`, tell upper from lower case, and `*` crosses `/`. One without `/` is held against the
    last part of the key, one with `/` against the whole key (for a local file: its path).
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limit: int | None = None


async def selected(sources: Sequence[Source], filters: Filters) -> AsyncIterator[list[ImageRef]]:
    """The pages of all sources, one source after the other, filtered and cut at the limit; no page is empty."""
    included = [_Glob(pattern) for pattern in filters.include]
    excluded = [_Glob(pattern) for pattern in filters.exclude]
    left = filters.limit
    for source in sources:
        async for page in source.pages():
            kept = page
            if included or excluded:
                kept = [
                    image
                    for image in page
                    if (not included or any(glob.fits(image.key) for glob in included))
                    and not any(glob.fits(image.key) for glob in excluded)
                ]
            if left is not None:
                kept = kept[:left]
                left -= len(kept)
            if kept:
                yield kept
            if left == 0:
                return


class _Glob:
    def __init__(self, pattern: str) -> None:
        self._whole = "/" in pattern
        self._match = re.compile(fnmatch.translate(pattern)).match

    def fits(self, key: str) -> bool:
        return self._match(key if self._whole else key.rpartition("/")[2]) is not None
