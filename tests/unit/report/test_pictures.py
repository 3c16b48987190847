"""Pictures of scored images: upright, with boxes in place; errors and changes are reported for each image."""

from __future__ import annotations

import datetime as dt
import io
import os
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import polars as pl
import pytest
from PIL import Image

from batchcl.aws.session import Aws
from batchcl.errors import CredentialsError, RefusedError
from batchcl.images import MAX_BYTES_FITTABLE
from batchcl.report.pictures import PICTURE_COLUMNS, Picture, fetch_pictures
from batchcl.runs.schema import RESULTS
from batchcl.sources.base import local_image
from pixels import encoded
from servers import aws_env, client, make_bucket
from unit.analysis.conftest import arn_of
from unit.report.s3 import FakeAws

SCHEMA = pl.DataFrame(RESULTS.empty_table()).select(PICTURE_COLUMNS).schema
CAT = {"name": "cat", "confidence": 90.0, "left": 0.25, "top": 0.5, "width": 0.5, "height": 0.25, "polygon": None}
WHOLE = {"name": "dog", "confidence": 80.0}
NOW = dt.datetime(2026, 11, 21, tzinfo=dt.UTC)


def frame(*rows: dict[str, Any]) -> pl.DataFrame:
    """Rows of `Results.images()`; what is missing is null, or belongs to an image in S3."""
    common = {"model_arn": arn_of("cats@v1"), "bucket": "b", "labels": []}
    complete = [
        common | {"uri": f"s3://{row.get('bucket', 'b')}/{row['key']}" if row.get("bucket", "b") else row["key"]} | row
        for row in rows
    ]
    return pl.DataFrame([{name: row.get(name) for name in SCHEMA} for row in complete], schema=SCHEMA)


def local(path: Path, **more: Any) -> dict[str, Any]:
    image = local_image(str(path))
    return {"bucket": "", "key": image.key, "size_bytes": image.size_bytes, "last_modified": image.last_modified} | more


def fetched(rows: pl.DataFrame, aws: Aws | None = None, **options: Any) -> list[Picture]:
    settings = {"max_px": None, "draw": True, "quality": 95, "concurrency": 2} | options

    async def main() -> list[Picture]:
        return [each async for each in fetch_pictures(rows, aws=aws or Aws(), **settings)]

    return anyio.run(main)


def pixels(picture: Picture) -> np.ndarray:
    assert not picture.error
    image = Image.open(io.BytesIO(picture.jpeg))
    assert image.size == (picture.width, picture.height)
    assert image.format == "JPEG"
    return np.asarray(image).astype(int)


