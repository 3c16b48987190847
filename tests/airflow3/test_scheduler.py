"""Runs in a real Airflow end in the right state, whatever happens; no row is doubled, and no model left running."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from airflow3.conftest import PASSED, SECRET, WEBHOOK_PATH, Airflow, DagRun, Processes, Webhook, is_running
from servers import Demo, client, model_status, start_model, wait_for

IMAGES = 60
RUN_ID = "manual__2026-11-29T01:00:00+00:00"


@pytest.fixture(autouse=True)
def _no_model_is_left(emulator: str, demo: Demo) -> Iterator[None]:
    yield
    wait_for(lambda: usage(emulator, demo)["status"] in {"STOPPED", "TRAINING_COMPLETED"}, 60)
    assert usage(emulator, demo) == usage(emulator, demo), "the usage meter is running"


def usage(emulator: str, demo: Demo) -> dict[str, Any]:
    """The usage of the demo's model, from the emulator's meter."""
    with urllib.request.urlopen(f"{emulator}/_emulator/usage") as response:
        found: dict[str, Any] = json.load(response)["versions"][demo.arn]
    return found


def uris(root: Path, kind: str = "results") -> list[str]:
    return [uri for file in (root / kind).rglob("*.parquet") for uri in pl.read_parquet(file)["uri"]]


def check_rows(root: Path, scored: int = IMAGES) -> None:
    """Each image has one row, and there is one run."""
    found = uris(root)
    assert (len(found), len(set(found))) == (scored, scored)
    assert len(list((root / "runs").glob("*/run.json"))) == 1


def sessions(root: Path) -> int:
    """Number of processes that have worked on the run."""
    return len(list((root / "runs").glob("*/sessions/*.json")))


def begin(airflow: Airflow, name: str) -> tuple[DagRun, Path, Processes]:
    """Start the DAG `name` and wait until its run has scored some images."""
    run, root = airflow.trigger(name, RUN_ID), airflow.home / "out" / name
    wait_for(lambda: "images  " in run.log("score") or run.task("score")["state"] == "failed", 120)
    found = Processes.of(str(root))
    assert found is not None, run.log("score")
    return run, root, found


def test_the_nightly_dag(airflow: Airflow, webhook: Webhook) -> None:
    """In the first night, only the comparison fails."""
    first = airflow.trigger("batchcl_nightly", "manual__first")
    assert first.wait() == "failed"
    assert first.states() == {"score": "success", "compare": "failed", "report": "success", "notify": "success"}
    second = airflow.trigger("batchcl_nightly", RUN_ID)
    assert second.wait() == "success", second.log("score")
    assert second.states() == dict.fromkeys(("score", "compare", "report", "notify"), "success")
    assert second.xcom("score")["run_id"] == f"batchcl_nightly.score.{RUN_ID}"
    assert Path(second.xcom("report")["path"]).stat().st_size
    assert [path for path, _ in webhook.received] == [WEBHOOK_PATH] * 2
    texts = [document["text"] for _, document in webhook.received]
    assert "compare failed" in texts[0]
    assert f"{IMAGES} scored" in texts[0]
    assert texts[1].startswith(f"{RUN_ID}: score success, ")
    found = uris(airflow.home / "nightly")
    assert (len(found), len(set(found))) == (IMAGES, IMAGES)


def test_success_and_clearing_it(airflow: Airflow) -> None:
    run, root = airflow.trigger("done", RUN_ID), airflow.home / "out" / "done"
    assert run.wait() == "success", run.log("score")
    assert run.states() == {"score": "success"}
    summary = run.xcom("score")
    assert summary["scored"] == IMAGES
    assert run.xcom("score", "report") == str(airflow.home / "done.html")
    run.clear("score")
    wait_for(lambda: run.task("score")["try_number"] == 2)
    assert run.wait() == "success"
    assert "is already done" in run.log("score")
    assert run.xcom("score")["calls"] == summary["calls"]
    check_rows(root)


def test_more_failures_than_tolerated(airflow: Airflow) -> None:
    """Fails without a retry; or succeeds with a warning, as configured."""
    runs = [airflow.trigger(name, RUN_ID) for name in ("failures", "warned")]
    assert [run.wait() for run in runs] == ["failed", "success"]
    assert [run.states() for run in runs] == [{"score": "failed"}, {"score": "success"}]
    for run in runs:
        assert run.task("score")["try_number"] == 1
        assert (run.xcom("score")["scored"], run.xcom("score")["failed"]) == (4, 2)
        check_rows(airflow.home / "out" / run.dag, scored=4)
        assert len(uris(airflow.home / "out" / run.dag, "failures")) == 2
    assert "2 images failed, more than tolerated" in runs[0].log("score")


def test_a_refused_run_is_not_retried(airflow: Airflow) -> None:
    run = airflow.trigger("refused", RUN_ID)
    assert run.wait() == "failed"
    assert run.states() == {"score": "failed"}
    assert run.task("score")["try_number"] == 1
    assert "exit code 5 (refused before a call was made): " in run.log("score")


def test_mapped_tasks_have_a_run_each(airflow: Airflow) -> None:
    run, root = airflow.trigger("mapped", RUN_ID), airflow.home / "out" / "mapped"
    assert run.wait() == "success"
    assert run.states() == {"score": "success"}
    assert sorted(map(os.path.basename, uris(root))) == ["000.png", "001.png", "002.png"]
    ids = {json.loads(path.read_text())["run_id"] for path in (root / "runs").glob("*/run.json")}
    assert ids == {f"mapped.score.{RUN_ID}.{index}" for index in (0, 1)}


def test_a_retry_follows_the_run_of_a_killed_worker(airflow: Airflow) -> None:
    run, root, found = begin(airflow, "killed")
    os.kill(found.runner, signal.SIGKILL)
    wait_for(lambda: run.task("score")["try_number"] == 2, 60)
    assert is_running(found.child), "batchcl continues without its worker"
    assert run.wait() == "success", run.log("score")
    assert run.states() == {"score": "success"}
    assert run.xcom("score")["scored"] == IMAGES
    check_rows(root)
    assert sessions(root) == 1


def test_a_worker_that_is_shut_down_waits_for_the_drain(airflow: Airflow) -> None:
    run, root, found = begin(airflow, "shutdown")
    os.kill(found.supervisor, signal.SIGTERM)
    wait_for(lambda: run.task("score")["try_number"] == 2, 60)
    assert not is_running(found.child)
    assert run.wait() == "success", run.log("score")
    assert run.states() == {"score": "success"}
    assert "its billing has ended" in run.log("score", 1)
    assert "exit code 4 (stopped early, or another process works on it): ended by SIGTERM" in run.log("score", 1)
    check_rows(root)
    assert sessions(root) == 2


def test_marked_failed_while_running_and_cleared_later(airflow: Airflow, emulator: str, demo: Demo) -> None:
    run, root, found = begin(airflow, "marked")
    run.mark_failed("score")
    wait_for(lambda: not is_running(found.child), 60)
    assert run.states() == {"score": "failed"}
    assert usage(emulator, demo)["status"] in {"STOPPING", "STOPPED"}
    assert 0 < len(uris(root)) < IMAGES
    run.clear("score")
    assert run.wait_for_state("score", "success")["state"] == "success"
    assert run.states() == {"score": "success"}
    check_rows(root)
    assert sessions(root) == 2


def test_cleared_while_running(airflow: Airflow) -> None:
    run, root, found = begin(airflow, "cleared")
    run.clear("score")
    wait_for(lambda: not is_running(found.child), 60)
    assert run.wait_for_state("score", "success", "failed")["state"] == "success", run.log("score")
    assert run.states() == {"score": "success"}
    check_rows(root)


def test_the_deadline_follows_from_the_execution_timeout(airflow: Airflow) -> None:
    run, root = airflow.trigger("short", RUN_ID), airflow.home / "out" / "short"
    assert run.wait() == "success", run.log("score")
    assert run.states() == {"score": "success"}
    assert run.task("score")["try_number"] > 1
    assert "the deadline of " in run.log("score")
    assert "Process timed out" not in run.log("score")
    check_rows(root)


def test_a_retry_takes_over_from_a_lost_worker(airflow: Airflow) -> None:
    """As if its container had been killed; Airflow's heartbeat timeout is 20 s in these tests."""
    run, root, found = begin(airflow, "lost")
    for pid in (found.supervisor, found.runner, found.child):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: run.task("score")["try_number"] == 2, 120)
    assert run.wait() == "success", run.log("score")
    assert run.states() == {"score": "success"}
    check_rows(root)
    assert sessions(root) == 2


