"""Tar archives on the command line: members are scored as bytes, and an interrupted run resumes."""

from __future__ import annotations

import io
import json
import signal
import tarfile
from pathlib import Path

import pytest

from crash.harness import OutputRoot, started, wait_for_rows
from servers import aws_env, client, make_bucket
from tables import published

BUCKET = "archives"


@pytest.fixture(scope="module")
def shard(demo) -> bytes:
    """A WebDataset shard: thirty images with their classes, a link, and two names outside of the directory."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        pictures = sorted(demo.data.images.iterdir())[:30]
        for number, picture in enumerate(pictures):
            stem = ("../../../tmp/up", "/abs/olute")[number] if number < 2 else f"{number:04}"
            for name, data in ((f"{stem}.jpg", picture.read_bytes()), (f"{stem}.cls", b"7")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


@pytest.fixture
def env(service, seaweed):
    return aws_env(service, seaweed)


def test_a_resumed_run_over_a_shard_pays_for_no_image_twice(cli, env, demo, shard, clean_env, seaweed, tmp_path):
    path = tmp_path / "in" / "x.tar"
    path.parent.mkdir()
    path.write_bytes(shard)
    out = OutputRoot(str(tmp_path / "out"), seaweed)
    job = ("run", path, "--model", demo.arn, "--out", out.root, "--run-id", "r", "--shard-size", 10, "--json")
    with started(*job, "--max-tps", 10, env=clean_env | env) as process:
        wait_for_rows(out, 5)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    first = json.loads(out.files("runs/r", "summary.json")["runs/r/summary.json"])
    assert first["status"] == "stopped"
    second = cli(*job, env=env)
    assert second.code == 0, second.err
    assert second.json["calls"] == 30
    assert second.json["sessions"][-1]["calls"] == 30 - first["scored"]
    assert second.json | {"planned": 60, "scored": 30, "skipped": 30, "failed": 0} == second.json
    assert second.json["ignored"] == {"links": 1}
    rows = published(out.root)
    assert len(rows) == rows["uri"].n_unique() == 30
    assert {f"{path}#../../../tmp/up.jpg", f"{path}#/abs/olute.jpg"} <= set(rows["key"])
    assert set(rows["bucket"]) == {""}
    assert sorted(each.name for each in path.parent.iterdir()) == ["x.tar"]
    flags = ("--out", out.root, "--incremental", "--include", "*.jpg", "--json")
    again = cli("run", path, "--model", demo.arn, *flags, env=env)
    assert (again.code, again.json["calls"], again.json["already_scored"]) == (0, 0, 30), again.err


def test_a_shard_in_s3_is_scored(cli, env, demo, shard, seaweed, tmp_path: Path):
    s3 = client("s3", seaweed)
    make_bucket(s3, BUCKET)
    s3.put_object(Bucket=BUCKET, Key="shards/x.tar", Body=shard)
    uri = f"s3://{BUCKET}/shards/x.tar"
    plan = cli("plan", uri, "--model", demo.arn, "--out", tmp_path / "out", "--include", "*.jpg", "--json", env=env)
    assert plan.code == 0, plan.err
    assert (plan.json["planned"], plan.json["calls"], plan.json["ignored"]) == (30, 30, {"links": 1})
    done = cli("run", uri, "--model", demo.arn, "--out", tmp_path / "out", "--include", "*.jpg", "--json", env=env)
    assert done.code == 0, done.err
    assert done.json["scored"] == 30
    rows = published(tmp_path / "out")
    assert set(rows["bucket"]) == {BUCKET}
    assert "shards/x.tar#0007.jpg" in set(rows["key"])
    assert rows["etag"].n_unique() == 1


def test_a_truncated_shard_is_refused_before_the_first_call(cli, env, demo, shard, tmp_path: Path):
    path = tmp_path / "cut.tar"
    path.write_bytes(shard[: len(shard) // 2])
    done = cli("run", path, "--model", demo.arn, "--out", tmp_path / "out", env=env)
    assert done.code == 2
    assert "cut.tar: the archive is truncated in member" in done.err
    assert not list((tmp_path / "out").rglob("run.json"))
