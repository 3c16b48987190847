"""Lists with the mistakes that users make, on the command line."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from servers import aws_env, client, make_bucket
from tables import published

BUCKET = "photos-of-lists"
BOX = {"class_id": 0, "left": 10, "top": 10, "width": 5, "height": 5}
SIZE = [{"width": 96, "height": 96, "depth": 3}]


@pytest.fixture(scope="module")
def aws(service, seaweed, demo) -> dict[str, str]:
    s3 = client("s3", seaweed)
    make_bucket(s3, BUCKET)
    pictures = [path.read_bytes() for path in sorted(demo.data.images.iterdir())[:25]]
    for n, picture in enumerate(pictures):
        s3.put_object(Bucket=BUCKET, Key=f"odd/my photo ({n}).jpg", Body=picture)
        s3.put_object(Bucket=BUCKET, Key=f"nfd/{unicodedata.normalize('NFD', f'Café {n}')}.png", Body=picture)
        s3.put_object(Bucket=BUCKET, Key=f"demo/{n}.png", Body=picture)
    return aws_env(service, seaweed)


def detection(**change: Any) -> dict[str, Any]:
    metadata = {"class-map": {"0": "3"}, "type": "groundtruth/object-detection"}
    return {"b": {"annotations": [BOX | change], "image_size": SIZE}, "b-metadata": metadata}


SINGLE = "groundtruth/image-classification"
BAD_LABELS = {
    "zero width": detection(width=0),
    "class id without a name": detection(class_id=7),
    "coordinates as text": detection(left="10"),
    "class name that is a number": {
        "c": 1,
        "c-metadata": {"class-name": 3, "type": "groundtruth/image-classification"},
    },
    "boxes that are not a list": {"b": {"annotations": 1}, "b-metadata": {"type": "groundtruth/object-detection"}},
}


@pytest.mark.parametrize("bad", BAD_LABELS.values(), ids=BAD_LABELS)
def test_a_bad_label_is_counted_and_its_image_is_scored(cli, aws, demo, tmp_path, bad):
    good = {"g": 1, "g-metadata": {"class-name": "3", "type": "groundtruth/image-classification"}}
    lines = [{"source-ref": f"s3://{BUCKET}/demo/{n}.png", **each} for n, each in enumerate((bad, good, {}))]
    manifest = tmp_path / "bad.manifest"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    done = cli("run", manifest, "--model", demo.arn, "--out", out, "--json", env=aws)
    assert (done.code, done.json["scored"], done.json["failed"]) == (0, 3, 0), done.err
    assert "1 image of" in done.err
    assert "line 1: reading the label attribute" in done.err
    for more in ((), ("--truth", manifest)):
        evaluated = cli("evaluate", out, *more, "--json", env=aws)
        assert evaluated.code == 0, evaluated.err
        summary = evaluated.json["summary"]
        assert (summary["images"], summary["bad_labels"], summary["unlabelled"]) == (1, 1, 1)
        assert "reading the label attribute" in summary["bad_label_examples"][0]


def write(path: Path, names: list[str]) -> Path:
    path.write_text("".join(f"{name}\n" for name in names))
    return path


@pytest.mark.parametrize("count", [5, 25])
def test_url_encoded_keys_are_refused_with_a_decode_command(cli, aws, demo, tmp_path, count):
    names = [f"s3://{BUCKET}/odd/my+photo+%28{n}%29.jpg" for n in range(count)]
    done = cli("run", write(tmp_path / "l.txt", names), "--model", demo.arn, "--out", tmp_path / "out", env=aws)
    assert done.code == 5, done.err
    assert f"s3://{BUCKET}/odd/my photo (0).jpg does: the names are URL-encoded" in done.err
    assert "decode the list: python3 -c" in done.err


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("nfd/" + unicodedata.normalize("NFC", "Café 0") + ".png", "Unicode form NFC, the images' names are in NFD"),
        ("demo/0.png ", "with spaces"),
    ],
)
def test_keys_that_differ_in_unicode_form_or_spaces_are_reported(cli, aws, demo, tmp_path, key, message):
    done = cli(
        *("run", write(tmp_path / "l.txt", [f"s3://{BUCKET}/{key}"])),
        *("--model", demo.arn, "--out", tmp_path / "out"),
        env=aws,
    )
    assert done.code == 5, done.err
    assert message in done.err


def test_misspelled_keys_are_reported_and_the_others_scored(cli, aws, demo, tmp_path):
    names = [f"s3://{BUCKET}/demo/0.png", f"s3://{BUCKET}/odd/my+photo+%281%29.jpg"]
    done = cli(
        *("run", write(tmp_path / "l.txt", names), "--model", demo.arn, "--out", tmp_path / "out"),
        *("--max-failures", "1", "--json"),
        env=aws,
    )
    assert (done.code, done.json["scored"], done.json["failed"]) == (0, 1, 1), done.err
    assert "the names are URL-encoded" in done.err


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("kind", [(), ("--source-kind", "keys")])
@pytest.mark.parametrize("line", [f"s3://{BUCKET}/demo/0.png", f'{{"source-ref": "s3://{BUCKET}/demo/0.png"}}'])
def test_utf_16_lists_are_refused_with_a_conversion_command(cli, aws, demo, tmp_path, encoding, kind, line):
    path = tmp_path / "l.txt"
    path.write_bytes(f"{line}\r\n".encode(encoding))
    done = cli("run", path, *kind, "--model", demo.arn, "--out", tmp_path / "out", env=aws)
    assert done.code == 2, done.err
    assert "iconv -f UTF-16" in done.err


def test_a_byte_order_mark_within_a_list_is_refused(cli, aws, demo, tmp_path):
    path = write(tmp_path / "l.txt", [f"\ufeffs3://{BUCKET}/demo/0.png", f"\ufeffs3://{BUCKET}/demo/1.png"])
    done = cli("run", path, "--model", demo.arn, "--out", tmp_path / "out", env=aws)
    assert done.code == 2, done.err
    assert "line 2: it begins with a byte order mark" in done.err


def test_local_names_in_another_unicode_form_are_reported(cli, aws, demo, tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "Café.png") for form in ("NFC", "NFD"))
    shutil.copy(next(iter(demo.data.images.iterdir())), tmp_path / nfd)
    done = cli("run", write(tmp_path / "l.txt", [nfc]), "--model", demo.arn, "--out", "out", env=aws, cwd=tmp_path)
    assert done.code == 2, done.err
    assert "in the Unicode form NFC, the images' names are in NFD" in done.err
    good = cli("run", tmp_path / nfd, "--model", demo.arn, "--out", tmp_path / "out", env=aws)
    assert good.code == 0, good.err
    label = {"l": 1, "l-metadata": {"class-name": "2", "type": "groundtruth/image-classification"}}
    truth = write(tmp_path / "t.manifest", [json.dumps({"source-ref": nfc} | label)])
    evaluated = cli("evaluate", tmp_path / "out", "--truth", truth, env=aws)
    assert evaluated.code == 2
    assert "the truth's names are in the Unicode form NFC, the images' names are in NFD" in evaluated.err


def test_listed_files_need_no_image_extension(cli, aws, demo, tmp_path):
    picture = min(demo.data.images.iterdir())
    names = ["user.name1", "x.pjpeg", "photo.jpg.orig"]
    for name in names:
        shutil.copy(picture, tmp_path / name)
    listed = write(tmp_path / "l.txt", [*names, "l.txt"])
    done = cli("run", listed, "--model", demo.arn, "--out", "out", "--json", env=aws, cwd=tmp_path)
    assert (done.code, done.json["scored"], done.json["skipped"]) == (0, 3, 1), done.err
    rows = published(tmp_path / "out")
    assert sorted(Path(key).name for key in rows["key"]) == sorted(names)


def test_a_min_confidence_below_one_gives_a_warning(cli, aws, demo, tmp_path):
    run = ("run", f"s3://{BUCKET}/demo/0.png", "--model", demo.arn, "--out", tmp_path / "out")
    done = cli(*run, "--min-confidence", "0.8", env=aws)
    assert done.code == 0, done.err
    detected = cli("detect", demo.data.images / "00000.png", "--model", demo.arn, "--min-confidence", "1", env=aws)
    assert "did you mean 100?" in detected.err
    assert "--min-confidence 0.8 means 0.8 % (confidences are 0 to 100); did you mean 80?" in done.err
