"""A sample of a long list that comes out the same whenever, and in whatever order, the list is read.

Each image has a rank, a keyed hash of its name: a share takes the images whose rank is below that share of all ranks,
a count those with the smallest ranks. So images that come or go don't change whether another one is in a share, and a
larger sample holds every smaller one of the same seed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from batchcl.errors import UsageError
from batchcl.images import ImageRef
from batchcl.sources.base import name_of

__all__ = ["ALL_RANKS", "Sample", "SmallestRanks"]

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
