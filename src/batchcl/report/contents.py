"""What the report shows, computed from the tables and records of an output root.

Each function takes lazy frames as `Results` returns them and aggregates them in polars. Only aggregates leave polars.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from batchcl.analysis.counts import confidence_histogram, failure_table, label_table
from batchcl.analysis.evaluate import Evaluation
from batchcl.analysis.results import shown_model
from batchcl.runs.record import RunRecord
from batchcl.summary import Summary

__all__ = ["NO_LABEL", "Contents", "Throughput", "Totals", "contents_of", "throughput"]

NO_LABEL: Final = "(none)"
_CHARTED_LABELS: Final = 12
_MAX_INTERVALS: Final = 150
_INTERVALS_S: Final = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 24 * 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Counts over all selected rows.

    Attributes:
        scored: images with a result; each version of an image counts once per model.
        unlabelled: those of them without a label.
        failed: images without a result after a call, or after attempts to read them.
        skipped: images without a result for which no call was made.
        latency_ms: median and 95th percentile of a successful call.
    """

    scored: int
    unlabelled: int
    failed: int
    skipped: int
    first_at: dt.datetime | None
    last_at: dt.datetime | None
    latency_ms: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Scored images per second of one run.

    Attributes:
        run_id: the run.
        interval_s: length of each interval.
        intervals: `from`, `to`, `images_per_second`; without gaps.
    """

    run_id: str
    interval_s: int
    intervals: pl.DataFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """All tables of the report.

    Attributes:
        totals: over the selected rows.
        models: `model`, `model_arn`, `min_confidence` (null for the model's own thresholds), `images`.
        runs: the selected runs, the newest first, with the fields of `RunState`.
        labels: as `label_table`, with `share` of the model's images.
        nights: `model`, `label`, `date`, `images`, `share` of the most frequent labels on each date with results.
        histogram: of all detections: `from`, `to`, `detections`, and `model` if there are several.
        histograms: likewise for the most frequent labels, with `label`.
        throughput: of the newest run that has results; None if nothing was scored.
        failures: as `failure_table`.
        evaluation: None without truth.
        no_evaluation: why there is no evaluation although truth exists, or is expected; may be empty.
        charted: model and label of the most frequent labels, which have charts.
        records: run id → record of some of `runs`.
        summaries: run id → summary, likewise.
    """

    totals: Totals
    models: pl.DataFrame
    runs: pl.DataFrame
    labels: pl.DataFrame
    nights: pl.DataFrame
    histogram: pl.DataFrame
    histograms: pl.DataFrame
    throughput: Throughput | None
    failures: pl.DataFrame
    evaluation: Evaluation | None = None
    no_evaluation: str = ""
    charted: Sequence[tuple[str, str]] = ()
    records: Mapping[str, RunRecord] = field(default_factory=dict)
    summaries: Mapping[str, Summary] = field(default_factory=dict)

    @property
    def frequent(self) -> list[str]:
        """All labels, the most frequent first."""
        named = self.labels.filter(pl.col("label") != NO_LABEL)
        return named.sort("images", descending=True)["label"].unique(maintain_order=True).to_list()


def contents_of(
    *,
    images: pl.LazyFrame,
    detections: pl.LazyFrame,
    failures: pl.LazyFrame,
    history: pl.LazyFrame,
    runs: pl.DataFrame,
    evaluation: Evaluation | None,
    no_evaluation: str,
) -> Contents:
    """Aggregate the frames. Reads them several times, a few columns each.

    Args:
        images: the selected images.
        detections: their labels.
        failures: the selected images without a result.
        history: images of all dates, for the shares over the nights.
        runs: the selected runs, as from `Results.runs()`.
        evaluation: of `images`.
        no_evaluation: why it is None.
    """
    models = _models(images)
    labels = _labels(images, detections)
    named = labels.filter(pl.col("label") != NO_LABEL)
    charted = named.sort("images", descending=True).head(_CHARTED_LABELS).select("model", "label").rows()
    frequent = detections.filter(pl.col("label").is_in([label for _, label in charted]))
    newest = runs.filter(pl.col("scored") > 0).sort("started_at", descending=True).head(1)["run_id"].to_list()
    return Contents(
        totals=_totals(images, failures),
        models=models,
        runs=runs.sort("started_at", descending=True, nulls_last=True),
        labels=labels,
        nights=nights(history, labels=[label for _, label in charted]),
        histogram=confidence_histogram(detections),
        histograms=_keyed(confidence_histogram(frequent, per_label=True), models),
        throughput=throughput(images.filter(pl.col("run_id") == newest[0]), newest[0]) if newest else None,
        failures=failure_table(failures),
        evaluation=evaluation,
        no_evaluation=no_evaluation,
        charted=charted,
    )


def _totals(images: pl.LazyFrame, failures: pl.LazyFrame) -> Totals:
    latency = pl.col("latency_ms")
    row = (
        images.select(
            pl.len().alias("scored"),
            (pl.col("labels").list.len() == 0).sum().alias("unlabelled"),
            pl.col("scored_at").min().alias("first_at"),
            pl.col("scored_at").max().alias("last_at"),
            latency.median().alias("p50"),
            latency.quantile(0.95, "linear").alias("p95"),
        )
        .collect(engine="in-memory")
        .row(0, named=True)
    )
    counts = failures.group_by("status").agg(pl.struct("uri", "version_id").n_unique().alias("images"))
    without = dict(counts.collect(engine="in-memory").iter_rows())
    return Totals(
        scored=row["scored"],
        unlabelled=row["unlabelled"],
        failed=without.get("failed", 0),
        skipped=without.get("skipped", 0),
        first_at=row["first_at"],
        last_at=row["last_at"],
        latency_ms=None if row["p50"] is None else (row["p50"], row["p95"]),
    )


def _models(images: pl.LazyFrame) -> pl.DataFrame:
    return (
        images.group_by("model", "model_arn", "min_confidence")
        .agg(pl.len().alias("images"))
        .with_columns(shown_model())
        .sort("images", "model", descending=[True, False])
        .collect(engine="in-memory")
    )


def _labels(images: pl.LazyFrame, detections: pl.LazyFrame) -> pl.DataFrame:
    scored = images.group_by("model", "model_arn").agg(pl.len().alias("scored"))
    totals = scored.with_columns(shown_model()).select("model", "scored").collect(engine="in-memory")
    share = (pl.col("images") / pl.col("scored")).alias("share")
    labels = label_table(detections).join(totals, on="model", how="left", maintain_order="left")
    return labels.with_columns(share).drop("scored")


def _keyed(histograms: pl.DataFrame, models: pl.DataFrame) -> pl.DataFrame:
    """`histograms` with the column `model` also where there is only one."""
    if "model" in histograms.columns:
        return histograms
    return histograms.with_columns(pl.lit(models["model"].first(), pl.String).alias("model"))


def nights(images: pl.LazyFrame, *, labels: Sequence[str]) -> pl.DataFrame:
    """The share of each of `labels` on each date, a run's start date.

    Returns:
        `model`, `label`, `date`, `images` with the label, `scored` images of the model on that date, and `share`; one
        row for each label and date with results of the model, sorted.
    """
    by = ["model", "model_arn", "date"]
    scored = images.group_by(by).agg(pl.len().alias("scored")).collect(engine="in-memory")
    names = pl.col("labels").list.eval(pl.element().struct.field("name")).list.unique()
    found = (
        images.select(*by, names.alias("label"))
        .explode("label", empty_as_null=False, keep_nulls=False)
        .filter(pl.col("label").is_in(labels))
        .group_by(*by, "label")
        .agg(pl.len().alias("images"))
        .collect(engine="in-memory")
    )
    grid = scored.join(found.select("model_arn", "label").unique(), on="model_arn")
    return (
        grid.join(found, on=[*by, "label"], how="left")
        .with_columns(pl.col("images").fill_null(0))
        .with_columns((pl.col("images") / pl.col("scored")).alias("share"), shown_model())
        .select("model", "label", "date", "images", "scored", "share")
        .sort("model", "label", "date")
    )


def throughput(images: pl.LazyFrame, run_id: str) -> Throughput | None:
    """Scored images per second of the run whose images these are; None if there are none."""
    bounds = images.select(first=pl.col("scored_at").min(), last=pl.col("scored_at").max())
    first, last = bounds.collect(engine="in-memory").row(0)
    if first is None:
        return None
    seconds = (last - first).total_seconds()
    interval_s = next((each for each in _INTERVALS_S if seconds / each <= _MAX_INTERVALS), _INTERVALS_S[-1])
    number = ((pl.col("scored_at") - first).dt.total_microseconds() // (interval_s * 1_000_000)).alias("number")
    counts = images.group_by(number).agg(pl.len().alias("images")).collect(engine="in-memory")
    every = pl.DataFrame({"number": pl.Series(range(int(seconds // interval_s) + 1), dtype=counts.schema["number"])})
    start = pl.lit(first) + pl.duration(seconds=pl.col("number") * interval_s)
    intervals = (
        every.join(counts, on="number", how="left", maintain_order="left")
        .with_columns(start.alias("from"))
        .with_columns((pl.col("from") + pl.duration(seconds=interval_s)).alias("to"))
        .select("from", "to", (pl.col("images").fill_null(0) / interval_s).alias("images_per_second"))
    )
    return Throughput(run_id=run_id, interval_s=interval_s, intervals=intervals)


def lowest_confidence(models: pl.DataFrame, model: str) -> float | None:
    """The confidence below which no label of `model` was requested; None if the model's own thresholds applied."""
    requested: list[Any] = models.filter(pl.col("model") == model)["min_confidence"].to_list()
    return None if None in requested or not requested else float(min(requested))
