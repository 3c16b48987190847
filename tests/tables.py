"""Outcomes as Arrow tables, the input of publishing, and published tables as frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from batchcl.outcomes import Outcome
from batchcl.runs.entries import JournalEntry, entry_table
from batchcl.runs.worklist import image_table


def columns(outcomes: Sequence[Outcome], *, round_: int = 0, fit: bool = False) -> tuple[pa.Table, pa.Table]:
    """Return the images of `outcomes` and their journal entries."""
    entries = [JournalEntry(number, outcome) for number, outcome in enumerate(outcomes)]
    return image_table([outcome.image for outcome in outcomes]), entry_table(entries, round_=round_, fit=fit)


def published(root: Path | str, table: str = "results") -> pl.DataFrame:
    """All rows of a table below a local root, with the columns of its partitions, as another reader has them."""
    return pl.DataFrame(pq.read_table(Path(root) / table, partitioning="hive"))
