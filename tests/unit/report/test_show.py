"""`batchcl show`: which pictures are written, their names, the index and the exit code."""

from __future__ import annotations

import csv
import datetime as dt
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import orjson
import polars as pl
import pytest
from PIL import Image

import batchcl
from batchcl.errors import OutputError, UsageError
from batchcl.images import ImageRef
from batchcl.outcomes import Label, Scored
from batchcl.report.show import _file_names, _write
from batchcl.sources.base import local_image
from batchcl.thresholds import Thresholds
from pixels import encoded
from servers import CommandResult
from unit.analysis.conftest import NOON, Root, arn_of
from unit.report.s3 import FakeAws

HOSTILE = '\u202e<script>\x1b[31m\n,"'


def scored(image: ImageRef, *labels: Label) -> Scored:
    return Scored(image=image, labels=labels, attempts=1, latency_ms=80, request_id="r", scored_at=NOON)


@pytest.fixture
def shown(tmp_path: Path) -> Root:
    """A root with four local images, one of which no longer exists."""
    (tmp_path / "out").mkdir()
    root, photos = Root(tmp_path / "out"), tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        (photos / name).write_bytes(encoded(Image.new("RGB", (100, 80))))
    root.results(
        scored(local_image(str(photos / "a.png")), Label("dog", 52.0), Label("cat", 97.0)),
        scored(local_image(str(photos / "b.png")), Label("dog", 60.0)),
        scored(local_image(str(photos / "c.png"))),
        scored(local_image(str(photos / "gone\x1b.png")), Label(HOSTILE, 99.0)),
    )
    return root


def names(index: pl.DataFrame) -> list[str]:
    return [os.path.basename(uri) for uri in index["uri"]]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["b.png", "a.png", "gone\x1b.png"]),
        ({"limit": 1}, ["b.png"]),
        ({"sort": "confidence"}, ["b.png", "a.png", "gone\x1b.png"]),
        ({"sort": "-confidence", "limit": 2}, ["gone\x1b.png", "a.png"]),
        ({"sort": "confidence", "where": "label = 'dog'"}, ["a.png", "b.png"]),
        ({"where": "label IS NULL", "sort": "newest"}, ["c.png"]),
        ({"where": "key LIKE '%b.png' AND size < 100000"}, ["b.png"]),
        ({"where": "label = 'cow'"}, []),
        ({"thresholds": 98.5}, ["gone\x1b.png", "a.png", "b.png"]),
        ({"thresholds": Thresholds(labels={"cat": 96.5})}, ["a.png", "b.png", "gone\x1b.png"]),
        ({"thresholds": 98.0, "where": "label_count = 0", "sort": "confidence"}, []),
        ({"thresholds": 98.0, "where": "label_count = 0", "sort": "random"}, ["a.png", "b.png", "c.png"]),
        ({"model": "cats@v1", "run_id": "r1", "date": "2026-11-21", "limit": 1}, ["b.png"]),
    ],
)
def test_images_are_chosen_by_condition_and_order(shown: Root, options: dict[str, Any], expected: list[str]) -> None:
    folder = shown.path.parent / "new" / "pictures"
    index = batchcl.show_sync(str(shown), out=folder, **options)
    assert (sorted(names(index)) if options.get("sort") == "random" else names(index)) == expected
    files = [] if not expected else ["index.csv", *index["file"].drop_nulls()]
    assert sorted(os.listdir(folder) if folder.exists() else []) == sorted(files)


def test_named_images_keep_their_order(shown: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shown.path.parent)
    uris = ["photos/c.png", str(shown.path.parent / "photos" / "a.png")]
    index = batchcl.show_sync(str(shown), uris, out="pictures")
    assert names(index) == ["c.png", "a.png"]
    assert index["reason"].to_list() == ["named", "named"]
    index = batchcl.show_sync(str(shown), uris, out="sorted", sort="uncertain")
    assert names(index) == ["a.png"]
    with pytest.raises(UsageError, match=r"there is no result of .*/photos/no\.png; `batchcl query"):
        batchcl.show_sync(str(shown), ["photos/no.png"], out="none")


def test_twenty_images_are_chosen_but_all_named_ones_shown(tmp_path: Path) -> None:
    root, data = Root(tmp_path / "out"), encoded(Image.new("RGB", (70, 70)))
    images = [ImageRef(uri=f"s3://b/{n:02}.png", bucket="b", key=f"{n:02}.png") for n in range(25)]
    root.results(*(scored(image, Label("dog", 90.0)) for image in images))
    uris = [image.uri for image in images]
    counts = []
    settings: list[dict[str, Any]] = [{}, {"uris": uris}, {"uris": uris, "limit": 3}, {"limit": 22}]
    for number, options in enumerate(settings):
        fake = FakeAws({image.key: data for image in images})
        show = partial(batchcl.show, str(root), out=tmp_path / str(number), aws=fake.aws, max_px=70, **options)
        counts.append(anyio.run(show).height)
    assert counts == [20, 25, 3, 22]


