"""Each night: score new images, compare the labels with those of the week before, write a report, notify.

Copy this file into Airflow's DAG folder and insert your names. docs/airflow.md explains it.
"""

from __future__ import annotations

import json
import urllib.request
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import DAG, Variable, teardown

from batchcl.airflow import BatchclOperator, BatchclRunOperator

COMMAND = "/srv/labels/.venv/bin/batchcl"
JOB = "/srv/labels/nightly.toml"
ROOT = "s3://acme-tables/labels"
REPORT = "/srv/labels/report-{{ dag_run.run_after | ds }}.html"
CHANGED = "significant AND abs(change) > 0.05"

with DAG(
    "batchcl_nightly",
    schedule="15 1 * * *",
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 - Airflow reads it in the time zone of its settings
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 5, "retry_delay": timedelta(minutes=1)},
) as nightly:
    score = BatchclRunOperator(
        task_id="score",
        command=COMMAND,
        config=JOB,
        out=ROOT,
        execution_timeout=timedelta(hours=6),
    )

    compare = BatchclOperator(
        task_id="compare",
        command=COMMAND,
        arguments=["compare", ROOT, "--baseline", "7d", "--fail-if", CHANGED],
    )

    report = BatchclOperator(
        task_id="report",
        command=COMMAND,
        arguments=["report", ROOT, "--run", "{{ ti.xcom_pull('score')['run_id'] }}", "--out", REPORT, "--json"],
    )

    @teardown  # so that the state of the DAG run is that of the other tasks
    def notify(ti: Any, dag_run: Any) -> None:
        """Post states and counts to the URL in the variable `batchcl_webhook_secret`, if there is one."""
        states = ti.get_task_states(dag_id=dag_run.dag_id, run_ids=[dag_run.run_id])[dag_run.run_id]
        summary = ti.xcom_pull("score") or {}
        parts = [f"{name} {state}" for name, state in states.items() if name != ti.task_id]
        parts += [f"{summary[name]} {name}" for name in ("planned", "scored", "failed") if name in summary]
        text = f"{dag_run.run_id}: {', '.join(parts)}"
        print(text)  # noqa: T201 - into the log of the task
        if url := Variable.get("batchcl_webhook_secret", default=None):
            body = json.dumps({"text": text}).encode()  # a message as Slack accepts it
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - a known URL
            urllib.request.urlopen(request, timeout=30).close()  # noqa: S310

    score >> [compare, report] >> notify()
