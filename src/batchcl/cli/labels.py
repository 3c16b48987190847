"""`batchcl labels`."""

from __future__ import annotations

from batchcl.cli.output import Csv, Date, Json, Model, Profile, Region, Root, Run, check_format, emit

__all__ = ["labels"]


def labels(
    root: Root,
    *,
    model: Model = None,
    run: Run = None,
    date: Date = None,
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
    from batchcl.analysis.results import open_results

    results = open_results(root, model=model, run_id=run, date=date, profile=profile, region=region)
    emit(label_table(results.detections()), json=json, csv=csv, title=f"Labels in {root}")
