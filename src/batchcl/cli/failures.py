"""`batchcl failures`."""

from __future__ import annotations

from typing import Annotated

import typer

from batchcl.cli.output import (
    Csv,
    Date,
    Json,
    Model,
    Profile,
    Region,
    Root,
    Run,
    check_format,
    emit,
    open_root_results,
)

__all__ = ["failures"]


def failures(
    root: Root,
    *,
    examples: Annotated[int, typer.Option(help="Number of example URIs per reason.", min=0)] = 3,
    model: Model = None,
    run: Run = None,
    date: Date = None,
    json: Json = False,
    csv: Csv = False,
    profile: Profile = None,
    region: Region = None,
) -> None:
    """Count failed and skipped images by reason, with examples.

    Examples:

      batchcl failures out

      batchcl failures out --run nightly-2026-11-21 --examples 10

      batchcl failures out --json | jq '.[] | select(.status == "failed")'
    """
    check_format(json=json, csv=csv)
    from batchcl.analysis.counts import failure_table

    results = open_root_results(
        root,
        model=model,
        run=run,
        date=date,
        profile=profile,
        region=region,
    )
    emit(failure_table(results.failures(), examples=examples), json=json, csv=csv, title=f"Failures in {root}")
