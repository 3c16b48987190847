"""Which names of a long list come more than once.

Names are told apart by a 64-bit hash first, in 8 bytes each. Only names whose hash comes twice are candidates, which
are told apart for certain by `batchcl.name_set`: a set of hashes serves where a false yes does no harm.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

import polars as pl

__all__ = ["NO_NAMES", "HashLog", "HashSet"]

_SEED: Final = 7


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

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hashes = pl.Series(dtype=pl.UInt64)

    def add(self, names: pl.Series) -> None:
        """Add `names`. Blocks."""
        hashes = names.hash(_SEED)
        with self._lock:
            self._hashes.append(hashes)

    def repeats(self) -> HashSet:
        """What was added more than once, and the end of the log. Blocks; takes another 8 bytes a name meanwhile."""
        with self._lock:
            ordered, self._hashes = self._hashes.sort(), pl.Series(dtype=pl.UInt64)
        return HashSet(ordered.filter(ordered == ordered.shift(1)).unique().sort())
