"""How good the answers are, held against a manifest of the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from batchcl.analysis.average_precision import average_precision
from batchcl.analysis.results import shown_model
from batchcl.analysis.truth import Truth
from batchcl.errors import UsageError
from batchcl.spellings import spellings

__all__ = ["NONE", "Evaluation", "evaluate"]

NONE: Final = "(none)"
"""Stands in the confusion matrix for an image without any label."""

_EXAMPLES: Final = 3
_TRIED: Final = 1000
"""So many images without a result are looked for under other spellings."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of one evaluation; ratios are 0 to 1, and null where they are undefined.

    Attributes:
        summary: the counts and the figures over all labels, by name; see `evaluate`.
        labels: one row a label of the truth or the answers, sorted: `label`, `support` (images that have it),
            `predicted` (images that were given it), `true_positives`, `precision`, `recall`, `f1`; with located objects
            also `truth_boxes`, `found_boxes`, `matched_boxes` and `average_precision` at an IoU of 0.5.
        confusion: `truth`, `predicted`, `images`; None where an image has several labels.
    """

    summary: dict[str, Any]
    labels: pl.DataFrame
    confusion: pl.DataFrame | None


def evaluate(
    images: pl.LazyFrame, truth: Truth, *, min_confidence: float | None = None, failures: pl.LazyFrame | None = None
) -> Evaluation:
    """Hold scored images against their truth, joined on `uri`.

    Only images that both know are evaluated. The summary counts the others: `missing` (in the truth without a result),
    `missing_failed` (those of them that have a row in `failures`), `missing_hint` (where results have them in another
    spelling) and `extra` (results without truth), each with a few
    example URIs. Where an image was scored several times, its latest answer counts, and `superseded` counts the older.

    Args:
        images: as from `Results.images()`.
        truth: as from `read_truth`.
        min_confidence: leave out detections below it, 0 to 100. A run's own `min_confidence` has done so already.
        failures: as from `Results.failures()`.

    Raises:
        UsageError: the results are of several models, or none of their images is in the truth.
    """
    scored = images.select("uri", "model", "model_arn", "scored_at", "labels").collect(engine="in-memory")
    _one_model(scored)
    latest = scored.sort("scored_at").unique("uri", keep="last", maintain_order=True)
    known = latest.join(truth.images, on="uri", how="semi").sort("uri")
    missing = truth.images.join(latest, on="uri", how="anti").select("uri").sort("uri")
    extra = latest.join(truth.images, on="uri", how="anti").select("uri").sort("uri")
    if known.is_empty():
        raise UsageError(_nothing_in_common(truth, latest))
    expected = truth.images.join(known, on="uri", how="semi").sort("uri")
    found = _found(known, min_confidence)
    labels = _per_label(expected, found)
    tops = _tops(expected, found)
    summary: dict[str, Any] = {
        "model": known["model"].first(),
        "model_arn": known["model_arn"].first(),
        "min_confidence": min_confidence,
        "images": known.height,
        "missing": missing.height,
        "missing_failed": None if failures is None else _failed(missing, failures),
        "missing_examples": missing["uri"].head(_EXAMPLES).to_list(),
        "missing_hint": _other_spelling(missing["uri"], extra["uri"]) or None,
        "extra": extra.height,
        "extra_examples": extra["uri"].head(_EXAMPLES).to_list(),
        "superseded": scored.height - latest.height,
        "unlabelled": truth.unlabelled,
        "repeated_lines": truth.repeated,
        "bad_lines": len(truth.bad),
        "bad_line_examples": list(truth.bad[:_EXAMPLES]),
        "bad_labels": len(truth.bad_labels),
        "bad_label_examples": list(truth.bad_labels[:_EXAMPLES]),
        "top_label_accuracy": tops["right"].mean(),
        "macro_f1": labels["f1"].mean(),
        "micro_f1": _micro_f1(labels),
    }
    if expected["detection"].any():
        labels, boxes = _with_boxes(labels, expected, found, truth)
        summary |= boxes
    single = expected["labels"].list.len().max() in (0, 1)
    return Evaluation(summary, labels, _confusion(tops) if single else None)


def _one_model(scored: pl.DataFrame) -> None:
    models = scored.select("model", "model_arn").unique().select(shown_model()).to_series().sort().to_list()
    if len(models) > 1:
        raise UsageError(
            f"the results are of {len(models)} models, {', '.join(models)}; "
            "choose one with --model, or a run with --run"
        )


def _nothing_in_common(truth: Truth, latest: pl.DataFrame) -> str:
    ours = str(latest["uri"].min()) if latest.height else "no image"
    advice = _other_spelling(truth.images["uri"], latest["uri"]) or "the URIs must be equal"
    return (
        f"none of the {truth.images.height} images of the truth has a result: the truth has, for example, "
        f"{truth.images['uri'].min()!s}, and the {latest.height} results have {ours}; {advice}"
    )


def _other_spelling(missing: pl.Series, extra: pl.Series) -> str:
    """What is different about the truth's URIs, where results have them in another spelling; else empty."""
    results = set(extra)
    for uri in missing.head(_TRIED):
        bucket, slash, key = uri.removeprefix("s3://").partition("/")
        start, name = (f"s3://{bucket}{slash}", key) if uri.startswith("s3://") else ("", uri)
        for other in spellings(name):
            if start + other.name in results:
                return f"the truth's names are {other.what}; {other.advice}"
    return ""


