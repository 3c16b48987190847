"""`batchcl confidence`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from batchcl.cli.output import (
    AllRuns,
    Csv,
    Date,
    Json,
    MinConfidence,
    Model,
    Profile,
    Region,
    Root,
    Run,
    ThresholdsFile,
    cell,
    check_format,
    emit,
    open_root_results,
)

if TYPE_CHECKING:
    import polars as pl

__all__ = ["confidence"]

_BAR: Final = 40
_EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


def confidence(
    root: Root,
    *,
    bins: Annotated[int, typer.Option(help="Number of bins from 0 to 100.", min=1, max=1000)] = 20,
    label: Annotated[str | None, typer.Option(help="Only this label.", show_default=False)] = None,
    per_label: Annotated[bool, typer.Option("--per-label", help="One histogram per label.")] = False,
    model: Model = None,
    run: Run = None,
    date: Date = None,
    all_runs: AllRuns = False,
    min_confidence: MinConfidence = None,
    thresholds: ThresholdsFile = None,
    json: Json = False,
    csv: Csv = False,
    profile: Profile = None,
    region: Region = None,
) -> None:
    """Show a histogram of the confidences, to choose a threshold.

    Examples:

      batchcl confidence out

      batchcl confidence out --label cat --bins 50

      batchcl confidence out --per-label --csv > histogram.csv
    """
    check_format(json=json, csv=csv)
    from batchcl.analysis.counts import confidence_histogram

    results = open_root_results(
        root,
        model=model,
        run=run,
        date=date,
        all_runs=all_runs,
        min_confidence=min_confidence,
        thresholds=thresholds,
        profile=profile,
        region=region,
    )
    histogram = confidence_histogram(results, bins=bins, label=label, per_label=per_label)
    if json or csv:
        emit(histogram, json=json, csv=csv)
    else:
        of = "" if label is None else f" of {cell(label)}"
        emit(_with_bars(histogram), title=f"Confidence{of} in {root}, {_total(histogram)} detections")


def _total(histogram: pl.DataFrame) -> str:
    return cell(int(histogram["detections"].sum()))


def _with_bars(histogram: pl.DataFrame) -> pl.DataFrame:
    """The histogram with bars; the longest has `_BAR` columns."""
    import polars as pl

    most = max(histogram["detections"].to_list(), default=0)
    bars = [_bar(count, most) for count in histogram["detections"]]
    percent = pl.col("share").mul(100).round(1).cast(pl.String) + " %"
    return histogram.with_columns(percent.alias("share"), pl.Series("", bars, pl.String))


def _bar(count: int, most: int) -> str:
    """A bar of at least an eighth of a column, unless `count` is 0."""
    if not count:
        return ""
    full, eighths = divmod(max(round(count / most * _BAR * 8), 1), 8)
    return "█" * full + _EIGHTHS[eighths].strip()
