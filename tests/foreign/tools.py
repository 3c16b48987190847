"""Reads and writes files with the tools that they are for; run by tests/foreign with a Python that has these packages.

    python tools.py FUNCTION PATH…

The result is JSON, on the last line of stdout.
"""

from __future__ import annotations

import json
import os
import re
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("datumaro", "label-studio-sdk", "pandas", "pyspark", "supervision")}


def supervision_coco(folder: str, images: str) -> Any:
    import supervision

    found = supervision.DetectionDataset.from_coco(
        images_directory_path=images, annotations_path=f"{folder}/instances.json"
    )
    return _supervised(found, images)


def supervision_yolo(folder: str, images: str) -> Any:
    import supervision

    found = supervision.DetectionDataset.from_yolo(
        images_directory_path=f"{images}/a",
        annotations_directory_path=f"{folder}/labels/a",
        data_yaml_path=f"{folder}/data.yaml",
    )
    return _supervised(found, images)


def _supervised(dataset: Any, images: str) -> Any:
    return {
        str(Path(path).relative_to(images)): [
            [dataset.classes[label], *map(float, box)] for label, box in zip(found.class_id, found.xyxy, strict=True)
        ]
        for path, _, found in dataset
    }


def datumaro_cvat(folder: str) -> Any:
    """Boxes as corners; tags without."""
    from datumaro.components.dataset import Dataset

    dataset = Dataset.import_from(folder, "cvat")
    names = [label.name for label in next(iter(dataset.categories().values())).items]
    return {
        item.id: [
            [names[each.label], *map(float, getattr(each, "points", [])), str(each.attributes["confidence"])]
            for each in item.annotations
        ]
        for item in dataset
    }


def datumaro_write(folder: str, images: str) -> None:
    """Write a dataset of two images as COCO and CVAT."""
    from datumaro.components.annotation import Bbox, Label
    from datumaro.components.dataset import Dataset
    from datumaro.components.dataset_base import DatasetItem
    from datumaro.components.media import Image

    items = [
        DatasetItem("a/1", media=Image.from_file(f"{images}/a/1.png"), annotations=[Bbox(20, 20, 60, 40, label=0)]),
        DatasetItem("3", media=Image.from_file(f"{images}/3.png"), annotations=[Bbox(1, 2, 30, 40, label=1)]),
    ]
    Dataset.from_iterable(items, categories=["cat", "dog"]).export(f"{folder}/coco", "coco_instances")
    Dataset.from_iterable(items, categories=["cat", "dog"]).export(f"{folder}/cvat", "cvat")
    tags = [DatasetItem("a/1", media=Image.from_file(f"{images}/a/1.png"), annotations=[Label(1)])]
    Dataset.from_iterable(tags, categories=["cat", "dog"]).export(f"{folder}/cvat-tags", "cvat")


def label_studio(folder: str, out: str) -> Any:
    """The errors of the predictions; writes the tasks as an annotator submits them, and their conversion to COCO."""
    from label_studio_sdk.converter import Converter
    from label_studio_sdk.label_interface import LabelInterface

    config = Path(folder, "config.xml").read_text(encoding="utf-8")
    tasks = json.loads(Path(folder, "tasks.json").read_text(encoding="utf-8"))
    interface = LabelInterface(config)
    interface.validate()
    errors = []
    for number, task in enumerate(tasks, 1):
        errors += [interface.validate_prediction(each, return_errors=True) for each in task["predictions"]]
        results = [{**each, "original_width": 200, "original_height": 100} for each in task["predictions"][0]["result"]]
        task |= {"id": number, "annotations": [{"id": number, "completed_by": 1, "result": results}]}
        assert interface.validate_annotation(task["annotations"][0])
    exported = Path(out, "export.json")
    exported.write_text(json.dumps(tasks), encoding="utf-8")
    converter = Converter(config=config, project_dir=out)
    if "RectangleLabels" in config:
        converter.convert_to_coco(str(exported), f"{out}/coco", is_dir=False)
    converter.convert_to_json_min(str(exported), out, is_dir=False)
    return [error for each in errors for error in each]


def spark(page: str, folder: str, *columns: str) -> dict[str, list[list[str]]]:
    """Rows of the views of `page`, a page with blocks of Python and SQL, over the root `out` in `folder`."""
    os.chdir(folder)
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", Path(page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for kind, code in blocks:
        if kind == "python" and "spark" in code:
            exec(code, names)
    assert names["night"].columns[-2:] == ["model", "date"]
    views: dict[str, str] = {}
    for kind, code in blocks:
        if kind == "sql" and (found := re.match(r"CREATE OR REPLACE (?:TEMPORARY )?VIEW (\w+)", code)):
            views.setdefault(found[1], code.replace("REPLACE VIEW", "REPLACE TEMPORARY VIEW"))
    for name in ("images", "detections", "unresolved"):
        names["spark"].sql(views[name])
    return {
        name: sorted([str(value) for value in row] for row in names["spark"].table(name).select(*columns).collect())
        for name in views
    }


def pandas(page: str, folder: str) -> int:
    """The number of rows that the line of `page` reads."""
    os.chdir(folder)
    line = re.findall(r"`(pandas\.read_parquet\(.*\))`", Path(page).read_text(encoding="utf-8"))[0]
    return len(eval(line, {"pandas": import_module("pandas")}))


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*sys.argv[2:])))
