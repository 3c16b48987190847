"""`--newer-than`, `--min-size`, `--sample` and the other filters on the command line."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest

import batchcl
from commands import run_command
from servers import aws_env, client, make_bucket

HOUR_S = 3600


@pytest.fixture(autouse=True)
def aws(service, seaweed, monkeypatch):
    """The emulator and a local S3 in place of AWS."""
    for name, value in aws_env(service, seaweed).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def pictures(demo, tmp_path):
    """Twenty images, ten of them two hours old, a text file and an empty file."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = sorted(path.name for path in demo.data.images.iterdir())[:20]
    for number, name in enumerate(names):
        shutil.copy(demo.data.images / name, folder / name)
        if number % 2:
            then = time.time() - 2 * HOUR_S
            os.utime(folder / name, (then, then))
    (folder / "notes.txt").write_text("notes")
    (folder / "empty.png").touch()
    return folder


def test_plan_prints_one_line_for_each_filter(demo, pictures):
    flags = ("--exclude", "*.txt", "--newer-than", "1h", "--min-size", "1", "--max-size", "4MiB", "--sample", "4")
    done = run_command("plan", pictures, *flags, "--model", demo.arn, "--json")
    assert done.code == 0, done.err
    assert done.json["filtered_by"] == {"exclude": 1, "newer_than": 10, "min_size": 1, "sample": 6}
    assert (done.json["planned"], done.json["filtered"]) == (4, 18)
    printed = run_command("plan", pictures, *flags, "--model", demo.arn)
    lines = [line.split() for line in printed.out.splitlines()]
    for line in (
        ["filtered", "18"],
        ["--exclude", "1"],
        ["--newer-than", "10"],
        ["--min-size", "1"],
        ["--sample", "6"],
    ):
        assert line in lines


def test_a_run_scores_the_sample_that_plan_counted(demo, pictures, tmp_path):
    scored = []
    for name in ("one", "two"):
        out = tmp_path / name
        job = ("run", pictures, "--model", demo.arn, "--out", out, "--include", "*.[jp]*", "--min-size", "1")
        done = run_command(*job, "--sample", "25%", "--sample-seed", "3", "--run-id", "r")
        assert done.code == 0, done.err
        scored.append(batchcl.open_results(str(out)).images().collect()["key"].to_list())
        summary = json.loads((out / "runs" / "r" / "summary.json").read_text())
        left = 20 - len(scored[0])
        assert summary["filtered_by"] == {"include": 1, "min_size": 1, "sample": left}
        assert summary["filtered"] == 2 + left
        assert f"{left} excluded by --sample" in done.err
    other = run_command(*job, "--sample", "25%", "--run-id", "r")
    assert other.code == 2
    assert "sample_seed was 3 and is 0" in other.err
    assert scored[0] == scored[1]
    assert 0 < len(scored[0]) < 20


def test_size_filters_refuse_a_list_without_sizes(demo, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text("gone.jpg\nlost.jpg\n")
    done = run_command("plan --source-kind keys --min-size 10KB", keys, "--model", demo.arn)
    assert done.code == 2
    assert f"there is no image to score in {keys} (excluded: 2 by size not known)" in done.err


def test_where_filters_by_the_columns_of_a_table(demo, pictures, tmp_path):
    names = sorted(path.name for path in pictures.glob("0*"))
    rows = [f"{name},{number},{'left' if number % 2 else 'right'}" for number, name in enumerate(names)]
    table = pictures / "table.csv"
    table.write_text("\n".join(["image,shot,camera", *rows]) + "\n")
    job = (table, "--uri-column", "image", "--model", demo.arn)
    where = ("--where", "camera = 'left' AND CAST(shot AS INT) < 10 AND size > 0")
    done = run_command("run", *job, *where, "--out", tmp_path / "out", "--run-id", "r", "--json")
    assert done.code == 0, done.err
    assert (done.json["scored"], done.json["lines"], done.json["filtered_by"]) == (5, 20, {"where": 15})
    images = batchcl.open_results(str(tmp_path / "out")).images().collect()
    assert {json.loads(extra)["camera"] for extra in images["extra"]} == {"left"}
    other = run_command("run", *job, "--where", "true", "--out", tmp_path / "out", "--run-id", "r")
    assert (other.code, "where was" in other.err) == (2, True)
    unknown = run_command("run", *job, "--where", "lens = 'x'", "--out", tmp_path / "new")
    assert unknown.code == 2
    assert 'unable to find column "lens"; the columns are uri, bucket, key' in unknown.err
    assert unknown.sentence.rstrip().endswith("extra, shot, camera")
    assert not list((tmp_path / "new" / "runs").glob("[!.]*"))


def test_uncertain_and_failed_images_are_scored_again(demo, pictures, tmp_path):
    out = tmp_path / "out"
    (pictures / "broken.png").write_bytes(b"\x89PNG but not for long")
    first = run_command("run", pictures, "--model", demo.arn, "--out", out, "--run-id", "first")
    assert first.code == 3, first.err
    results = batchcl.open_results(str(out)).images().collect()
    tops = sorted(max(label["confidence"] for label in labels) for labels in results["labels"].to_list())
    again = ("run", "--from-results", out, "--model", demo.arn, "--out", out, "--json")
    unsure = run_command(*again, "--where", f"top_confidence < {tops[7]}", "--run-id", "unsure")
    assert unsure.code == 0, unsure.err
    assert (unsure.json["scored"], unsure.json["filtered_by"]) == (7, {"where": 16})
    failures = ("--where", "status = 'failed' AND run_id = 'first'")
    failed = run_command(*again, *failures, "--run-id", "failed")
    assert failed.code == 3, failed.err
    assert (failed.json["planned"], failed.json["failed"]) == (1, 1)
    retried = run_command("retry", out, "failed", "--json")
    assert (retried.code, retried.json["planned"], retried.json["failed"]) == (0, 1, 1), "the failure is permanent"
    nothing = run_command("plan", "--from-results", out, "--where", "confidence > 100", "--model", demo.arn)
    assert nothing.code == 2
    assert "(excluded: 31 by --where)" in nothing.err
    both = run_command("plan", pictures, "--from-results", out, "--model", demo.arn)
    assert (both.code, "exclude each other" in both.err) == (2, True)


def test_results_in_s3_are_a_source(demo, seaweed, pictures):
    root = "s3://filters-results/out"
    make_bucket(client("s3", seaweed), "filters-results")
    run = run_command("run", pictures, "--model", demo.arn, "--out", root, "--limit", "8", "--json")
    assert run.code == 0, run.err
    flags = ("--from-results", root, "--where", "status = 'scored' AND size > 0", "--model", demo.arn, "--json")
    plan = run_command("plan", *flags)
    assert plan.code == 0, plan.err
    assert (plan.json["planned"], plan.json["lines"]) == (run.json["scored"], 8)