def test_an_image_is_shown_once_unless_all_runs_are_asked_for(shown: Root, tmp_path: Path) -> None:
    image = local_image(str(tmp_path / "photos" / "b.png"))
    later = replace(scored(image, Label("cat", 70.0)), scored_at=NOON + dt.timedelta(days=1))
    shown.results(later, run_id="r2", date="2026-11-22")
    one = batchcl.show_sync(str(shown), [image.key], out=tmp_path / "one")
    assert one["labels"].to_list() == ["cat 70.0"]
    both = batchcl.show_sync(str(shown), [image.key], out=tmp_path / "both", all_runs=True)
    assert sorted(both["labels"]) == ["cat 70.0", "dog 60.0"]
    assert sorted(both["file"]) == ["001-b.jpg", "002-b.jpg"]


def test_all_labels_are_drawn_whichever_the_condition_selects(shown: Root, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    index = batchcl.show_sync(str(shown), out=folder, where="label = 'dog'", sort="confidence", limit=1)
    assert index.select("labels", "reason").row(0) == ("dog 52.0, cat 97.0", "dog 52.0")


def test_the_command_reports_what_has_no_picture(
    shown: Root, tmp_path: Path, cli: Callable[..., CommandResult]
) -> None:
    (tmp_path / "photos" / "b.png").write_bytes(encoded(Image.new("RGB", (120, 80))))
    done = cli("show", shown, "--out", "pictures", "--json", cwd=tmp_path)
    assert done.code == 3
    assert r"gone\x1b.png: the file can't be read: No such file" in done.err
    assert "\x1b" not in done.err
    assert "images that have changed since they were scored: 1; see the column note" in done.err
    assert done.err.endswith("batchcl: 2 pictures in pictures\n")
    rows = done.json
    assert [row["file"] for row in rows] == ["001-b.jpg", "002-a.jpg", None]
    assert rows[2]["labels"] == f"{HOSTILE} 99.0"
    with (tmp_path / "pictures" / "index.csv").open(newline="") as file:
        assert [{name: value or None for name, value in row.items()} for row in csv.DictReader(file)] == rows
    assert orjson.dumps(rows)
    again = cli("show", shown, "--out", "pictures", cwd=tmp_path)
    assert (again.code, again.sentence) == (
        2,
        "batchcl: --out pictures is not empty, and its files are not overwritten; name a new directory\n",
    )
    table = cli("show", shown, "--out", "other", "--where", "confidence = 99", cwd=tmp_path)
    assert table.code == 3
    assert "\x1b" not in table.out
    assert "\u202e" not in table.out
    nothing = cli("show", shown, "--out", "empty", "--where", "label = 'cow'", cwd=tmp_path)
    assert (nothing.code, nothing.out, nothing.err) == (
        0,
        "file  reason  labels  uri\n",
        "batchcl: no image matches\n",
    )


def test_images_without_a_label_are_shown_in_the_default_order(
    shown: Root, tmp_path: Path, cli: Callable[..., CommandResult]
) -> None:
    condition = ["--where", "label IS NULL"]
    found = cli("show", shown, "--out", "found", *condition, "--csv", cwd=tmp_path)
    assert [line.split(",")[0] for line in found.out.splitlines()] == ["file", "001-c.jpg"]
    assert found.err == "batchcl: 1 picture in found\n"
    above = cli("show", shown, "--out", "above", *condition, "--min-confidence", "98", "--csv", cwd=tmp_path)
    assert above.out.count("\n") == 4
    sorted_ = cli("show", shown, "--out", "sorted", *condition, "--sort", "confidence", cwd=tmp_path)
    assert sorted_.err == ("batchcl: no image matches with a label; --sort newest shows those without one, too\n")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--sort", "best"], "'best' is not one of 'uncertain'"),
        (["--limit", "0"], "greater than or equal to 1"),
        (["--max-px", "1"], "greater than or equal to 16"),
        (["--where", "nose = 1"], 'unable to find column "nose"; the columns are run_id'),
        (["--where", "uri IN (SELECT 1)"], "SELECT is not allowed"),
        (["--truth", "t.manifest"], "--truth needs --sort wrong"),
        (["--sort", "wrong"], "name a manifest with --truth"),
        (["--out", "s3://b/p"], "is not a local directory"),
        (["--out", "out/pictures"], "is in the output root"),
        (["--out", "photos/a.png"], "photos/a.png is not a directory"),
        (["--model", "cows@v9"], "cows@v9"),
        (["--min-confidence", "50", "--thresholds", "t.toml"], "exclude each other"),
    ],
)
def test_bad_arguments_are_refused(
    shown: Root, tmp_path: Path, cli: Callable[..., CommandResult], options: list[str], reason: str
) -> None:
    done = cli("show", shown, "--out", "pictures", *options, cwd=tmp_path)
    assert done.code == 2
    assert reason in done.err
    assert done.sentence.count("\n") == 1
    assert not (tmp_path / "pictures").exists()