def quarters() -> Image.Image:
    """A picture whose four quarters differ in colour."""
    image = Image.new("RGB", (800, 600), "red")
    image.paste("lime", (400, 0, 800, 300))
    image.paste("blue", (0, 300, 400, 600))
    image.paste("white", (400, 300, 800, 600))
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright_and_boxes_in_place(tmp_path: Path, orientation: int) -> None:
    upright = quarters()
    methods = Image.Transpose
    stored = {
        1: upright,
        2: upright.transpose(methods.FLIP_LEFT_RIGHT),
        3: upright.transpose(methods.ROTATE_180),
        4: upright.transpose(methods.FLIP_TOP_BOTTOM),
        5: upright.transpose(methods.TRANSPOSE),
        6: upright.transpose(methods.ROTATE_90),
        7: upright.transpose(methods.TRANSVERSE),
        8: upright.transpose(methods.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(stored, "JPEG", quality=95, exif=exif))
    plain, drawn = (pixels(fetched(frame(local(path, labels=[CAT])), draw=draw)[0]) for draw in (False, True))
    assert np.abs(plain - np.asarray(upright).astype(int)).mean() < 2
    differs = np.abs(plain - drawn).sum(axis=2) > 90
    assert differs[300:450, 198:203].mean() > 0.3, "the left edge of the box"
    assert differs[300:303, 200:600].mean() > 0.3, "its upper edge"
    assert not differs[310:440, 210:590].any()
    assert not differs[460:].any()
    assert not Image.open(io.BytesIO(fetched(frame(local(path)))[0].jpeg)).getexif()


def test_pictures_are_shrunk_and_enlarged_only_to_draw(tmp_path: Path) -> None:
    for name, size in (("large.png", (1000, 500)), ("small.png", (30, 20))):
        (tmp_path / name).write_bytes(encoded(Image.new("RGB", size)))
    rows = frame(*(local(tmp_path / name, labels=[CAT]) for name in ("large.png", "small.png")))
    settings: list[dict[str, Any]] = [{"max_px": 200}, {"max_px": 200, "draw": False}, {}, {"draw": False}]
    sizes = [[(each.width, each.height) for each in fetched(rows, **options)] for options in settings]
    assert sizes == [
        [(200, 100), (180, 120)],
        [(200, 100), (30, 20)],
        [(1000, 500), (480, 320)],
        [(1000, 500), (30, 20)],
    ]


def test_the_caption_has_image_labels_and_notes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.new("RGB", (600, 600))))
    changed = {"size_bytes": 1}
    rows: list[dict[str, Any]] = [{"labels": labels} for labels in ([WHOLE], [], [WHOLE], [CAT], [WHOLE] * 250)]
    rows[2] |= changed
    heights = [each.height - 600 for each in fetched(frame(*(local(path, **row) for row in rows)), has_caption=True)]
    assert heights[0] == heights[1] > 10
    assert heights[2] > heights[0]
    assert heights[3] == 0
    assert heights[4] < 14 * heights[0], "the caption has a dozen lines at most"
    assert [each.height for each in fetched(frame(local(path, labels=[WHOLE])))] == [600]


def bomb() -> bytes:
    """A PNG file that states to have 90,000 x 90,000 pixels."""
    header = struct.pack(">IIBBBBB", 90_000, 90_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def test_images_that_can_not_be_shown_are_reported(tmp_path: Path) -> None:
    names = ("good.png", "text.png", "bomb.png", "huge.png", "cut.png")
    paths = {name: tmp_path / name for name in names}
    paths["good.png"].write_bytes(encoded(quarters()))
    paths["text.png"].write_text("hello")
    paths["bomb.png"].write_bytes(bomb())
    paths["huge.png"].touch()
    os.truncate(paths["huge.png"], MAX_BYTES_FITTABLE + 1)
    paths["cut.png"].write_bytes(encoded(quarters())[:200])
    rows = frame(*(local(path) for path in (*paths.values(), tmp_path, tmp_path / "none.png", tmp_path / "a.tar#b")))
    found = fetched(rows)
    assert [each.row for each in found] == list(range(rows.height))
    for each, reason in zip(
        found,
        [
            "",
            "not one of PNG",
            "more pixels",
            "limit is 104,857,600",
            "can't be decoded",
            "Is a dir",
            "No such",
            "a.tar",
        ],
        strict=True,
    ):
        assert (reason in each.error) if reason else each.jpeg


@pytest.mark.parametrize("known", [{"size_bytes": 3}, {"last_modified": NOW}, {}])
def test_a_file_that_has_changed_has_a_note(tmp_path: Path, known: dict[str, Any]) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(quarters()))
    note = fetched(frame(local(path, **known)))[0].note
    assert note == ("the file has changed since it was scored, so its labels may not apply" if known else "")


def test_an_object_that_has_changed_has_a_note() -> None:
    data = encoded(quarters())
    tag = str(len(data))
    known: list[dict[str, Any]] = [
        {"etag": tag, "size_bytes": len(data)},
        {},
        {"etag": "other"},
        {"size_bytes": 3},
        {"etag": "other", "version_id": "v"},
    ]
    fake = FakeAws({"a.png": data})
    notes = [each.note for each in fetched(frame(*({"key": "a.png", **more} for more in known)), fake.aws)]
    assert [bool(note) for note in notes] == [False, False, True, True, False]
    assert fake.asked[-1] == {"Bucket": "b", "Key": "a.png", "VersionId": "v"}
    assert fake.opened == [("eu-west-1", 2)], "the model's region"


