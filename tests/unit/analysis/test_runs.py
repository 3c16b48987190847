"""What runs have cost, as a table, in SQL, and on the command line."""

from __future__ import annotations

import csv
import datetime as dt
import io
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from batchcl.analysis.query import query
from batchcl.analysis.results import open_results
from batchcl.runs.layout import RunPaths
from batchcl.runs.lease import RunLeaseHolder
from batchcl.runs.record import RunRecord, total_spent, write_summary
from batchcl.runs.store import Store
from batchcl.summary import SessionRecord, Summary
from servers import CommandResult
from unit.analysis.conftest import arn_of

SPENT = {"calls": 100, "throttled": 4, "images": 96, "seconds": 20.0, "cost_usd": 0.25}
AT = dt.datetime(2026, 11, 20, 1, 15, tzinfo=dt.UTC)


async def finished(
    store: Store,
    run_id: str,
    *,
    model: str = "cats@v1",
    days: int = 0,
    threshold: float | None = None,
    scored: int = 190,
) -> None:
    """A run with two failures, and with two sessions that spent the same."""
    spent = SPENT | {"calls": scored // 2 + 5, "images": scored // 2 + 1}
    record = RunRecord(
        run_id=run_id,
        model=arn_of(model),
        fingerprint="f",
        scored_as={"min_confidence": threshold, "max_results": None},
        settings={},
        started_at=AT + dt.timedelta(days=days),
        version="1",
    )
    await record.create(store)
    sessions = tuple(SessionRecord.of(number, spent) for number in range(2))
    for _ in sessions:
        lease = RunLeaseHolder(store, RunPaths(run_id).sessions, what=run_id, progress=lambda: dict(spent))
        await lease.acquire()
        lease.settled = True
        await lease.release()
    summary = Summary(
        run_id=run_id,
        status="done",
        planned=scored + 2,
        scored=scored,
        failed=2,
        skipped=0,
        **total_spent(sessions),
        out=store.root,
        model=record.model,
        started_at=record.started_at,
        ended_at=record.started_at,
        min_confidence=threshold,
        sessions=sessions,
    )
    await write_summary(store, summary)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    async def main() -> None:
        store = Store.open(str(tmp_path), create=True)
        await finished(store, "n1", threshold=55.0)
        await finished(store, "n2", days=1)
        await finished(store, "other", model="dogs@v1", days=1)

    anyio.run(main)
    return tmp_path


def test_sql_adds_up_what_runs_have_cost(root: Path) -> None:
    results = open_results(str(root))
    sql = (
        "SELECT model, SUM(calls) AS calls, SUM(cost_usd) AS dollars, SUM(seconds) AS s FROM runs GROUP BY 1 ORDER BY 1"
    )
    assert query(results, sql).rows() == [("cats@v1", 400, 1.0, 80.0), ("dogs@v1", 200, 0.5, 40.0)]


def test_filters_narrow_the_runs_too(root: Path) -> None:
    async def main() -> list[str]:
        """In a program with a loop of its own."""
        return query(open_results(str(root)), "SELECT run_id FROM runs")["run_id"].to_list()

    assert anyio.run(main) == ["n1", "n2", "other"]
    wanted: tuple[tuple[dict[str, str], list[str]], ...] = (
        ({"model": "cats"}, ["n1", "n2"]),
        ({"model": arn_of("dogs@v1")}, ["other"]),
        ({"run_id": "n2"}, ["n2"]),
        ({"date": "2026-11-21"}, ["n2", "other"]),
    )
    for filters, expected in wanted:
        narrowed = open_results(str(root), **filters)  # type: ignore[arg-type]
        assert query(narrowed, "SELECT run_id FROM runs ORDER BY run_id")["run_id"].to_list() == expected


def test_runs_show_cost_threshold_and_model_and_export_the_arn(root: Path, cli: Callable[..., CommandResult]) -> None:
    shown = cli("runs", root).out.splitlines()
    assert {"model", "min_confidence", "calls", "seconds", "cost_usd"} < set(shown[1].split())
    rows = cli("runs", root, "--json").json
    assert [row["run_id"] for row in rows] == ["n1", "n2", "other"]
    expected = {"model": "cats@v1", "model_arn": arn_of("cats@v1"), "min_confidence": 55.0, "sessions": 2}
    expected |= {"calls": 200, "throttled": 8, "seconds": 40.0, "images_per_second": 4.8, "cost_usd": 0.5}
    assert rows[0] | expected == rows[0]
    exported = list(csv.DictReader(io.StringIO(cli("runs", root, "--csv").out)))
    assert [(row["calls"], row["cost_usd"], row["model_arn"]) for row in exported] == [
        ("200", "0.5", arn_of(model)) for model in ("cats@v1", "cats@v1", "dogs@v1")
    ]
    assert isinstance(cli("status", root, "n1", "--json").json["cost_usd"], float)


def test_a_damaged_run_is_named_on_stderr_and_the_others_are_shown(
    root: Path, cli: Callable[..., CommandResult]
) -> None:
    (root / "runs" / "n1" / "summary.json").write_bytes(b"{")
    done = cli("runs", root, "--json")
    assert done.code == 0
    assert [(row["run_id"], row["state"]) for row in done.json] == [
        ("n1", "damaged"),
        ("n2", "done"),
        ("other", "done"),
    ]
    (said,) = done.err.splitlines()
    assert said.startswith(f"batchcl: reading run n1 failed: {root}/runs/n1/summary.json is corrupt: ")
    assert cli("status", root, "--json").json["run_id"] == "other", "the newest"
    broken = cli("status", root, "n1")
    assert broken.code != 0
    assert "summary.json is corrupt" in broken.err
    assert "Traceback" not in broken.err
