"""Why images have no result."""

from __future__ import annotations

import polars as pl

from batchcl.errors import UsageError

__all__ = ["failure_table"]


def failure_table(failures: pl.LazyFrame, *, examples: int = 3) -> pl.DataFrame:
    """One row a status and error code, the most frequent first.

    Args:
        failures: as from `Results.failures()`.
        examples: how many URIs to name at most.

    Returns:
        `status` (failed or skipped), `error_code`, `count` of distinct images, whatever models failed on them, `share`
        of all of them, `message` (that of the first example), `examples` (list of URIs, the first in order).

    Raises:
        UsageError: `examples` is negative.
    """
    if examples < 0:
        raise UsageError(f"can't show {examples} examples; choose 0 or more")
    return (
        failures.select("status", "error_code", "error_message", "uri", "version_id")
        .sort("uri")
        .group_by("status", "error_code")
        .agg(
            pl.struct("uri", "version_id").n_unique().alias("count"),
            pl.col("error_message").first().alias("message"),
            pl.col("uri").unique(maintain_order=True).head(examples).alias("examples"),
        )
        .with_columns((pl.col("count") / pl.col("count").sum()).alias("share"))
        .select("status", "error_code", "count", "share", "message", "examples")
        .sort("count", "status", "error_code", descending=[True, False, False])
        .collect(engine="in-memory")
    )
