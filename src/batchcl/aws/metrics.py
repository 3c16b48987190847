"""CloudWatch's metric InServiceInferenceUnits: since when a model runs, and how many unit-hours it has used by month.

The service doesn't report when a model was started. The metric has the average units of each minute in which the model
was running, for models that were trained after August 2022. Sources: Custom Labels guide, "Reporting running duration
and inference units used"; CloudWatch guide, "Metrics retention".
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from batchcl.arns import ModelArn
from batchcl.aws.errors import translate_errors

__all__ = ["RunningTime", "running_time", "unit_hours_by_month"]

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 24 * _HOUR_S
_SPANS: Final = ((_DAY_S, 60), (15 * _DAY_S, 300), (455 * _DAY_S, 3600))
"""Seconds to look back, and the period of a data point, which CloudWatch keeps for that long."""

_GAP_S: Final = 300
"""A gap between data points of more than this, and of more than two periods, separates two starts of the model."""

_LATEST_S: Final = 1800
"""Data points that are older belong to an earlier start: CloudWatch has a metric within a few minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningTime:
    """Since when a model has been running without interruption, and the unit-hours since then."""

    since: dt.datetime
    unit_hours: float


async def running_time(client: Any, arn: ModelArn, *, now: dt.datetime) -> RunningTime | None:
    """The running time of a model that is RUNNING; None if CloudWatch has no recent data of it.

    Args:
        client: an open CloudWatch client of the model's region.
        arn: the model.
        now: the service's clock.

    Raises:
        RefusedError: CloudWatch refuses or doesn't respond; the permission is cloudwatch:GetMetricData.
    """
    for span_s, period_s in _SPANS:
        begin = dt.datetime.fromtimestamp((now.timestamp() - span_s) // period_s * period_s, dt.UTC)
        points = await _points(client, arn, begin=begin, end=now, period_s=period_s)
        latest = _latest(points, now=now, period_s=period_s)
        if not latest:
            return None
        since = latest[0][0]
        if since > begin + dt.timedelta(seconds=max(_GAP_S, 2 * period_s)):
            break
    return RunningTime(since=since, unit_hours=sum(units for _, units in latest) * period_s / 3600)


def _latest(
    points: Sequence[tuple[dt.datetime, float]], *, now: dt.datetime, period_s: int
) -> list[tuple[dt.datetime, float]]:
    """The points without a gap up to now, oldest first."""
    found: list[tuple[dt.datetime, float]] = []
    after, gap_s = now, _LATEST_S + period_s
    for time, units in sorted(points, reverse=True):
        if (after - time).total_seconds() > gap_s:
            break
        found.append((time, units))
        after, gap_s = time, max(_GAP_S, 2 * period_s)
    return found[::-1]


async def _points(
    client: Any, arn: ModelArn, *, begin: dt.datetime, end: dt.datetime, period_s: int
) -> list[tuple[dt.datetime, float]]:
    """Times and units of the periods in which the model was running."""
    averages = (await _statistics(client, arn, ("Average",), begin=begin, end=end, period_s=period_s))["Average"]
    return [(time, units) for time, units in averages.items() if units > 0]


async def unit_hours_by_month(client: Any, arn: ModelArn, *, begin: dt.datetime, end: dt.datetime) -> dict[str, float]:
    """UTC month, such as `2026-11` → unit-hours of a model, from hourly data that CloudWatch keeps for 455 days.

    An hour has the average of the minutes in which the model was running; their number is that of the samples.

    Args:
        client: an open CloudWatch client of the model's region.
        arn: the model.
        begin: from this hour on.
        end: until this time.

    Raises:
        RefusedError: CloudWatch refuses or doesn't respond; the permission is cloudwatch:GetMetricData.
    """
    begin = begin.astimezone(dt.UTC).replace(minute=0, second=0, microsecond=0)
    found = await _statistics(client, arn, ("Average", "SampleCount"), begin=begin, end=end, period_s=_HOUR_S)
    months: dict[str, float] = {}
    for time, units in found["Average"].items():
        minutes = min(found["SampleCount"].get(time, 0.0), _HOUR_S / _MINUTE_S)
        month = f"{time:%Y-%m}"
        months[month] = months.get(month, 0.0) + units * minutes * _MINUTE_S / _HOUR_S
    return months


async def _statistics(
    client: Any, arn: ModelArn, names: Sequence[str], *, begin: dt.datetime, end: dt.datetime, period_s: int
) -> dict[str, dict[dt.datetime, float]]:
    """The statistics with these names: time of the period → value."""
    dimensions = [{"Name": "ProjectName", "Value": arn.project}, {"Name": "VersionName", "Value": arn.version}]
    metric = {"Namespace": "AWS/Rekognition", "MetricName": "InServiceInferenceUnits", "Dimensions": dimensions}
    ids = {f"units{number}": name for number, name in enumerate(names)}
    queries = [
        {"Id": key, "MetricStat": {"Metric": metric, "Period": period_s, "Stat": name}} for key, name in ids.items()
    ]
    found: dict[str, dict[dt.datetime, float]] = {name: {} for name in names}
    with translate_errors(f"reading the metrics of {arn.name}"):
        pages = client.get_paginator("get_metric_data").paginate(
            MetricDataQueries=queries, StartTime=begin, EndTime=end
        )
        async for page in pages:
            for result in page["MetricDataResults"]:
                times = (time.astimezone(dt.UTC) for time in result["Timestamps"])
                found[ids[result["Id"]]].update(zip(times, result["Values"], strict=True))
    return found