def test_missing_and_denied_objects_are_reported() -> None:
    fake = FakeAws({"a.png": encoded(quarters()), "secret.png": "AccessDenied"})
    found = fetched(frame({"key": "secret.png"}, {"key": "a.png"}, {"key": "none.png"}), fake.aws)
    assert [each.error for each in found] == [
        "S3 denies access to the object; allow s3:GetObject on it",
        "",
        "S3 has no such object: m",
    ]


def test_concurrency_is_bounded() -> None:
    fake = FakeAws({"a.png": encoded(Image.new("RGB", (70, 70)))}, width=3)
    found = fetched(frame(*({"key": "a.png"} for _ in range(30))), fake.aws, concurrency=3)
    assert [each.row for each in found] == list(range(30))
    assert fake.most_open == 3


def test_missing_credentials_end_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(CredentialsError):
        fetched(frame({"key": "a.png"}))
    (tmp_path / "a.png").write_bytes(encoded(quarters()))
    assert fetched(frame(local(tmp_path / "a.png")))[0].jpeg, "a file needs none"


def test_credentials_that_fail_later_end_the_command() -> None:
    fake = FakeAws({"a.png": encoded(quarters()), "b.png": "no credentials"})
    with pytest.raises(RefusedError, match=r"reading s3://b/b\.png failed: no AWS credentials found"):
        fetched(frame({"key": "a.png"}, {"key": "b.png"}), fake.aws)


def tar(**files: bytes) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{name}.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def test_members_of_local_archives_are_read(tmp_path: Path) -> None:
    path = tmp_path / "İ" / "a.TAR"
    path.parent.mkdir()
    path.write_bytes(tar(one=encoded(quarters()), two=encoded(Image.new("RGB", (90, 70)))))
    changed = dt.datetime.fromtimestamp(path.stat().st_mtime, dt.UTC)
    row = {"bucket": "", "last_modified": changed}
    names = ("two", "one", "three")
    found = fetched(frame(*({"key": f"{path}#{name}.png", **row} for name in names)), draw=False)
    assert [(each.width, each.note, each.error) for each in found] == [
        (90, "", ""),
        (800, "", ""),
        (0, "", f"the archive {path} has no such member"),
    ]
    path.write_bytes(tar(zero=b"0" * 5000, one=encoded(quarters())))
    os.utime(path, (1, 1))
    found = fetched(frame({"key": f"{path}#one.png", **row}), draw=False)
    assert found[0].width == 800
    assert found[0].note.startswith("the archive has changed")


@pytest.fixture
def bucket(seaweed: str, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in aws_env(s3=seaweed).items():
        monkeypatch.setenv(name, value)
    make_bucket(client("s3", seaweed), "show-pictures")
    return "show-pictures"


def test_objects_and_members_of_archives_come_from_s3(seaweed: str, bucket: str) -> None:
    s3 = client("s3", seaweed)
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    key = "a b/+%41/łódź.png"
    old = s3.put_object(Bucket=bucket, Key=key, Body=encoded(Image.new("RGB", (90, 70))))
    new = s3.put_object(Bucket=bucket, Key=key, Body=encoded(Image.new("RGB", (95, 70))))
    s3.put_object(Bucket=bucket, Key="x.tar", Body=tar(one=encoded(quarters()), two=encoded(quarters())))
    tag = old["ETag"].strip('"')
    rows = frame(
        {"bucket": bucket, "key": key, "version_id": old["VersionId"], "etag": tag},
        {"bucket": bucket, "key": key, "etag": tag},
        {"bucket": bucket, "key": key, "etag": new["ETag"].strip('"')},
        {"bucket": bucket, "key": "x.tar#two.png"},
        {"bucket": bucket, "key": "x.tar#two.png", "etag": tag},
        {"bucket": bucket, "key": "none.tar#two.png"},
        {"bucket": bucket, "key": "none.png"},
    )
    found = fetched(rows, draw=False)
    assert [(each.width, each.note.partition(" has")[0]) for each in found] == [
        (90, ""),
        (95, "the object"),
        (95, ""),
        (800, ""),
        (800, "the archive"),
        (0, ""),
        (0, ""),
    ]
    assert found[5].error == f"s3://{bucket}/none.tar does not exist"
    assert "no such object" in found[6].error
