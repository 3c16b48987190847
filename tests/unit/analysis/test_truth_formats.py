"""`evaluate --truth` with the files of labelling tools and with a folder per label: the same metrics as a manifest."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from batchcl.analysis.evaluate import evaluate
from batchcl.analysis.results import open_results
from batchcl.analysis.truth import Truth, read_truth
from batchcl.errors import SourceError, UsageError
from batchcl.outcomes import Label
from commands import run_command
from unit.analysis.conftest import Root, scored

TRUE = {"s3://b/photos/cat/1.jpg": "cat", "s3://b/photos/cat/2.jpg": "cat", "s3://b/photos/dog/3.jpg": "dog"}


@pytest.fixture
def results(tmp_path: Path) -> Root:
    """Three images of which one is wrong, and one without truth."""
    root = Root(tmp_path / "out")
    found = dict(zip(TRUE, ("cat", "dog", "dog"), strict=True)) | {"s3://b/photos/dog/4.jpg": "dog"}
    root.results(*(scored(uri, Label(label, 90)) for uri, label in found.items()))
    return root


def coco(names: dict[str, str]) -> dict[str, Any]:
    return {
        "images": [{"id": at, "file_name": name} for at, name in enumerate(names)],
        "annotations": [{"image_id": at, "category_id": label} for at, label in enumerate(names.values())],
        "categories": [{"id": label, "name": label} for label in ("cat", "dog")],
    }


def label_studio(names: dict[str, str]) -> list[dict[str, Any]]:
    choices = ({"type": "choices", "to_name": "image", "value": {"choices": [label]}} for label in names.values())
    return [
        {"data": {"image": name}, "annotations": [{"result": [choice]}]}
        for name, choice in zip(names, choices, strict=True)
    ]


def cvat(names: dict[str, str]) -> bytes:
    images = (f'<image name="{name}"><tag label="{label}"/></image>' for name, label in names.items())
    return f"<annotations>{''.join(images)}</annotations>".encode()


def folders(path: Path, names: dict[str, str]) -> Path:
    for name, label in names.items():
        (path / label).mkdir(parents=True, exist_ok=True)
        (path / label / name.rpartition("/")[2]).touch()
    (path / "cat" / "notes.txt").touch()
    return path


def summary(root: Root, truth: Truth) -> dict[str, Any]:
    return evaluate(open_results(str(root)), truth).summary


def read(root: Root, path: Path, **more: Any) -> Truth:
    return read_truth(path, images=open_results(str(root)).images(), **more)


def relative(names: dict[str, str], start: str) -> dict[str, str]:
    return {name.removeprefix(start): label for name, label in names.items()}


@pytest.mark.parametrize(
    ("start", "relative_to", "matches"),
    [
        ("", None, (3, 0, 0)),
        ("s3://b/", None, (0, 3, 0)),
        ("s3://b/photos/", "s3://b/photos", (3, 0, 0)),
    ],
)
@pytest.mark.parametrize("form", [coco, label_studio, cvat])
def test_names_are_found_in_the_results(results, tmp_path, form, start, relative_to, matches):
    content = form(relative(TRUE, start))
    path = tmp_path / "truth"
    path.write_bytes(content if isinstance(content, bytes) else orjson.dumps(content))
    truth = read(results, path, relative_to=relative_to)
    assert truth.matches is not None
    assert (truth.matches.exact, truth.matches.by_path, truth.matches.by_name) == matches
    found = summary(results, truth)
    expected = {"images": 3, "missing": 0, "extra": 1, "top_label_accuracy": 2 / 3, "matched_by_path": matches[1]}
    assert found | expected == found


def test_a_folder_per_label_is_matched_by_path_or_file_name(results, tmp_path):
    names = {**relative(TRUE, "s3://b/photos/"), "owl/5.jpg": "owl"}
    truth = read(results, folders(tmp_path / "truth", names))
    assert truth.matches is not None
    assert (truth.matches.exact, truth.matches.by_path, truth.matches.by_name) == (0, 3, 0)
    found = summary(results, truth)
    assert (found["missing"], Path(found["missing_examples"][0]).name) == (1, "5.jpg")
    sorted_anew = {"1.jpg": "kitten", "3.jpg": "puppy"}
    truth = read(results, folders(tmp_path / "other" / "x", {**sorted_anew, "cat": "cat"}))
    assert truth.matches is not None
    assert truth.matches.by_name == 2
    assert summary(results, truth)["matched_by_name"] == 2


def test_a_folder_per_label_with_the_scored_files_is_exact(tmp_path):
    root = Root(tmp_path / "out")
    photos = folders(tmp_path / "photos" / "train", {"1.jpg": "cat"}).parent
    folders(photos / "test", {"1.jpg": "cat"})
    for kind in ("train", "test"):
        image = scored(str(photos / kind / "cat" / "1.jpg"), Label("cat", 90))
        root.results(image, first=len(kind))
    found = summary(root, read(root, photos))
    assert (found["images"], found["matched_by_path"], found["macro_f1"]) == (2, 0, 1), "train and test are not labels"


def test_a_name_that_fits_several_results_is_refused(results, tmp_path):
    results.results(scored("s3://b/elsewhere/3.jpg"), first=1)
    path = tmp_path / "truth.json"
    path.write_bytes(orjson.dumps(coco({"3.jpg": "dog"})))
    done = run_command(f"evaluate {results} --truth {path}")
    assert done.code == 2
    assert "the image 3.jpg can't be identified: it is the end of 2 URIs" in done.err
    assert "--relative-to" in done.err
    done = run_command(f"evaluate {results} --truth {path} --relative-to s3://b/photos/dog --json")
    assert (done.code, done.json["summary"]["images"]) == (0, 1), done.err


@pytest.mark.parametrize("content", [cvat(TRUE), b'{"source-ref":"s3://b/photos/cat/1.jpg","a":1,"a-metadata":%s}'])
def test_a_pipe_is_read_once(results, tmp_path, content):
    metadata = orjson.dumps({"class-name": "cat", "type": "groundtruth/image-classification"})
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(content.replace(b"%s", metadata),))
    writer.start()
    assert summary(results, read(results, pipe))["missing"] == 0
    writer.join()


def test_bad_entries_are_refused_or_counted(results, tmp_path):
    path = tmp_path / "truth.json"
    path.write_bytes(orjson.dumps([*label_studio(TRUE), {"id": 7, "data": {}}]))
    with pytest.raises(SourceError, match=r"task 7: it names no image; skip such entries with --skip-bad-lines"):
        read(results, path)
    found = summary(results, read(results, path, skip_bad_lines=True))
    assert (found["images"], found["bad_lines"], found["bad_line_examples"]) == (3, 1, ["task 7: it names no image"])


def test_options_of_manifests_are_refused_for_other_formats(results, tmp_path):
    path = tmp_path / "truth"
    path.write_bytes(cvat(TRUE))
    with pytest.raises(UsageError, match="--attribute selects an attribute of a manifest"):
        read(results, path, attribute="label")
    path.write_bytes(b'{"source-ref":"s3://b/1.jpg"}')
    with pytest.raises(UsageError, match="--relative-to does not apply to the manifest"):
        read(results, path, relative_to="s3://b")
    assert run_command(f"evaluate {results} --relative-to s3://b").code == 2


def test_a_truth_without_labels_or_common_images_is_refused(results, tmp_path):
    path = tmp_path / "truth"
    path.write_bytes(orjson.dumps([{"data": {"image": "1.jpg"}, "annotations": []}]))
    with pytest.raises(SourceError, match=r"the Label Studio file .* has no image with labels: 1 image without labels"):
        read(results, path)
    path.write_bytes(cvat({"nowhere.jpg": "cat"}))
    with pytest.raises(UsageError, match=r"none of the 1 images of the truth has a result.*with --relative-to"):
        summary(results, read(results, path))
