"""`batchcl costs`: what the model has cost, by month, model and run; and CloudWatch's metric beside it."""

from __future__ import annotations

import csv
import datetime as dt
import io
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import boto3
import pytest

import batchcl
from batchcl.analysis.costs import cost_table
from batchcl.aws.session import Aws
from batchcl.choices import CostsBy
from batchcl.errors import OutputError, UsageError
from batchcl.runs.layout import RunPaths
from batchcl.runs.lease import RunLeaseHolder
from batchcl.runs.record import RunRecord
from batchcl.runs.spending import RunSpending
from batchcl.runs.store import Store
from batchcl.summary import BILLED_USES, SessionRecord
from fake_rekognition import refused
from servers import CommandResult, aws_env
from unit.analysis.conftest import Root, arn_of, scored
from unit.aws.test_metrics import CloudWatch

AT = dt.datetime(2026, 11, 20, 1, 15, tzinfo=dt.UTC)
NOW = dt.datetime(2026, 12, 2, tzinfo=dt.UTC)


def session(number: int = 0, *, hours: float = 1.0, units: str = "2", **by_month: float) -> SessionRecord:
    """A session whose time was used for scoring by 75 %, and was idle by 25 %."""
    dollars = {month.replace("m", "", 1).replace("_", "-"): usd for month, usd in by_month.items()}
    seconds = hours * 3600
    return SessionRecord(
        number=number,
        calls=100,
        images=90,
        units=units,
        cost_usd=sum(dollars.values()),
        cost_by_month=dollars,
        billed_s={"scoring": seconds * 0.75, "idle": seconds * 0.25},
    )


def spent(run_id: str, *sessions: SessionRecord, model: str = "cats@v1", at: dt.datetime = AT) -> RunSpending:
    return RunSpending(run_id=run_id, model_arn=arn_of(model), started_at=at, sessions=sessions)


RUNS = [
    spent("a", session(m2026_11=8.0), session(1, m2026_11=6.0, m2026_12=2.0)),
    spent("b", SessionRecord(number=0, calls=10, images=10), at=AT + dt.timedelta(days=1)),
    spent("c", session(units="1:3", m2026_12=4.0), model="dogs@v1", at=AT + dt.timedelta(days=12)),
    spent("d", SessionRecord(number=0)),
]


def test_months_are_those_of_the_seconds() -> None:
    table = cost_table(RUNS)
    assert table.select("month", "runs", "images", "hours", "unit_hours", "cost_usd", "not_counted").rows() == [
        ("2026-11", 2, 90 + 68 + 10, 1.75, 3.5, 14.0, 1),
        ("2026-12", 2, 22 + 90, 1.25, 1.5, 6.0, 0),
    ]
    assert table["scoring_usd"].to_list() == [10.5, 4.5]
    assert table["idle_usd"].to_list() == [3.5, 1.5]


@pytest.mark.parametrize("by", list(CostsBy))
def test_each_grouping_adds_up_to_the_same(by: CostsBy) -> None:
    table = cost_table(RUNS, by=by)
    assert table["cost_usd"].sum() == 20.0
    assert table["images"].sum() == 280
    assert sum(table[f"{use}_usd"].sum() for use in BILLED_USES) == pytest.approx(20.0)


def test_a_run_that_started_no_model_has_no_cost() -> None:
    table = cost_table(RUNS, by=CostsBy.RUN)
    assert table.select("run_id", "model", "cost_usd", "not_counted").rows() == [
        ("a", "cats@v1", 16.0, 0),
        ("b", "cats@v1", None, 1),
        ("c", "dogs@v1", 4.0, 0),
    ]


def test_records_without_months_and_uses_count_in_the_month_of_the_start() -> None:
    """As an older version has written them."""
    old = spent("old", SessionRecord(number=0, calls=5, images=5, cost_usd=3.0))
    assert cost_table([old]).select("month", "cost_usd", "idle_usd").rows() == [("2026-11", 3.0, 3.0)]


def test_no_run_is_an_empty_table() -> None:
    assert cost_table([]).is_empty()


async def record(store: Store, run: RunSpending) -> None:
    """Write the run as it is when its process has died."""
    values: dict[str, Any] = {"fingerprint": "f", "scored_as": {"min_confidence": None}, "settings": {}, "version": "1"}
    await RunRecord(run_id=run.run_id, model=run.model_arn, started_at=run.started_at, **values).create(store)
    for each in run.sessions:
        progress: dict[str, Any] = {
            "calls": each.calls,
            "images": each.images,
            "model_units": each.units,
            "cost_usd": each.cost_usd,
            "cost_by_month": each.cost_by_month,
            "billed_s": each.billed_s,
        }
        folder = RunPaths(run.run_id).sessions
        lease = RunLeaseHolder(store, folder, what=run.run_id, progress=partial(dict, progress))
        await lease.acquire()
        await lease.release()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    async def main() -> None:
        store = Store.open(str(tmp_path / "out"), create=True)
        for run in RUNS:
            await record(store, run)

    anyio.run(main)
    return tmp_path / "out"


def test_the_command_shows_months_and_the_total(root: Path, cli: Callable[..., CommandResult]) -> None:
    shown = cli("costs", root)
    assert shown.code == 0
    assert "2026-11" in shown.out
    assert "total: $20.00 at least" in shown.err
    assert "1 session used a model that the run had not started" in shown.err


