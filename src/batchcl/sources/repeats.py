"""Which names of a long list come more than once, in memory that doesn't grow with the list.

Names are told apart by a 64-bit hash first: 8 bytes each, in blocks that are sorted and written to a temporary file
once there are many. Only names whose hash comes twice are candidates, and those are told apart by 128 bits of BLAKE2,
which don't collide in practice. Sets of names are kept by the same two measures: `HashSet` where a false yes does no
harm, `Seen` where it would lose an image.
"""

from __future__ import annotations

import hashlib
import tempfile
import threading
from bisect import bisect_left
from collections.abc import Iterable
from typing import IO, Final

import polars as pl
import pyarrow as pa

from batchcl.errors import SourceError

__all__ = ["MAX_REPEATED", "NO_NAMES", "HashLog", "HashSet", "Seen", "digest"]

MAX_REPEATED: Final = 2_000_000
"""Different images that a list may name more than once: each costs a hundred bytes while the list is read."""

_BLOCK: Final = 1_000_000
_PARTITIONS: Final = 64
_HASH_BYTES: Final = 8
_SEED: Final = 7
_UNSORTED: Final = 65_536


def digest(name: str) -> bytes:
    """What tells a name from every other in 16 bytes."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


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
        self._file: IO[bytes] | None = None
        self._runs: list[list[int]] = []

    def add(self, names: pl.Series) -> None:
        """Take note of `names`. Blocks."""
        hashes = names.hash(_SEED)
        with self._lock:
            self._waiting.append(hashes)
            self._waiting_count += len(hashes)
            if self._waiting_count >= self._block:
                self._spill()

    def repeats(self) -> HashSet:
        """What was added more than once, and the end of the log. Raises `SourceError` where it is too much. Blocks."""
        with self._lock:
            if self._file is None:
                found = [_repeated(self._take())]
            else:
                self._spill()
                found = []
                total = 0
                for partition in range(_PARTITIONS):
                    found.append(_repeated(self._partition(partition)))
                    total += len(found[-1])
                    if total > MAX_REPEATED:
                        break
                self._file.close()
                self._file = None
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

    def _spill(self) -> None:
        """Write what waits, sorted, and remember where each partition of it begins."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="batchcl-")  # noqa: SIM115 - closed by `repeats`
        hashes = self._take().sort()
        begin = self._file.seek(0, 2)
        bounds = pl.Series([part << 58 for part in range(_PARTITIONS)], dtype=pl.UInt64)
        starts = [*hashes.search_sorted(bounds, side="left").to_list(), len(hashes)]
        self._runs.append([begin + start * _HASH_BYTES for start in starts])
        self._file.write(_numbers(hashes))

    def _partition(self, number: int) -> pl.Series:
        assert self._file is not None
        parts = []
        for starts in self._runs:
            begin, end = starts[number : number + 2]
            self._file.seek(begin)
            parts.append(_series(self._file.read(end - begin)))
        return pl.concat(parts)


class Seen:
    """A growing set of names in 16 bytes each."""

    def __init__(self, *, unsorted: int = _UNSORTED) -> None:
        self._unsorted = unsorted
        self._fresh: set[bytes] = set()
        self._runs: list[_Run] = []

    def update(self, names: Iterable[str]) -> None:
        """Take note of `names`. Blocks."""
        for name in names:
            self._fresh.add(digest(name))
            if len(self._fresh) >= self._unsorted:
                self._sort()

    def __contains__(self, name: str) -> bool:
        wanted = digest(name)
        return wanted in self._fresh or any(wanted in run for run in self._runs)

    def _sort(self) -> None:
        """Make a run of the fresh ones, and one of two runs while the earlier is no longer than the later."""
        halves = _series(b"".join(self._fresh))
        self._fresh = set()
        run = _Run(pl.DataFrame({"high": halves.gather_every(2), "low": halves.gather_every(2, 1)}))
        while self._runs and len(self._runs[-1]) <= len(run):
            run = _Run(pl.concat([self._runs.pop().table, run.table]))
        self._runs.append(run)


class _Run:
    """Sorted digests."""

    def __init__(self, table: pl.DataFrame) -> None:
        self.table = table.sort("high", "low")
        self._high = _numbers(self.table["high"])
        self._low = _numbers(self.table["low"])

    def __len__(self) -> int:
        return len(self._high)

    def __contains__(self, wanted: bytes) -> bool:
        high, low = memoryview(wanted).cast("Q")
        at = bisect_left(self._high, high)
        while at < len(self._high) and self._high[at] == high:
            if self._low[at] == low:
                return True
            at += 1
        return False


def _repeated(hashes: pl.Series) -> pl.Series:
    ordered = hashes.sort()
    return ordered.filter(ordered == ordered.shift(1)).unique()


def _series(data: bytes) -> pl.Series:
    count = len(data) // _HASH_BYTES
    found = pl.from_arrow(pa.Array.from_buffers(pa.uint64(), count, [None, pa.py_buffer(data)]))
    assert isinstance(found, pl.Series)
    return found


def _numbers(series: pl.Series) -> memoryview:
    """The values as they lie in memory."""
    column = pa.array(series.rechunk().to_arrow())
    if not len(column):
        return memoryview(b"").cast("Q")
    begin = column.offset
    return memoryview(column.buffers()[1]).cast("B").cast("Q")[begin : begin + len(column)]
