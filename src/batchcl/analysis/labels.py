"""How often each label was found, and how sure the model was."""

from __future__ import annotations

import polars as pl

__all__ = ["label_table"]


def label_table(detections: pl.LazyFrame) -> pl.DataFrame:
    """One row a model and label, the most frequent first.

    Args:
        detections: as from `Results.detections()`.

    Returns:
        `model`, `label`; `images`, the object versions that have it; `detections`, which are more where an image has
        several objects of the label or was scored by several runs; `mean`, `p10`, `p50`, `p90` of the confidence
        (0 to 100), the quantiles interpolated linearly.
    """
    confidence = pl.col("confidence").cast(pl.Float64)
    return (
        detections.group_by("model", "label")
        .agg(
            pl.struct("uri", "version_id").n_unique().alias("images"),
            pl.len().alias("detections"),
            confidence.mean().alias("mean"),
            *(confidence.quantile(q / 100, "linear").alias(f"p{q}") for q in (10, 50, 90)),
        )
        .sort("model", pl.col("detections"), "label", descending=[False, True, False])
        .collect()
    )
