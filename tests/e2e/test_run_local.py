"""`batchcl run` over local files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import polars as pl
import pyarrow.parquet as pq
import pytest
from PIL import Image

import batchcl
from batchcl.runs.schema import FAILURES, RESULTS
from pixels import encoded
from servers import aws_env, client


@pytest.fixture
def env(service):
    return aws_env(service)


def test_each_image_has_one_row_with_its_labels(cli, demo, env, service, tmp_path):
    out = tmp_path / "out"
    done = cli("run", demo.data.images, "--model", demo.arn, "--out", out, "--limit", 40, "--json", env=env)
    assert done.code == 0, done.err
    assert done.json | {"status": "done", "planned": 40, "scored": 40, "failed": 0, "skipped": 0} == done.json
    rows = batchcl.open_results(str(out)).images().collect()
    assert rows["uri"].n_unique() == rows.height == 40
    rekognition = client("rekognition", service)
    for row in rows.sample(8, seed=1).iter_rows(named=True):
        with open(row["key"], "rb") as image:
            again = rekognition.detect_custom_labels(ProjectVersionArn=demo.arn, Image={"Bytes": image.read()})
        expected = [(label["Name"], pytest.approx(label["Confidence"], abs=1e-3)) for label in again["CustomLabels"]]
        assert [(label["name"], label["confidence"]) for label in row["labels"]] == expected


def test_a_run_writes_the_documented_files_and_schema(cli, demo, env, tmp_path):
    out = tmp_path / "out"
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(demo.data.images / "00000.png", mixed / "good.png")
    (mixed / "empty.png").touch()
    done = cli("run", mixed, "--model", demo.arn, "--out", out, "--run-id", "r1", "--json", env=env)
    assert done.code == 0, done.err
    (result,) = (out / "results").rglob("*.parquet")
    (failure,) = (out / "failures").rglob("*.parquet")
    day = done.json["started_at"][:10]
    assert result.relative_to(out).as_posix() == f"results/model=digits@v1/date={day}/r1-00000-00000.parquet"
    assert failure.relative_to(out).as_posix() == f"failures/model=digits@v1/date={day}/r1-00000-00000.parquet"
    assert pq.ParquetFile(result).schema_arrow.remove_metadata().equals(RESULTS)
    assert pq.ParquetFile(failure).schema_arrow.remove_metadata().equals(FAILURES)
    assert pq.ParquetFile(result).schema_arrow.metadata[b"batchcl.run_id"] == b"r1"
    kept = {path.relative_to(out / "runs/r1").as_posix() for path in (out / "runs/r1").rglob("*") if path.is_file()}
    assert kept == {
        "run.json",
        "worklist/00000.parquet",
        "worklist.json",
        "journal/00000/00000.arrow",
        "journal/00000/00001.arrow",  # the cut
        "sessions/00000.json",
        "sessions/00000.settled",
        "shards/00000.json",
        "summary.json",
    }


@pytest.mark.parametrize("run_id", ["scheduled__2026-11-21T00:00:00+00:00", "night of the 21st / photos é"])
def test_any_run_id_is_kept_and_gets_safe_file_names(cli, demo, env, tmp_path, run_id):
    out = tmp_path / "out"
    options = ("--model", demo.arn, "--out", out, "--run-id", run_id)
    done = cli("run", demo.data.images, *options, "--limit", 3, "--json", env=env)
    assert done.code == 0, done.err
    assert done.json["run_id"] == run_id
    paths = [path.relative_to(out).as_posix() for path in out.rglob("*")]
    files = [path for path in paths if not path.startswith("runs/.")]
    assert all(re.fullmatch(r"[A-Za-z0-9._=@/-]+", path) for path in files), files
    assert not [path for path in files if re.search(r"/[._][^/]*$", path)]
    assert batchcl.open_results(str(out), run_id=run_id).images().collect()["run_id"].to_list() == [run_id] * 3
    assert cli("status", out, run_id, "--json").json["run_id"] == run_id
    assert [run["run_id"] for run in cli("runs", out, "--json").json] == [run_id]
    again = cli("run", demo.data.images, *options, "--limit", 3, "--json", env=env)
    assert (again.code, again.json["calls"]) == (0, done.json["calls"])
    assert "nothing to do" in again.err or "is done" in again.err
    (folder,) = [path.name for path in (out / "runs").iterdir() if not path.name.startswith(".")]
    other = cli("run", demo.data.images, "--model", demo.arn, "--out", out, "--run-id", folder, env=env)
    assert other.code == 2
    assert "is the folder name of run" in other.err


def test_an_output_root_inside_the_source_is_excluded(cli, demo, env, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        shutil.copy(demo.data.images / "00000.png", photos / f"{number}.png")
    (photos / "runs").mkdir()
    shutil.copy(demo.data.images / "00000.png", photos / "runs/not-an-input.png")
    done = cli("run", photos, "--model", demo.arn, "--out", photos, "--json", env=env)
    assert (done.code, done.json["planned"]) == (0, 3)
    assert f"excluded from {photos}" in done.err
    inside = cli("run", photos / "results", "--model", demo.arn, "--out", photos, env=env)
    assert (inside.code, inside.sentence.count("\n")) == (2, 1)


def test_a_low_file_limit_reduces_concurrent_calls(demo, env, clean_env, tmp_path):
    command = f"run {demo.data.images} --model {demo.arn} --out {tmp_path}/out --limit 150 --json"
    done = subprocess.run(
        ["bash", "-c", f"ulimit -n 64; exec {sys.executable} -m batchcl {command}"],
        env=clean_env | env,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    summary = json.loads(done.stdout)
    assert (summary["scored"], summary["failed"]) == (150, 0)
    assert b"--max-in-flight was reduced from 256 to 8: this process may open only 64 files" in done.stderr


def test_skipped_and_failed_images_have_rows_with_reasons(cli, demo, env, tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "sub").mkdir(parents=True)
    good = (demo.data.images / "00000.png").read_bytes()
    names = {
        "a b+c%2F é.png": good,
        "truncated.png": good[: len(good) // 2],
        "other.gif": b"GIF89a" + bytes(100),
        "gif-in-disguise.png": b"GIF89a" + bytes(100),
        "empty.jpg": b"",
        "sub/no-extension": good,
        "large.png": b"\x89PNG" + bytes(4 * 1024 * 1024),
        "tiny.png": encoded(Image.new("RGB", (32, 32), "white")),
        "wide.png": encoded(Image.new("RGB", (2000, 64), "white")),
    }
    for name, data in names.items():
        (pictures / name).write_bytes(data)
    done = cli(
        "run", pictures, "--model", demo.arn, "--out", tmp_path / "out", "--json", "--min-confidence", 0, env=env
    )
    assert done.code == 3
    assert done.json["planned"] == len(names) == sum(done.json[each] for each in ("scored", "failed", "skipped"))
    results = batchcl.open_results(str(tmp_path / "out"))
    scored = {uri.rpartition("/")[2] for uri in results.images().collect()["uri"]}
    assert scored == {"a b+c%2F é.png", "no-extension"}
    reasons = {
        row["uri"].rpartition("/")[2]: (row["status"], row["error_code"], row["attempts"])
        for row in results.failures().collect().iter_rows(named=True)
    }
    assert reasons == {
        "truncated.png": ("failed", "InvalidImageFormatException", 1),
        "gif-in-disguise.png": ("failed", "InvalidImageFormatException", 1),
        "tiny.png": ("failed", reasons["tiny.png"][1], 1),
        "wide.png": ("failed", reasons["wide.png"][1], 1),
        "other.gif": ("skipped", "UnsupportedExtension", 0),
        "empty.jpg": ("skipped", "EmptyFile", 0),
        "large.png": ("skipped", "TooLarge", 0),
    }
    assert "more than tolerated" in done.err
    assert done.json["calls"] == 6


def test_exif_orientation_is_applied_before_scoring(cli, demo, env, tmp_path):
    upright = Image.open(demo.data.images / "00000.png").convert("RGB")
    rotated = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "upright.jpg", quality=100, subsampling=0)
    rotated.save(tmp_path / "rotated.jpg", quality=100, subsampling=0, exif=exif)
    done = cli("run", tmp_path, "--model", demo.arn, "--out", tmp_path / "out", "--min-confidence", 0, env=env)
    assert done.code == 0, done.err
    rows = batchcl.open_results(str(tmp_path / "out")).detections().sort("label").collect()
    confidences = rows.group_by("uri").agg(pl.col("confidence").alias("all"))["all"].to_list()
    assert confidences[0] == pytest.approx(confidences[1], abs=2.0)


def test_a_key_list_on_stdin_is_taken_literally(cli_process, demo, env, tmp_path):
    odd = tmp_path / "a b+c%2F é.png"
    shutil.copy(demo.data.images / "00000.png", odd)
    keys = f"{odd}\n\n{demo.data.images / '00001.jpg'}\r\n".encode()
    done = cli_process("run", "-", "--model", demo.arn, "--out", tmp_path / "out", "--json", env=env, stdin=keys)
    assert done.code == 0, done.err
    uris = batchcl.open_results(str(tmp_path / "out")).images().collect()["uri"].to_list()
    assert uris == sorted([str(odd), str(demo.data.images / "00001.jpg")])


def test_a_pipe_can_be_read_as_a_list(demo, env, clean_env, tmp_path):
    script = 'exec "$0" -m batchcl run <(echo "$1"; echo "$2") --model "$3" --out "$4"'
    images = sorted(demo.data.images.iterdir())[:2]
    command = ["bash", "-c", script, sys.executable, *images, demo.arn, tmp_path / "out"]
    done = subprocess.run(command, env=clean_env | env, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    uris = batchcl.open_results(str(tmp_path / "out")).images().collect()["uri"].to_list()
    assert uris == [str(image) for image in images]


def test_manifest_labels_are_kept_in_extra(cli, demo, env, tmp_path):
    done = cli("run", demo.data.truth, "--model", demo.arn, "--out", tmp_path / "out", "--limit", 30, env=env)
    assert done.code == 0, done.err
    rows = batchcl.open_results(str(tmp_path / "out")).images().collect()
    truth = {json.loads(line)["source-ref"]: json.loads(line) for line in demo.data.truth.read_text().splitlines()}
    assert rows.height == 30
    for row in rows.iter_rows(named=True):
        line = truth["images/" + row["uri"].rpartition("/")[2]]
        assert json.loads(row["extra"]) == {key: line[key] for key in line if key != "source-ref"}


def test_max_results_and_min_confidence_apply_and_are_recorded(cli, demo, env, tmp_path):
    arguments = ("--limit", 5, "--min-confidence", 0, "--max-results", 2)
    assert cli("run", demo.data.images, "--model", demo.arn, "--out", tmp_path / "out", *arguments, env=env).code == 0
    rows = batchcl.open_results(str(tmp_path / "out")).images().collect()
    assert rows["labels"].list.len().to_list() == [2] * 5
    assert rows["min_confidence"].to_list() == [0] * 5
    assert rows["max_results"].to_list() == [2] * 5


def test_a_run_id_can_not_be_reused_for_another_job(cli, demo, env, tmp_path):
    job = ("run", demo.data.images, "--model", demo.arn, "--out", tmp_path / "out", "--run-id", "nightly", "--json")
    first = cli(*job, "--limit", 3, env=env)
    again = cli(*job, "--limit", 3, env=env)
    other = cli(*job, "--limit", 4, env=env)
    assert (first.code, again.code, other.code) == (0, 0, 2)
    assert again.json == first.json
    assert "limit was 3 and is 4" in other.err
    assert batchcl.open_results(str(tmp_path / "out")).images().collect().height == 3


def test_small_shards_make_several_parts_with_every_image_once(cli, demo, env, tmp_path):
    done = cli(
        "run",
        demo.data.images,
        "--model",
        demo.arn,
        "--out",
        tmp_path / "out",
        "--limit",
        25,
        "--shard-size",
        10,
        env=env,
    )
    assert done.code == 0, done.err
    parts = sorted((tmp_path / "out" / "results").rglob("*.parquet"))
    assert [pq.ParquetFile(part).metadata.num_rows for part in parts] == [10, 10, 5]
    assert batchcl.open_results(str(tmp_path / "out")).images().collect()["uri"].n_unique() == 25


def test_plan_counts_without_a_call(cli, demo, tmp_path):
    (tmp_path / "x.gif").write_bytes(b"GIF89a")
    shutil.copy(demo.data.images / "00000.png", tmp_path)
    done = cli("plan", tmp_path, "--model", demo.arn, "--json", env=aws_env("http://127.0.0.1:1"))
    assert done.code == 0, done.err
    plan = done.json
    assert (plan["planned"], plan["calls"], plan["skipped"]) == (2, 1, {"UnsupportedExtension": 1})
    assert plan["bytes"] == (tmp_path / "00000.png").stat().st_size
    assert [each["units"] for each in plan["estimates"]] == [1, 2, 3, 4, 5]
    first = plan["estimates"][0]
    assert (first["basis"], first["images_per_second"], plan["starts"]) == ("assumed", 2.8, 0)
    assert first["dollars"] == pytest.approx((1 / 2.8 + plan["overhead_s"]) / 3600 * 4)
