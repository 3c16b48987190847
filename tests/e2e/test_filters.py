"""`--newer-than`, `--min-size`, `--sample` and their like, as a user types them."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest

import batchcl
from servers import aws_env

HOUR_S = 3600


@pytest.fixture
def env(service):
    return aws_env(service)


@pytest.fixture
def pictures(demo, tmp_path):
    """Twenty pictures, ten of them two hours old, beside a text and an empty picture."""
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


def test_plan_tells_what_each_filter_takes_away_one_a_line(cli, demo, env, pictures):
    flags = ("--exclude", "*.txt", "--newer-than", "1h", "--min-size", "1", "--max-size", "4MiB", "--sample", "4")
    done = cli("plan", pictures, *flags, "--model", demo.arn, "--json", env=env)
    assert done.code == 0, done.err
    assert done.json["filtered_by"] == {"exclude": 1, "newer_than": 10, "min_size": 1, "sample": 6}
    assert (done.json["images"], done.json["filtered"]) == (4, 18)
    shown = cli("plan", pictures, *flags, "--model", demo.arn, env=env)
    lines = [line.split() for line in shown.out.splitlines()]
    for line in (
        ["filtered", "18"],
        ["--exclude", "1"],
        ["--newer-than", "10"],
        ["--min-size", "1"],
        ["--sample", "6"],
    ):
        assert line in lines


def test_a_run_scores_the_sample_that_plan_counted_and_tells_it_in_its_record(cli, demo, env, pictures, tmp_path):
    scored = []
    for name in ("one", "two"):
        out = tmp_path / name
        job = ("run", pictures, "--model", demo.arn, "--out", out, "--include", "*.[jp]*", "--min-size", "1")
        done = cli(*job, "--sample", "25%", "--sample-seed", "3", "--run-id", "r", env=env)
        assert done.code == 0, done.err
        scored.append(batchcl.open_results(str(out)).images().collect()["key"].to_list())
        summary = json.loads((out / "runs" / "r" / "summary.json").read_text())
        left = 20 - len(scored[0])
        assert summary["filtered_by"] == {"include": 1, "min_size": 1, "sample": left}
        assert summary["filtered"] == 2 + left
        assert f"--sample left {left} out" in done.err
        other = cli(*job, "--sample", "25%", "--run-id", "r", env=env)
        assert other.code == 2
        assert "sample_seed was 3 and is 0" in other.err
    assert scored[0] == scored[1]
    assert 0 < len(scored[0]) < 20


def test_a_list_that_tells_no_size_has_no_image_of_known_size(cli, demo, env):
    done = cli("plan", "-", "--min-size", "10KB", "--model", demo.arn, env=env, stdin=b"gone.jpg\nlost.jpg\n")
    assert done.code == 2
    assert "there is no image in - that the filters let through (taken away: 2 by size not known)" in done.err
