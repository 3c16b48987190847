"""Since when a model has been running, by CloudWatch's metric."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from batchcl.arns import ModelArn
from batchcl.aws.metrics import RunningTime, running_time
from batchcl.errors import CredentialsError
from fake_rekognition import arn_of, refused

NOW = dt.datetime(2026, 11, 21, 12, 0, tzinfo=dt.UTC)
MINUTE, HOUR, DAY = 60, 3600, 24 * 3600


class CloudWatch:
    """Has the metric while the model was running: from `began` to `ended`, in seconds before now, with its units."""

    def __init__(self, *running: tuple[float, float, float], error: Exception | None = None) -> None:
        self.running = running
        self.error = error
        self.queries: list[dict[str, Any]] = []

    def get_paginator(self, _: str) -> CloudWatch:
        return self

    async def paginate(self, **query: Any) -> AsyncIterator[dict[str, Any]]:
        self.queries.append(query)
        if self.error is not None:
            raise self.error
        period_s = query["MetricDataQueries"][0]["MetricStat"]["Period"]
        at = query["StartTime"]
        times, values = [], []
        while at < query["EndTime"]:
            ago_s = (NOW - at).total_seconds()
            units = [each for began, ended, each in self.running if ended < ago_s and ago_s - period_s < began]
            if units:
                times.append(at)
                values.append(max(units))
            at += dt.timedelta(seconds=period_s)
        (key,) = [each["Id"] for each in query["MetricDataQueries"]]
        for part in (slice(0, 700), slice(700, None)):
            yield {"MetricDataResults": [{"Id": key, "Timestamps": times[part][::-1], "Values": values[part][::-1]}]}


def found(cloudwatch: CloudWatch) -> RunningTime | None:
    async def main() -> RunningTime | None:
        return await running_time(cloudwatch, ModelArn.parse(arn_of("cats@v1")), now=NOW)

    return anyio.run(main)


@pytest.mark.parametrize(
    ("began_s", "queries", "exact_s"),
    [(90 * MINUTE, 1, 0), (23 * HOUR, 1, 0), (3 * DAY, 2, 5 * MINUTE), (100 * DAY, 3, HOUR)],
)
def test_the_start_is_where_the_metric_begins(began_s: int, queries: int, exact_s: int) -> None:
    cloudwatch = CloudWatch((began_s, 2 * MINUTE, 2))
    running = found(cloudwatch)
    assert running is not None
    assert 0 <= (NOW - running.since).total_seconds() - began_s <= exact_s
    assert running.unit_hours == pytest.approx(2 * began_s / HOUR, rel=0.01, abs=0.1)
    assert len(cloudwatch.queries) == queries


def test_an_earlier_start_does_not_count() -> None:
    running = found(CloudWatch((20 * HOUR, 2 * HOUR, 4), (100 * MINUTE, 0, 1)))
    assert running is not None
    assert running.since == NOW - dt.timedelta(minutes=100)
    assert running.unit_hours == pytest.approx(100 / 60)


def test_the_units_of_auto_scaling_are_added_up() -> None:
    running = found(CloudWatch((2 * HOUR, HOUR, 1), (HOUR, 0, 3)))
    assert running is not None
    assert running.unit_hours == pytest.approx(4)


@pytest.mark.parametrize("running", [(), ((20 * HOUR, 2 * HOUR, 4),), ((20 * HOUR, 0, 0),)])
def test_without_recent_data_the_start_is_unknown(running: tuple[tuple[int, int, int], ...]) -> None:
    assert found(CloudWatch(*running)) is None


def test_the_query_names_the_model() -> None:
    cloudwatch = CloudWatch()
    found(cloudwatch)
    metric = cloudwatch.queries[0]["MetricDataQueries"][0]["MetricStat"]
    assert (metric["Stat"], metric["Metric"]["Namespace"], metric["Metric"]["MetricName"]) == (
        "Average",
        "AWS/Rekognition",
        "InServiceInferenceUnits",
    )
    dimensions = {each["Name"]: each["Value"] for each in metric["Metric"]["Dimensions"]}
    assert dimensions == {"ProjectName": "cats", "VersionName": "v1"}


def test_a_refusal_is_raised() -> None:
    with pytest.raises(CredentialsError, match=r"reading the metrics of cats@v1 failed: AccessDeniedException"):
        found(CloudWatch(error=refused("AccessDeniedException")))
