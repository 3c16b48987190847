"""Chooses the images to look at: the most uncertain, the most or least confident, changed or wrong ones.

Each function takes rows of `Results.images()` with at least the columns `COLUMNS`, and returns those it chose, best
first, with two more columns: `reason`, a text for people, and `rank`, by which they are sorted in ascending order. From
a large root, `best` chooses in parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Final

import polars as pl

from batchcl.analysis.counts import NONE
from batchcl.analysis.truth import Truth
from batchcl.sources.from_results import ROW_INDEX, condition_rows
from batchcl.sources.where import Condition

__all__ = [
    "COLUMNS",
    "DEFAULT_THRESHOLD",
    "best",
    "by_confidence",
    "changed",
    "extremes_per_label",
    "matching",
    "most_uncertain",
    "newest",
    "random",
    "without_label",
    "wrong",
]

COLUMNS: Final = ("uri", "version_id", "labels", "min_confidence", "scored_at")
"""The columns that the functions need; others are passed through."""

DEFAULT_THRESHOLD: Final = 50.0
"""Assumed for a label without a known threshold."""

_NO_THRESHOLDS: Final[Mapping[str, float]] = MappingProxyType({})


def best(frames: Iterable[pl.DataFrame], choose: Callable[[pl.DataFrame], pl.DataFrame], *, limit: int) -> pl.DataFrame:
    """The first `limit` of the images that `choose`, one of the functions below, returns for each of `frames`.

    The frames, at least one, are in memory one at a time, as from `Results.frames`.
    """
    chosen: pl.DataFrame | None = None
    for frame in frames:
        more = choose(frame)
        both = more if chosen is None else pl.concat([chosen, more])
        chosen = both.sort("rank", "uri", maintain_order=True).head(limit)
    assert chosen is not None
    return chosen


def most_uncertain(
    images: pl.DataFrame,
    *,
    limit: int,
    thresholds: Mapping[str, float] = _NO_THRESHOLDS,
    default_threshold: float | None = None,
) -> pl.DataFrame:
    """The images whose result would change with the smallest change of a confidence. Those without labels are excluded.

    An image's margin, which is its `rank`, is the smallest of: the distance of each box's confidence from its label's
    threshold; the distance of the top image-level label's confidence from its threshold; and the difference between the
    confidences of the two top image-level labels.

    Args:
        images: their labels should include those below the thresholds.
        limit: how many at most.
        thresholds: label → threshold, 0 to 100.
        default_threshold: of other labels; by default the `min_confidence` that the image was scored with, if it is
            above 0, or else `DEFAULT_THRESHOLD`.
    """
    scored_with = pl.when(pl.col("min_confidence") > 0).then("min_confidence").cast(pl.Float64)
    threshold = pl.coalesce(
        pl.col("label").replace_strict(dict(thresholds), default=None, return_dtype=pl.Float64),
        pl.lit(default_threshold, pl.Float64),
        scored_with,
        pl.lit(DEFAULT_THRESHOLD),
    )
    labels = _label_rows(images, "min_confidence").with_columns(threshold.alias("threshold"))
    nothing = pl.lit(None, pl.String).alias("other"), pl.lit(None, pl.Float64).alias("other_confidence")
    whole = (
        labels.filter(~pl.col("is_box"))
        .group_by(ROW_INDEX, maintain_order=True)
        .agg(
            pl.col("label", "confidence", "threshold").first(),
            pl.col("label", "confidence").get(1, null_on_oob=True).name.prefix("second_"),
        )
    )
    to_threshold = (pl.col("confidence") - pl.col("threshold")).abs().alias("rank")
    candidates = pl.concat(
        [
            frame.select(ROW_INDEX, "label", "confidence", "threshold", *other, rank)
            for frame, other, rank in (
                (labels.filter("is_box"), nothing, to_threshold),
                (whole, nothing, to_threshold),
                (
                    whole.drop_nulls("second_label"),
                    (pl.col("second_label").alias("other"), pl.col("second_confidence").alias("other_confidence")),
                    (pl.col("confidence") - pl.col("second_confidence")).alias("rank"),
                ),
            )
        ]
    )
    margins = candidates.sort("rank", "label", "other").unique(ROW_INDEX, keep="first", maintain_order=True)
    side = pl.when(pl.col("confidence") < pl.col("threshold")).then(pl.lit("below")).otherwise(pl.lit("above"))
    subject, distance = pl.format("{} {}", "label", _one("confidence")), _two("rank")
    second = pl.format("{} and {} {} differ by {}", subject, "other", _one("other_confidence"), distance)
    alone = pl.format("{} is {} {} {}", subject, distance, side, "threshold")
    reason = pl.when(pl.col("other").is_null()).then(alone).otherwise(second)
    return _chosen(images, margins, reason, limit)


def by_confidence(images: pl.DataFrame, *, limit: int, descending: bool) -> pl.DataFrame:
    """The images with the lowest or highest (`descending`) confidence of their top label; not those without labels."""
    top = _top_labels(images).drop_nulls("label")
    rank = -pl.col("confidence") if descending else pl.col("confidence")
    return _chosen(images, top.with_columns(rank.alias("rank")), _shown("label", "confidence"), limit)


def extremes_per_label(images: pl.DataFrame, *, per_label: int) -> pl.DataFrame:
    """For each label, the `per_label` images with its lowest, and those with its highest confidence, each image once.

    Of several boxes with the label, the one with the highest confidence counts. The rows have one more column, `label`,
    and are sorted by it; their `rank` is the confidence, negative for the highest ones.
    """
    each = _label_rows(images).unique([ROW_INDEX, "label"], keep="first", maintain_order=True)
    each = each.with_columns(images["uri"].gather(each[ROW_INDEX]).alias("uri"))
    place, count = pl.int_range(pl.len()).over("label"), pl.len().over("label")
    is_low = 2 * pl.col("place") < pl.col("count") - 1
    extremes = (
        each.sort("label", "confidence", "uri")
        .with_columns(place.alias("place"), count.alias("count"))
        .filter(pl.min_horizontal("place", pl.col("count") - 1 - pl.col("place")) < per_label)
        .with_columns(
            pl.when(is_low).then("confidence").otherwise(-pl.col("confidence")).alias("rank"),
            pl.when(is_low).then(pl.lit("least")).otherwise(pl.lit("most")).alias("which"),
        )
        .sort("label", pl.col("rank") > 0, "rank", "uri")
    )
    reason = pl.format("{} confident {}: {}", "which", "label", _one("confidence")).alias("reason")
    return pl.concat([images[extremes[ROW_INDEX]], extremes.select("label", reason, "rank")], how="horizontal")


def without_label(images: pl.DataFrame, *, limit: int) -> pl.DataFrame:
    """The images without a label, the newest first."""
    empty = images.with_row_index(ROW_INDEX).filter(pl.col("labels").list.len() == 0)
    return _chosen(images, empty.select(ROW_INDEX, _age()), pl.lit("no label"), limit)


def newest(images: pl.DataFrame, *, limit: int) -> pl.DataFrame:
    """The images that were scored last."""
    rows = images.with_row_index(ROW_INDEX).select(ROW_INDEX, _age(), "scored_at")
    return _chosen(
        images, rows, pl.format("scored at {}", pl.col("scored_at").dt.strftime("%Y-%m-%dT%H:%M:%SZ")), limit
    )


def random(images: pl.DataFrame, *, limit: int, seed: int = 0) -> pl.DataFrame:
    """A random sample, which is the same for the same images and `seed`."""
    number = pl.struct("uri", "version_id").hash(seed).cast(pl.Float64).alias("rank")
    rows = images.with_row_index(ROW_INDEX).select(ROW_INDEX, number)
    return _chosen(images, rows, pl.lit("random sample"), limit)


def changed(images: pl.DataFrame, baseline: pl.DataFrame, *, limit: int) -> pl.DataFrame:
    """The images whose top label is not the one in `baseline`, the most confident first.

    Args:
        images: at most one row per uri and version.
        baseline: likewise; images that are only in one of the two are left out.
        limit: how many at most.
    """
    was = _top_labels(baseline).select("label", "confidence").rename(lambda name: f"was_{name}")
    before = pl.concat([baseline.select("uri", "version_id"), was], how="horizontal")
    now = pl.concat([images.select("uri", "version_id"), _top_labels(images)], how="horizontal")
    both = now.join(before, on=["uri", "version_id"], how="inner", nulls_equal=True)
    rows = both.filter(pl.col("label").ne_missing(pl.col("was_label"))).with_columns(
        (-pl.max_horizontal("confidence", "was_confidence")).alias("rank")
    )
    reason = pl.format("{}, before: {}", _shown("label", "confidence"), _shown("was_label", "was_confidence"))
    return _chosen(images, rows.drop("uri"), reason, limit)


def wrong(images: pl.DataFrame, truth: Truth, *, limit: int) -> pl.DataFrame:
    """The images whose top label is not among their true labels, the most confident first.

    An image without labels is wrong if it has a true label. Images without truth are left out.
    """
    tops = pl.concat([images.select("uri"), _top_labels(images)], how="horizontal")
    rows = tops.join(truth.images.select("uri", pl.col("labels").alias("true")), on="uri", how="inner")
    is_right = pl.when(pl.col("label").is_null()).then(pl.col("true").list.len() == 0)
    rows = rows.filter(~is_right.otherwise(pl.col("true").list.contains(pl.col("label"))))
    rows = rows.with_columns((-pl.col("confidence").fill_null(0.0)).alias("rank"))
    true = pl.when(pl.col("true").list.len() > 0).then(pl.col("true").list.join(", ")).otherwise(pl.lit(NONE))
    return _chosen(images, rows.drop("uri"), pl.format("{}, true: {}", _shown("label", "confidence"), true), limit)


def matching(images: pl.DataFrame, condition: Condition) -> pl.DataFrame:
    """The images of which any row matches, with the labels of the matching rows only.

    The rows are those of `sources.from_results.condition_rows`. If the condition uses no column of labels, all labels
    remain.

    Args:
        images: with `condition_columns(condition)` as well.
        condition: on the columns `sources.from_results.COLUMNS`; see `Condition.check`.

    Raises:
        UsageError: the condition can't be evaluated for these values.
    """
    rows = condition_rows(images.with_columns(status=pl.lit("scored")), condition)
    is_match = condition.matches(rows)
    found = images[rows.filter(is_match)[ROW_INDEX].unique(maintain_order=True)]
    if rows.height == images.height and "label" not in rows.columns:
        return found
    kept = (
        images.select("labels")
        .with_row_index(ROW_INDEX)
        .explode("labels", empty_as_null=True, keep_nulls=True)
        .filter(is_match)
        .group_by(ROW_INDEX, maintain_order=True)
        .agg(pl.col("labels").drop_nulls())
    )
    return found.with_columns(kept["labels"])


def _label_rows(images: pl.DataFrame, *more: str) -> pl.DataFrame:
    """One row per label: `ROW_INDEX`, `label`, `confidence`, `is_box` and the columns `more`; the top label first."""
    label = pl.col("labels").struct
    return (
        images.select("labels", *more)
        .with_row_index(ROW_INDEX)
        .explode("labels", empty_as_null=False, keep_nulls=False)
        .select(
            ROW_INDEX,
            *more,
            label.field("name").alias("label"),
            label.field("confidence").cast(pl.Float64),
            label.field("left").is_not_null().alias("is_box"),
        )
        .sort(ROW_INDEX, "confidence", "label", descending=[False, True, False])
    )


def _top_labels(images: pl.DataFrame) -> pl.DataFrame:
    """One row per image, in their order: `ROW_INDEX`, `label`, `confidence`; nulls for an image without labels.

    Of labels with equal confidence, the first by name is the top label, as in `analysis.evaluate`.
    """
    top = _label_rows(images).unique(ROW_INDEX, keep="first", maintain_order=True)
    return (
        images.select("uri")
        .with_row_index(ROW_INDEX)
        .select(ROW_INDEX)
        .join(top.select(ROW_INDEX, "label", "confidence"), on=ROW_INDEX, how="left", maintain_order="left")
    )


def _chosen(images: pl.DataFrame, rows: pl.DataFrame, reason: pl.Expr, limit: int) -> pl.DataFrame:
    """The images of the first `limit` of `rows`, which have `ROW_INDEX`, `rank` and what `reason` needs."""
    rows = rows.with_columns(images["uri"].gather(rows[ROW_INDEX]).alias("uri"))
    first = rows.sort("rank", "uri", ROW_INDEX).head(limit)
    return images[first[ROW_INDEX]].with_columns(first.select(reason.alias("reason"), "rank"))


def _age() -> pl.Expr:
    return (-pl.col("scored_at").dt.epoch("us").cast(pl.Float64)).alias("rank")


def _shown(label: str, confidence: str) -> pl.Expr:
    text = pl.format("{} {}", label, _one(confidence))
    return pl.when(pl.col(label).is_null()).then(pl.lit(NONE)).otherwise(text)


def _one(name: str) -> pl.Expr:
    return pl.col(name).round(1)


def _two(name: str) -> pl.Expr:
    return pl.col(name).round(2)