def _found(known: pl.DataFrame, min_confidence: float | None) -> pl.DataFrame:
    """The detections of the known images: `uri`, `label`, `confidence` and the box."""
    label = pl.col("labels").struct
    found = (
        known.select("uri", "labels")
        .filter(pl.col("labels").list.len() > 0)
        .explode("labels")
        .select(
            "uri",
            label.field("name").alias("label"),
            label.field("confidence", "left", "top", "width", "height"),
        )
    )
    if min_confidence is not None:
        # both are 32-bit numbers to the service; as a 64-bit number, 70.1 is greater than the stored 70.1
        found = found.filter(pl.col("confidence") >= pl.lit(min_confidence, pl.Float32))
    return found.with_columns(pl.col(pl.Float32).cast(pl.Float64))


def _per_label(expected: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    on_image = expected.select("uri", "labels").explode("labels").drop_nulls()
    true = on_image.select("uri", pl.col("labels").alias("label"), pl.lit(1).alias("true"))
    predicted = found.select("uri", "label").unique().with_columns(pl.lit(1).alias("predicted"))
    both = true.join(predicted, on=["uri", "label"], how="full", coalesce=True)
    hit = (pl.col("true") + pl.col("predicted")).count()
    support, given = pl.col("support"), pl.col("predicted")
    right = pl.col("true_positives")
    return (
        both.group_by("label")
        .agg(pl.col("true").count().alias("support"), given.count().alias("predicted"), hit.alias("true_positives"))
        .with_columns(pl.col("support", "predicted", "true_positives").cast(pl.Int64))
        .with_columns(
            pl.when(given > 0).then(right / given).alias("precision"),
            pl.when(support > 0).then(right / support).alias("recall"),
            (2 * right / (support + given)).alias("f1"),
        )
        .sort("label")
    )


def _micro_f1(labels: pl.DataFrame) -> float | None:
    sums = labels.select("support", "predicted", "true_positives").sum()
    support, predicted, right = sums.row(0)
    return 2 * right / (support + predicted) if support + predicted else None


def _tops(expected: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    """Each image's top label, whether it is one of the true ones, and the (first) true one.

    Of labels with equal confidence the first by name is the top one, as in `model evaluate`. An image without labels is
    right where the truth has none either.
    """
    top = (
        found.sort("confidence", "label", descending=[True, False])
        .unique("uri", keep="first", maintain_order=True)
        .select("uri", pl.col("label").alias("predicted"))
    )
    none_due = pl.col("labels").list.len() == 0
    return expected.join(top, on="uri", how="left").select(
        pl.col("labels").list.first().fill_null(NONE).alias("truth"),
        pl.col("predicted").fill_null(NONE),
        pl.when(pl.col("predicted").is_null())
        .then(none_due)
        .otherwise(pl.col("labels").list.contains(pl.col("predicted")))
        .alias("right"),
    )


def _confusion(tops: pl.DataFrame) -> pl.DataFrame:
    counts = tops.group_by("truth", "predicted").agg(pl.len().cast(pl.Int64).alias("images"))
    return counts.sort("truth", "predicted")


def _failed(missing: pl.DataFrame, failures: pl.LazyFrame) -> int:
    failed = failures.select("uri").unique().collect(engine="in-memory")
    return missing.join(failed, on="uri", how="semi").height


def _with_boxes(
    labels: pl.DataFrame, expected: pl.DataFrame, found: pl.DataFrame, truth: Truth
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """`labels` with the boxes' columns, and the boxes' part of the summary."""
    unsized = expected.filter(pl.col("uri").is_in(list(truth.unsized)))
    located = expected.filter("detection").join(unsized, on="uri", how="anti")
    with_box = found.drop_nulls(["left", "top", "width", "height"]).join(located, on="uri", how="semi")
    scores = average_precision(with_box, truth.boxes.join(located, on="uri", how="semi"))
    summary = {
        "mean_average_precision": scores["average_precision"].mean(),
        "located_images": located.height,
        "images_without_size": unsized.height,
    }
    return labels.join(scores, on="label", how="left"), summary
