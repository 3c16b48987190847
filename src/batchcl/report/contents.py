"""What the report shows, computed from the tables and records of an output root.

Tables are read in batches, of which only aggregates are kept: memory grows with the numbers of labels, nights and
seconds, and by 4 bytes per detection.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from batchcl.analysis.compare import Comparison
from batchcl.analysis.counts import NONE, confidence_histogram, failure_table, label_table
from batchcl.analysis.evaluate import Evaluation
from batchcl.analysis.part_files import Batch
from batchcl.analysis.results import Results, shown_model
from batchcl.analysis.thresholds import ThresholdChoice
from batchcl.runs.record import RunRecord
from batchcl.summary import Summary

__all__ = [
    "CHARTED_LABELS",
    "Contents",
    "Throughput",
    "Totals",
    "contents_of",
    "lowest_confidence",
    "nights",
    "throughput",
]

CHARTED_LABELS: Final = 12
"""The most frequent labels, which have charts."""
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
        notes: what a reader should know of the rows, such as that they are of several models.
        runs: the selected runs, the newest first, with the fields of `RunState`.
        labels: as `label_table`.
        nights: `model`, `label`, `date`, `images`, `share` of the most frequent labels on each date with results.
        histogram: of all detections: `from`, `to`, `detections`, and `model` if there are several.
        histograms: likewise for the most frequent labels, with `label`.
        throughput: of the newest run that has results; None if nothing was scored.
        failures: as `failure_table`.
        evaluation: None without truth.
        no_evaluation: why there is no evaluation although truth exists, or is expected; may be empty.
        thresholds: the best ones and their curves, where there is an evaluation of results with scores.
        comparison: with the baseline; None without one.
        no_comparison: why there is none although there are several runs; may be empty.
        charted: model and label of the most frequent labels, which have charts.
        records: run id → record of some of `runs`.
        summaries: run id → summary, likewise.
    """

    totals: Totals
    models: pl.DataFrame
    notes: Sequence[str]
    runs: pl.DataFrame
    labels: pl.DataFrame
    nights: pl.DataFrame
    histogram: pl.DataFrame
    histograms: pl.DataFrame
    throughput: Throughput | None
    failures: pl.DataFrame
    evaluation: Evaluation | None = None
    no_evaluation: str = ""
    thresholds: ThresholdChoice | None = None
    comparison: Comparison | None = None
    no_comparison: str = ""
    charted: Sequence[tuple[str, str]] = ()
    records: Mapping[str, RunRecord] = field(default_factory=dict)
    summaries: Mapping[str, Summary] = field(default_factory=dict)

    @property
    def frequent(self) -> list[str]:
        """All labels, the most frequent first."""
        named = self.labels.filter(pl.col("label") != NONE)
        return named.sort("images", descending=True)["label"].unique(maintain_order=True).to_list()


def contents_of(results: Results, history: Results) -> Contents:
    """Read and aggregate the rows of `results`, without evaluation and comparison. Blocks.

    Args:
        results: the selected rows.
        history: of all runs and dates, for the shares over the nights.
    """
    runs = results.runs().collect(engine="in-memory").sort("started_at", descending=True, nulls_last=True)
    newest = next(iter(runs.filter(pl.col("scored") > 0)["run_id"]), None)
    counts = _BatchCounts.of_all(results.map_batches(_counting(newest), columns=_COUNTED))
    failures = results.failures()
    labels = label_table(results)
    named = labels.filter(pl.col("label") != NONE)
    charted = named.sort("images", descending=True).head(CHARTED_LABELS).select("model", "label").rows()
    models = counts.models.with_columns(shown_model()).sort("images", "model", descending=[True, False])
    histograms = confidence_histogram(results, per_label=True)
    return Contents(
        totals=_totals(counts, failures),
        models=models,
        notes=results.notes(),
        runs=runs,
        labels=labels,
        nights=nights(history, labels=[label for _, label in charted]),
        histogram=confidence_histogram(results),
        histograms=_keyed(histograms, models),
        throughput=None if newest is None else throughput(counts.seconds, newest),
        failures=failure_table(failures),
        charted=charted,
    )


_COUNTED: Final = ("run_id", "scored_at", "latency_ms", "min_confidence")


@dataclass(frozen=True, slots=True, kw_only=True)
class _BatchCounts:
    """Counts of some rows.

    Attributes:
        models: `model`, `model_arn`, `min_confidence`, `images`, `unlabelled`.
        latencies: `latency_ms` in whole milliseconds and `images`.
        seconds: `second` (UTC) and `images` of one run.
        span: the first and last `scored_at`.
    """

    models: pl.DataFrame
    latencies: pl.DataFrame
    seconds: pl.DataFrame
    span: pl.DataFrame

    @classmethod
    def of_all(cls, batches: Iterable[_BatchCounts]) -> _BatchCounts:
        """The sums."""
        all_batches = [_count(_NO_ROWS, run_id=None), *batches]
        by_model = ["model", "model_arn", "min_confidence"]
        span = pl.concat([each.span for each in all_batches])
        return cls(
            models=_sum([each.models for each in all_batches], by_model).filter(pl.col("images") > 0),
            latencies=_sum([each.latencies for each in all_batches], ["latency_ms"]),
            seconds=_sum([each.seconds for each in all_batches], ["second"]),
            span=span.select(pl.col("first").min(), pl.col("last").max()),
        )


_TIME: Final = pl.Datetime("us", "UTC")
_NO_ROWS: Final = Batch(
    "",
    "",
    "",
    0,
    pl.DataFrame(
        schema={"run_id": pl.String(), "scored_at": _TIME, "latency_ms": pl.Float32(), "min_confidence": pl.Float32()}
    ),
    pl.DataFrame(schema={"image": pl.Int64()}),
)


