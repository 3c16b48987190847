"""`batchcl labels`."""

from __future__ import annotations

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
    check_format,
    emit,
    open_root_results,
)

__all__ = ["labels"]


def labels(
    root: Root,
    *,
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
    """Count the images of each label, with the confidences.

    Examples:

      batchcl labels out

      batchcl labels s3://bucket/out --date 2026-11-21 --json

      batchcl labels out --model cats@v2 --csv > labels.csv
    """
    check_format(json=json, csv=csv)
    from batchcl.analysis.counts import label_table

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
    emit(label_table(results), json=json, csv=csv, title=f"Labels in {root}")
