"""The tables of `batchcl labels`, `failures` and `confidence`."""

from __future__ import annotations

import polars as pl

from batchcl.analysis.results import shown_model
from batchcl.errors import UsageError

__all__ = ["confidence_histogram", "failure_table", "label_table"]


def label_table(detections: pl.LazyFrame) -> pl.DataFrame:
    """One row per model and label, the most frequent first.

    Args:
        detections: as from `Results.detections()`.

    Returns:
        `model` (its name, or its ARN if several models share the name), `label`, `images` (object versions with the
        label), `detections` (more than `images` if an image has several objects of the label or was scored by several
        runs), and `mean`, `p10`, `p50`, `p90` of the confidence (0 to 100), quantiles interpolated linearly.
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


def failure_table(failures: pl.LazyFrame, *, examples: int = 3) -> pl.DataFrame:
    """One row per status and error code, the most frequent first.

    Args:
        failures: as from `Results.failures()`.
        examples: maximum number of example URIs.

    Returns:
        `status` (failed or skipped), `error_code`, `count` (distinct images over all models), `share` of all counts,
        `message` (of the first example), `examples` (the first URIs in sorted order).

    Raises:
        UsageError: `examples` is negative.
    """
    if examples < 0:
        raise UsageError(f"can't show {examples} examples; the number must be 0 or more")
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


_MAX_BINS = 1000
_MAX_LABELS_SHOWN = 10


def confidence_histogram(
    detections: pl.LazyFrame, *, bins: int = 20, label: str | None = None, per_label: bool = False
) -> pl.DataFrame:
    """A histogram of the confidences for each model, with `bins` bins of equal width from 0 to 100.

    Args:
        detections: as from `Results.detections()`.
        bins: 1 to 1000.
        label: count only this label.
        per_label: one histogram for each label, sorted by label.

    Returns:
        `from` and `to` in percent (a bin includes its lower edge; the last one also includes 100), `detections`, and
        `share` of the histogram's detections (null if there are none). With `per_label` preceded by `label`, and with
        several models by `model`: the name, or the ARN if models share the name.

    Raises:
        UsageError: `bins` is out of range, or no detection has the `label`.
    """
    if not 1 <= bins <= _MAX_BINS:
        raise UsageError(f"a histogram can't have {bins} bins; the number must be 1 to {_MAX_BINS}")
    kept = detections if label is None else detections.filter(pl.col("label") == label)
    below = (pl.col("confidence").cast(pl.Float64) * bins / 100).floor()
    # an edge such as 70.1 is stored in the tables as a 32-bit number, which may be less than the edge
    at_edge = pl.col("confidence") >= ((below + 1) * 100 / bins).cast(pl.Float32)
    bin_of = (below + at_edge).clip(0, bins - 1).cast(pl.Int32)
    by = ["model", "model_arn", *(["label"] if per_label else [])]
    counts = kept.group_by(*by, bin_of.alias("bin")).agg(pl.len().alias("detections")).collect(engine="in-memory")
    counts = counts.with_columns(shown_model())
    keys = [*(["model"] if counts["model_arn"].n_unique() > 1 else []), *(["label"] if per_label else [])]
    if label is not None and counts.is_empty():
        raise UsageError(f"no detection has the label {label!r}; {_describe_labels(detections)}")
    every_bin = pl.DataFrame({"bin": pl.Series(range(bins), dtype=pl.Int32)})
    grid = counts.select(keys).unique().join(every_bin, how="cross") if keys else every_bin
    share = pl.col("detections") / pl.col("detections").sum()
    return (
        grid.join(counts, on=[*keys, "bin"], how="left")
        .sort(*keys, "bin")
        .with_columns(pl.col("detections").fill_null(0))
        .select(
            *keys,
            (pl.col("bin") * 100 / bins).alias("from"),
            ((pl.col("bin") + 1) * 100 / bins).alias("to"),
            "detections",
            (share.over(keys) if keys else share).fill_nan(None).alias("share"),
        )
    )


def _describe_labels(detections: pl.LazyFrame) -> str:
    """The most frequent labels, for an error message."""
    counts = detections.group_by("label").len().sort("len", "label", descending=[True, False])
    labels = counts.collect(engine="in-memory")["label"]
    if labels.is_empty():
        return "there are no detections"
    shown = ", ".join(map(repr, labels.head(_MAX_LABELS_SHOWN)))
    return f"the labels are {shown}{', …' if len(labels) > _MAX_LABELS_SHOWN else ''}"
