"""Numbers that are too many for memory: written to a temporary file as they come, and read back range by range."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import polars as pl
import pyarrow as pa

from batchcl.errors import OutputError

__all__ = ["Spill", "numbers", "room_for_temporary_files", "series"]

_NUMBER_BYTES: Final = 8
_PARTITIONS: Final = 64


class Spill:
    """Rows of unsigned 64-bit numbers on disk, added in blocks.

    Args:
        columns: their names; rows are read back in ranges of the first.
    """

    def __init__(self, *columns: str) -> None:
        self._columns = columns
        self._blocks: list[tuple[list[int], list[int]]] = []
        with room_for_temporary_files():
            self._file = tempfile.TemporaryFile(prefix="batchcl-")  # noqa: SIM115 - closed by `close`
        self.close = weakref.finalize(self, self._file.close)
        """Gives the disk back, at the latest when nobody has the spill any more."""

    def add(self, block: pl.DataFrame) -> None:
        """Take over a block, which has the columns. Blocks. Raises `OutputError` where the disk is full."""
        first = self._columns[0]
        ordered = block.sort(first)
        bounds = pl.Series([part << 58 for part in range(_PARTITIONS)], dtype=pl.UInt64)
        starts = [*ordered[first].search_sorted(bounds, side="left").to_list(), len(ordered)]
        begins = []
        with room_for_temporary_files():
            for name in self._columns:
                begins.append(self._file.seek(0, 2))
                self._file.write(numbers(ordered[name]))
            self._file.flush()
        self._blocks.append((begins, starts))

    def ranges(self) -> Iterator[pl.DataFrame]:
        """All rows: those of a higher range come later, those of one range in no order. Blocks."""
        for number in range(_PARTITIONS if self._blocks else 0):
            yield pl.concat(
                [
                    pl.DataFrame(
                        {
                            name: self._read(begin, *starts[number : number + 2])
                            for name, begin in zip(self._columns, begins, strict=True)
                        }
                    )
                    for begins, starts in self._blocks
                ]
            )

    def _read(self, begin: int, first: int, end: int) -> pl.Series:
        self._file.seek(begin + first * _NUMBER_BYTES)
        return series(self._file.read((end - first) * _NUMBER_BYTES))


def series(data: bytes) -> pl.Series:
    """The numbers that `data` holds, as this machine writes them, without a copy."""
    count = len(data) // _NUMBER_BYTES
    found = pl.from_arrow(pa.Array.from_buffers(pa.uint64(), count, [None, pa.py_buffer(data)]))
    assert isinstance(found, pl.Series)
    return found


def numbers(column: pl.Series) -> memoryview:
    """The numbers as they lie in memory."""
    values = pa.array(column.rechunk().to_arrow())
    if not len(values):
        return memoryview(b"").cast("Q")
    begin = values.offset
    return memoryview(values.buffers()[1]).cast("B").cast("Q")[begin : begin + len(values)]


@contextmanager
def room_for_temporary_files() -> Iterator[None]:
    """Say what to do where there is none."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"writing a temporary file below {tempfile.gettempdir()} failed: {error.strerror}; make room there, or "
            "name another directory by TMPDIR"
        ) from error
