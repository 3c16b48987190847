"""`batchcl pilot` and `--min-images` against the emulator, with its usage meter."""

from __future__ import annotations

import json
import os
import shutil
import urllib.request
from unittest.mock import patch

import pytest

import batchcl
from commands import run_command
from servers import aws_env, model_status
from unit.emulator.harness import serving_here

IMAGES = 40
SAMPLE = 20
TPS_PER_UNIT = 20
SECOND_USD = 2 * 4.0 / 3600
"""Price of a second of two units."""


@pytest.fixture
def endpoint(demo, tmp_path):
    """An emulator whose model is not RUNNING."""
    with serving_here(demo.state, buckets=tmp_path, tps_per_unit=TPS_PER_UNIT) as endpoint:
        yield endpoint


@pytest.fixture
def env(clean_env, endpoint):
    return clean_env | aws_env(endpoint)


@pytest.fixture
def photos(demo, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted(demo.data.images.iterdir())[:IMAGES]:
        shutil.copy(path, folder)
    return folder


def usage(endpoint: str) -> float:
    """Unit-hours by the emulator's meter."""
    with urllib.request.urlopen(f"{endpoint}/_emulator/usage") as response:
        return float(json.load(response)["inference_unit_hours"])


def test_a_pilot_and_its_run_score_each_image_once(cli, demo, endpoint, env, photos, tmp_path):
    out = tmp_path / "out"
    job = (photos, "--model", demo.arn, "--out", out, "--run-id", "2026", "--start-model", 2, "--limit", IMAGES)
    pilot = ("pilot", *job, "--images", SAMPLE)
    asked = cli(*pilot, env=env)
    assert asked.code == 2
    assert asked.err.startswith("batchcl: this scores 20 images with digits@v1: about 14 s of the model, which costs")
    assert asked.err.endswith("(at an assumed rate); stdin is not a terminal, so pass --yes to confirm\n")
    assert not out.exists()
    with patch.dict(os.environ, env, clear=True):
        refused = run_command("", *pilot, answer="n")
    assert (refused.code, refused.err.endswith("batchcl: nothing was scored\n"), usage(endpoint)) == (5, True, 0)
    done = cli(*pilot, "--yes", "--json", env=env)
    assert done.code == 0, done.err
    found = done.json
    assert (found["scored"], found["left"], found["calls_left"]) == (SAMPLE, IMAGES - SAMPLE, IMAGES - SAMPLE)
    assert found["rate"]["tps_low"] < found["rate"]["tps"] < found["rate"]["tps_high"]
    assert found["rate"]["per_unit"]["typical"] == pytest.approx(found["rate"]["tps"] / 2)
    assert [(each["units"], each["is_requested"]) for each in found["estimates"]] == [
        (units, units == 2) for units in range(1, 6)
    ]
    assert model_status(endpoint, demo.arn) == "STOPPED"
    assert found["cost_usd"] == pytest.approx(4 * usage(endpoint), abs=SECOND_USD), "the start is noticed late"
    billed = usage(endpoint)
    again = cli(*pilot, env=env)
    assert again.code == 0, again.err
    assert "run 2026 has called for the images of the sample; reporting what it has measured\n" in again.err
    assert usage(endpoint) == billed
    assert "* " not in again.err
    rest = cli("run", *job, "--json", env=env)
    assert rest.code == 0, rest.err
    assert (rest.json["scored"], rest.json["calls"] - rest.json["throttled"]) == (IMAGES, IMAGES)
    assert len(cli("query", out, "SELECT uri FROM results", "--json", env=env).json) == IMAGES
    for images in (SAMPLE, 1000):
        over = cli("pilot", *job, "--images", images, "--json", env=env)
        assert (over.code, over.json["is_done"], over.json["left"]) == (0, True, 0), over.err
    other = cli("pilot", *job, "--min-confidence", 50, "--yes", env=env)
    assert other.code == 2
    assert "was started with other settings" in other.err


def test_the_python_function_returns_the_pilot(env, demo, photos, tmp_path):
    job = batchcl.Job(sources=photos, model=demo.arn, out=tmp_path / "out", run_id="a", start_model=1)
    with patch.dict(os.environ, env, clear=True):
        found = batchcl.pilot_sync(job, images=10)
        assert (found.scored, found.rate is not None, len(found.estimates)) == (10, True, 5)
        assert batchcl.run_sync(job).scored == IMAGES
        with pytest.raises(batchcl.UsageError, match="a pilot of 0 images"):
            batchcl.pilot_sync(job, images=0)


def test_a_night_with_few_images_is_postponed(cli, demo, endpoint, env, photos, tmp_path):
    batch = ("--incremental", "--min-images", 5, "--max-wait", "1d", "--start-model", 2)
    job = (photos, "--model", demo.arn, "--out", tmp_path / "out", *batch)

    metrics = tmp_path / "batchcl.prom"

    def night(run_id: str):
        return cli("run", *job, "--run-id", run_id, "--metrics-file", metrics, "--json", env=env)

    first = night("1")
    assert (first.code, first.json["status"], first.json["scored"]) == (0, "done", IMAGES), first.err
    billed = usage(endpoint)
    for number in range(3):
        shutil.copy(photos / sorted(os.listdir(photos))[number], photos / f"new-{number}.png")
    planned = cli("plan", *job, "--json", env=env)
    why = "3 images need a call, and --min-images is 5; the last run that scored began 0:0"
    assert planned.json["postponed"].startswith(why)
    assert "would be postponed" in cli("plan", *job, env=env).out
    metrics.unlink()
    second = night("2")
    assert (second.code, second.json["status"]) == (0, "postponed"), second.err
    assert second.json["reason"].startswith(why)
    assert (second.json["planned"], second.json["already_scored"], second.json["calls"]) == (3, IMAGES, 0)
    assert f"run 2 is postponed: {second.json['reason']}\n" in second.err
    assert "batchcl_last_success_timestamp_seconds" in metrics.read_text()
    assert usage(endpoint) == billed
    assert [run["run_id"] for run in cli("runs", tmp_path / "out", "--json", env=env).json] == ["1"]
    for number in range(3, 6):
        shutil.copy(photos / sorted(os.listdir(photos))[number], photos / f"new-{number}.png")
    third = night("2")
    assert (third.code, third.json["status"], third.json["scored"]) == (0, "done", 6), third.err
