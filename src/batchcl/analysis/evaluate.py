"""Compares results with ground truth: precision, recall, F1, confusion and average precision."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from batchcl.analysis.average_precision import average_precision
from batchcl.analysis.counts import NONE
from batchcl.analysis.results import Results, shown_model
from batchcl.analysis.truth import Truth
from batchcl.errors import ErrorCode, UsageError
from batchcl.spellings import spellings

__all__ = ["Evaluation", "check_one_model", "evaluate", "no_common_image", "truth_counts"]

_MAX_EXAMPLES: Final = 3
_MAX_SPELLINGS_TRIED: Final = 1000
"""Number of images without a result whose names are searched in other spellings."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metrics of one evaluation; ratios are 0 to 1, and null if they are undefined.

    Attributes:
        summary: counts and metrics over all labels, by name; see `evaluate`.
        labels: one row per label of the truth or the results, sorted: `label`, `support` (images with the label in the
            truth), `predicted` (images with the label in the results), `true_positives`, `precision`, `recall`, `f1`;
            for object detection also `truth_boxes`, `found_boxes`, `matched_boxes` and `average_precision` at an IoU
            of 0.5.
        confusion: `truth`, `predicted`, `images`; None if any image has several true labels.
    """

    summary: dict[str, Any]
    labels: pl.DataFrame
    confusion: pl.DataFrame | None


def evaluate(
    results: Results, truth: Truth, *, min_confidence: float | None = None, failures: pl.LazyFrame | None = None
) -> Evaluation:
    """Compare results with the truth, joined on `uri`. Blocks; memory grows with the images of the truth only.

    Only images with both are evaluated. The summary counts the others: `missing` (truth without a result),
    `missing_failed` (those of them with a row in `failures`), `missing_hint` (set if results have them in another
    spelling) and `extra` (results without truth), with a few example URIs each. Of several versions of an image, the
    latest result is used.

    Args:
        results: of one model.
        truth: as from `read_truth`.
        min_confidence: ignore detections below it, 0 to 100. A run's own `min_confidence` has already been applied.
        failures: as from `Results.failures()`.

    Raises:
        UsageError: the results are from several models, or none of their images is in the truth.
    """
    evaluated, counts = _join_truth(results, truth, failures=failures)
    expected = truth.images.join(evaluated, on="uri", how="semi").sort("uri")
    detected = _detections(evaluated, min_confidence)
    labels = _per_label(expected, detected)
    top_labels = _top_labels(expected, detected)
    summary: dict[str, Any] = {
        "model": evaluated["model"].first(),
        "model_arn": evaluated["model_arn"].first(),
        "min_confidence": min_confidence,
        **counts,
        "top_label_accuracy": top_labels["right"].mean(),
        "macro_f1": labels["f1"].mean(),
        "micro_f1": _micro_f1(labels),
    }
    if expected["detection"].any():
        labels, boxes = _with_boxes(labels, expected, detected, truth)
        summary |= boxes
    single = expected["labels"].list.len().max() in (0, 1)
    return Evaluation(summary, labels, _confusion(top_labels) if single else None)


def _join_truth(
    results: Results, truth: Truth, *, failures: pl.LazyFrame | None
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The latest result of each image of the truth, sorted by `uri`, and the counts of the summary."""
    in_truth = truth.images.select("uri")
    hashes = in_truth["uri"].hash().sort()
    known: list[pl.DataFrame] = []
    models: set[tuple[Any, ...]] = set()
    examples: list[str] = []
    extra = 0
    for frame in results.frames(["uri", "model", "model_arn", "scored_at", "labels"]):
        models |= set(frame.select("model", "model_arn").unique().rows())
        is_known = _is_among(hashes, frame["uri"].hash())
        # a filtered frame shares the strings of all rows; a copy in another format doesn't
        known.append(pl.DataFrame(frame.filter(is_known).to_arrow(compat_level=pl.CompatLevel.oldest())))
        others = frame["uri"].filter(~is_known)
        extra += others.len()
        examples = sorted({*examples, *others.bottom_k(_MAX_EXAMPLES)})[:_MAX_EXAMPLES]
    check_one_model(models)
    evaluated = (
        pl.concat(known)
        .sort("scored_at")
        .unique("uri", keep="last", maintain_order=True)
        .join(in_truth, on="uri", how="semi")
        .sort("uri")
        if known
        else pl.DataFrame(schema={"uri": pl.String()})
    )
    if evaluated.is_empty():
        raise UsageError(no_common_image(truth, results), code=ErrorCode.NO_TRUTH)
    missing = in_truth.join(evaluated, on="uri", how="anti").sort("uri")
    return evaluated, {
        "images": evaluated.height,
        "missing": missing.height,
        "missing_failed": None if failures is None else _count_failed(missing, failures),
        "missing_examples": missing["uri"].head(_MAX_EXAMPLES).to_list(),
        "missing_hint": _spelling_hint(missing["uri"], results) or None,
        "extra": extra,
        "extra_examples": examples,
        **truth_counts(truth),
    }


