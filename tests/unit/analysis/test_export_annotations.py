"""Exports of results, read back: COCO by pycocotools, CSV, manifests and the rest by batchcl's own readers.

tests/foreign reads them with the tools that they are for.
"""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import json
import os
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from batchcl.analysis import export_annotations as module
from batchcl.analysis.evaluate import evaluate
from batchcl.analysis.export_annotations import EXPORT_FORMATS, AnnotationExport, export_annotations
from batchcl.analysis.results import open_results
from batchcl.analysis.truth import read_truth
from batchcl.annotations import AnnotatedImage, annotation_format, read_annotations
from batchcl.aws.session import Aws
from batchcl.errors import CredentialsError, UsageError
from batchcl.groundtruth import TruthBox, parse_line
from batchcl.outcomes import Label, Scored
from batchcl.sources.base import local_image, s3_image
from batchcl.thresholds import Thresholds
from batchcl.workflow.local import check_file
from commands import run_command
from servers import aws_env, client, make_bucket
from unit.analysis.conftest import NOON, Root, arn_of

SIZE = (200, 100)
CAT = Label("cat", 90, (0.1, 0.2, 0.3, 0.4))
DOG = Label("dog", 60.5, (0.5, 0.25, 0.5, 0.75))
HOSTILE = "<b>&\"' , \u202ex"


