"""Average precision of object detection."""

from __future__ import annotations

from typing import Final

import polars as pl

__all__ = ["average_precision", "matched_boxes"]

_KEYS: Final = ("uri", "label")


def average_precision(detected: pl.DataFrame, truth: pl.DataFrame, *, min_iou: float = 0.5) -> pl.DataFrame:
    """Average precision of each label, the area under its precision-recall curve.

    Detected boxes are matched in the order of descending confidence. Each is matched with the unmatched true box of its
    image and label with the largest intersection over union (IoU), if that is at least `min_iou`; otherwise it is a
    false positive. Among boxes of equal confidence, the pair with the largest IoU is matched first, and all of them
    form one step of the curve, as in scikit-learn's `precision_recall_curve`. Precision is interpolated at every recall
    (PASCAL VOC 2010 devkit §3.4; COCO samples the same curve at 101 recalls).

    Args:
        detected: `uri`, `label`, `confidence`, `left`, `top`, `width`, `height` in the unit of `truth`.
        truth: `uri`, `label`, `left`, `top`, `width`, `height`; identical boxes are separate objects.
        min_iou: above 0, at most 1.

    Returns:
        `label`, `truth_boxes`, `found_boxes`, `matched_boxes`, `average_precision` 0 to 1 (null without truth),
        sorted by label.
    """
    boxes = truth.group_by("label").agg(pl.len().alias("truth_boxes"))
    steps = (
        detected.with_columns(matched_boxes(detected, truth, min_iou).alias("hit"))
        .group_by("label", "confidence")
        .agg(pl.len().alias("found_boxes"), pl.col("hit").sum().cast(pl.Int64).alias("hits"))
        .sort("confidence", descending=True)
        .join(boxes, on="label", how="left", maintain_order="left")
        .with_columns(
            (pl.col("hits").cum_sum() / pl.col("found_boxes").cum_sum()).over("label").alias("precision"),
        )
    )
    # recall rises by hits/truth at each step, so the area is the sum of hits/truth times interpolated precision
    best_from_here = pl.col("precision").reverse().cum_max().reverse()
    scores = steps.group_by("label", maintain_order=True).agg(
        pl.col("found_boxes").sum(),
        pl.col("hits").sum().alias("matched_boxes"),
        ((best_from_here * pl.col("hits")).sum() / pl.col("truth_boxes").first()).alias("average_precision"),
    )
    return (
        boxes.join(scores, on="label", how="full", coalesce=True)
        .with_columns(pl.col("truth_boxes", "found_boxes", "matched_boxes").fill_null(0).cast(pl.Int64))
        .with_columns(
            pl.when(pl.col("truth_boxes") > 0)
            .then(pl.col("average_precision").fill_null(0.0))
            .alias("average_precision")
        )
        .select("label", "truth_boxes", "found_boxes", "matched_boxes", "average_precision")
        .sort("label")
    )


def matched_boxes(detected: pl.DataFrame, truth: pl.DataFrame, min_iou: float) -> pl.Series:
    """For each detected box, whether it matches a true box; each true box is matched at most once."""
    pairs = (
        detected.with_row_index("detected")
        .join(truth.with_row_index("truth"), on=_KEYS, suffix="_t")
        .with_columns(_iou().alias("iou"))
        .filter(pl.col("iou") >= min_iou)
        .sort("confidence", "iou", "detected", "truth", descending=[True, True, False, False])
    )
    is_hit, is_matched = [False] * detected.height, [False] * truth.height
    for box, true_box in pairs.select("detected", "truth").iter_rows():
        if not is_hit[box] and not is_matched[true_box]:
            is_hit[box] = is_matched[true_box] = True
    return pl.Series(is_hit, dtype=pl.Boolean)


def _iou() -> pl.Expr:
    """Intersection over union of a detected box and a true box, whose columns have the suffix `_t`."""

    def overlap(start: str, size: str) -> pl.Expr:
        ends = [pl.col(start) + pl.col(size), pl.col(f"{start}_t") + pl.col(f"{size}_t")]
        return (pl.min_horizontal(ends) - pl.max_horizontal(start, f"{start}_t")).clip(lower_bound=0)

    intersection = overlap("left", "width") * overlap("top", "height")
    areas = pl.col("width") * pl.col("height") + pl.col("width_t") * pl.col("height_t")
    return intersection / (areas - intersection)
