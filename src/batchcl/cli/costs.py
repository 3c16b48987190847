"""`batchcl costs`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import anyio
import typer

from batchcl.choices import CostsBy
from batchcl.cli.output import Csv, Json, Profile, Region, Root, check_format, emit
from batchcl.cli.streams import write_line
from batchcl.errors import ErrorCode, UsageError
from batchcl.quantities import pluralize

if TYPE_CHECKING:
    import polars as pl

    from batchcl.analysis.reconcile import Reconciliation

__all__ = ["costs"]


def costs(
    root: Root,
    *,
    by: Annotated[
        CostsBy | None,
        typer.Option("--by", help="One row per month, model or run (default: month).", show_default=False),
    ] = None,
    reconcile: Annotated[
        bool, typer.Option("--reconcile", help="Compare each month and model with CloudWatch's metric.")
    ] = False,
    json: Json = False,
    csv: Csv = False,
    profile: Profile = None,
    region: Region = None,
) -> None:
    """Show what the model has cost, by month, model or run, and what for.

    The dollars are those of models that the runs started, with the minimum number of inference units. Months are UTC.
    --reconcile needs cloudwatch:GetMetricData; without it, a note says so, and the exit code is 0.

    Examples:

      batchcl costs out

      batchcl costs s3://tables/labels --by run --csv > costs.csv

      batchcl costs s3://tables/labels --reconcile
    """
    from batchcl.analysis.costs import costs as read_costs
    from batchcl.analysis.reconcile import reconcile_costs
    from batchcl.aws.session import Aws, AwsSettings

    check_format(json=json, csv=csv)
    if reconcile and by is not None:
        raise UsageError("--reconcile is by month and model; leave out --by", code=ErrorCode.CONFLICTING_OPTIONS)
    aws = Aws(AwsSettings(profile=profile, region=region))

    async def read() -> pl.DataFrame:
        return await read_costs(root, by=by or CostsBy.MONTH, aws=aws)

    async def compare() -> Reconciliation:
        return await reconcile_costs(root, aws=aws)

    if reconcile:
        reconciliation = anyio.run(compare)
        table = reconciliation.table
        emit(table if json or csv else table.drop("model_arn"), json=json, csv=csv, title=f"Unit-hours of {root}")
        for note in reconciliation.notes:
            write_line(f"not measured: {note}", level="warning")
        return
    table = anyio.run(read)
    hidden = [name for name in ("model_arn", "images") if name in table.columns]
    emit(table if json or csv else table.drop(hidden), json=json, csv=csv, title=f"Model costs in {root}")
    write_line(f"total: ${table['cost_usd'].sum():,.2f} at least")
    if not_counted := int(table["not_counted"].sum()):
        write_line(
            f"{pluralize(not_counted, 'session')} used a model that the run had not started, or that is emulated: "
            "not counted"
        )
