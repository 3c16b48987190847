"""DAGs of the tests; conftest.py sets the constants."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG

from batchcl.airflow import BatchclRunOperator

COMMAND = ""
HOME = ""
MODEL = ""

SCENARIOS: dict[str, dict[str, Any]] = {
    "done": {
        "options": {"start_model": 1, "report": f"{HOME}/done.html"},
        "env": {"PASSED": "{{ var.value.passed_secret }}"},
        "append_env": True,
    },
    "failures": {"sources": f"{HOME}/corrupt"},
    "warned": {"sources": f"{HOME}/corrupt", "on_failures": "warn"},
    "refused": {"model": "digits@v99"},
    "killed": {},
    "lost": {},
    "orphaned": {},
    "shutdown": {},
    "marked": {},
    "cleared": {},
    "short": {"execution_timeout": timedelta(seconds=20), "grace_s": 10},
}

for name, more in SCENARIOS.items():
    with DAG(name, schedule=None, default_args={"retries": 4, "retry_delay": timedelta(seconds=1)}) as each:
        arguments: dict[str, Any] = {
            "task_id": "score",
            "command": COMMAND,
            "aws_conn_id": "labels",
            "sources": f"{HOME}/images",
            "model": MODEL,
            "out": f"{HOME}/out/{name}",
            "options": {"start_model": 1},
            **more,
        }
        BatchclRunOperator(**arguments)
    globals()[name] = each

with DAG("mapped", schedule=None) as mapped:
    BatchclRunOperator.partial(
        task_id="score",
        command=COMMAND,
        aws_conn_id="labels",
        model=MODEL,
        out=f"{HOME}/out/mapped",
        options={"start_model": 1},
        max_active_tis_per_dag=1,
    ).expand(sources=[[f"{HOME}/images/000.png", f"{HOME}/images/001.png"], [f"{HOME}/images/002.png"]])
