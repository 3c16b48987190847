"""`run --fit`: images that the service would refuse are converted, and their rows record the change."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from batchcl.analysis.results import open_results
from pixels import resized
from servers import aws_env, client, make_bucket

BUCKET = "to-fit"


@pytest.fixture(scope="module")
def pictures(demo, tmp_path_factory) -> Path:
    """One valid image, and images that the service would refuse for various reasons."""
    folder: Path = tmp_path_factory.mktemp("fit")
    fine = min(demo.data.images.rglob("*.png"))
    made = {
        "fine.png": fine.read_bytes(),
        "photo.webp": resized(fine, "WEBP", (200, 200)),
        "scan.tif": resized(fine, "TIFF", (100, 100)),
        "old.bmp": resized(fine, "BMP", (80, 80)),
        "wide.jpg": resized(fine, "JPEG", (4200, 1000)),
        "tiny.png": resized(fine, "PNG", (20, 20)),
        "long.png": resized(fine, "PNG", (2000, 64)),
        "cut.webp": resized(fine, "WEBP", (200, 200))[:200],
        "notes.txt": b"nothing to see",
        "text.jpg": b"no picture at all",
    }
    for name, data in made.items():
        (folder / name).write_bytes(data)
    return folder


FITTED = {
    "photo.webp": "WEBP to JPEG",
    "scan.tif": "TIFF to PNG",
    "old.bmp": "BMP to PNG",
    "wide.jpg": "4200 x 1000 to 4096 x 975 pixels",
    "tiny.png": "20 x 20 to 64 x 64 pixels",
}


def by_name(frame: pl.LazyFrame, *columns: str) -> dict[str, tuple[object, ...]]:
    rows = frame.select("key", *columns).collect().rows()
    return {str(key).rpartition("/")[2]: tuple(rest) for key, *rest in rows}


def test_fit_converts_local_images_and_skips_the_rest(cli, demo, service, pictures, tmp_path):
    out = tmp_path / "out"
    run = ("run", pictures, "--model", demo.arn, "--out", out, "--run-id", "r", "--fit", "--json")
    env = aws_env(service)
    planned = cli("plan", *run[1:4], "--fit", "--json", env=env).json
    assert (planned["planned"], planned["calls"], planned["skipped"]) == (10, 9, {"UnsupportedExtension": 1})
    assert cli("plan", *run[1:4], "--json", env=env).json["calls"] == 5
    done = cli(*run, env=env)
    assert done.json | {"planned": 10, "scored": 6, "failed": 0, "skipped": 4} == done.json, done.err
    assert "5 images changed to fit" in done.err
    assert done.json["calls"] == 6, "images that can not be fitted cost no call"
    results = open_results(str(out))
    assert by_name(results.images(), "fitted", "attempts") == {
        "fine.png": (None, 1),
        **{name: (note, 1) for name, note in FITTED.items()},
    }
    labels = by_name(
        results.images().with_columns(pl.col("labels").list.eval(pl.element().struct.field("name"))), "labels"
    )
    assert labels["photo.webp"] == labels["fine.png"]
    failures = by_name(results.failures(), "status", "error_code")
    assert {name: code for name, (status, code) in failures.items() if status == "skipped"} == {
        "notes.txt": "UnsupportedExtension",
        "long.png": "TooLong",
        "cut.webp": "BrokenImage",
        "text.jpg": "UnknownFormat",
    }
    assert cli(*run, env=env).json["calls"] == done.json["calls"], "the run is done"
    other = cli(*run[:-2], "--json", env=env)
    assert other.code == 2
    assert "fit" in other.err


def test_fit_sends_s3_objects_as_bytes_only_where_needed(cli, demo, service, seaweed, pictures, tmp_path):
    s3 = client("s3", seaweed)
    make_bucket(s3, BUCKET)
    for path in pictures.iterdir():
        s3.put_object(Bucket=BUCKET, Key=f"in/{path.name}", Body=path.read_bytes())
    env = aws_env(service, seaweed)
    out = tmp_path / "out"
    done = cli("run", f"s3://{BUCKET}/in/", "--model", demo.arn, "--out", out, "--fit", "--json", env=env)
    assert done.json | {"planned": 10, "scored": 6, "failed": 2, "skipped": 2} == done.json, done.err
    results = open_results(str(out))
    rows = by_name(results.images(), "fitted", "attempts")
    refused_first = {"wide.jpg", "tiny.png"}
    assert rows == {
        "fine.png": (None, 1),
        **{name: (note, 2 if name in refused_first else 1) for name, note in FITTED.items()},
    }
    failures = by_name(results.failures(), "status", "error_code", "error_message")
    assert failures["notes.txt"][:2] == ("skipped", "UnsupportedExtension")
    assert failures["cut.webp"][:2] == ("skipped", "BrokenImage")
    assert failures["long.png"][:2] == ("failed", "TooLong")
    assert failures["text.jpg"][:2] == ("failed", "UnknownFormat")
    assert "InvalidImageFormatException: " in str(failures["text.jpg"][2])
    again = cli("retry", out, done.json["run_id"], "--json", env=env)
    assert (again.code, again.json) == (0, done.json | {"tolerated": True}), "none of its failures can succeed"
    summary = json.loads((out / "runs" / done.json["run_id"] / "run.json").read_text())
    assert summary["scored_as"]["fit"] is True


def test_retry_with_fit_scores_images_that_failed_without_it(cli, demo, service, pictures, tmp_path):
    env, out = aws_env(service), tmp_path / "out"
    run = cli("run", pictures, "--model", demo.arn, "--out", out, "--run-id", "r", "--json", env=env)
    assert run.code == 3, run.err
    assert f"`batchcl retry {out} r --fit` to retry {run.json['fittable']} image" in run.err
    fitted = cli("retry", out, "r", "--fit", "--json", env=env)
    assert fitted.json | {"planned": 10, "scored": 6, "retryable": 0, "fittable": 0} == fitted.json, fitted.err
    codes = {key: row for key, (row, _) in by_name(open_results(str(out)).failures(), "error_code", "fit").items()}
    assert codes == {
        "notes.txt": "UnsupportedExtension",
        "long.png": "TooLong",
        "cut.webp": "BrokenImage",
        "text.jpg": "UnknownFormat",
    }
    again = cli("retry", out, "r", "--fit", env=env)
    assert (again.code, "nothing to retry" in again.err) == (0, True), again.err
    assert "not retried: 1 image failed with TooLong (an aspect ratio over 20:1)\n" in again.err
