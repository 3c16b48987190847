"""Sets of names that must not take one for another: by 128 bits of BLAKE2, which don't collide in practice."""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from bisect import bisect_left
from collections.abc import Iterable
from contextlib import ExitStack, closing
from typing import IO, Final

import polars as pl

from batchcl.spill import Spill, numbers, room_for_temporary_files, series

__all__ = ["Seen", "SeenOnDisk"]

_UNSORTED: Final = 65_536
_BLOCK: Final = 250_000
_HALVES: Final = ("high", "low")


def digest(name: str) -> bytes:
    """What tells a name from every other in 16 bytes."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Seen:
    """A growing set of names in 16 bytes each."""

    def __init__(self, *, unsorted: int = _UNSORTED) -> None:
        self._unsorted = unsorted
        self._fresh: set[bytes] = set()
        self._runs: list[tuple[pl.DataFrame, _Sorted]] = []

    def update(self, names: Iterable[str]) -> None:
        """Take note of `names`. Blocks."""
        for name in names:
            self._fresh.add(digest(name))
            if len(self._fresh) >= self._unsorted:
                self._sort()

    def __contains__(self, name: str) -> bool:
        wanted = digest(name)
        return wanted in self._fresh or any(wanted in run for _, run in self._runs)

    def _sort(self) -> None:
        """Make a run of the fresh ones, and one of two runs while the earlier is no longer than the later."""
        table = _halves(b"".join(self._fresh)).sort(_HALVES)
        self._fresh = set()
        while self._runs and len(self._runs[-1][0]) <= len(table):
            table = pl.concat([self._runs.pop()[0], table]).sort(_HALVES)
        self._runs.append((table, _Sorted(*(numbers(table[half]) for half in _HALVES))))


class SeenOnDisk:
    """A set of names in 16 bytes each of a temporary file, and hardly any memory: filled, sealed, and then asked.

    Filling takes twice as much of the disk for a while.
    """

    def __init__(self, *, block: int = _BLOCK) -> None:
        self._block_bytes = 16 * block
        self._waiting = bytearray()
        self._spill: Spill | None = Spill(*_HALVES)
        self._sorted = _Sorted(memoryview(b"").cast("Q"), memoryview(b"").cast("Q"))

    def update(self, names: Iterable[str]) -> None:
        """Take note of `names`. Blocks. Raises `OutputError` where the disk is full."""
        for name in names:
            self._waiting += digest(name)
        if len(self._waiting) >= self._block_bytes:
            self._write()

    def seal(self) -> None:
        """No more names will come, and from now on it can be asked. Blocks. Raises as `update` does."""
        self._write()
        assert self._spill is not None, "sealed already"
        with closing(self._spill), room_for_temporary_files(), ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile(prefix="batchcl-")) for _ in _HALVES]
            for rows in self._spill.ranges():
                ordered = rows.unique().sort(_HALVES)
                for half, file in zip(_HALVES, files, strict=True):
                    file.write(numbers(ordered[half]))
            if files[0].tell():  # nothing can't be mapped
                self._sorted = _Sorted(*(_mapped(file) for file in files))
        self._spill = None

    def __contains__(self, name: str) -> bool:
        return digest(name) in self._sorted

    def __len__(self) -> int:
        return len(self._sorted)

    def _write(self) -> None:
        if self._waiting:
            assert self._spill is not None, "sealed already"
            self._spill.add(_halves(bytes(self._waiting)))
            self._waiting = bytearray()


class _Sorted:
    """Digests in order, as two columns of numbers."""

    def __init__(self, high: memoryview, low: memoryview) -> None:
        self._high = high
        self._low = low

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


def _mapped(file: IO[bytes]) -> memoryview:
    """The numbers in `file`, which may be closed afterwards."""
    file.flush()
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)).cast("Q")


def _halves(digests: bytes) -> pl.DataFrame:
    """Of each digest its two halves as numbers."""
    every = series(digests)
    return pl.DataFrame({"high": every.gather_every(2), "low": every.gather_every(2, 1)})
