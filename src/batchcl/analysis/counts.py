"""The tables of `batchcl labels`, `failures` and `confidence`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import polars as pl

from batchcl.analysis.part_files import Batch
from batchcl.analysis.results import Results, shown_model
from batchcl.errors import ErrorCode, UsageError
from batchcl.outcomes import remedy

__all__ = ["NONE", "confidence_histogram", "failure_table", "label_table"]

NONE = "(none)"
"""Stands for the label of an image without labels."""

_QUANTILES = (10, 50, 90)
_MAX_BINS = 1000
_MAX_LABELS_SHOWN = 10


class _Model(NamedTuple):
    name: str
    arn: str


@dataclass(slots=True)
class _LabelCounts:
    images: int = 0
    confidences: list[pl.Series] = field(default_factory=list)


def label_table(results: Results) -> pl.DataFrame:
    """One row per model and label, the most frequent first, and one for images without a label, `(none)`.

    Blocks. Needs 4 bytes per detection.

    Returns:
        `model` (its name, or its ARN if several models share the name), `label`, `images` (with the label), `share` (of
        the model's images), `detections` (more than `images` if an image has several objects of the label), and
        `mean`, `p10`, `p50`, `p90` of the confidence (0 to 100), quantiles interpolated linearly; null for `(none)`.
    """
    images: defaultdict[_Model, int] = defaultdict(int)
    unlabelled: defaultdict[_Model, int] = defaultdict(int)
    labels: defaultdict[tuple[_Model, str], _LabelCounts] = defaultdict(_LabelCounts)
    for model, rows, with_label, counts in results.map_batches(_count_labels):
        images[model] += rows
        unlabelled[model] += rows - with_label
        for label, with_this, confidences in zip(*counts.iter_columns(), strict=True):
            found = labels[model, label]
            found.images += with_this
            found.confidences.append(confidences)
    rows_of_labels = [
        (*model, label, found.images, found.images / images[model], *_statistics(found.confidences))
        for (model, label), found in labels.items()
    ]
    rows_of_none = [
        (*model, NONE, count, count / images[model], 0, *(None,) * (1 + len(_QUANTILES)))
        for model, count in unlabelled.items()
        if count
    ]
    schema = {
        "model": pl.String(),
        "model_arn": pl.String(),
        "label": pl.String(),
        "images": pl.Int64(),
        "share": pl.Float64(),
        "detections": pl.Int64(),
        "mean": pl.Float64(),
        **{f"p{q}": pl.Float64() for q in _QUANTILES},
    }
    return (
        pl.DataFrame([*rows_of_labels, *rows_of_none], schema=schema, orient="row")
        .with_columns(shown_model())
        .sort("model", "images", "label", descending=[False, True, False])
        .drop("model_arn")
    )


def _count_labels(batch: Batch) -> tuple[_Model, int, int, pl.DataFrame]:
    """The model, its images, those with a label, and for each label: name, images, confidences."""
    counts = batch.detections.group_by("label").agg(pl.col("image").n_unique().alias("images"), pl.col("confidence"))
    with_label = batch.detections["image"].n_unique()
    model = _Model(batch.model, batch.model_arn)
    return model, batch.rows, with_label, counts.with_columns(pl.col("label").cast(pl.String))


def _statistics(parts: Iterable[pl.Series]) -> tuple[float | None, ...]:
    """Number, mean, and quantiles of the confidences."""
    values = pl.concat(list(parts))
    quantiles = (values.quantile(q / 100, "linear") for q in _QUANTILES)
    return len(values), values.to_frame("value").select(pl.col("value").cast(pl.Float64).mean()).item(), *quantiles


def failure_table(failures: pl.LazyFrame, *, examples: int = 3) -> pl.DataFrame:
    """One row per status and error code, the most frequent first.

    Args:
        failures: as from `Results.failures()`.
        examples: maximum number of example URIs.

    Returns:
        `status` (failed or skipped), `error_code`, `count` (distinct images over all models), `share` of all counts,
        `remedy` (what would give these images a result), `message` (of the first example), `examples` (the first URIs
        in sorted order).

    Raises:
        UsageError: `examples` is negative.
    """
    if examples < 0:
        raise UsageError(f"can't show {examples} examples; the number must be 0 or more")
    table = (
        failures.select("status", "error_code", "error_message", "uri", "version_id", "fit")
        .sort("uri")
        .group_by("status", "error_code")
        .agg(
            pl.struct("uri", "version_id").n_unique().alias("count"),
            pl.col("error_message").first().alias("message"),
            pl.col("uri").unique(maintain_order=True).head(examples).alias("examples"),
            pl.col("fit").all(),
        )
        .with_columns((pl.col("count") / pl.col("count").sum()).alias("share"))
        .sort("count", "status", "error_code", descending=[True, False, False])
        .collect(engine="in-memory")
    )
    remedies = [remedy(code, fit=fit) for code, fit in table.select("error_code", "fit").iter_rows()]
    return table.with_columns(pl.Series("remedy", remedies, pl.String)).select(
        "status", "error_code", "count", "share", "remedy", "message", "examples"
    )


def confidence_histogram(
    results: Results, *, bins: int = 20, label: str | None = None, per_label: bool = False
) -> pl.DataFrame:
    """A histogram of the confidences for each model, with `bins` bins of equal width from 0 to 100. Blocks.

    Args:
        results: of an output root.
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
    counts = _bin_counts(results, bins=bins, label=label, per_label=per_label).with_columns(shown_model())
    keys = [*(["model"] if counts["model_arn"].n_unique() > 1 else []), *(["label"] if per_label else [])]
    if label is not None and counts.is_empty():
        raise UsageError(
            f"no detection has the label {label!r}; {_describe_labels(results)}", code=ErrorCode.NO_RESULTS
        )
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


def _bin_counts(results: Results, *, bins: int, label: str | None, per_label: bool) -> pl.DataFrame:
    """`model`, `model_arn`, `label` if `per_label`, `bin` from 0, and `detections`."""
    below = (pl.col("confidence").cast(pl.Float64) * bins / 100).floor()
    # an edge such as 70.1 is stored in the tables as a 32-bit number, which may be less than the edge
    at_edge = pl.col("confidence") >= ((below + 1) * 100 / bins).cast(pl.Float32)
    bin_of = (below + at_edge).clip(0, bins - 1).cast(pl.Int32)
    by = ["label"] if per_label else []

    def count(batch: Batch) -> pl.DataFrame:
        detections = batch.detections if label is None else batch.detections.filter(pl.col("label") == label)
        counts = detections.group_by(*by, bin_of.alias("bin")).agg(pl.len().cast(pl.Int64).alias("detections"))
        model = (pl.lit(batch.model).alias("model"), pl.lit(batch.model_arn).alias("model_arn"))
        return counts.select(*model, *(pl.col(name).cast(pl.String) for name in by), "bin", "detections")

    schema = {"model": pl.String(), "model_arn": pl.String(), **dict.fromkeys(by, pl.String())}
    empty = pl.DataFrame(schema=schema | {"bin": pl.Int32(), "detections": pl.Int64()})
    counts = pl.concat([empty, *results.map_batches(count)])
    return counts.group_by(*schema, "bin").agg(pl.col("detections").sum())


def _describe_labels(results: Results) -> str:
    """The most frequent labels, for an error message."""
    labels = label_table(results).group_by("label").agg(pl.col("detections").sum()).filter(pl.col("detections") > 0)
    names = labels.sort("detections", "label", descending=[True, False])["label"]
    if names.is_empty():
        return "there are no detections"
    shown = ", ".join(map(repr, names.head(_MAX_LABELS_SHOWN)))
    return f"the labels are {shown}{', …' if len(names) > _MAX_LABELS_SHOWN else ''}"
