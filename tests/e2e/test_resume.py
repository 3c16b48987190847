"""Resuming, refusing, inspecting, limiting and retrying runs on the command line."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from crash.harness import OutputRoot, ends_within, new_bucket, started, until_begun, wait_for_rows
from servers import aws_env, client, model_status, wait_for
from unit.emulator.harness import serving_here

IMAGES = 30


@pytest.fixture
def env(service, seaweed):
    return aws_env(service, seaweed)


@pytest.fixture
def pictures(demo, tmp_path):
    """A directory of thirty images that a test may change."""
    folder = tmp_path / "in"
    folder.mkdir()
    for path in sorted(demo.data.images.iterdir())[:IMAGES]:
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.fixture
def out(tmp_path, seaweed):
    return OutputRoot(str(tmp_path / "out"), seaweed)


@pytest.fixture
def job(demo, pictures, out):
    """The arguments of run `r` over these images."""
    return ("run", pictures, "--model", demo.arn, "--out", out.root, "--run-id", "r", "--shard-size", 5, "--json")


@pytest.fixture
def stopped(job, out, clean_env, env):
    """Start the run, and end it by a signal once some shards are published."""

    @contextmanager
    def begin(number: signal.Signals):
        with started(*job, "--max-tps", 10, env=clean_env | env) as process:
            wait_for_rows(out, 5)
            yield process
            process.send_signal(number)
            process.wait(30)

    return begin


def test_a_stopped_run_is_resumed_for_unscored_images_only(cli, job, env, out, stopped):
    with stopped(signal.SIGTERM) as process:
        pass
    assert process.returncode == 4
    first = json.loads(out.files("runs/r", "summary.json")["runs/r/summary.json"])
    assert first["status"] == "stopped"
    assert 5 <= first["scored"] < IMAGES
    state = cli("status", out.root, "r", "--json", env=env).json
    assert (state["state"], state["resumable"]) == ("stopped", True)
    assert "SIGTERM" in state["reason"]
    refused = cli("retry", out.root, "r", env=env)
    assert refused.code == 2
    assert "is not done; resume it first" in refused.err
    unknown = cli("retry", out.root, "x", env=env)
    assert unknown.code == 2
    assert "there is no run 'x'" in unknown.err
    second = cli(*job, env=env)
    assert second.code == 0, second.err
    assert "resuming run " in second.err
    assert second.json["sessions"][-1]["calls"] == IMAGES - first["scored"], "no image is paid for twice"
    assert [each["calls"] for each in second.json["sessions"]] == [first["calls"], IMAGES - first["scored"]]
    assert second.json["calls"] == IMAGES, "the summary adds up the sessions"
    assert second.json["seconds"] == pytest.approx(sum(each["seconds"] for each in second.json["sessions"]))
    assert second.json["images_per_second"] == pytest.approx(IMAGES / second.json["seconds"], abs=0.001)
    assert second.json["scored"] == second.json["planned"] == IMAGES
    assert len(set(out.uris())) == len(out.uris()) == IMAGES


def test_status_reports_running_interrupted_and_done(cli, job, env, out, stopped):
    def status():
        return cli("status", out.root, "r", "--json", env=env).json

    with stopped(signal.SIGKILL) as process:
        process.send_signal(signal.SIGSTOP)  # so that it is not done before `status` runs
        running = status()
    assert (running["state"], running["resumable"]) == ("running", False)
    assert running["held_by"].endswith(f"process {process.pid}")
    rate = running["images_per_second"]
    assert rate is None or rate > 0, "unknown until the lease reports calls"
    killed = status()
    assert (killed["state"], killed["resumable"], killed["held_by"]) == ("interrupted", True, None)
    assert killed["planned"] == IMAGES == killed["scored"] + killed["left"]
    assert killed["left"] > 0
    assert cli(*job, env=env).code == 0
    assert cli("status", out.root, "--json", env=env).json == (done := status()), "the newest run if none is named"
    assert (done["state"], done["resumable"], done["held_by"], done["left"]) == ("done", False, None, 0)
    assert done["scored"] == done["published"] == IMAGES


def test_a_waiting_process_takes_over_a_killed_one(job, env, out, clean_env):
    with started(*job, "--max-tps", 0.5, env=clean_env | env) as first:
        until_begun(first)
        with started(*job, "--if-held", "wait", env=clean_env | env) as second:
            assert second.stderr is not None
            assert any(b"is working on the run; following it" in line for line in iter(second.stderr.readline, b""))
            first.kill()
            text, rest = second.communicate(timeout=120)
    assert second.returncode == 0, rest
    assert f"process {first.pid} on ".encode() in rest
    assert b"is dead; taking over its run" in rest
    summary = json.loads(text)
    assert [each["number"] for each in summary["sessions"]] == [0, 1]
    assert summary["scored"] == IMAGES
    assert len(set(out.uris())) == len(out.uris()) == IMAGES


def test_status_watch_shows_a_run_and_exits_by_its_result(cli, job, env, out, clean_env):
    watch = ("status", out.root, "--watch", "--interval", "1")
    with started(*job, "--max-tps", 10, env=clean_env | env) as process:
        wait_for_rows(out, 5)
        with started(*watch, "--json", env=clean_env | env) as watching:
            assert watching.stdout is not None
            first = json.loads(watching.stdout.readline())
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            last = [json.loads(line) for line in watching.stdout][-1]
            assert watching.wait(30) == 4
    assert (first["run_id"], first["state"], first["problem"]) == ("r", "running", None)
    assert first["held_by"].startswith(f"{process.pid} on ")
    assert first["model_status"] == "RUNNING"
    assert last["state"] == "stopped"
    assert "SIGTERM" in last["reason"]
    assert cli(*job, env=env).code == 0
    done = cli(*watch, env=env)
    assert done.code == 0, done.err
    assert "has ended" in done.err
    assert re.search(r"^state +done$", done.out, re.MULTILINE)
    summary = Path(out.root) / "runs" / "r" / "summary.json"
    summary.write_text(summary.read_text().replace('"tolerated": true', '"tolerated": false'))
    assert cli(*watch, "--json", env=env).code == 3
    unknown = cli("status", f"{out.root}/runs", "x", "--watch", env=env)
    assert (unknown.code, unknown.out) == (5, "")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--interval", "5"), "--interval needs --watch; add it"),
        (("--watch", "--interval", "inf"), "invalid value for '--interval'"),
    ],
)
def test_an_interval_is_that_of_a_watch_and_bounded(cli, out, words, text):
    refused = cli("status", out.root, *words)
    assert (refused.code, refused.out) == (2, "")
    assert text in refused.err


def test_a_run_id_of_another_job_is_refused_with_the_difference(cli, job, env, out, demo):
    assert cli(*job, env=env).code == 0
    refused = cli(*job, "--min-confidence", 10, "--limit", 3, env=env)
    assert refused.code == 2
    assert "limit was not set and is 3, min_confidence was not set and is 10.0" in refused.err
    assert "--run-id" in refused.err
    other_sources = cli("run", demo.data.images, *job[2:], env=env)
    assert other_sources.code == 2
    assert "sources was" in other_sources.err
    assert len(out.uris()) == IMAGES


def test_a_finished_run_starts_no_model_and_makes_no_call(cli, job, demo, out, env):
    first = cli(*job, env=env)
    assert first.code == 0, first.err
    with serving_here(demo.state) as idle:
        again = cli(*job, "--start-model", 1, env=aws_env(idle))
        assert model_status(idle, demo.arn) == "TRAINING_COMPLETED"
    assert again.code == 0, again.err
    assert "already done" in again.err
    assert "resuming" not in again.err
    assert "STARTING" not in again.err
    assert again.json == first.json
    assert len(out.uris()) == IMAGES


def test_a_run_with_a_complete_work_list_needs_no_sources(cli, job, env, out, seaweed, clean_env):
    s3 = client("s3", seaweed)
    bucket = new_bucket(seaweed)
    for path in job[1].iterdir():
        s3.put_object(Bucket=bucket, Key=f"in/{path.name}", Body=path.read_bytes())
    keys = job[1].with_name("keys.txt")
    keys.write_text("".join(f"s3://{bucket}/in/{path.name}\n" for path in job[1].iterdir()))
    listed = (job[0], keys, *job[2:])
    with started(*listed, "--max-tps", 10, env=clean_env | env) as process:
        wait_for_rows(out, 5)
        process.kill()
        process.wait()
    keys.unlink()
    done = cli(*listed, env=env)
    assert done.code == 0, done.err
    assert len(set(out.uris())) == len(out.uris()) == IMAGES


@pytest.fixture
def broken(pictures):
    """Truncates three images and empties one, in two shards; returns a function that restores them."""
    paths = sorted(pictures.iterdir())
    good = {path: path.read_bytes() for path in [*paths[:3], paths[7]]}
    for path, data in good.items():
        path.write_bytes(data[:60])
    next(iter(good)).write_bytes(b"")

    def restore() -> None:
        for path, data in good.items():
            path.write_bytes(data)

    return restore


@pytest.fixture
def missing(job, pictures, seaweed):
    """A job whose list has three missing objects and a folder marker, and a function that uploads the objects."""
    s3 = client("s3", seaweed)
    bucket = new_bucket(seaweed)
    paths = sorted(pictures.iterdir())
    later = [*paths[:2], paths[7]]
    keys = pictures.with_name("keys.txt")
    names = [f"in/{'folder/' if path == paths[3] else path.name}" for path in paths]
    keys.write_text("".join(f"s3://{bucket}/{name}\n" for name in names))

    def put(some) -> None:
        for path in some:
            s3.put_object(Bucket=bucket, Key=f"in/{path.name}", Body=path.read_bytes())

    put(path for path in paths if path not in later)
    return [job[0], keys, *job[2:]], lambda some=slice(None): put(later[some])


def test_retry_scores_failed_images_only(cli, env, out, missing):
    job, put = missing
    run = cli(*job, env=env)
    assert run.code == 3, run.err
    assert (run.json["failed"], run.json["skipped"], run.json["scored"]) == (3, 1, IMAGES - 4)
    assert f"run `batchcl retry {out.root} r` to retry 3 images" in run.err
    useless = cli("retry", out.root, "r", "--json", env=env)
    assert (useless.code, useless.json["failed"], useless.json["sessions"][-1]["calls"]) == (3, 3, 3)
    assert useless.json["calls"] == run.json["calls"] + 3
    other = cli("retry", out.root, "r", "--code", "InternalServerError", "--json", env=env)
    assert (other.code, other.json["status"]) == (2, "refused")
    assert "failed with --code InternalServerError; its codes: InvalidS3ObjectException (3)" in other.err
    assert cli("status", out.root, "r", "--json", env=env).json["rounds"] == 1, "a refused retry has no round"
    put()
    codes = {row["error_code"] for row in out.rows("failures") if row["status"] == "failed"}
    retried = cli("retry", out.root, "r", *(part for code in codes for part in ("--code", code)), "--json", env=env)
    assert retried.code == 0, retried.err
    assert (retried.json["calls"], retried.json["failed"], retried.json["scored"]) == (
        run.json["calls"] + 6,
        0,
        IMAGES - 1,
    )
    assert [(each["round"], each["calls"]) for each in retried.json["sessions"]] == [
        (0, run.json["calls"]),
        (1, 3),
        (2, 3),
    ]
    assert retried.json["planned"] == IMAGES
    rounds = Counter((row["status"], row["round"]) for row in out.rows("failures"))
    assert rounds == {("skipped", 0): 1, ("failed", 0): 3, ("failed", 1): 3}, "no row is removed from the tables"
    (unresolved,) = cli("failures", out.root, "--json", env=env).json
    assert (unresolved["error_code"], unresolved["count"]) == ("FolderMarker", 1), "it is not retried"
    assert Counter(row["table"] for row in out.table().values()) == {"results": IMAGES - 1, "failures": 1}
    again = cli("retry", out.root, "r", "--json", env=env)
    assert again.code == 0
    assert "nothing to retry in run r" in again.err
    assert cli("status", out.root, "r", "--json", env=env).json["unresolved"] == 0
    assert cli(*job, env=env).json["scored"] == IMAGES - 1, "the run itself is done"


def test_retry_of_permanent_failures_starts_no_model(cli, job, demo, env, out, broken):
    run = cli(*job, env=env)
    assert (run.code, run.json["failed"], run.json["retryable"], run.json["fittable"]) == (3, 3, 0, 3)
    assert (
        f"list them with `batchcl failures {out.root}`; run `batchcl retry {out.root} r --fit` to retry 3 images"
        in run.err
    )
    with serving_here(demo.state) as idle:
        unchanged = cli("retry", out.root, "r", "--start-model", 1, "--json", env=aws_env(idle))
        assert model_status(idle, demo.arn) == "TRAINING_COMPLETED"
    assert (unchanged.code, unchanged.json) == (0, run.json | {"tolerated": True})
    assert (
        "not retried: 3 images failed with InvalidImageFormatException (not a PNG or JPEG, or corrupt); "
        in unchanged.err
    )
    assert "not retried: 1 image skipped with EmptyFile (empty)\n" in unchanged.err
    assert "nothing to retry in run r: none of its failures can succeed" in unchanged.err
    refused = cli("retry", out.root, "r", "--code", "InvalidImageFormatException", "--json", env=env)
    assert (refused.code, refused.json["status"]) == (2, "refused")
    assert "add --fit, or replace the images and score them with `batchcl run --incremental`" in refused.err
    broken()
    retried = cli(*job[:6], "--run-id", "again", "--incremental", "--json", env=env)
    assert (retried.code, retried.json["calls"], retried.json["already_scored"]) == (0, 4, IMAGES - 4), retried.err
    assert cli("failures", out.root, "--json", env=env).json == []
    status = cli("status", out.root, "r", "--json", env=env).json
    assert (status["unresolved"], status["retryable"], status["fittable"]) == (3, 0, 3)


def test_an_interrupted_retry_is_resumed(cli, env, out, missing, clean_env):
    job, put = missing
    assert cli(*job, env=env).code == 3
    put()
    with started("retry", out.root, "r", "--max-tps", 0.5, env=clean_env | env) as process:
        wait_for(lambda: any(row["status"] == "failed" for row in out.rows("failures")))
        wait_for(lambda: out.files("runs/r/rounds", ".json"))
        ends_within(process, 1)
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 4, err
    state = cli("status", out.root, "r", "--json", env=env).json
    assert (state["planned"], state["left"]) == (IMAGES, 0)
    done = cli("retry", out.root, "r", "--json", env=env)
    assert done.code == 0, done.err
    assert (done.json["scored"], done.json["failed"]) == (IMAGES - 1, 0)
    assert len(out.table()) == IMAGES


def test_a_retry_that_ends_early_can_be_resumed(cli, env, out, missing):
    job, put = missing
    assert cli(*job, env=env).code == 3
    put(slice(1, 2))  # a successful call shows that the failure before it was caused by its image
    early = cli("retry", out.root, "r", "--max-tps", 0.3, "--max-failures", 0, "--json", env=env)
    assert early.code == 3, early.err
    assert "--max-failures is 0" in early.json["reason"]
    assert (early.json["scored"], early.json["failed"], early.json["skipped"]) == (IMAGES - 3, 2, 1)
    assert early.json["sessions"][-1]["calls"] < 3
    assert f"resume with `batchcl retry {out.root} r`" in early.err
    state = cli("status", out.root, "r", "--json", env=env).json
    assert (state["state"], state["resumable"], state["unfinished_round"]) == ("done", False, 1)
    assert state["reason"] == early.json["reason"]
    again = cli(*job, env=env)
    assert (again.code, again.json["sessions"][-1]["calls"]) == (3, 0), "the run itself is complete"
    assert again.json["calls"] == early.json["calls"]
    put()
    done = cli("retry", out.root, "r", "--max-failures", 3, "--json", env=env)
    assert (done.code, done.json["failed"], done.json["round"]) == (0, 1, 1), done.err
    assert done.json["sessions"][-1]["calls"] == 1
    state = cli("status", out.root, "r", "--json", env=env).json
    assert (state["unfinished_round"], state["reason"], state["unresolved"]) == (None, None, done.json["failed"])


def test_incremental_scores_new_and_changed_files_only(cli, demo, env, pictures, out):
    job = ("run", pictures, "--model", demo.arn, "--out", out.root, "--incremental", "--json", "--run-id")
    assert cli(*job, "night-1", env=env).json["scored"] == IMAGES
    first, second, *_ = sorted(pictures.iterdir())
    shutil.copyfile(first, pictures / "new.jpg")
    first.write_bytes(second.read_bytes())
    second_run = cli(*job, "night-2", env=env)
    assert second_run.code == 0, second_run.err
    assert (second_run.json["planned"], second_run.json["calls"], second_run.json["already_scored"]) == (
        2,
        2,
        IMAGES - 1,
    )
    scored = {row["key"] for row in out.rows("results") if row["run_id"] == "night-2"}
    assert scored == {str(first), str(pictures / "new.jpg")}
    third_run = cli(*job, "night-3", env=env)
    assert (third_run.code, third_run.json["planned"], third_run.json["already_scored"]) == (0, 0, IMAGES + 1)


def test_incremental_compares_etags_in_s3(cli, demo, env, pictures, seaweed):
    s3 = client("s3", seaweed)
    bucket = new_bucket(seaweed)
    paths = sorted(pictures.iterdir())[:5]
    for path in paths:
        s3.put_object(Bucket=bucket, Key=f"in/{path.name}", Body=path.read_bytes())
    root = f"s3://{bucket}/out"
    job = ("run", f"s3://{bucket}/in/", "--model", demo.arn, "--out", root, "--incremental", "--json", "--run-id")
    assert cli(*job, "night-1", env=env).json["scored"] == 5
    s3.put_object(Bucket=bucket, Key=f"in/{paths[0].name}", Body=paths[0].read_bytes())  # touched, but the same
    s3.put_object(Bucket=bucket, Key=f"in/{paths[1].name}", Body=paths[0].read_bytes())
    second_run = cli(*job, "night-2", env=env)
    assert second_run.code == 0, second_run.err
    assert (second_run.json["calls"], second_run.json["already_scored"]) == (1, 4)
    again = [row["key"] for row in OutputRoot(root, seaweed).rows("results") if row["run_id"] == "night-2"]
    assert again == [f"in/{paths[1].name}"]


def test_a_deadline_ends_the_run_resumably(cli, job, env, out):
    late = cli(*job, "--max-tps", 5, "--deadline", "2s", env=env)
    assert late.code == 4, late.err
    assert "deadline of 2s" in late.json["reason"]
    assert late.json["scored"] < IMAGES
    done = cli(*job, env=env)
    assert (done.code, done.json["sessions"][-1]["calls"]) == (0, IMAGES - late.json["scored"])
    assert len(out.table()) == IMAGES


def test_max_cost_ends_the_run_resumably(cli, job, demo, out):
    with serving_here(demo.state) as endpoint:
        env = aws_env(endpoint)
        first = cli(*job, "--max-tps", 5, "--start-model", 1, "--max-cost", 0.001, env=env)
        assert first.code == 4, first.err
        assert "--max-cost" in first.json["reason"]
        assert first.json["cost_usd"] >= 0.001
        assert "--max-cost has no effect" not in first.err
        assert 0 < first.json["scored"] < IMAGES
        assert model_status(endpoint, demo.arn) in {"STOPPING", "STOPPED"}
        done = cli(*job, "--start-model", 5, env=env)
    last = done.json["sessions"][-1]
    assert (done.code, last["calls"] - last["throttled"]) == (0, IMAGES - first.json["scored"])
    assert done.json["cost_usd"] == pytest.approx(first.json["cost_usd"] + last["cost_usd"]), "the costs are added up"
    assert len(out.table()) == IMAGES


def test_max_cost_without_start_model_gives_a_warning(cli, job, env):
    done = cli(*job, "--max-cost", 0.001, env=env)
    assert (done.code, done.json["cost_usd"]) == (0, None)
    assert "--max-cost has no effect: the model was already running" in done.err


@pytest.mark.usefixtures("broken")
def test_a_higher_max_failures_resumes_a_run(cli, job, env, out):
    early = cli(*job, "--max-tps", 5, "--max-failures", 1, env=env)
    assert early.code == 3, early.err
    assert "--max-failures is 1" in early.json["reason"]
    assert early.json["scored"] < IMAGES - 4
    done = cli(*job, "--max-failures", 3, env=env)
    assert done.code == 0, done.err
    assert (done.json["failed"], done.json["scored"]) == (3, IMAGES - 4)
    assert done.json["sessions"][-1]["calls"] == IMAGES - 1 - early.json["scored"] - early.json["failed"]
    assert done.json["calls"] == IMAGES - 1
    assert len(out.table()) == IMAGES


def test_duplicates_are_scored_once_and_counted(cli, demo, env, pictures, out):
    names = [str(path) for path in sorted(pictures.iterdir())[:10]]
    keys = pictures.with_name("keys.txt")
    keys.write_text("\n".join([*names, *names[:4], names[0]]))
    job = ("run", keys, pictures, keys, "--model", demo.arn, "--out", out.root, "--json")
    done = cli(*job, env=env)
    assert done.code == 0, done.err
    assert (done.json["planned"], done.json["calls"]) == (IMAGES, IMAGES)
    inside, across = 5, 10
    assert done.json["duplicates"] == 2 * inside + 2 * across, "5 within each list, 10 in the folder and the list again"
    assert len(out.uris()) == len(set(out.uris())) == IMAGES


def test_an_incomplete_work_list_is_completed(cli, job, env, out, clean_env):
    """A kill between two shards of the list can't be timed from outside, so its files are deleted instead."""
    with started(*job, "--max-tps", 2, env=clean_env | env) as process:
        until_begun(process)
        wait_for(lambda: out.files("runs/r", "worklist.json"))
        process.kill()
        process.wait()
    for name in ("worklist.json", "worklist/00004.parquet", "worklist/00005.parquet"):
        (job[1].parent / "out/runs/r" / name).unlink()
    state = cli("status", out.root, "r", "--json", env=env).json
    assert (state["listed"], state["planned"]) == (False, 20)
    done = cli(*job, env=env)
    assert done.code == 0, done.err
    assert done.json["planned"] == done.json["scored"] == IMAGES
    assert len(out.table()) == IMAGES
