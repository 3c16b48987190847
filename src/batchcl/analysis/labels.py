"""How often each label was found, and how sure the model was."""

from __future__ import annotations

import polars as pl

from batchcl.analysis.results import shown_model

__all__ = ["label_table"]


def label_table(detections: pl.LazyFrame) -> pl.DataFrame:
    """One row a model and label, the most frequent first.

    Args:
        detections: as from `Results.detections()`.

    Returns:
        `model`, its name, or its ARN where several models have the name; `label`; `images`, the object versions that
        have it; `detections`, which are more where an image has several objects of the label or was scored by several
        runs; `mean`, `p10`, `p50`, `p90` of the confidence (0 to 100), the quantiles interpolated linearly.
    """
    confidence = pl.col("confidence").cast(pl.Float64)
    return (
        detections.group_by("model", "model_arn", "label")
        .agg(
            pl.struct("uri", "version_id").n_unique().alias("images"),
            pl.len().alias("detections"),
            confidence.mean().alias("mean"),
            *(confidence.quantile(q / 100, "linear").alias(f"p{q}") for q in (10, 50, 90)),
        )
        .with_columns(shown_model())
        .sort("model", "detections", "label", descending=[False, True, False])
        .drop("model_arn")
        .collect(engine="in-memory")
    )