def truth_counts(truth: Truth) -> dict[str, Any]:
    """The part of a summary that describes the truth."""
    return {
        "unlabelled": truth.unlabelled,
        "repeated_lines": truth.repeated,
        "matched_by_path": None if truth.matches is None else truth.matches.by_path,
        "matched_by_name": None if truth.matches is None else truth.matches.by_name,
        "bad_lines": len(truth.bad),
        "bad_line_examples": list(truth.bad[:_MAX_EXAMPLES]),
        "bad_labels": len(truth.bad_labels),
        "bad_label_examples": list(truth.bad_labels[:_MAX_EXAMPLES]),
    }


def check_one_model(models: Iterable[tuple[Any, ...]]) -> Iterable[tuple[Any, ...]]:
    """Return `models`, (name, ARN); raise `UsageError` if there are several."""
    known = pl.DataFrame(list(models), schema=["model", "model_arn"], orient="row")
    if known.height > 1:
        shown = known.select(shown_model()).to_series().sort()
        raise UsageError(
            f"the results are from {known.height} models, {', '.join(shown)}; "
            "choose one with --model, or one run with --run",
            code=ErrorCode.SEVERAL_MODELS,
        )
    return models


def no_common_image(truth: Truth, results: Results) -> str:
    """The error if no image of the truth is among the results. Blocks."""
    found = [(frame.height, frame["uri"].min()) for frame in results.frames(["uri"]) if frame.height]
    if not found:
        return "the results have no scored image; `batchcl failures` lists the reasons"
    example = min(str(first) for _, first in found)
    advice = _spelling_hint(truth.images["uri"].sort(), results) or (
        "the URIs must be equal"
        if truth.matches is None
        else "name the folder in which the results have the images with --relative-to"
    )
    return (
        f"none of the {truth.images.height} images of the truth has a result: the truth has, for example, "
        f"{truth.images['uri'].min()!s}, and the {sum(rows for rows, _ in found)} results have {example}; {advice}"
    )


def _spelling_hint(missing: pl.Series, results: Results) -> str:
    """The difference and the advice if results have the truth's URIs in another spelling; otherwise empty."""
    others: dict[str, Any] = {}
    for uri in missing.head(_MAX_SPELLINGS_TRIED):
        bucket, slash, key = uri.removeprefix("s3://").partition("/")
        start, name = (f"s3://{bucket}{slash}", key) if uri.startswith("s3://") else ("", uri)
        others |= {start + other.name: other for other in spellings(name) if start + other.name not in others}
    hashes = pl.Series(list(others), dtype=pl.String).hash().sort()
    found: set[str] = set()
    for frame in results.frames(["uri"]) if others else ():
        found |= set(frame["uri"].filter(_is_among(hashes, frame["uri"].hash())))
    return next(
        (f"the truth's names are {each.what}; {each.advice}" for uri, each in others.items() if uri in found), ""
    )


def _is_among(ascending: pl.Series, values: pl.Series) -> pl.Series:
    """For each value, whether `ascending` has it; faster than `is_in`, which makes a hash table each time."""
    if ascending.is_empty():
        return pl.Series([False]).new_from_index(0, values.len())
    position = pl.Series(ascending.search_sorted(values)).clip(upper_bound=ascending.len() - 1)
    return ascending.gather(position) == values


