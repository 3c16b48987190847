"""CloudWatch's metric InServiceInferenceUnits: since when a model runs, and how many unit-hours it has used.

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

__all__ = ["RunningTime", "running_time"]

_DAY_S: Final = 24 * 3600
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
    dimensions = [{"Name": "ProjectName", "Value": arn.project}, {"Name": "VersionName", "Value": arn.version}]
    metric = {"Namespace": "AWS/Rekognition", "MetricName": "InServiceInferenceUnits", "Dimensions": dimensions}
    query = {"Id": "units", "MetricStat": {"Metric": metric, "Period": period_s, "Stat": "Average"}}
    points: list[tuple[dt.datetime, float]] = []
    with translate_errors(f"reading the metrics of {arn.name}"):
        pages = client.get_paginator("get_metric_data").paginate(
            MetricDataQueries=[query], StartTime=begin, EndTime=end
        )
        async for page in pages:
            for result in page["MetricDataResults"]:
                points.extend(
                    (time.astimezone(dt.UTC), units)
                    for time, units in zip(result["Timestamps"], result["Values"], strict=True)
                    if units > 0
                )
    return points