def picture(path: Path, size: tuple[int, int] = SIZE, *, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("L", size)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


def scored(image: Any, *labels: Label, at: dt.datetime = NOON) -> Scored:
    ref = s3_image(image) if str(image).startswith("s3://") else local_image(str(image))
    return Scored(image=ref, labels=labels, attempts=1, latency_ms=1, request_id="r", scored_at=at)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "photos"


@pytest.fixture
def boxed(tmp_path: Path, folder: Path) -> Root:
    """Four images: two boxes, a rotated JPEG with one, none, and a name with markup."""
    root = Root(tmp_path / "out")
    root.results(
        scored(picture(folder / "a" / "1.png"), DOG, CAT),
        scored(picture(folder / "a" / "2.jpg", orientation=6), CAT),
        scored(picture(folder / "3.png")),
        scored(picture(folder / f"{HOSTILE.replace('/', '')}.png"), Label(HOSTILE, 50, (0, 0, 1, 1))),
    )
    return root


@pytest.fixture
def classified(tmp_path: Path) -> Root:
    root = Root(tmp_path / "out")
    root.results(
        scored("s3://b/x/1.jpg", Label("cat", 99), Label("dog", 40)),
        scored("s3://b/x/2.jpg", Label("dog", 70)),
        scored("s3://b/y/3.jpg"),
    )
    return root


def exported(root: Root, form: Any, out: Path, *, opened: Any = None, **options: Any) -> AnnotationExport:
    async def work() -> AnnotationExport:
        return await export_annotations(open_results(str(root), **(opened or {})), form, out, **options)

    return anyio.run(work)


def images_of(path: Path) -> dict[str, AnnotatedImage]:
    form = annotation_format(path, str(path))
    assert form is not None
    found = list(read_annotations(path, str(path), form))
    return {each.references[-1]: each for each in found if isinstance(each, AnnotatedImage)}


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def lines(path: Path) -> list[Any]:
    return [parse_line(line) for line in path.read_bytes().splitlines()]


def test_coco_is_read_by_pycocotools(boxed, tmp_path):
    export = exported(boxed, "coco", tmp_path / "coco")
    assert (export.images, export.boxes, export.labels, export.skipped) == (4, 4, 0, ())
    assert sorted(os.listdir(tmp_path / "coco")) == ["instances.json", "results.json"]
    with redirect_stdout(StringIO()):
        truth = COCO(str(tmp_path / "coco" / "instances.json"))
        results = truth.loadRes(str(tmp_path / "coco" / "results.json"))
        scores = COCOeval(truth, results, "bbox")
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    assert scores.stats[0] == pytest.approx(1), "the instances are the results"
    by_name = {image["file_name"]: image for image in truth.loadImgs(truth.getImgIds())}
    assert [(by_name[name]["width"], by_name[name]["height"]) for name in ("a/1.png", "a/2.jpg")] == [SIZE, SIZE[::-1]]
    found = results.loadAnns(results.getAnnIds(imgIds=by_name["a/1.png"]["id"]))
    names = {each["id"]: each["name"] for each in truth.loadCats(truth.getCatIds())}
    assert [(names[each["category_id"]], each["bbox"], each["score"]) for each in found] == [
        ("cat", pytest.approx([20, 20, 60, 40]), 0.9),
        ("dog", pytest.approx([100, 25, 100, 75]), 0.605),
    ]
    assert set(names.values()) == {"cat", "dog", HOSTILE}
    assert by_name["3.png"]["model_arn"] == arn_of("cats@v1")


def test_coco_has_labels_of_images_as_annotations_without_box(classified, tmp_path):
    exported(classified, "coco", tmp_path / "coco", image_size=SIZE)
    assert sorted(os.listdir(tmp_path / "coco")) == ["instances.json", "results-labels.json"]
    with redirect_stdout(StringIO()):
        truth = COCO(str(tmp_path / "coco" / "instances.json"))
        results = truth.loadRes(str(tmp_path / "coco" / "results-labels.json"))
    assert [each["score"] for each in results.loadAnns(results.getAnnIds(imgIds=1))] == [0.99, 0.4]
    assert [image["coco_url"] for image in truth.loadImgs([1, 3])] == ["s3://b/x/1.jpg", "s3://b/y/3.jpg"]


@pytest.mark.parametrize("form", ["coco", "cvat", "ground-truth"])
def test_an_export_as_truth_agrees_with_its_results(boxed, tmp_path, form):
    out = tmp_path / "export"
    exported(boxed, form, out)
    opened = open_results(str(boxed))
    path = out / "instances.json" if form == "coco" else out
    truth = read_truth(path, images=opened.images(), relative_to=None)
    summary = evaluate(opened, truth).summary
    assert (summary["missing"], summary["macro_f1"], summary["mean_average_precision"]) == (0, 1, 1)


def test_labels_of_images_agree_with_their_results(classified, tmp_path):
    exported(classified, "ground-truth", tmp_path / "gt")
    assert [(line.source_ref, line.labels) for line in lines(tmp_path / "gt")] == [
        ("s3://b/x/1.jpg", ("cat", "dog")),
        ("s3://b/x/2.jpg", ("dog",)),
        ("s3://b/y/3.jpg", ()),
    ]
    exported(classified, "cvat", tmp_path / "cvat", image_size=SIZE)
    assert {name: each.truth.labels for name, each in images_of(tmp_path / "cvat").items()} == {
        "x/1.jpg": ("cat", "dog"),
        "x/2.jpg": ("dog",),
        "y/3.jpg": (),
    }


def test_tasks_of_label_studio_have_predictions_and_a_configuration(boxed, folder, tmp_path):
    exported(boxed, "label-studio", tmp_path / "ls", relative_to=str(folder))
    tasks = json.loads((tmp_path / "ls" / "tasks.json").read_text())
    by_image = {task["data"]["image"]: task for task in tasks}
    assert "/data/local-files/?d=a/1.png" in by_image
    (prediction,) = by_image["/data/local-files/?d=a/1.png"]["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("cats@v1", 0.9)
    assert prediction["result"][0]["value"] == {
        "x": 10,
        "y": 20,
        "width": 30,
        "height": 40,
        "rotation": 0,
        "rectanglelabels": ["cat"],
    }
    assert '<Label value="&lt;b&gt;&amp;&quot;' in (tmp_path / "ls" / "config.xml").read_text()
    for task in tasks:  # as an annotator submits them unchanged
        results = [{**each, "original_width": 200, "original_height": 100} for each in task["predictions"][0]["result"]]
        task["annotations"] = [{"result": results}]
    (tmp_path / "back.json").write_text(json.dumps(tasks))
    opened = open_results(str(boxed))
    truth = read_truth(tmp_path / "back.json", images=opened.images())
    assert truth.matches is not None
    assert truth.matches.exact == 4
    summary = evaluate(opened, truth).summary
    assert (summary["macro_f1"], summary["mean_average_precision"]) == (1, 1)


def test_label_studio_has_a_prediction_for_each_model(classified, tmp_path):
    classified.results(scored("s3://b/x/1.jpg", Label("cat", 55)), model="cats@v2", run_id="r2")
    exported(classified, "label-studio", tmp_path / "ls")
    tasks = json.loads((tmp_path / "ls" / "tasks.json").read_text())
    assert [task["data"]["image"] for task in tasks] == ["s3://b/x/1.jpg", "s3://b/x/2.jpg", "s3://b/y/3.jpg"]
    assert [each["model_version"] for each in tasks[0]["predictions"]] == ["cats@v1", "cats@v2"]


def test_yolo_has_a_file_for_each_image(boxed, tmp_path):
    exported(boxed, "yolo", tmp_path / "yolo")
    data = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    assert data["names"] == {0: HOSTILE, 1: "cat", 2: "dog"}
    assert (tmp_path / "yolo/labels/a/1.txt").read_text() == (
        "1 0.250000 0.400000 0.300000 0.400000\n2 0.750000 0.625000 0.500000 0.750000\n"
    )
    assert (tmp_path / "yolo/predictions/a/2.txt").read_text() == "1 0.250000 0.400000 0.300000 0.400000 0.900000\n"
    assert (tmp_path / "yolo/labels/3.txt").read_text() == ""
    assert len((tmp_path / "yolo/images.txt").read_text().splitlines()) == 4


def test_names_that_yolo_cannot_write_are_skipped_with_the_reason(tmp_path):
    root = Root(tmp_path / "out")
    names = ["../../etc/1.jpg", "a//1.jpg", "b/1.jpg", "b/1.png", f"{'x' * 300}.jpg", "c.jpg", "c.txt/d.jpg"]
    root.results(*(scored(f"s3://b/{name}", CAT) for name in names))
    export = exported(root, "yolo", tmp_path / "yolo", relative_to="s3://b")
    assert {each.uri.removeprefix("s3://b/")[:9]: each.reason for each in export.skipped} == {
        "../../etc": "'../../etc/1.jpg' can't be the name of a file",
        "a//1.jpg": "'a//1.jpg' can't be the name of a file",
        "b/1.png": "its label file b/1.txt is that of b/1.jpg",
        "xxxxxxxxx": f"{'x' * 80!r} can't be the name of a file",
        "c.txt/d.j": "its label file c.txt/d.txt is inside that of another image",
    }
    written = {path.relative_to(tmp_path / "yolo" / "labels") for path in (tmp_path / "yolo" / "labels").rglob("*.txt")}
    assert written == {Path("b/1.txt"), Path("c.txt")}


def test_csv_has_a_row_for_each_label_and_for_an_image_without(classified, tmp_path):
    exported(classified, "csv", tmp_path / "labels.csv", relative_to="s3://b")
    rows = rows_of(tmp_path / "labels.csv")
    assert [(row["image"], row["label"], row["confidence"], row["left"]) for row in rows] == [
        ("x/1.jpg", "cat", "99", ""),
        ("x/1.jpg", "dog", "40", ""),
        ("x/2.jpg", "dog", "70", ""),
        ("y/3.jpg", "", "", ""),
    ]
    assert (
        rows[0] | {"uri": "s3://b/x/1.jpg", "model": "cats@v1", "model_arn": arn_of("cats@v1"), "run_id": "r1"}
        == rows[0]
    )
    assert (rows[0]["date"], rows[0]["scored_at"]) == ("2026-11-21", "2026-11-21T12:00:00.000000Z")


def test_where_selects_images_and_thresholds_labels(classified, tmp_path):
    exported(classified, "csv", tmp_path / "1.csv", where="label = 'dog' AND confidence < 50")
    assert [row["label"] for row in rows_of(tmp_path / "1.csv")] == ["cat", "dog"]
    thresholds = Thresholds(default=50, labels={"dog": 80})
    export = exported(classified, "csv", tmp_path / "2.csv", opened={"thresholds": thresholds})
    assert (export.images, export.labels) == (3, 1)
    exported(classified, "csv", tmp_path / "3.csv", where="label_count = 0")
    assert [row["uri"] for row in rows_of(tmp_path / "3.csv")] == ["s3://b/y/3.jpg"]


def test_custom_labels_takes_an_exported_manifest_unchanged(tmp_path):
    root = Root(tmp_path / "out")
    tiny = Label("tick", 40, (0.9999, 0.9999, 0.0001, 0.0001))
    root.results(scored("s3://b/1.jpg", CAT, DOG), scored("s3://b/2.jpg", Label("cat", 80)), scored("s3://b/3.jpg"))
    exported(root, "ground-truth", tmp_path / "gt", image_size=SIZE)
    assert check_file(tmp_path / "gt", "GT") == ([], [])
    root.results(scored("s3://b/4.jpg", tiny), shard=1)
    exported(root, "ground-truth", tmp_path / "gt", image_size=SIZE, overwrite=True)
    assert lines(tmp_path / "gt")[3].boxes == (TruthBox("tick", 199, 99, 1, 1),)


@pytest.mark.parametrize("text", ["file,uri\n1.jpg,{0}\n2.jpg,{1}\n", "{0}\n{1}\n"])
def test_a_list_selects_images(classified, tmp_path, text):
    (tmp_path / "list").write_text(text.format("s3://b/x/2.jpg", "s3://b/gone.jpg"))
    done = run_command(f"export csv {classified} --images {tmp_path / 'list'} --out {tmp_path / 'x.csv'} --json")
    assert (done.code, done.json["images"]) == (3, 1), done.err
    assert done.json["skipped"] == [{"uri": "s3://b/gone.jpg", "reason": "it has no result that matches"}]
    assert [row["uri"] for row in rows_of(tmp_path / "x.csv")] == ["s3://b/x/2.jpg"]
    assert run_command(f"export csv {classified} --images {tmp_path / 'no'} --out {tmp_path / 'y.csv'}").code == 2


def test_only_the_newest_row_of_an_image_is_exported(classified, tmp_path):
    later = NOON + dt.timedelta(days=1)
    classified.results(scored("s3://b/x/1.jpg", Label("owl", 80), at=later), run_id="r2", date="2026-11-22")
    exported(classified, "ground-truth", tmp_path / "gt")
    assert lines(tmp_path / "gt")[0].labels == ("owl",)
    exported(classified, "csv", tmp_path / "all.csv", opened={"all_runs": True})
    assert [row["label"] for row in rows_of(tmp_path / "all.csv")] == ["owl", "cat", "dog", "dog", ""]
    with pytest.raises(UsageError, match="one row for each image; omit --all-runs"):
        exported(classified, "coco", tmp_path / "coco", opened={"all_runs": True})


def test_a_large_root_is_read_in_parts(classified, tmp_path, monkeypatch):
    exported(classified, "csv", tmp_path / "whole.csv")
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 1)
    monkeypatch.setattr(module, "_BATCH_ROWS", 1)
    exported(classified, "csv", tmp_path / "parts.csv")
    whole, parts = ((tmp_path / name).read_text().splitlines() for name in ("whole.csv", "parts.csv"))
    assert sorted(parts) == sorted(whole)


def test_the_size_in_the_scored_manifest_is_used(tmp_path):
    root = Root(tmp_path / "out")
    extra = {
        "B": {"image_size": [{"width": 640, "height": 480, "depth": 3}], "annotations": []},
        "B-metadata": {"objects": [], "class-map": {}, "type": "groundtruth/object-detection"},
    }
    image = s3_image("s3://nowhere/1.jpg", extra=json.dumps(extra))
    root.results(Scored(image=image, labels=(CAT,), attempts=1, latency_ms=1, request_id="r", scored_at=NOON))
    exported(root, "ground-truth", tmp_path / "gt")
    assert (lines(tmp_path / "gt")[0].image_size, lines(tmp_path / "gt")[0].boxes[0].width) == ((640, 480), 192)


def test_sizes_are_read_from_s3(tmp_path, folder, seaweed, monkeypatch):
    for name, value in aws_env(s3=seaweed).items():
        monkeypatch.setenv(name, value)
    s3 = client("s3", seaweed)
    make_bucket(s3, "sizes")
    big_header = picture(folder / "1.jpg", orientation=8)
    data = big_header.read_bytes()
    comment = b"\xff\xfe\xff\xff" + b"x" * 65533
    s3.put_object(Bucket="sizes", Key="1.jpg", Body=data[:2] + comment * 2 + data[2:])
    s3.put_object(Bucket="sizes", Key="2.jpg", Body=b"no image")
    s3.put_object(Bucket="sizes", Key="4.jpg", Body=b"")
    root = Root(tmp_path / "out")
    root.results(*(scored(f"s3://sizes/{n}.jpg", CAT) for n in range(1, 5)))
    done = run_command(f"export coco {root} --out {tmp_path / 'coco'}")
    assert done.code == 3, done.err
    assert re.findall(r"skipped s3://sizes/(\d).jpg: (.*?)[:;\n]", done.err) == [
        ("2", "its size can't be read"),
        ("3", "it can't be read from S3"),
        ("4", "it can't be read from S3"),
    ]
    with redirect_stdout(StringIO()):
        coco = COCO(str(tmp_path / "coco" / "instances.json"))
    assert [(each["width"], each["height"]) for each in coco.dataset["images"]] == [SIZE[::-1]]


def test_reading_sizes_without_credentials_is_refused(tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    root = Root(tmp_path / "out")
    root.results(scored("s3://b/1.jpg", CAT))
    with pytest.raises(CredentialsError):
        exported(root, "coco", tmp_path / "coco", aws=Aws())
    assert not (tmp_path / "coco").exists()


@pytest.mark.parametrize("form", EXPORT_FORMATS)
def test_an_export_is_complete_or_not_there(boxed, tmp_path, form, monkeypatch):
    out = tmp_path / "new" / "export"
    exported(boxed, form, out)
    before = {path: path.read_bytes() for path in [out, *out.rglob("*")] if path.is_file()}
    with pytest.raises(UsageError, match=r"it exists; name a new location, or .*--overwrite"):
        exported(boxed, form, out)
    with monkeypatch.context() as broken:
        broken.setattr(module, "_scored", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            exported(boxed, form, out, overwrite=True)
    assert {path: path.read_bytes() for path in [out, *out.rglob("*")] if path.is_file()} == before
    exported(boxed, form, out, overwrite=True, where="label = 'dog'")
    after = {path: path.read_bytes() for path in [out, *out.rglob("*")] if path.is_file()}
    assert after != before
    assert os.listdir(out.parent) == ["export"], "nothing else is left"


def test_foreign_files_are_never_replaced(boxed, folder, tmp_path):
    for out in (folder, tmp_path / "out" / "new", tmp_path / "out"):
        with pytest.raises(UsageError, match=r"not of an earlier export|in the output root"):
            exported(boxed, "coco", out, overwrite=True)
    with pytest.raises(UsageError, match="csv is a file, and there is something else"):
        exported(boxed, "csv", folder, overwrite=True)
    assert "written to disk; copy it to S3" in run_command(f"export csv {boxed} --out s3://b/x").err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("coco --relative-to /elsewhere", "is not below /elsewhere; name a folder that has all images"),
        ("coco --where confidence>100", "no scored image that matches|no image"),
        ("csv --image-size 9x9", "--image-size does not apply to csv"),
        ("coco --image-size 9", "'9' is not a size; write it as 1920x1080"),
        ("coco --where nonsense>1", "the columns are"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(boxed, tmp_path, words, sentence):
    done = run_command(f"export {words} {boxed} --out {tmp_path / 'new'}")
    assert done.code == 2
    assert re.search(sentence, done.err)
    assert not (tmp_path / "new").exists()


def test_results_of_several_models_are_refused_where_a_format_has_one(classified, tmp_path):
    classified.results(scored("s3://b/x/1.jpg"), model="cats@v2", run_id="r2")
    with pytest.raises(UsageError, match="2 models, cats@v1, cats@v2; choose one with --model"):
        exported(classified, "ground-truth", tmp_path / "gt")
    exported(classified, "ground-truth", tmp_path / "gt", opened={"model": "cats@v2"})
    assert len(lines(tmp_path / "gt")) == 1


def test_yolo_without_boxes_is_refused(classified, tmp_path):
    with pytest.raises(UsageError, match="no boxes, and YOLO has no labels of whole images"):
        exported(classified, "yolo", tmp_path / "yolo")


def test_an_export_of_an_image_that_is_gone_says_so(boxed, folder, tmp_path):
    (folder / "a" / "1.png").unlink()
    done = run_command(f"export cvat {boxed} --out {tmp_path / 'x.xml'} --json")
    assert done.code == 3
    assert [(Path(each["uri"]).name, each["reason"]) for each in done.json["skipped"]] == [
        ("1.png", "it can't be read: No such file or directory")
    ]
    assert len(images_of(tmp_path / "x.xml")) == 3
    compressed = tmp_path / "x.xml.gz"
    compressed.write_bytes(gzip.compress((tmp_path / "x.xml").read_bytes()))
    assert len(images_of(compressed)) == 3


def test_a_label_that_xml_cannot_have_is_refused(tmp_path):
    root = Root(tmp_path / "out")
    root.results(scored("s3://b/1.jpg", Label("a\x00b", 50, (0, 0, 1, 1))))
    for form in ("cvat", "label-studio"):
        with pytest.raises(UsageError, match="characters that XML can't have; export another format"):
            exported(root, form, tmp_path / form, image_size=SIZE)
    exported(root, "coco", tmp_path / "coco", image_size=SIZE)
