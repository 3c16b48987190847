"""Average precision of located objects."""

from __future__ import annotations

from typing import Final

import polars as pl

__all__ = ["average_precision"]

_KEYS: Final = ("uri", "label")


def average_precision(found: pl.DataFrame, truth: pl.DataFrame, *, min_iou: float = 0.5) -> pl.DataFrame:
    """Average precision of each label, the area under its precision-recall curve.

    Found boxes are taken by descending confidence; each takes the free truth of its image and label that it overlaps
    most, if the intersection over union is at least `min_iou`, and is a false positive otherwise. Precision is
    interpolated at every recall (PASCAL VOC 2010 devkit §3.4; COCO samples the same curve at 101 recalls).

    Args:
        found: `uri`, `label`, `confidence`, `left`, `top`, `width`, `height` in the unit of `truth`.
        truth: `uri`, `label`, `left`, `top`, `width`, `height`.
        min_iou: above 0, at most 1.

    Returns:
        `label`, `truth_boxes`, `found_boxes`, `matched_boxes`, `average_precision` 0 to 1 (null without truth),
        sorted by label.
    """
    ranked = found.select(*_KEYS, "confidence", "left", "top", "width", "height").sort(
        "confidence", "uri", "label", "left", "top", "width", "height", descending=[True, *[False] * 6]
    )
    ranked = ranked.with_row_index("rank")
    hits = _matches(ranked, truth.with_row_index("truth"), min_iou)
    marked = ranked.select("label", pl.col("rank").is_in(pl.Series(hits, dtype=pl.UInt32).implode()).alias("hit"))
    boxes = truth.group_by("label").agg(pl.len().alias("truth_boxes"))
    curves = marked.join(boxes, on="label", how="left", maintain_order="left").with_columns(
        (pl.col("hit").cum_sum() / pl.int_range(1, pl.len() + 1)).over("label").alias("precision")
    )
    # Recall rises by 1/truth at each hit, so the area is the sum of the interpolated precisions there.
    best_from_here = pl.col("precision").reverse().cum_max().reverse()
    scores = curves.group_by("label", maintain_order=True).agg(
        pl.len().alias("found_boxes"),
        pl.col("hit").sum().alias("matched_boxes"),
        (best_from_here.filter(pl.col("hit")).sum() / pl.col("truth_boxes").first()).alias("average_precision"),
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


def _matches(ranked: pl.DataFrame, truth: pl.DataFrame, min_iou: float) -> list[int]:
    """Ranks of the found boxes that match a truth; each truth is matched once, by the surest that may."""
    pairs = (
        ranked.join(truth, on=_KEYS, suffix="_t")
        .with_columns(_iou().alias("iou"))
        .filter(pl.col("iou") >= min_iou)
        .sort("rank", "iou", "truth", descending=[False, True, False])
    )
    hits: list[int] = []
    taken: set[int] = set()
    last = -1
    for rank, which in pairs.select("rank", "truth").iter_rows():
        if rank != last and which not in taken:
            hits.append(rank)
            taken.add(which)
            last = rank
    return hits


def _iou() -> pl.Expr:
    def overlap(start: str, size: str) -> pl.Expr:
        ends = [pl.col(start) + pl.col(size), pl.col(f"{start}_t") + pl.col(f"{size}_t")]
        return (pl.min_horizontal(ends) - pl.max_horizontal(start, f"{start}_t")).clip(lower_bound=0)

    both = overlap("left", "width") * overlap("top", "height")
    areas = pl.col("width") * pl.col("height") + pl.col("width_t") * pl.col("height_t")
    return both / (areas - both)
