"""Lists in a real S3, on the command line: plan counts their lines, and rows have their exact keys."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from servers import aws_env, client, make_bucket
from tables import published
from unit.sources.lists import HARD_KEYS, inventory, row

BUCKET = "list-photos"
LISTS = "list-lists"
NAMES = ("a b.png", "a+b.png", "a%2Bb.png", "100%.png", "cafe\u0301.png", "日本.png", "deep/er/x.png", "c,d.png")


@pytest.fixture(scope="module")
def aws(service, seaweed, demo) -> dict[str, str]:
    s3 = client("s3", seaweed)
    make_bucket(s3, BUCKET)
    pictures = sorted(demo.data.images.iterdir())
    for name, picture in zip(NAMES, pictures, strict=False):
        s3.put_object(Bucket=BUCKET, Key=name, Body=picture.read_bytes())
    return aws_env(service, seaweed)


@pytest.fixture(scope="module")
def lists(seaweed, tmp_path_factory) -> str:
    """Uploads lists in every format; returns their prefix."""
    folder = tmp_path_factory.mktemp("lists")
    for kind in ("CSV", "Parquet", "ORC"):
        for day, names in (("2026-11-19T01-00Z", NAMES[:1]), ("2026-11-20T01-00Z", NAMES)):
            (folder / kind).mkdir(exist_ok=True)
            rows = [row(name, Bucket=BUCKET) for name in names]
            inventory(folder / kind, rows, kind, date=day)
    (folder / "keys.txt.gz").write_bytes(gzip.compress("".join(f"s3://{BUCKET}/{name}\n" for name in NAMES).encode()))
    pq.write_table(pa.table({"uri": [f"s3://{BUCKET}/{name}" for name in NAMES[:4]]}), folder / "part-1.parquet")
    pq.write_table(pa.table({"uri": [f"s3://{BUCKET}/{name}" for name in NAMES[3:]]}), folder / "part-2.parquet")
    lines = [{"source-ref": f"s3://{BUCKET}/{name}"} for name in NAMES] + [{"source-ref": "/etc/passwd"}]
    (folder / "some.manifest").write_text("".join(json.dumps(line) + "\n" for line in lines))
    s3 = client("s3", seaweed)
    make_bucket(s3, LISTS)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            s3.put_object(Bucket=LISTS, Key=f"in/{path.relative_to(folder)}", Body=path.read_bytes())
    return f"s3://{LISTS}/in"


def test_an_inventory_in_s3_is_scored_with_exact_keys(cli, aws, demo, lists, tmp_path: Path):
    done = cli(
        *("run", f"{lists}/CSV/2026-11-20T01-00Z/manifest.json", "--model", demo.arn),
        *("--out", tmp_path / "out", "--json"),
        env=aws,
    )
    assert done.code == 0, done.err
    assert done.json | {"planned": len(NAMES), "scored": len(NAMES), "lines": len(NAMES)} == done.json
    rows = published(tmp_path / "out")
    assert sorted(rows["key"]) == sorted(NAMES)
    assert set(rows["etag"]) == {"d41d8cd98f00b204e9800998ecf8427e"}
    assert (
        f"lists: {len(NAMES)} lines read = {len(NAMES)} planned"
        in cli(
            *("run", f"{lists}/ORC/2026-11-20T01-00Z/manifest.json", "--model", demo.arn, "--out", tmp_path / "again"),
            env=aws,
        ).err
    )


def test_rows_have_the_exact_keys_of_their_lines(cli, aws, demo, tmp_path: Path):
    keys = [*NAMES, *HARD_KEYS]
    listed, tabled = keys[::2], keys[1::2]
    (tmp_path / "inventory").mkdir()
    manifest = inventory(tmp_path / "inventory", [row(key, Bucket=BUCKET) for key in listed])
    pq.write_table(pa.table({"uri": [f"s3://{BUCKET}/{key}" for key in tabled]}), tmp_path / "table.parquet")
    out = tmp_path / "out"
    done = cli(
        *("run", manifest, tmp_path / "table.parquet", "--model", demo.arn, "--out", out),
        *("--max-failures", "100%", "--json"),
        env=aws,
    )
    assert done.code == 0, done.err
    assert done.json | {"planned": len(keys), "lines": len(keys)} == done.json
    rows = [published(out, table) for table in ("results", "failures")]
    assert sorted(key for table in rows for key in table["key"]) == sorted(keys)
    assert {uri for table in rows for uri in table["uri"]} == {f"s3://{BUCKET}/{key}" for key in keys}
    assert set(NAMES) <= set(rows[0]["key"])


@pytest.mark.parametrize(
    ("name", "flags", "images", "duplicates"),
    [
        ("Parquet", ("--source-kind", "inventory"), len(NAMES), 0),
        ("Parquet", ("--as-of", "2026-11-19"), 1, 0),
        ("keys.txt.gz", (), len(NAMES), 0),
        ("part-*.parquet", (), len(NAMES), 1),
        ("some.manifest", ("--skip-bad-lines",), len(NAMES), 0),
    ],
)
def test_list_formats_in_s3_are_detected(cli, aws, demo, lists, name, flags, images, duplicates):
    done = cli("plan", f"{lists}/{name}", *flags, "--model", demo.arn, "--json", env=aws)
    assert done.code == 0, done.err
    plan = done.json
    assert (plan["planned"], plan["duplicates"]) == (images, duplicates)
    excluded = (
        plan["bad_lines"] + plan["filtered"] + plan["already_scored"] + sum(plan["ignored"].values()) + plan["unread"]
    )
    assert plan["lines"] == images + duplicates + excluded


def test_bad_lines_are_refused_or_recorded(cli, aws, demo, lists, tmp_path: Path):
    arguments = ("run", f"{lists}/some.manifest", "--model", demo.arn, "--out", tmp_path / "out", "--run-id", "r")
    refused = cli(*arguments, env=aws)
    assert refused.code == 2
    assert f"some.manifest line {len(NAMES) + 1}: its source-ref: '/etc/passwd' is neither" in refused.err
    done = cli(*arguments, "--skip-bad-lines", "--include", "a*", env=aws)
    assert done.code == 0, done.err
    assert "9 lines read = 3 planned + 5 filtered + 1 bad" in done.err
    (examples,) = json.loads((tmp_path / "out" / "runs" / "r" / "run.json").read_text())["bad_lines"].values()
    assert len(examples) == 1
    assert "/etc/passwd" in examples[0]


def test_manifest_labels_are_kept_and_evaluated(cli, aws, demo, tmp_path: Path):
    out = tmp_path / "out"
    done = cli("run", demo.data.truth, "--model", demo.arn, "--out", out, "--limit", "20", env=aws)
    assert done.code == 0, done.err
    by_results = cli("evaluate", out, "--json")
    by_file = cli("evaluate", out, "--truth", demo.data.truth, "--json")
    assert by_results.code == 0, by_results.err
    assert by_results.json["labels"] == by_file.json["labels"]
    assert by_results.json["summary"]["images"] == 20


def test_an_unrecognized_object_name_is_a_prefix(cli, aws, demo, lists):
    done = cli("plan", f"{lists}/missing.txt", "--model", demo.arn, env=aws)
    assert done.code == 2
    assert "there is no image to score in" in done.err
    done = cli("plan", f"s3://{BUCKET}/a", "--model", demo.arn, "--json", env=aws)
    assert done.json["planned"] == 3


def test_web_addresses_are_refused_before_the_first_call(cli, aws, demo, tmp_path: Path):
    url = "https://me:secret@example.com/a.png"
    path = tmp_path / "addresses.txt"
    path.write_text(f"{url}\n")
    for source, subject in ((path, f"{path} line 1: this"), (url, "a source")):
        done = cli("run", source, "--model", demo.arn, "--out", tmp_path / "out", env=aws)
        assert done.code == 2
        assert (
            f"{subject} is a web address, and batchcl does not download images from the web; copy them to S3 first"
            in done.err
        )
        assert "secret" not in done.err
    detected = cli("detect", url, "--model", demo.arn, env=aws)
    assert (detected.code, "the image is a web address" in detected.err) == (2, True)