def test_a_retry_follows_the_run_of_a_lost_supervisor(airflow: Airflow) -> None:
    """The task runner, which has lost its supervisor, does not end the run."""
    run, root, found = begin(airflow, "orphaned")
    os.kill(found.supervisor, signal.SIGKILL)
    wait_for(lambda: run.task("score")["try_number"] == 2, 120)
    assert run.wait() == "success", run.log("score")
    assert run.states() == {"score": "success"}
    check_rows(root)
    assert sessions(root) == 1


def test_the_reaper_dag(airflow: Airflow, emulator: str, demo: Demo) -> None:
    start_model(emulator, demo.arn)
    tags = {"batchcl:lease/x": "2026-01-01T00:00:00Z started run x in out"}
    client("rekognition", emulator).tag_resource(ResourceArn=demo.arn, Tags=tags)
    run = airflow.trigger("batchcl_reaper", RUN_ID)
    assert run.wait() == "success"
    assert run.states() == {"reap": "success"}
    assert [each["done"] for each in run.xcom("reap")] == ["stopped"]
    assert model_status(emulator, demo.arn) in {"STOPPING", "STOPPED"}


def test_secrets_are_nowhere_on_the_disk(airflow: Airflow) -> None:
    files = [path for path in airflow.home.rglob("*") if path.is_file() and path.suffix != ".png"]
    assert any(path.name == "airflow.db" for path in files)
    for path in files:
        content = path.read_bytes()
        assert not [each for each in (SECRET, PASSED, WEBHOOK_PATH) if each.encode() in content], path