def test_json_and_csv_are_for_programs(root: Path, cli: Callable[..., CommandResult]) -> None:
    rows = cli("costs", root, "--by", "model", "--json").json
    assert [(row["model"], row["model_arn"], row["cost_usd"]) for row in rows] == [
        ("cats@v1", arn_of("cats@v1"), 16.0),
        ("dogs@v1", arn_of("dogs@v1"), 4.0),
    ]
    exported = list(csv.DictReader(io.StringIO(cli("costs", root, "--by", "run", "--csv").out)))
    assert [row["run_id"] for row in exported] == ["a", "b", "c"]
    assert exported[1]["cost_usd"] == ""


def test_a_report_shows_what_the_time_was_used_for(root: Path, tmp_path: Path) -> None:
    Root(root).results(scored("s3://b/a.jpg"), run_id="a")
    batchcl.write_report_sync(str(root), tmp_path / "report.html", gallery=0)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    _, found, table = text.partition('id="bills-title"')
    assert found
    row = table.partition("<tbody>")[2].partition("</tr>")[0]
    shares = ["0.0%", "75.0%", "0.0%", "25.0%", "0.0%", "0.0%"]
    assert re.findall(r'class="n">([^<]+)<', row) == ["$4.00", "1 h", *shares], "the newest run"


def test_python_has_the_same(root: Path) -> None:
    assert batchcl.costs_sync(str(root), by="run").equals(cost_table(RUNS, by=CostsBy.RUN))
    with pytest.raises(UsageError, match="costs can't be shown by 'week'; choose month, model, run"):
        batchcl.costs_sync(str(root), by="week")
    with pytest.raises(OutputError):
        batchcl.costs_sync(str(root / "nothing"))


def test_no_root_and_contradicting_options_are_refused(root: Path, cli: Callable[..., CommandResult]) -> None:
    nothing = cli("costs", root.parent / "nothing")
    assert (nothing.code, nothing.sentence.count("\n")) == (5, 1)
    both = cli("costs", root, "--reconcile", "--by", "run")
    assert (both.code, "leave out --by" in both.err) == (2, True)


@pytest.fixture
def cloudwatch(moto: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL_CLOUDWATCH", moto),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    return boto3.client("cloudwatch", endpoint_url=moto, region_name="eu-west-1")


def measured(cloudwatch: Any, model: str, begin: dt.datetime, *, minutes: int, units: float) -> None:
    """Write the metric of a model for some minutes, one sample a minute."""
    project, _, version = model.partition("@")
    dimensions = [{"Name": "ProjectName", "Value": project}, {"Name": "VersionName", "Value": version}]
    data = [
        {
            "MetricName": "InServiceInferenceUnits",
            "Dimensions": dimensions,
            "Timestamp": begin + dt.timedelta(minutes=minute),
            "Value": units,
        }
        for minute in range(minutes)
    ]
    for first in range(0, minutes, 500):
        cloudwatch.put_metric_data(Namespace="AWS/Rekognition", MetricData=data[first : first + 500])


def test_counted_costs_are_compared_with_the_metric(root: Path, cloudwatch: Any) -> None:
    """One month agrees, in one the model was started by hand, too, and of one model there are no data."""
    measured(cloudwatch, "cats@v1", AT, minutes=105, units=2)
    measured(cloudwatch, "cats@v1", dt.datetime(2026, 12, 1, 0, 10, tzinfo=dt.UTC), minutes=90, units=1)
    found = batchcl.reconcile_costs_sync(str(root), utcnow=lambda: NOW)
    rows = {(row["month"], row["model"]): row for row in found.table.iter_rows(named=True)}
    assert found.notes == ()
    assert list(rows) == [("2026-11", "cats@v1"), ("2026-12", "cats@v1"), ("2026-12", "dogs@v1")]
    november, december, dogs = rows.values()
    assert (november["counted_unit_hours"], november["measured_unit_hours"]) == (3.5, pytest.approx(3.5))
    assert (november["difference_usd"], november["reason"]) == (pytest.approx(0.0), "")
    assert (december["counted_usd"], december["measured_usd"]) == (2.0, pytest.approx(6.0))
    assert december["difference_usd"] == pytest.approx(4.0)
    assert "a start by hand" in december["reason"]
    assert (dogs["measured_unit_hours"], dogs["difference_usd"]) == (0.0, -4.0)
    assert "CloudWatch has no data" in dogs["reason"]


class RefusingAws(Aws):
    """CloudWatch refuses."""

    @asynccontextmanager
    async def auxiliary_client(self, *_: object, **__: object) -> AsyncIterator[Any]:
        yield CloudWatch(error=refused("AccessDeniedException"))


def test_without_the_permission_there_is_one_note(root: Path) -> None:
    found = batchcl.reconcile_costs_sync(str(root), aws=RefusingAws())
    (note,) = found.notes
    assert note.startswith("in eu-west-1, reading the metrics of ")
    assert "AccessDeniedException" in note
    assert found.table["measured_usd"].to_list() == [None] * 3
    assert found.table["reason"].unique().to_list() == ["not measured"]
    assert found.table["counted_usd"].sum() == 20.0


def test_a_metric_that_cannot_be_read_is_no_error(root: Path, cli: Callable[..., CommandResult]) -> None:
    env = aws_env() | {"AWS_ENDPOINT_URL_CLOUDWATCH": "http://127.0.0.1:9"}
    done = cli("costs", root, "--reconcile", "--json", env=env)
    assert (done.code, done.err.count("not measured: in eu-west-1, ")) == (0, 1)
    assert [row["counted_usd"] for row in done.json] == [14.0, 2.0, 4.0]
