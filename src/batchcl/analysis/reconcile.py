"""Compares the counted cost of models with CloudWatch's metric: the implementation of `batchcl costs --reconcile`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from batchcl.analysis.costs import Usage, read_checked_spending, usage_by_month
from batchcl.arns import ModelArn
from batchcl.aws.metrics import unit_hours_by_month
from batchcl.aws.session import Aws
from batchcl.concurrency import gather
from batchcl.errors import RefusedError
from batchcl.prices import unit_hour_usd
from batchcl.quantities import pluralize
from batchcl.runs.spending import RunSpending
from batchcl.runs.store import Store

__all__ = ["Reconciliation", "reconcile_costs"]

_KEPT: Final = dt.timedelta(days=455)
_AT_ONCE: Final = 8
_HOUR_S: Final = 3600
_TOLERANCE: Final = 0.02
_TOLERANCE_UNIT_HOURS: Final = 0.05
"""Three minutes of a unit: the metric has whole minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciliation:
    """The counted unit-hours of models beside those that CloudWatch has measured.

    Attributes:
        table: `month` (UTC), `model`, `model_arn`, `counted_unit_hours` and `counted_usd` by the records of the runs,
            `measured_unit_hours` and `measured_usd` by the metric (null if it is unknown), `difference_usd` (measured
            less counted), and `reason`, which explains a difference; sorted.
        notes: why something could not be measured.
    """

    table: pl.DataFrame
    notes: tuple[str, ...] = ()


async def reconcile_costs(
    root: str, *, aws: Aws | None = None, utcnow: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
) -> Reconciliation:
    """Compare the cost of the model in the runs of an output root with CloudWatch's metric InServiceInferenceUnits.

    Needs the permission cloudwatch:GetMetricData; without it, the measured columns are null, and a note says so.

    Args:
        root: what `--out` was.
        aws: for an S3 root and for CloudWatch; as the AWS CLI would by default.
        utcnow: current time.

    Raises:
        OutputError: there is no output root there, or it can't be read.
        CredentialsError: there are none for an S3 root.
    """
    aws = aws or Aws()
    runs = await read_checked_spending(await Store.open_async(root, aws=aws))
    now = utcnow().astimezone(dt.UTC)
    models = sorted({run.model_arn for run in runs})
    notes: dict[str, str] = {}  # by region

    async def measure(arn: str) -> dict[str, float] | None:
        begin = max(now - _KEPT, min(_first_month(run) for run in runs if run.model_arn == arn))
        model = ModelArn.parse(arn)
        try:
            async with aws.auxiliary_client("cloudwatch", region=model.region, renews=False) as client:
                return await unit_hours_by_month(client, model, begin=begin, end=now)
        except RefusedError as error:
            notes.setdefault(model.region, f"in {model.region}, {error}")
            return None

    measured = await gather(measure, models, at_once=_AT_ONCE)
    table = _compare(usage_by_month(runs), dict(zip(models, measured, strict=True)), oldest=f"{now - _KEPT:%Y-%m}")
    return Reconciliation(table=table, notes=tuple(notes[region] for region in sorted(notes)))


def _first_month(run: RunSpending) -> dt.datetime:
    """When the first month begins in which the run may have been billed."""
    return run.started_at.astimezone(dt.UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _compare(
    counted: dict[tuple[str, str], Usage], measured: dict[str, dict[str, float] | None], *, oldest: str
) -> pl.DataFrame:
    """The table. CloudWatch has no data, or not all of them, until the month `oldest`."""
    keys = {*counted, *((arn, month) for arn, months in measured.items() for month in months or ())}
    rows: list[Sequence[object]] = []
    for arn, month in keys:
        usage, months = counted.get((arn, month), Usage()), measured[arn]
        hours, dollars = usage.unit_seconds / _HOUR_S, sum(usage.dollars.values())
        used = None if months is None or month <= oldest else months.get(month, 0.0)
        used_usd = None if used is None else used * unit_hour_usd()
        rows.append(
            (
                month,
                ModelArn.parse(arn).name,
                arn,
                round(hours, 4),
                round(dollars, 6),
                None if used is None else round(used, 4),
                None if used_usd is None else round(used_usd, 6),
                None if used_usd is None else round(used_usd - dollars, 6),
                "not measured" if used is None else _reason(usage, counted=hours, measured=used),
            )
        )
    schema = {
        "month": pl.String(),
        "model": pl.String(),
        "model_arn": pl.String(),
        "counted_unit_hours": pl.Float64(),
        "counted_usd": pl.Float64(),
        "measured_unit_hours": pl.Float64(),
        "measured_usd": pl.Float64(),
        "difference_usd": pl.Float64(),
        "reason": pl.String(),
    }
    return pl.DataFrame(rows, schema=schema, orient="row").sort("month", "model", "model_arn")


def _reason(usage: Usage, *, counted: float, measured: float) -> str:
    if abs(measured - counted) <= max(_TOLERANCE_UNIT_HOURS, _TOLERANCE * measured):
        return ""
    if measured < counted:
        return "CloudWatch has no data of the last minutes, and none of models trained before September 2022"
    reasons = []
    if usage.scales:
        reasons.append("auto-scaling, of which only the minimum of units is counted")
    if usage.not_counted:
        reasons.append(f"{pluralize(usage.not_counted, 'session')} with a model that others had started")
    others = "a start by hand, another output root, --keep-model, or a process that died and was not resumed"
    return "; ".join([*reasons, others])
