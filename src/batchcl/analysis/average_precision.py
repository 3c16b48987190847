"""Average precision of located objects."""

from __future__ import annotations

from typing import Final

import polars as pl

__all__ = ["average_precision"]

_KEYS: Final = ("uri", "label")


def average_precision(found: pl.DataFrame, truth: pl.DataFrame, *, min_iou: float = 0.5) -> pl.DataFrame:
    """Average precision of each label, the area under its precision-recall curve.

    Found boxes are taken by descending confidence; each takes the free truth of its image and label that it overlaps
    most, if the intersection over union is at least `min_iou`, and is a false positive otherwise. Of boxes with equal
    confidence, the pair with the largest overlap is matched first, and all of them form one step of the curve, as in
    scikit-learn's `precision_recall_curve`, wherever they lie. Precision is interpolated at every recall (PASCAL VOC
    2010 devkit §3.4; COCO samples the same curve at 101 recalls).

    Args:
        found: `uri`, `label`, `confidence`, `left`, `top`, `width`, `height` in the unit of `truth`.
        truth: `uri`, `label`, `left`, `top`, `width`, `height`; identical boxes are that many objects.
        min_iou: above 0, at most 1.

    Returns:
        `label`, `truth_boxes`, `found_boxes`, `matched_boxes`, `average_precision` 0 to 1 (null without truth),
        sorted by label.
    """
    boxes = truth.group_by("label").agg(pl.len().alias("truth_boxes"))
    steps = (
        found.with_columns(_matched(found, truth, min_iou).alias("hit"))
        .group_by("label", "confidence")
        .agg(pl.len().alias("found_boxes"), pl.col("hit").sum().cast(pl.Int64).alias("hits"))
        .sort("confidence", descending=True)
        .join(boxes, on="label", how="left", maintain_order="left")
        .with_columns(
            (pl.col("hits").cum_sum() / pl.col("found_boxes").cum_sum()).over("label").alias("precision"),
        )
    )
    # Recall rises by hits/truth at each step, so the area is the sum of the interpolated precisions there.
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


def _matched(found: pl.DataFrame, truth: pl.DataFrame, min_iou: float) -> pl.Series:
    """For each found box whether it matches a truth; each truth is matched once, by the surest box that may."""
    pairs = (
        found.with_row_index("found")
        .join(truth.with_row_index("truth"), on=_KEYS, suffix="_t")
        .with_columns(_iou().alias("iou"))
        .filter(pl.col("iou") >= min_iou)
        .sort("confidence", "iou", "found", "truth", descending=[True, True, False, False])
    )
    hits, taken = [False] * found.height, [False] * truth.height
    for one, other in pairs.select("found", "truth").iter_rows():
        if not hits[one] and not taken[other]:
            hits[one] = taken[other] = True
    return pl.Series(hits, dtype=pl.Boolean)


def _iou() -> pl.Expr:
    def overlap(start: str, size: str) -> pl.Expr:
        ends = [pl.col(start) + pl.col(size), pl.col(f"{start}_t") + pl.col(f"{size}_t")]
        return (pl.min_horizontal(ends) - pl.max_horizontal(start, f"{start}_t")).clip(lower_bound=0)

    both = overlap("left", "width") * overlap("top", "height")
    areas = pl.col("width") * pl.col("height") + pl.col("width_t") * pl.col("height_t")
    return both / (areas - both)
