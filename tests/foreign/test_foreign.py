"""The tools that exports are for read them, and batchcl reads what the tools write. Spark reads the tables.

`make foreign` runs these tests with a virtual environment of their own, because the tools' requirements conflict with
batchcl's. `tools.py` is what runs there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest
from PIL import Image

from batchcl.analysis.evaluate import evaluate
from batchcl.analysis.export_annotations import export_annotations
from batchcl.analysis.results import open_results
from batchcl.analysis.truth import read_truth
from batchcl.annotations import AnnotatedImage, annotation_format, read_annotations
from batchcl.groundtruth import TruthBox
from batchcl.outcomes import Label, Scored
from batchcl.sources.base import local_image
from unit.analysis.conftest import NOON, Root
from unit.analysis.test_reading_page import PAGE, three_nights

TOOLS = Path(__file__).with_name("tools.py")
SIZE = (200, 100)
CAT = Label("cat", 90, (0.1, 0.2, 0.3, 0.4))
DOG = Label("dog & <owl>", 60.5, (0.5, 0.25, 0.5, 0.75))


def foreign(function: str, *paths: object) -> Any:
    done = subprocess.run(
        [os.environ["BATCHCL_FOREIGN_PYTHON"], str(TOOLS), function, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def images_of(path: Path) -> dict[str, AnnotatedImage]:
    form = annotation_format(path, str(path))
    assert form is not None
    return {
        each.references[-1]: each
        for each in read_annotations(path, str(path), form)
        if isinstance(each, AnnotatedImage)
    }


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("a/1.png", "a/2.png", "3.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(folder / name)
    return folder


def root_of(tmp_path: Path, photos: Path, labels: dict[str, tuple[Label, ...]]) -> Root:
    root = Root(tmp_path / "out")
    rows = [
        Scored(
            image=local_image(str(photos / name)), labels=each, attempts=1, latency_ms=1, request_id="r", scored_at=NOON
        )
        for name, each in labels.items()
    ]
    root.results(*rows)
    return root


@pytest.fixture
def boxed(tmp_path: Path, photos: Path) -> Root:
    return root_of(tmp_path, photos, {"a/1.png": (CAT, DOG), "a/2.png": (CAT,), "3.png": ()})


@pytest.fixture
def classified(tmp_path: Path, photos: Path) -> Root:
    labels = {"a/1.png": (Label("cat", 99), Label("dog", 40)), "a/2.png": (Label("dog", 70),)}
    return root_of(tmp_path, photos, labels)


def exported(root: Root, form: Any, out: Path) -> Path:
    async def work() -> None:
        await export_annotations(open_results(str(root)), form, out, relative_to=str(root.path.parent / "photos"))

    anyio.run(work)
    return out


def rounded(found: dict[str, list[list[Any]]]) -> dict[str, list[list[Any]]]:
    return {
        name: [[round(each, 3) if isinstance(each, float) else each for each in box] for box in boxes]
        for name, boxes in found.items()
    }


BOXES = {
    "a/1.png": [["cat", 20, 20, 80, 60], ["dog & <owl>", 100, 25, 200, 100]],
    "a/2.png": [["cat", 20, 20, 80, 60]],
    "3.png": [],
}


def test_the_versions_of_the_tools():
    print(foreign("versions"))  # noqa: T201 - for the record of a run


def test_supervision_reads_coco_and_yolo(boxed, photos, tmp_path):
    assert rounded(foreign("supervision_coco", exported(boxed, "coco", tmp_path / "coco"), photos)) == BOXES
    found = rounded(foreign("supervision_yolo", exported(boxed, "yolo", tmp_path / "yolo"), photos))
    assert found == {name: boxes for name, boxes in BOXES.items() if name != "3.png"}


def test_datumaro_reads_cvat(boxed, photos, tmp_path):
    task = tmp_path / "task"
    shutil.copytree(photos, task / "images")
    exported(boxed, "cvat", task / "annotations.xml")
    assert rounded(foreign("datumaro_cvat", task)) == {
        "a/1": [["cat", 20, 20, 80, 60, "90.00"], ["dog & <owl>", 100, 25, 200, 100, "60.50"]],
        "a/2": [["cat", 20, 20, 80, 60, "90.00"]],
        "3": [],
    }


def test_datumaro_reads_tags_of_cvat(classified, photos, tmp_path):
    task = tmp_path / "task"
    shutil.copytree(photos, task / "images")
    exported(classified, "cvat", task / "annotations.xml")
    assert foreign("datumaro_cvat", task) == {
        "a/1": [["cat", "99.00"], ["dog", "40.00"]],
        "a/2": [["dog", "70.00"]],
    }


def test_label_studio_accepts_and_converts_tasks_with_boxes(boxed, tmp_path):
    tasks = exported(boxed, "label-studio", tmp_path / "tasks")
    assert foreign("label_studio", tasks, tmp_path) == []
    converted = images_of(tmp_path / "coco" / "result.json")
    assert [sorted(each.truth.boxes, key=lambda box: box.label) for each in converted.values()][1] == [
        TruthBox("cat", 20, 20, 60, 40),
        TruthBox("dog & <owl>", 100, 25, 100, 75),
    ]
    results = open_results(str(boxed))
    for path in (tmp_path / "export.json", tmp_path / "coco" / "result.json"):
        truth = read_truth(path, images=results.images(), relative_to=None)
        summary = evaluate(results, truth).summary
        assert (summary["images"], summary["missing"]) == (3, 0)
        assert (summary["macro_f1"], summary["mean_average_precision"]) == (1, 1)


def test_label_studio_accepts_tasks_with_choices(classified, tmp_path):
    tasks = exported(classified, "label-studio", tmp_path / "tasks")
    assert foreign("label_studio", tasks, tmp_path) == []
    assert [each.truth.labels for each in images_of(tmp_path / "export.json").values()] == [("cat", "dog"), ("dog",)]
    assert json.loads((tmp_path / "result.json").read_text())[1]["choice"] == "dog"


def test_what_datumaro_writes_is_read(photos, tmp_path):
    foreign("datumaro_write", tmp_path, photos)
    boxes = {"a/1.png": (TruthBox("cat", 20, 20, 60, 40),), "3.png": (TruthBox("dog", 1, 2, 30, 40),)}
    (coco,) = (tmp_path / "coco" / "annotations").glob("*.json")
    (cvat,) = (tmp_path / "cvat").glob("*.xml")
    for path in (coco, cvat):
        assert {name: each.truth.boxes for name, each in images_of(path).items()} == boxes
    (tags,) = (tmp_path / "cvat-tags").glob("*.xml")
    assert {name: each.truth.labels for name, each in images_of(tags).items()} == {"a/1.png": ("dog",)}


def test_spark_and_pandas_read_the_tables_as_docs_reading_says(tmp_path):
    results = open_results(str(three_nights(tmp_path)))
    views = {"images": results.images(), "detections": results.detections(), "unresolved": results.failures()}
    columns = ["uri", "version_id", "run_id", "model", "date"]
    assert foreign("spark", PAGE, tmp_path, *columns) == {
        name: sorted([str(value) for value in row] for row in frame.select(columns).collect().rows())
        for name, frame in views.items()
    }
    assert foreign("pandas", PAGE, tmp_path) == 8
