"""Leases, reaping and the scheduled stop from the command line, against an emulator whose clock is put forward."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.retries.standard import ExponentialBackoff

from servers import aws_env, client, model_status, start_model, wait_for
from unit.emulator.harness import serving_here

ROLE = "arn:aws:iam::123456789012:role/batchcl-stop"


class Cloud:
    """An emulator with the demo's model, and a scheduler."""

    def __init__(self, endpoint: str, arn: str, scheduler: str) -> None:
        self.endpoint = endpoint
        self.arn = arn
        self.scheduler = scheduler
        self.env = aws_env(endpoint) | {"AWS_ENDPOINT_URL_SCHEDULER": scheduler}
        self._ahead_s = 0.0

    @property
    def status(self) -> str:
        return model_status(self.endpoint, self.arn)

    def leases(self) -> list[str]:
        tags = client("rekognition", self.endpoint).list_tags_for_resource(ResourceArn=self.arn)["Tags"]
        return [value for key, value in tags.items() if key.startswith("batchcl:lease/")]

    def lease(self, value: str) -> None:
        client("rekognition", self.endpoint).tag_resource(ResourceArn=self.arn, Tags={"batchcl:lease/x": value})

    def schedules(self) -> list[str]:
        return [each["Name"] for each in client("scheduler", self.scheduler).list_schedules()["Schedules"]]

    def pass_minutes(self, minutes: float) -> None:
        self._ahead_s += 60 * minutes
        self._put("clock", {"ahead_seconds": self._ahead_s})

    def refuse(self, *operations: str) -> None:
        rule = {"kind": "error", "code": "AccessDeniedException", "message": "not for you"}
        self._put("faults", {"faults": [rule | {"operation": name} for name in operations]})

    def clean_up(self) -> None:
        self.refuse()
        rekognition = client("rekognition", self.endpoint)
        wait_for(lambda: self.status not in {"STARTING", "STOPPING"})
        if self.status == "RUNNING":
            rekognition.stop_project_version(ProjectVersionArn=self.arn)
            wait_for(lambda: self.status == "STOPPED")
        tags = rekognition.list_tags_for_resource(ResourceArn=self.arn)["Tags"]
        rekognition.untag_resource(ResourceArn=self.arn, TagKeys=list(tags))
        for name in self.schedules():
            client("scheduler", self.scheduler).delete_schedule(Name=name)

    def _put(self, route: str, what: dict[str, Any]) -> None:
        url = f"{self.endpoint}/_emulator/{route}"
        request = urllib.request.Request(url, data=json.dumps(what).encode(), method="PUT")
        urllib.request.urlopen(request, timeout=10).close()


@pytest.fixture(scope="module")
def shared_cloud(demo, moto) -> Iterator[Cloud]:
    with serving_here(demo.state, start_seconds=0.3, tps_per_unit=50) as endpoint:
        yield Cloud(endpoint, demo.arn, moto)


@pytest.fixture
def cloud(shared_cloud) -> Cloud:
    """No leases, no schedules, and a model that is not running."""
    shared_cloud.clean_up()
    cleaned: Cloud = shared_cloud
    return cleaned


def test_a_run_with_a_scheduled_stop_from_start_to_end(cli, demo, cloud, running, tmp_path):
    job = (demo.data.images, "--model", cloud.arn, "--out", tmp_path, "--run-id", "r", "--shard-size", 4, "--limit", 12)
    flags = ("--start-model", 1, "--deadline", "2h", "--scheduled-stop-role", ROLE)
    with running(*job, *flags, "--max-tps", 4, env=cloud.env) as process:
        wait_for(lambda: any((tmp_path / "results").rglob("*.parquet")))
        (name,) = cloud.schedules()
        assert name.startswith("batchcl-stop-")
        (lease,) = cloud.leases()
        assert " started+schedule run r in " in lease
        process.kill()
    assert cloud.status == "RUNNING"
    done = cli("run", *job, *flags, "--json", env=cloud.env)
    assert done.code == 0, done.err
    assert f"(schedule {name})" in done.err
    assert (cloud.schedules(), cloud.leases()) == ([], [])
    assert cloud.status in {"STOPPING", "STOPPED"}


def test_reap_deletes_the_killed_runs_schedule(cli, demo, cloud, running, tmp_path):
    job = (demo.data.images, "--model", cloud.arn, "--out", tmp_path, "--start-model", 1, "--max-tps", 4)
    with running(*job, "--deadline", "6h", "--scheduled-stop-role", ROLE, "--lease", "30m", env=cloud.env) as process:
        wait_for(lambda: cloud.status == "RUNNING")
        process.kill()
    assert len(cloud.schedules()) == 1
    cloud.pass_minutes(29)
    early = cli("model", "reap", "--json", env=cloud.env)
    assert (early.code, [each["done"] for each in early.json]) == (0, ["left"])
    cloud.pass_minutes(2)
    assert [each["done"] for each in cli("model", "reap", "--dry-run", "--json", env=cloud.env).json] == ["would stop"]
    assert cloud.status == "RUNNING"
    done = cli("model", "reap", env=cloud.env)
    assert done.code == 0, done.err
    assert "stopped" in done.out
    assert (cloud.schedules(), cloud.leases()) == ([], [])
    assert cloud.status in {"STOPPING", "STOPPED"}


