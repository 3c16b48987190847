"""Successive runs of a nightly job: corrupt images are paid for once and do not keep new images from being scored."""

from __future__ import annotations

from collections import Counter

import pytest

from crash.harness import OutputRoot, new_bucket
from pixels import encoded, noise
from servers import aws_env, client, serving

IMAGES = 12
CORRUPT = 4
PERMANENT = CORRUPT + 2
"""The corrupt images, an image that is too small, and a text file."""


@pytest.fixture
def bucket(demo, seaweed):
    """A bucket with images, four corrupt ones listed before them, one that is too small, and a text file."""
    s3 = client("s3", seaweed)
    name = new_bucket(seaweed)
    for number, path in enumerate(sorted(demo.data.images.iterdir())[:IMAGES]):
        s3.put_object(Bucket=name, Key=f"in/{number:02}.jpg", Body=path.read_bytes())
    for number in range(CORRUPT):
        s3.put_object(Bucket=name, Key=f"in/-{number}.jpg", Body=b"\xff\xd8\xff corrupt")
    s3.put_object(Bucket=name, Key="in/tiny.png", Body=encoded(noise(32, 32)))
    s3.put_object(Bucket=name, Key="in/notes.txt", Body=b"notes")
    return name


@pytest.fixture
def idle(demo, clean_env, seaweed):
    """The endpoint of an emulator whose model is not RUNNING."""
    flags = ("--s3-endpoint-url", seaweed, "--control-tps", 100, "--tps-per-unit", 1000, "--account-tps", 1000)
    with serving(clean_env | aws_env(s3=seaweed), *flags, state=demo.state) as endpoint:
        yield endpoint


@pytest.fixture
def night(cli, demo, idle, seaweed, bucket, tmp_path):
    """Run a job file whose model must be started; returns the result and whether the model was started."""
    config = tmp_path / "nightly.toml"
    config.write_text(
        f"""
sources = ["s3://{bucket}/in/"]
model = "{demo.arn}"
out = "s3://{bucket}/out"
start_model = "5"
max_failures = 3
incremental = true
max_tps = 20
"""
    )

    def run(run_id, *flags):  # noqa: ANN002 - any command-line arguments
        done = cli("run", "--config", config, "--run-id", run_id, "--json", *flags, env=aws_env(idle, seaweed))
        return done, "is STARTING" in done.err

    return run


def test_corrupt_images_end_one_run_and_no_later_one(cli, night, bucket, seaweed):
    env, out = aws_env(s3=seaweed), f"s3://{bucket}/out"
    first, started = night("n1", "--max-tps", 2)
    assert (first.code, started) == (3, True), first.err
    second, started = night("n2")
    assert (second.code, started) == (0, True), second.err
    left = IMAGES - first.json["scored"]
    assert second.json | {"scored": left, "failed": 1, "calls": left + 1 + second.json["throttled"]} == second.json
    assert second.json["already_failed"] == CORRUPT + 1, "including the text file"
    quiet, started = night("n3")
    assert (quiet.code, quiet.json["calls"], started) == (0, 0, False), quiet.err
    assert f"excluded: {IMAGES} images already scored, {PERMANENT} failed permanently before\n" in quiet.err
    assert (quiet.json["planned"], quiet.json["already_scored"], quiet.json["already_failed"]) == (0, IMAGES, PERMANENT)
    s3 = client("s3", seaweed)
    s3.copy_object(Bucket=bucket, Key="in/new.jpg", CopySource=f"{bucket}/in/00.jpg")
    new, started = night("n4")
    assert (new.code, new.json["scored"], new.json["failed"], started) == (0, 1, 0, True), new.err
    rows = OutputRoot(out, seaweed).rows("failures")
    codes = {"InvalidImageFormatException": CORRUPT, "TooFewPixels": 1, "UnsupportedExtension": 1}
    assert Counter(row["error_code"] for row in rows) == codes
    assert not any(row["fit"] for row in rows)
    counts = {row["error_code"]: row["count"] for row in cli("failures", out, "--json", env=env).json}
    assert counts == codes
    again, started = night("n5", "--retry-failed", "--max-failures", CORRUPT + 1)
    assert (again.code, again.json["failed"], started) == (0, CORRUPT + 1, True), again.err
    assert {row["error_code"]: row["count"] for row in cli("failures", out, "--json", env=env).json} == codes


def test_plan_counts_scored_and_permanently_failed_images(cli, service, demo, bucket, seaweed):
    env = aws_env(service, seaweed)
    job = (f"s3://{bucket}/in/", "--model", demo.arn, "--out", f"s3://{bucket}/out", "--incremental", "--json")
    assert cli("run", *job, env=env).code == 3
    plan = cli("plan", *job, env=env).json
    assert (plan["planned"], plan["already_scored"], plan["already_failed"]) == (0, IMAGES, PERMANENT)
    plan = cli("plan", *job, "--retry-failed", env=env).json
    assert (plan["calls"], plan["already_scored"], plan["already_failed"]) == (CORRUPT + 1, IMAGES, 0)
    fitted = cli("plan", *job, "--fit", env=env).json
    assert (fitted["calls"], fitted["already_failed"]) == (CORRUPT + 1, 0), "they failed without --fit"
