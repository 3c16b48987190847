"""Which names of a long list come more than once, in memory that doesn't grow with the list.

Names are told apart by a 64-bit hash first: 8 bytes each, in blocks that are sorted and written to a temporary file
once there are many. Only names whose hash comes twice are candidates, and those are told apart by 128 bits of BLAKE2,
which don't collide in practice. Sets of names are kept by the same two measures: `HashSet` where a false yes does no
harm, `batchcl.digests.Seen` where it would lose an image.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import closing
from typing import Final

import polars as pl

from batchcl.errors import SourceError
from batchcl.spill import Spill

__all__ = ["MAX_REPEATED", "NO_NAMES", "HashLog", "HashSet"]

MAX_REPEATED: Final = 2_000_000
"""Different images that a list may name more than once: each costs a hundred bytes while the list is read."""

_BLOCK: Final = 1_000_000
_SEED: Final = 7
_COLUMN: Final = "hash"


class HashSet:
    """Names by a hash of 64 bits: has all that are in it, and hardly any other."""

    def __init__(self, hashes: pl.Series) -> None:
        """Of sorted hashes."""
        self._hashes = hashes

    @classmethod
    def of(cls, batches: Iterable[pl.Series]) -> HashSet:
        """The set of all names in `batches`, which are read to their end. Blocks."""
        hashes = [names.hash(_SEED) for names in batches]
        return cls(pl.concat(hashes).unique().sort() if hashes else pl.Series(dtype=pl.UInt64))

    def __bool__(self) -> bool:
        return len(self._hashes) > 0

    def among(self, names: pl.Series) -> list[int]:
        """The positions in `names` of those that are in the set."""
        if not self:
            return []
        hashes = names.hash(_SEED)
        at = self._hashes.search_sorted(hashes).clip(upper_bound=len(self._hashes) - 1)
        return (self._hashes.gather(at) == hashes).arg_true().to_list()


NO_NAMES: Final = HashSet(pl.Series(dtype=pl.UInt64))
"""Of a source that names nothing twice."""


class HashLog:
    """Collects names, in any order and from several threads, and tells which come more than once."""

    def __init__(self, *, block: int = _BLOCK) -> None:
        self._block = block
        self._lock = threading.Lock()
        self._waiting: list[pl.Series] = []
        self._waiting_count = 0
        self._spill: Spill | None = None

    def add(self, names: pl.Series) -> None:
        """Take note of `names`. Blocks."""
        hashes = names.hash(_SEED)
        with self._lock:
            self._waiting.append(hashes)
            self._waiting_count += len(hashes)
            if self._waiting_count >= self._block:
                self._write()

    def repeats(self) -> HashSet:
        """What was added more than once, and the end of the log. Raises `SourceError` where it is too much. Blocks."""
        with self._lock:
            found = [_repeated(self._take())] if self._spill is None else self._repeated_on_disk(self._write())
            hashes = pl.concat(found)
            if len(hashes) > MAX_REPEATED:
                raise SourceError(
                    f"more than {MAX_REPEATED:,} images are named more than once; remove repeated lines first, for "
                    "instance with `sort -u`"
                )
            return HashSet(hashes.sort())

    def _take(self) -> pl.Series:
        taken = pl.concat(self._waiting) if self._waiting else pl.Series(dtype=pl.UInt64)
        self._waiting, self._waiting_count = [], 0
        return taken

    def _write(self) -> Spill:
        """Write what waits."""
        if self._spill is None:
            self._spill = Spill(_COLUMN)
        self._spill.add(self._take().to_frame(_COLUMN))
        return self._spill

    def _repeated_on_disk(self, spill: Spill) -> list[pl.Series]:
        """By range, until they are too many."""
        found = []
        total = 0
        with closing(spill):
            for hashes in spill.ranges():
                found.append(_repeated(hashes[_COLUMN]))
                total += len(found[-1])
                if total > MAX_REPEATED:
                    break
        self._spill = None
        return found


def _repeated(hashes: pl.Series) -> pl.Series:
    ordered = hashes.sort()
    return ordered.filter(ordered == ordered.shift(1)).unique()
