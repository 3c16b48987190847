"""`batchcl run` over S3 images, and into an output root on S3, against a real S3 server."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import uuid

import pytest
from PIL import Image

import batchcl
from batchcl.analysis.results import open_results
from batchcl.aws.session import Aws
from commands import run_command
from servers import aws_env, client, make_bucket, serving, start_model

HARD_KEY = "a b+c%2F é.jpg"


@pytest.fixture
def bucket(seaweed):
    name = f"b-{uuid.uuid4().hex[:12]}"
    client("s3", seaweed).create_bucket(Bucket=name)
    return name


@pytest.fixture
def env(service, seaweed):
    return aws_env(service, seaweed)


def test_a_prefix_is_scored_into_an_s3_root_with_exact_keys(cli, demo, env, seaweed, bucket, monkeypatch):
    s3 = client("s3", seaweed)
    picture = (demo.data.images / "00001.jpg").read_bytes()
    keys = {HARD_KEY, "new\nline.jpg", "ünï/çødé.jpg", "percent%.jpg", "plus+plus.jpg", "~tilde'quote\".jpg"}
    for key in keys:
        s3.put_object(Bucket=bucket, Key=f"in/{key}", Body=picture)
    s3.put_object(Bucket=bucket, Key="in/notes.txt", Body=b"hello")
    s3.put_object(Bucket=bucket, Key="elsewhere/x.jpg", Body=picture)
    root = f"s3://{bucket}/out"
    done = cli("run", f"s3://{bucket}/in/", "--model", demo.arn, "--out", root, "--json", "--run-id", "r", env=env)
    assert done.code == 0, done.err
    assert done.json | {"planned": len(keys) + 1, "scored": len(keys), "skipped": 1, "failed": 0} == done.json
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    rows = open_results(root, aws=Aws.from_environment()).images().collect()
    assert set(rows["key"]) == {f"in/{key}" for key in keys}
    assert set(rows["uri"]) == {f"s3://{bucket}/in/{key}" for key in keys}
    assert rows["size_bytes"].to_list() == [len(picture)] * len(keys)
    assert rows["etag"].n_unique() == 1
    assert rows["last_modified"].null_count() == 0
    assert all(len(labels) == 1 for labels in rows["labels"].to_list())
    listed = {each["Key"] for each in s3.list_objects_v2(Bucket=bucket, Prefix="out/")["Contents"]}
    day = done.json["started_at"][:10]
    assert listed == {
        f"out/results/model=digits@v1/date={day}/r-00000-00000.parquet",
        f"out/failures/model=digits@v1/date={day}/r-00000-00000.parquet",
        "out/runs/r/run.json",
        "out/runs/r/worklist/00000.parquet",
        "out/runs/r/worklist.json",
        "out/runs/r/journal/00000/00000.arrow",
        "out/runs/r/journal/00000/00001.arrow",  # the cut
        "out/runs/r/sessions/00000.json",
        "out/runs/r/sessions/00000.settled",
        f"out/runs/.starts/{dt.datetime.fromisoformat(done.json['started_at']):%Y%m%dT%H%M%S.%fZ}~r",
        "out/runs/r/shards/00000.json",
        "out/runs/r/summary.json",
    }
    labels = cli("labels", root, "--json", env=env)
    assert labels.code == 0, labels.err
    assert sum(row["images"] for row in labels.json) == len(keys)
    assert cli("runs", root, "--json", env=env).json[0]["state"] == "done"
    assert cli("status", root, "r", "--json", env=env).json["scored"] == len(keys)


def test_an_s3_manifest_and_a_key_list_name_s3_images(cli, demo, env, seaweed, bucket, tmp_path):
    s3 = client("s3", seaweed)
    picture = (demo.data.images / "00001.jpg").read_bytes()
    s3.put_object(Bucket=bucket, Key=HARD_KEY, Body=picture)
    uri = f"s3://{bucket}/{HARD_KEY}"
    s3.put_object(Bucket=bucket, Key="list.manifest", Body=json.dumps({"source-ref": uri}).encode())
    (tmp_path / "keys.txt").write_text(f"{uri}\ns3://{bucket}/missing.jpg\n")
    sources = {"manifest": f"s3://{bucket}/list.manifest", "keys": str(tmp_path / "keys.txt")}
    for kind, source in sources.items():
        out = tmp_path / kind
        done = cli("run", source, "--source-kind", kind, "--model", demo.arn, "--out", out, "--json", env=env)
        assert done.code == (3 if kind == "keys" else 0), done.err
        assert batchcl.open_results(str(out)).images().collect()["key"].to_list() == [HARD_KEY]
    failed = batchcl.open_results(str(tmp_path / "keys")).failures().collect()
    assert failed["error_code"].to_list() == ["InvalidS3ObjectException"]


def test_throttling_at_10_tps_fails_none_of_150_images(cli, demo, clean_env, seaweed, bucket, tmp_path):
    s3 = client("s3", seaweed)
    picture = (demo.data.images / "00001.jpg").read_bytes()
    for n in range(150):
        s3.put_object(Bucket=bucket, Key=f"{n:03}.jpg", Body=picture)
    flags = ("--s3-endpoint-url", seaweed, "--tps-per-unit", 2, "--control-tps", 100)
    with serving(clean_env | aws_env(s3=seaweed), *flags, state=demo.state) as endpoint:
        start_model(endpoint, demo.arn, units=5)
        job = ("run", f"s3://{bucket}/", "--model", demo.arn, "--out", tmp_path, "--json")
        done = cli(*job, env=aws_env(endpoint, seaweed))
    assert done.code == 0, done.err
    assert done.json | {"scored": 150, "failed": 0, "skipped": 0} == done.json
    assert done.json["throttled"] > 0
    assert done.json["calls"] == 150 + done.json["throttled"]
    assert done.json["images_per_second"] > 7
    rows = batchcl.open_results(str(tmp_path)).images().collect()
    assert rows["uri"].n_unique() == rows.height == 150
    assert rows["attempts"].to_list() == [1] * 150, "a throttled call is not counted as an attempt"


def test_a_bucket_in_another_region_is_refused_before_a_call(cli, demo, service, moto, tmp_path):
    client("s3", moto).create_bucket(
        Bucket="far-away", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
    )
    make_bucket(client("s3", moto), "near-by")
    lines = [*(f"s3://near-by/{n}.jpg" for n in range(30_000)), "s3://far-away/x.jpg"]
    for source in ("s3://far-away/", "-"):
        done = cli(
            "run",
            source,
            *("--model", demo.arn, "--out", tmp_path / "out"),
            env=aws_env(service, moto),
            stdin="\n".join(lines).encode(),
        )
        assert done.code == 5, done.err
        assert "far-away is in eu-central-1 and the model in us-east-1" in done.err
        assert "send the images as bytes with --cross-region" in done.err
        assert "Traceback" not in done.err
        assert not (tmp_path / "out" / "runs").exists() or not any((tmp_path / "out" / "runs").iterdir())


def test_plan_counts_identical_content_and_marks_the_requested_units(monkeypatch, demo, service, moto):
    s3 = client("s3", moto)
    make_bucket(s3, "copies")
    for key, body in {"a.jpg": b"1", "b.jpg": b"2", "c.jpg": b"1", "d.jpg": b"1"}.items():
        s3.put_object(Bucket="copies", Key=key, Body=body)
    for name, value in aws_env(service, moto).items():
        monkeypatch.setenv(name, value)
    job = ("plan", "s3://copies/", "--model", demo.arn, "--start-model", "2", "--deadline", "35m")
    plan = run_command(*job, "--json").json
    assert (plan["calls"], plan["identical"], plan["repeated"]) == (4, 3, 2)
    assert plan["repeated_dollars"] == pytest.approx(2 * 4 / 3600 / 2.8)
    shown = run_command(*job).out
    assert "3 share ETag and size with another one; 2 of them repeat a content, and scoring these costs $0.00" in shown
    assert "\n2 (requested)  5.6 (2.8 to 11.2) " in shown
    assert "start-up before it, assumed and not billed: 15 min (5 min to 30 min)" in shown
    assert "Deadline 35m: met with 1 inference unit, for about $0.01; it needs 33 min at the slow end" in shown


def test_cross_region_images_are_sent_as_bytes(cli, demo, service, moto, tmp_path):
    s3 = client("s3", moto)
    picture = (demo.data.images / "00001.jpg").read_bytes()
    for region in ("eu-west-1", "ap-south-1"):
        s3.create_bucket(Bucket=f"in-{region}", CreateBucketConfiguration={"LocationConstraint": region})
        s3.put_object(Bucket=f"in-{region}", Key=f"x/{HARD_KEY}", Body=picture)
    s3.put_object(Bucket="in-eu-west-1", Key="x/large.png", Body=b"\x89PNG" + bytes(4 * 1024 * 1024))
    keys = tmp_path / "keys.txt"
    keys.write_text(f"s3://in-ap-south-1/x/{HARD_KEY}\ns3://in-ap-south-1/late.jpg\n")
    out, env = tmp_path / "out", aws_env(service, moto)
    job = ("s3://in-eu-west-1/x/", keys, "--model", demo.arn, "--cross-region", "--json")
    plan = cli("plan", *job, env=env)
    assert plan.code == 0, plan.err
    assert (plan.json["calls"], plan.json["skipped"]) == (3, {"TooLarge": 1})
    checks = {each["check"]: each for each in cli("doctor", *job, "--out", out, env=env).json["findings"]}
    assert checks["call"]["status"] == "ok", checks["call"]
    done = cli("run", *job, "--out", out, "--run-id", "r", env=env)
    assert done.code == 3, done.err
    assert done.json | {"scored": 2, "failed": 1, "skipped": 1} == done.json
    assert "in-ap-south-1 is in ap-south-1: its images are downloaded and sent as bytes" in done.err
    rows = batchcl.open_results(str(out)).images().collect()
    assert set(rows["uri"]) == {f"s3://in-{region}/x/{HARD_KEY}" for region in ("eu-west-1", "ap-south-1")}
    assert all(len(labels) == 1 for labels in rows["labels"].to_list())
    failures = batchcl.open_results(str(out)).failures().collect()
    reasons = dict(failures.select("error_code", "error_message").iter_rows())
    assert reasons.keys() == {"TooLarge", "InvalidS3ObjectException"}
    assert "the limit for images sent as bytes is 4,194,304 bytes" in reasons["TooLarge"]
    s3.put_object(Bucket="in-ap-south-1", Key="late.jpg", Body=picture)
    again = cli("retry", out, "r", "--json", env=env)
    assert again.code == 0, again.err
    assert (again.json["scored"], again.json["failed"]) == (3, 0)


def test_unusual_keys_are_preserved(cli, demo, clean_env, moto, tmp_path):
    s3 = client("s3", moto)
    s3.create_bucket(Bucket="odd-keys")
    picture = (demo.data.images / "00001.jpg").read_bytes()
    keys = {
        "a//b.jpg",
        "/leading.jpg",
        "./dot.jpg",
        "up/../../x.jpg",
        " space .jpg",
        "tab\t.jpg",
        "e\u0301.jpg",
        "é.jpg",
    }
    for key in keys:
        s3.put_object(Bucket="odd-keys", Key=key, Body=picture)
    flags = ("--s3-endpoint-url", moto, "--tps-per-unit", 100, "--control-tps", 100)
    with serving(clean_env | aws_env(s3=moto), *flags, state=demo.state) as endpoint:
        start_model(endpoint, demo.arn)
        done = cli(
            "run", "s3://odd-keys", "--model", demo.arn, "--out", tmp_path, "--json", env=aws_env(endpoint, moto)
        )
    assert done.code == 0, done.err
    assert set(batchcl.open_results(str(tmp_path)).images().collect()["key"]) == keys


def test_an_output_root_in_a_missing_bucket_is_refused(cli, demo, service, moto):
    root = "s3://no-such-bucket-here/out"
    job = ("run", demo.data.images, "--model", demo.arn, "--out", root, "--limit", 1)
    done = cli(*job, env=aws_env(service, moto))
    assert done.code == 5, done.err
    assert "no-such-bucket-here" in done.err
    assert "Traceback" not in done.err


def test_a_missing_bucket_and_an_empty_prefix_are_one_sentence(cli, demo, service, moto, tmp_path):
    client("s3", moto).create_bucket(Bucket="empty")
    job = ("--model", demo.arn, "--out", tmp_path / "out")
    missing = cli("run", "s3://no-such-bucket-here/x", *job, env=aws_env(service, moto))
    empty = cli("run", "s3://empty/nothing/", *job, env=aws_env(service, moto))
    assert missing.code == 2
    assert "there is no bucket no-such-bucket-here" in missing.err
    assert empty.code == 2
    assert "there is no image to score in s3://" in empty.err
    assert "Traceback" not in missing.err + empty.err


def test_a_run_a_retry_and_an_export_write_encrypted_objects(cli, demo, env, seaweed, bucket, tmp_path):
    root, copy, sse = f"s3://{bucket}/out", f"s3://{bucket}/copy", ("--sse", "AES256")
    shutil.copy(demo.data.images / "00001.jpg", tmp_path)
    Image.new("RGB", (80, 80)).save(tmp_path / "converted.jpg", "GIF")
    job = ["--model", demo.arn, "--out", root, "--run-id", "r"]
    assert cli("run", tmp_path, *job, *sse, "--json", env=env).json["failed"] == 1
    assert cli("retry", root, "r", "--fit", "--json", env=env).json["scored"] == 2
    assert cli("export", "parquet", root, "--out", copy, *sse, env=env).code == 0
    s3 = client("s3", seaweed)
    keys = [each["Key"] for each in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert {key.partition("/")[0] for key in keys} == {"out", "copy"}
    assert {s3.head_object(Bucket=bucket, Key=key).get("ServerSideEncryption") for key in keys} == {"AES256"}
