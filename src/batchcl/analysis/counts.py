"""The tables behind the reading commands: labels, failures and confidences."""

from __future__ import annotations

import polars as pl

from batchcl.analysis.results import shown_model
from batchcl.errors import UsageError

__all__ = ["confidence_histogram", "failure_table", "label_table"]


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


_MOST_BINS = 1000
_LABELS_NAMED = 10


def confidence_histogram(
    detections: pl.LazyFrame, *, bins: int = 20, label: str | None = None, per_label: bool = False
) -> pl.DataFrame:
    """A histogram over 0 to 100 with `bins` bins of one width, empty ones included; one for each model.

    Args:
        detections: as from `Results.detections()`.
        bins: 1 to 1000.
        label: count this label only.
        per_label: one histogram for each label too, in the order of their names.

    Returns:
        `from` and `to` in percent (a bin holds its lower edge; the last holds 100 too), `detections`, and `share`, the
        part of all counted detections of the histogram (null where there are none); with `per_label` a column `label`
        in front, and with several models a column `model` before it: the name, or the ARN where models share the name.

    Raises:
        UsageError: `bins` is out of range, or no detection has the `label`.
    """
    if not 1 <= bins <= _MOST_BINS:
        raise UsageError(f"a histogram can't have {bins} bins; choose 1 to {_MOST_BINS}")
    kept = detections if label is None else detections.filter(pl.col("label") == label)
    below = (pl.col("confidence").cast(pl.Float64) * bins / 100).floor()
    # the 32-bit number that an edge such as 70.1 is in the tables may be less than the edge
    at_edge = pl.col("confidence") >= ((below + 1) * 100 / bins).cast(pl.Float32)
    bin_of = (below + at_edge).clip(0, bins - 1).cast(pl.Int32)
    by = ["model", "model_arn", *(["label"] if per_label else [])]
    counts = kept.group_by(*by, bin_of.alias("bin")).agg(pl.len().alias("detections")).collect(engine="in-memory")
    counts = counts.with_columns(shown_model())
    keys = [*(["model"] if counts["model_arn"].n_unique() > 1 else []), *(["label"] if per_label else [])]
    if label is not None and counts.is_empty():
        raise UsageError(f"no detection has the label {label!r}; {_labels(detections)}")
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


def _labels(detections: pl.LazyFrame) -> str:
    """Those that are found most often."""
    counts = detections.group_by("label").len().sort("len", "label", descending=[True, False])
    found = counts.collect(engine="in-memory")["label"]
    named = ", ".join(map(repr, found.head(_LABELS_NAMED)))
    return f"there are {named}{', …' if len(found) > _LABELS_NAMED else ''}" if named else "there are no detections"