def _counting(run_id: str | None) -> Any:
    return lambda batch: _count(batch, run_id=run_id)


def _count(batch: Batch, *, run_id: str | None) -> _BatchCounts:
    images = batch.images
    is_labelled = pl.int_range(pl.len()).is_in(batch.detections["image"].unique().cast(pl.Int64).implode())
    of_model = images.with_columns(
        pl.lit(batch.model).alias("model"), pl.lit(batch.model_arn).alias("model_arn"), (~is_labelled).alias("without")
    )
    scored_at = pl.col("scored_at")
    return _BatchCounts(
        models=of_model.group_by("model", "model_arn", "min_confidence").agg(
            pl.len().cast(pl.Int64).alias("images"), pl.col("without").sum().cast(pl.Int64).alias("unlabelled")
        ),
        latencies=images.group_by(pl.col("latency_ms").round(0)).agg(pl.len().cast(pl.Int64).alias("images")),
        seconds=images.filter(pl.col("run_id").eq_missing(pl.lit(run_id, pl.String)))
        .group_by(scored_at.dt.truncate("1s").alias("second"))
        .agg(pl.len().cast(pl.Int64).alias("images")),
        span=images.select(scored_at.min().alias("first"), scored_at.max().alias("last")),
    )


def _sum(frames: Iterable[pl.DataFrame], by: Sequence[str]) -> pl.DataFrame:
    return pl.concat(list(frames)).group_by(by).agg(pl.exclude(by).sum()).sort(by)


def _totals(counts: _BatchCounts, failures: pl.LazyFrame) -> Totals:
    by_status = failures.group_by("status").agg(pl.struct("uri", "version_id").n_unique().alias("images"))
    without = dict(by_status.collect(engine="in-memory").iter_rows())
    first, last = counts.span.row(0)
    return Totals(
        scored=int(counts.models["images"].sum()),
        unlabelled=int(counts.models["unlabelled"].sum()),
        failed=without.get("failed", 0),
        skipped=without.get("skipped", 0),
        first_at=first,
        last_at=last,
        latency_ms=None if first is None else (_quantile(counts.latencies, 0.5), _quantile(counts.latencies, 0.95)),
    )


def _quantile(latencies: pl.DataFrame, share: float) -> float:
    """The smallest latency that at least this share of images does not exceed."""
    reached = pl.col("images").cum_sum() >= share * pl.col("images").sum()
    return float(latencies.sort("latency_ms").filter(reached)["latency_ms"][0])


def _keyed(histograms: pl.DataFrame, models: pl.DataFrame) -> pl.DataFrame:
    """`histograms` with the column `model` also where there is only one."""
    if "model" in histograms.columns:
        return histograms
    return histograms.with_columns(pl.lit(models["model"].first(), pl.String).alias("model"))


def nights(results: Results, *, labels: Sequence[str]) -> pl.DataFrame:
    """The share of each of `labels` on each date, a run's start date. Blocks.

    Args:
        results: with all runs.
        labels: their names.

    Returns:
        `model`, `label`, `date`, `images` with the label, `scored` images of the model on that date, and `share`; one
        row for each label and date with results of the model, sorted.
    """
    key = {"model": pl.String(), "model_arn": pl.String(), "date": pl.String()}
    by = list(key)

    def count(batch: Batch) -> tuple[pl.DataFrame, pl.DataFrame]:
        constants = [pl.lit(getattr(batch, name)).alias(name) for name in by]
        found = (
            batch.detections.filter(pl.col("label").cast(pl.String).is_in(labels))
            .group_by(pl.col("label").cast(pl.String))
            .agg(pl.col("image").n_unique().cast(pl.Int64).alias("images"))
        )
        scored = pl.DataFrame({"scored": [batch.rows]})
        return scored.select(*constants, "scored"), found.select(*constants, "label", "images")

    counted = list(results.map_batches(count))
    no_scored = pl.DataFrame(schema={**key, "scored": pl.Int64()})
    no_found = pl.DataFrame(schema={**key, "label": pl.String(), "images": pl.Int64()})
    scored = _sum([no_scored, *(each for each, _ in counted)], by)
    found = _sum([no_found, *(each for _, each in counted)], [*by, "label"])
    grid = scored.join(found.select("model_arn", "label").unique(), on="model_arn")
    return (
        grid.join(found, on=[*by, "label"], how="left")
        .with_columns(pl.col("images").fill_null(0), pl.col("date").str.to_date("%Y-%m-%d"))
        .with_columns((pl.col("images") / pl.col("scored")).alias("share"), shown_model())
        .select("model", "label", "date", "images", "scored", "share")
        .sort("model", "label", "date")
    )


def throughput(seconds: pl.DataFrame, run_id: str) -> Throughput | None:
    """Scored images per second of a run; None if it has none.

    Args:
        seconds: `second` and `images` that were scored in it.
        run_id: the run.
    """
    if seconds.is_empty():
        return None
    first, last = seconds.select(first=pl.col("second").min(), last=pl.col("second").max()).row(0)
    length_s = (last - first).total_seconds() + 1
    interval_s = next((each for each in _INTERVALS_S if length_s / each <= _MAX_INTERVALS), _INTERVALS_S[-1])
    number = ((pl.col("second") - first).dt.total_seconds() // interval_s).alias("number")
    counts = seconds.group_by(number).agg(pl.col("images").sum())
    every = pl.DataFrame({"number": pl.Series(range(-int(-length_s // interval_s)), dtype=counts.schema["number"])})
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