def test_pillow_is_required(shown: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(
        UsageError, match=r"`batchcl show` needs Pillow; install it with: pip install 'batchcl\[images\]'"
    ):
        batchcl.show_sync(str(shown), out=tmp_path / "pictures")


def test_a_folder_that_can_not_be_written_is_reported(shown: Root, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"writing .* failed: Not a directory; check --out"):
        batchcl.show_sync(str(shown), out=tmp_path / "file" / "pictures")


def test_a_file_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"kept")
    (tmp_path / "001-a.jpg").symlink_to(tmp_path / "kept")
    with pytest.raises(OutputError, match=r"writing .* failed: File exists"):
        _write(tmp_path / "001-a.jpg", b"new")
    assert (tmp_path / "kept").read_bytes() == b"kept"


def test_wrong_images_are_shown_with_their_true_label(
    shown: Root, tmp_path: Path, cli: Callable[..., CommandResult]
) -> None:
    kind = "groundtruth/image-classification"
    lines = [
        {"source-ref": f"photos/{name}.png", "A": 0, "A-metadata": {"class-name": label, "type": kind}}
        for name, label in {"a": "cat", "b": "cat", "c": "dog"}.items()
    ]
    (tmp_path / "t.manifest").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    done = cli("show", shown, "--sort", "wrong", "--truth", "t.manifest", "--out", "wrong", "--json", cwd=tmp_path)
    assert [row["reason"] for row in done.json] == ["dog 60.0, true: cat", "(none), true: dog"]


def test_the_index_has_the_first_labels_of_an_image(tmp_path: Path) -> None:
    root = Root(tmp_path / "out")
    image = ImageRef(uri="s3://b/a.png", bucket="b", key="a.png")
    root.results(scored(image, *(Label(f"l{n}", 90.0 - n) for n in range(7))))
    fake = FakeAws({"a.png": encoded(Image.new("RGB", (70, 70)))})
    index = anyio.run(lambda: batchcl.show(str(root), out=tmp_path / "pictures", aws=fake.aws))
    assert index["labels"].to_list() == ["l0 90.0, l1 89.0, l2 88.0, l3 87.0, l4 86.0 and 2 more"]


KEYS = [
    "../../etc/passwd",
    "/",
    "..",
    "a/..",
    "a/" + "long" * 250 + ".jpg",
    "a/same.jpg",
    "b/same.png",
    "c/SAME.png",
    "\u202egpj.exe",
    "new\nline\x00.png",
    "a.tar#folder/member.png",
    "C:\\con",
    "-rf",
    ".hidden",
    "cafe\u0301 łódź 猫.png",
    "<script>alert(1)</script>",
]


def test_file_names_are_safe_for_hostile_keys(tmp_path: Path) -> None:
    root = Root(tmp_path / "out")
    images = [ImageRef(uri=f"s3://b/{key}", bucket="b", key=key) for key in KEYS if "tar#" not in key]
    root.results(*(scored(image, Label(HOSTILE, 90.0)) for image in images))
    data = encoded(Image.new("RGB", (70, 70)))
    fake = FakeAws({image.key: data for image in images})
    index = anyio.run(lambda: batchcl.show(str(root), out=tmp_path / "pictures", aws=fake.aws, limit=100))
    assert index["error"].null_count() == len(images)
    assert sorted(os.listdir(tmp_path / "pictures")) == sorted(["index.csv", *index["file"]])
    assert sorted(os.listdir(tmp_path)) == ["out", "pictures"]
    assert fake.opened[0][0] == arn_of("cats@v1").split(":")[3]


def test_file_names_are_short_numbered_and_readable() -> None:
    found = list(_file_names(KEYS))
    assert len({name.lower() for name in found}) == len(KEYS)
    assert all(len(name.encode()) < 255 and name[:3].isdigit() and name.endswith(".jpg") for name in found)
    assert all(name.isprintable() and not set(name) & set('/\\:*?"<>|\u202e') for name in found)
    assert found[5:8] == ["006-same.jpg", "007-same.jpg", "008-SAME.jpg"]
    assert found[10] == "011-member.jpg"
    assert found[14] == "015-café_łódź_猫.jpg"
    assert next(_file_names(["x"] * 1000)) == "0001-x.jpg"