def _detections(evaluated: pl.DataFrame, min_confidence: float | None) -> pl.DataFrame:
    """The detections of the images: `uri`, `label`, `confidence`, `left`, `top`, `width`, `height`."""
    label = pl.col("labels").struct
    detected = (
        evaluated.select("uri", "labels")
        .filter(pl.col("labels").list.len() > 0)
        .explode("labels")
        .select(
            "uri",
            label.field("name").alias("label"),
            label.field("confidence", "left", "top", "width", "height"),
        )
    )
    if min_confidence is not None:
        # results store 32-bit numbers; as a 64-bit number, 70.1 is greater than the stored 70.1
        detected = detected.filter(pl.col("confidence") >= pl.lit(min_confidence, pl.Float32))
    return detected.with_columns(pl.col(pl.Float32).cast(pl.Float64))


def _per_label(expected: pl.DataFrame, detected: pl.DataFrame) -> pl.DataFrame:
    """The table `Evaluation.labels`, without boxes."""
    true_labels = expected.select("uri", "labels").explode("labels").drop_nulls()
    true = true_labels.select("uri", pl.col("labels").alias("label"), pl.lit(1).alias("true"))
    predicted = detected.select("uri", "label").unique().with_columns(pl.lit(1).alias("predicted"))
    both = true.join(predicted, on=["uri", "label"], how="full", coalesce=True)
    hit = (pl.col("true") + pl.col("predicted")).count()
    support, predictions, correct = pl.col("support"), pl.col("predicted"), pl.col("true_positives")
    return (
        both.group_by("label")
        .agg(
            pl.col("true").count().alias("support"),
            predictions.count().alias("predicted"),
            hit.alias("true_positives"),
        )
        .with_columns(pl.col("support", "predicted", "true_positives").cast(pl.Int64))
        .with_columns(
            pl.when(predictions > 0).then(correct / predictions).alias("precision"),
            pl.when(support > 0).then(correct / support).alias("recall"),
            (2 * correct / (support + predictions)).alias("f1"),
        )
        .sort("label")
    )


def _micro_f1(labels: pl.DataFrame) -> float | None:
    sums = labels.select("support", "predicted", "true_positives").sum()
    support, predicted, correct = sums.row(0)
    return 2 * correct / (support + predicted) if support + predicted else None


def _top_labels(expected: pl.DataFrame, detected: pl.DataFrame) -> pl.DataFrame:
    """For each image, its first true label (`truth`), its top label (`predicted`), and whether that is `right`.

    Of labels with equal confidence, the first by name is the top label, as in `model evaluate`. An image without
    detected labels is right if it has no true labels.
    """
    top = (
        detected.sort("confidence", "label", descending=[True, False])
        .unique("uri", keep="first", maintain_order=True)
        .select("uri", pl.col("label").alias("predicted"))
    )
    has_no_label = pl.col("labels").list.len() == 0
    return expected.join(top, on="uri", how="left").select(
        pl.col("labels").list.first().fill_null(NONE).alias("truth"),
        pl.col("predicted").fill_null(NONE),
        pl.when(pl.col("predicted").is_null())
        .then(has_no_label)
        .otherwise(pl.col("labels").list.contains(pl.col("predicted")))
        .alias("right"),
    )


def _confusion(top_labels: pl.DataFrame) -> pl.DataFrame:
    counts = top_labels.group_by("truth", "predicted").agg(pl.len().cast(pl.Int64).alias("images"))
    return counts.sort("truth", "predicted")


def _count_failed(missing: pl.DataFrame, failures: pl.LazyFrame) -> int:
    failed = failures.select("uri").unique().collect(engine="in-memory")
    return missing.join(failed, on="uri", how="semi").height


def _with_boxes(
    labels: pl.DataFrame, expected: pl.DataFrame, detected: pl.DataFrame, truth: Truth
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """`labels` with the columns of object detection, and its part of the summary."""
    unsized = expected.filter(pl.col("uri").is_in(list(truth.unsized)))
    located = expected.filter("detection").join(unsized, on="uri", how="anti")
    with_box = detected.drop_nulls(["left", "top", "width", "height"]).join(located, on="uri", how="semi")
    scores = average_precision(with_box, truth.boxes.join(located, on="uri", how="semi"))
    summary = {
        "mean_average_precision": scores["average_precision"].mean(),
        "located_images": located.height,
        "images_without_size": unsized.height,
    }
    return labels.join(scores, on="label", how="left"), summary
