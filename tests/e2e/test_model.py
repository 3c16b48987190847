"""A run starts its model and stops it, however the run ends; also `batchcl model`."""

from __future__ import annotations

import json
import signal
import urllib.request
from pathlib import Path

import pyarrow as pa
import pytest

import batchcl
from crash.harness import started
from servers import REGION, aws_env, client, model_status, start_model, wait_for
from unit.emulator.harness import serving_here


@pytest.fixture
def slow(demo):
    """An emulator as slow as a real unit, with the model not running."""
    with serving_here(demo.state, start_seconds=1) as endpoint:
        yield endpoint


def inject(endpoint: str, *faults: dict[str, object]) -> None:
    """Configure the faults of the emulator."""
    body = json.dumps({"faults": faults}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/_emulator/faults", data=body, method="PUT")).close()


def journalled(root: Path) -> list[int]:
    """The number of outcomes in each journal segment."""
    return [pa.ipc.open_file(path).read_all().num_rows for path in root.rglob("*.arrow")]


def test_a_run_starts_the_model_scores_and_stops_it(cli, demo, slow, tmp_path):
    job = ("run", demo.data.images, "--model", demo.arn, "--out", tmp_path, "--limit", 4)
    done = cli(*job, "--start-model", "auto:3", "--json", env=aws_env(slow))
    assert done.code == 0, done.err
    assert done.json["scored"] == 4
    assert 0 < done.json["cost_usd"] < 0.1
    assert "starting the model with 1 inference unit: 4 images take about 11 s at 2.8 images/s (assumed)" in done.err
    assert "digits@v1 is STARTING" in done.err
    assert "digits@v1 is RUNNING" in done.err
    assert model_status(slow, demo.arn) in {"STOPPING", "STOPPED"}


@pytest.mark.parametrize("named", ["digits@v1", "digits"])
def test_a_model_can_be_named_by_project_and_version(cli, demo, slow, tmp_path, named):
    start_model(slow, demo.arn)
    env = aws_env(slow)
    job = ("run", demo.data.images, "--model", named, "--out", tmp_path, "--limit", 2, "--run-id", "r")
    done = cli(*job, "--json", env=env)
    assert done.code == 0, done.err
    assert f"{named} is {demo.arn}" in done.err
    assert done.json["model"] == demo.arn
    for command in (("plan", demo.data.images, "--limit", 2), ("detect", demo.data.images / "00000.png")):
        answer = cli(*command, "--model", named, "--json", env=env)
        assert answer.code == 0, answer.err
    assert cli("labels", tmp_path, "--model", demo.arn, "--json", env=env).json
    unknown = cli("run", demo.data.images, "--model", f"{named}x", "--out", tmp_path, env=env)
    assert unknown.code == 5
    assert "model list" in unknown.err or "project list" in unknown.err


def test_a_resumed_run_keeps_its_model(cli, demo, slow, tmp_path):
    """The project's name then refers to a newer version, which is another model."""
    rekognition = client("rekognition", slow)
    project = rekognition.describe_projects(ProjectNames=["digits"])["ProjectDescriptions"][0]["ProjectArn"]
    start_model(slow, demo.arn)
    env = aws_env(slow)
    job = ("run", demo.data.images, "--model", "digits", "--out", tmp_path, "--limit", 3, "--run-id", "r", "--json")
    assert cli(*job, env=env).json["model"] == demo.arn
    copied = rekognition.copy_project_version(
        SourceProjectArn=project,
        SourceProjectVersionArn=demo.arn,
        DestinationProjectArn=project,
        VersionName="v2",
        OutputConfig={"S3Bucket": "models", "S3KeyPrefix": "p"},
    )["ProjectVersionArn"]
    assert copied != demo.arn
    again = cli(*job, env=env)
    assert (again.code, again.json["model"]) == (0, demo.arn)
    assert "is already done" in again.err


def test_keep_model_leaves_it_running(cli, demo, slow, tmp_path):
    job = ("run", demo.data.images, "--model", demo.arn, "--out", tmp_path, "--limit", 2)
    done = cli(*job, "--start-model", "1", "--keep-model", env=aws_env(slow))
    assert done.code == 0, done.err
    assert model_status(slow, demo.arn) == "RUNNING"
    assert "stays RUNNING" in done.err


def test_a_model_started_by_others_is_not_stopped(cli, demo, slow, tmp_path):
    start_model(slow, demo.arn, units=1)
    job = ("run", demo.data.images, "--model", demo.arn, "--out", tmp_path, "--limit", 2)
    done = cli(*job, "--start-model", "1", "--json", env=aws_env(slow))
    assert done.code == 0, done.err
    assert done.json["cost_usd"] is None
    assert model_status(slow, demo.arn) == "RUNNING"


def test_a_signal_keeps_the_rows_and_stops_the_model(demo, slow, running, tmp_path):
    flags = ("--model", demo.arn, "--out", tmp_path, "--start-model", 1, "--shard-size", 4, "--run-id", "r", "--json")
    with running(demo.data.images, *flags, env=aws_env(slow)) as process:
        wait_for(lambda: any((tmp_path / "results").rglob("*.parquet")))
        process.terminate()
        out, err = process.communicate(timeout=30)
    assert process.returncode == 4, err
    summary = json.loads(out)
    assert summary["status"] == "stopped"
    assert 4 <= summary["scored"] < 300
    assert "no more calls" in err.decode()
    assert "resume with the same `batchcl run` and --run-id r" in err.decode(), (
        "--json or not, the last lines name the run"
    )
    assert b"Traceback" not in err
    assert model_status(slow, demo.arn) in {"STOPPING", "STOPPED"}
    assert json.loads((tmp_path / "runs/r/summary.json").read_text())["status"] == "stopped"
    assert sum(journalled(tmp_path)) == summary["scored"], "every paid result is kept"
    rows = batchcl.open_results(str(tmp_path)).images().collect()
    assert rows["uri"].n_unique() == rows.height == summary["scored"], "incomplete shards are published too"


def test_a_signal_during_startup_waits_and_stops_the_model(demo, slow, running, tmp_path):
    flags = ("--model", demo.arn, "--out", tmp_path, "--start-model", 1)
    with running(demo.data.images, *flags, env=aws_env(slow)) as process:
        wait_for(lambda: model_status(slow, demo.arn) == "STARTING")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert b"can't be stopped before it is RUNNING" in err
    assert model_status(slow, demo.arn) in {"STOPPING", "STOPPED"}
    assert not list((tmp_path / "results").rglob("*"))


def test_a_second_signal_still_stops_the_model(demo, running, tmp_path):
    with serving_here(demo.state, latency_ms=20_000) as endpoint:
        job = (demo.data.images, "--model", demo.arn, "--out", tmp_path, "--start-model", 1)
        with running(*job, env=aws_env(endpoint)) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if b"is RUNNING" in line:
                    break
            process.terminate()
            for line in process.stderr:
                if b"no more calls" in line:
                    break
            process.terminate()
            _, err = process.communicate(timeout=15)
        assert process.returncode == 4, err
        assert model_status(endpoint, demo.arn) in {"STOPPING", "STOPPED"}


def test_a_model_stopped_by_others_ends_the_run_resumably(demo, slow, running, tmp_path):
    start_model(slow, demo.arn, units=1)
    flags = ("--model", demo.arn, "--out", tmp_path, "--shard-size", 4, "--json")
    with running(demo.data.images, *flags, env=aws_env(slow)) as process:
        wait_for(lambda: any((tmp_path / "results").rglob("*.parquet")))
        client("rekognition", slow).stop_project_version(ProjectVersionArn=demo.arn)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 4, err
    summary = json.loads(out)
    assert summary["status"] == "stopped"
    assert "was not started by this run" in summary["reason"]
    assert summary["failed"] == 0, "no image is recorded as failed"
    assert sum(journalled(tmp_path)) == summary["scored"]


def test_the_run_restarts_its_model_if_others_stop_it(demo, slow, running, tmp_path):
    flags = ("--model", demo.arn, "--out", tmp_path, "--shard-size", 4, "--json", "--limit", 20, "--start-model", 1)
    with running(demo.data.images, *flags, env=aws_env(slow)) as process:
        wait_for(lambda: any((tmp_path / "results").rglob("*.parquet")))
        client("rekognition", slow).stop_project_version(ProjectVersionArn=demo.arn)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["scored"] == 20
    assert b"calls paused" in err
    assert b"calls resumed" in err
    assert model_status(slow, demo.arn) in {"STOPPING", "STOPPED"}


def test_a_resumed_run_stops_a_killed_runs_model(cli, demo, slow, running, tmp_path):
    job = (demo.data.images, "--model", demo.arn, "--out", tmp_path, "--limit", 12, "--shard-size", 4)
    flags = ("--start-model", 1, "--run-id", "r")
    with running(*job, *flags, env=aws_env(slow)) as process:
        wait_for(lambda: any((tmp_path / "results").rglob("*.parquet")))
        process.kill()
    assert model_status(slow, demo.arn) == "RUNNING"
    done = cli("run", *job, *flags, "--json", env=aws_env(slow))
    assert done.code == 0, done.err
    assert done.json["scored"] == 12
    last = done.json["sessions"][-1]
    assert last["calls"] - last["throttled"] <= 8, "journalled images are not called for again"
    assert model_status(slow, demo.arn) in {"STOPPING", "STOPPED"}


@pytest.mark.parametrize("kind", ["truncated", "malformed"])
def test_a_start_with_a_lost_response_belongs_to_the_run(cli, demo, slow, tmp_path, kind):
    inject(slow, {"kind": kind, "operation": "StartProjectVersion", "times": 1})
    job = ("run", demo.data.images, "--model", demo.arn, "--out", tmp_path, "--limit", 2)
    done = cli(*job, "--start-model", "1", "--json", env=aws_env(slow))
    assert done.code == 0, done.err
    assert done.json["cost_usd"] > 0
    assert model_status(slow, demo.arn) in {"STOPPING", "STOPPED"}


@pytest.mark.parametrize("flags", [(), ("--for", "2h")])
def test_model_start_succeeds_with_a_lost_response(cli, demo, slow, flags):
    inject(slow, {"kind": "truncated", "operation": "StartProjectVersion", "times": 1})
    done = cli("model", "start", demo.arn, *flags, "--json", env=aws_env(slow))
    assert (done.code, done.json["status"]) == (0, "RUNNING"), done.err
    tags = client("rekognition", slow).list_tags_for_resource(ResourceArn=demo.arn)["Tags"]
    assert len(tags) == bool(flags), "the lease is kept, so the model is stopped when it expires"


def test_sighup_during_model_start_reports_what_keeps_running(demo, slow, clean_env):
    inject(slow, {"kind": "latency", "milliseconds": 800, "operation": "StartProjectVersion"})
    with started("model", "start", demo.arn, "--for", "2h", env=clean_env | aws_env(slow)) as process:
        wait_for(lambda: bool(client("rekognition", slow).list_tags_for_resource(ResourceArn=demo.arn)["Tags"]))
        process.send_signal(signal.SIGHUP)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 4, err
    assert b"ended by SIGHUP" in err
    assert b"or let `batchcl model reap` stop it after 2h" in err
    tags = client("rekognition", slow).list_tags_for_resource(ResourceArn=demo.arn)["Tags"]
    assert bool(tags) == (model_status(slow, demo.arn) in {"STARTING", "RUNNING"}), "a running model has its lease"


@pytest.mark.parametrize("count", [1, 3])
def test_no_model_is_started_if_all_images_are_missing(cli, demo, slow, tmp_path, count):
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{tmp_path}/{number}.jpg\n" for number in range(count)))
    job = ("run", names, "--source-kind", "keys", "--model", demo.arn, "--out", tmp_path / "out", "--start-model", "1")
    done = cli(*job, env=aws_env(slow))
    assert done.code == 5, done.err
    assert "not exist, such as" in done.err
    assert model_status(slow, demo.arn) == "TRAINING_COMPLETED"
    good = next(iter(sorted(demo.data.images.iterdir())))
    names.write_text(f"{good}\n{names.read_text()}")
    done = cli(*job, "--max-failures", count, "--json", env=aws_env(slow))
    assert (done.code, done.json["scored"], done.json["failed"]) == (0, 1, count), done.err


def test_model_commands_cover_a_models_lifecycle(cli, demo, slow):
    env = aws_env(slow)
    listed = cli("model", "list", "--json", env=env)
    assert listed.code == 0, listed.err
    assert [each["arn"] for each in listed.json] == [demo.arn]
    started = cli("model", "start", demo.arn, "--units", "1:2", "--json", env=env)
    assert (started.code, started.json["status"], started.json["max_units"]) == (0, "RUNNING", 2)
    assert cli("model", "wait", demo.arn, "--json", env=env).json["status"] == "RUNNING"
    again = cli("model", "start", demo.arn, env=env)
    assert again.code == 5
    assert "ResourceInUseException" in again.err
    assert "see its status with `batchcl model show digits@v1`" in again.err
    assert cli("model", "show", demo.arn, env=env).out.startswith("model")
    stopped = cli("model", "stop", demo.arn, "--json", env=env)
    assert (stopped.code, stopped.json["status"]) == (0, "STOPPED")
    assert cli("model", "stop", demo.arn, "--json", env=env).json["status"] == "STOPPED"
    assert cli("model", "wait", demo.arn, env=env).code == 5
    assert "digits@v1" in cli("model", "list", env=env).out


def test_model_commands_refuse_bad_arguments(cli, demo, slow):
    env = aws_env(slow)
    unknown = demo.arn.replace("/v1/", "/v2/")
    for arguments, code in (
        (("show", "x"), 2),
        (("show", unknown), 5),
        (("start", demo.arn, "--units", "9"), 2),
        (("wait", demo.arn, "--until", "HAPPY"), 2),
    ):
        done = cli("model", *arguments, env=env)
        assert done.code == code, done.err
        assert done.err.startswith("batchcl: ")
        assert "Traceback" not in done.err
    assert cli("model", "list", env={"AWS_REGION": REGION}).code == 5
