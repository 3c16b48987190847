"""Every ten minutes: stop models whose run has died.

Copy this file into Airflow's DAG folder and insert your region and paths, preferably on another machine than the
runs.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from airflow.sdk import DAG

from batchcl.airflow import BatchclOperator

with DAG(
    "batchcl_reaper",
    schedule="*/10 * * * *",
    start_date=datetime(2026, 1, 1),  # noqa: DTZ001 - Airflow reads it in the time zone of its settings
    catchup=False,
    max_active_runs=1,
) as reaper:
    BatchclOperator(
        task_id="reap",
        command="/srv/labels/.venv/bin/batchcl",
        arguments=["model", "reap", "--region", "us-east-1", "--json"],
        retries=2,
        retry_delay=timedelta(minutes=1),
        execution_timeout=timedelta(minutes=9),
    )
