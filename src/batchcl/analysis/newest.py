"""Which rows of `results/` are the newest ones of their images.

A run has one row per image, and its files seldom share images with those of other runs that scored other keys. So only
files whose ranges of uris overlap with those of another run are compared: the footers of the files have the ranges.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Final

import polars as pl
import pyarrow as pa

from batchcl.runs.published import PublishedPart, read_ahead, read_part, read_statistics
from batchcl.runs.schema import RESULTS
from batchcl.runs.store import Store

__all__ = ["IMAGE", "newest_of", "newest_rows"]

IMAGE: Final = ("model_arn", "uri", "version_id")
"""The columns that identify an image."""

_COLUMNS: Final = pa.schema([RESULTS.field(name) for name in (*IMAGE, "scored_at")])
_ROWS_AT_ONCE: Final = 4_000_000
_HASH_BITS: Final = 64


def newest_rows(store: Store, parts: Sequence[PublishedPart]) -> Mapping[PublishedPart, pl.Series]:
    """For each file with rows that are not the newest of their image, a Boolean for each row: whether it is.

    Images are compared by a 64-bit hash of `IMAGE`: among 10 million images, the probability that one is taken for
    another one and left out is 3 in a million. Needs 16 bytes per row of the files that overlap. Blocks.

    Raises:
        OutputError: a file can't be read, or is damaged.
    """
    found: dict[PublishedPart, pl.Series] = {}
    for group in _overlapping(store, parts):
        hashes, times, sizes = [], [], []
        for frame in read_ahead(group, lambda part: pl.DataFrame(read_part(store, part, _COLUMNS))):
            hashes.append(frame.select(IMAGE).hash_rows())
            times.append(frame["scored_at"].cast(pl.Int64))
            sizes.append(frame.height)
        newest = newest_of(pl.concat(hashes), pl.concat(times))
        for part, start, rows in zip(group, accumulate(sizes, initial=0), sizes, strict=False):
            own = newest.slice(start, rows)
            if not own.all():
                found[part] = own
    return found


def newest_of(hashes: pl.Series, times: pl.Series, *, rows_at_once: int = _ROWS_AT_ONCE) -> pl.Series:
    """For each row, whether it is the last of those with its hash; of rows of the same time, the last one."""
    rows = pl.DataFrame({"hash": hashes, "at": times}).with_row_index("row")
    bits = max(math.ceil(math.log2(max(len(hashes), 1) / rows_at_once)), 0)
    last = [
        rows.filter(pl.lit(not bits) | (pl.col("hash") // 2 ** (_HASH_BITS - bits) == number))
        .sort("at", "row")
        .unique("hash", keep="last")["row"]
        for number in range(2**bits)
    ]
    return pl.Series([False]).new_from_index(0, len(hashes)).scatter(pl.concat(last), values=True)


def _overlapping(store: Store, parts: Sequence[PublishedPart]) -> Iterator[list[PublishedPart]]:
    """Yield groups of files that may have rows of the same image, sorted by path; files of a single run are omitted."""
    folders: defaultdict[str, list[PublishedPart]] = defaultdict(list)
    for part in parts:
        folders[part.model].append(part)
    for folder in folders.values():
        if not _may_repeat(folder):
            continue
        footers = read_ahead(folder, lambda part: (part, read_statistics(store, part)), footers=True)
        ranges = {part: statistics.uris or ("", None) for part, statistics in footers}
        group: list[PublishedPart] = []
        end: str | None = ""
        for part in sorted(folder, key=lambda part: ranges[part][0]):
            first, last = ranges[part]
            if group and end is not None and first > end:
                if _may_repeat(group):
                    yield sorted(group, key=lambda part: part.path)
                group, end = [], ""
            group.append(part)
            end = None if end is None or last is None else max(end, last)
        if _may_repeat(group):
            yield sorted(group, key=lambda part: part.path)


def _may_repeat(parts: Sequence[PublishedPart]) -> bool:
    """Whether the files are of several runs, or one is of an export, which may have rows of several runs."""
    runs = {part.run for part in parts}
    return len(runs) > 1 or None in runs
