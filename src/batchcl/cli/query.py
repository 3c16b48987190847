"""`batchcl query`."""

from __future__ import annotations

from typing import Annotated

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
    check_format,
    emit,
    open_root_results,
)

__all__ = ["query"]


def query(
    root: Root,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT over results, detections, failures, runs.")],
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
    """Query the results in SQL. Tables: results, detections (one row per label), failures and runs.

    Examples:

      batchcl query out "SELECT label, COUNT(*) AS n FROM detections GROUP BY label ORDER BY n DESC"

      batchcl query out "SELECT uri, confidence FROM detections WHERE label = 'cat' AND confidence < 60" --csv

      batchcl query out "SELECT SUM(calls) AS calls, SUM(cost_usd) AS dollars FROM runs"

      batchcl query out "SELECT error_code, COUNT(*) AS n FROM failures GROUP BY error_code" --json
    """
    check_format(json=json, csv=csv)
    from batchcl.analysis.query import query as answered

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
    emit(answered(results, sql), json=json, csv=csv)