@pytest.mark.parametrize(
    ("operation", "flags", "why"),
    [
        ("TagResource", (), "the model was not started without its lease"),
        ("none", ("--scheduled-stop-role", ROLE, "--deadline", "1h"), "scheduling the stop of digits@v1"),
    ],
)
def test_a_model_that_can_not_be_guarded_is_not_started(cli, demo, cloud, tmp_path, monkeypatch, operation, flags, why):
    monkeypatch.setattr(ExponentialBackoff, "delay_amount", lambda *_: 0.0)  # no delay between retries of the scheduler
    cloud.refuse(operation)
    env = cloud.env | {"AWS_ENDPOINT_URL_SCHEDULER": "http://127.0.0.1:1"}
    job = ("run", demo.data.images, "--model", cloud.arn, "--out", tmp_path, "--start-model", 1, "--limit", 2)
    done = cli(*job, *flags, env=env)
    assert done.code == 5, done.err
    assert why in done.err
    assert cloud.status in {"TRAINING_COMPLETED", "STOPPED"}
    assert cloud.leases() == []
    if operation == "TagResource":
        without = cli(*job, "--lease", "none", env=env)
        assert without.code == 0, without.err


def test_a_second_runs_lease_keeps_a_killed_runs_model(cli, demo, cloud, running, tmp_path):
    job = (demo.data.images, "--model", cloud.arn, "--max-tps", 4)
    with running(*job, "--out", tmp_path / "a", "--start-model", 1, env=cloud.env) as first:
        wait_for(lambda: cloud.status == "RUNNING")
        first.kill()
    cloud.pass_minutes(10)
    with running(*job, "--out", tmp_path / "b", env=cloud.env) as second:
        wait_for(lambda: len(cloud.leases()) == 2)
        cloud.pass_minutes(10)
        (row,) = cli("model", "reap", "--json", env=cloud.env).json
        assert row["done"] == "left"
        assert row["reason"].startswith("in use until")
        second.terminate()
        _, err = second.communicate(timeout=60)
        assert second.returncode == 4, err
    assert cli("model", "reap", "--json", env=cloud.env).json[0]["done"] == "stopped"
    assert cloud.status in {"STOPPING", "STOPPED"}


def test_model_start_replaces_old_leases_and_for_sets_one(cli, cloud):
    cloud.lease("2026-01-01T00:00:00Z started run x in s3://b")
    assert cli("model", "start", "digits@v1", env=cloud.env).code == 0
    assert cloud.leases() == [], "expired leases are removed, or reap would stop the model"
    (row,) = cli("model", "reap", "--json", env=cloud.env).json
    assert (row["done"], row["reason"]) == ("left", "no lease: started by other means")
    assert cli("model", "start", "digits@v1", "--for", "2h", env=cloud.env).code == 5
    assert cloud.leases() == []
    assert cli("model", "stop", "digits@v1", env=cloud.env).code == 0
    started = cli("model", "start", "digits@v1", "--for", "2h", env=cloud.env)
    assert started.code == 0, started.err
    assert "`batchcl model reap` stops digits@v1 after " in started.err
    assert len(cloud.leases()) == 1
    assert cli("model", "stop", "digits@v1", env=cloud.env).code == 0
    assert cloud.leases() == []


def test_a_refused_stop_is_reported_and_retried_later(cli, cloud):
    cloud.lease("2026-01-01T00:00:00Z started run x in s3://b")
    cloud.refuse("StopProjectVersion")
    start_model(cloud.endpoint, cloud.arn, units=1)
    failed = cli("model", "reap", "--json", env=cloud.env)
    assert (failed.code, [each["done"] for each in failed.json]) == (4, ["failed"])
    assert "not for you" in failed.err
    cloud.refuse()
    assert cli("model", "reap", env=cloud.env).code == 0


def test_a_run_without_describe_permission_uses_a_running_model(cli, demo, cloud, tmp_path):
    start_model(cloud.endpoint, cloud.arn, units=1)
    cloud.refuse("DescribeProjects", "DescribeProjectVersions", "ListTagsForResource", "TagResource")
    done = cli("run", demo.data.images, "--model", cloud.arn, "--out", tmp_path, "--limit", 2, "--json", env=cloud.env)
    assert done.code == 0, done.err
    assert done.json["scored"] == 2
    assert "the model's status is unknown" in done.err
