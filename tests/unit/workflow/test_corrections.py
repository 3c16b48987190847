"""Files of labelling tools compared with a dataset: what is new, changed, unchanged, and what can't be used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from PIL import Image

from batchcl.arns import DatasetArn
from batchcl.cli.dataset_local import _report_corrections
from batchcl.errors import SourceError, UsageError
from batchcl.groundtruth import TruthBox, detection_attribute, parse_line
from batchcl.workflow import Corrections, S3Folder, read_corrections, read_local
from batchcl.workflow.corrections import Change
from batchcl.workflow.manifest import manifest_line
from commands import run_command

ARN = DatasetArn.parse("arn:aws:rekognition:eu-west-1:123456789012:project/cats/dataset/train/1700000000000")
TO = S3Folder("photos", "cats")
SIZE = (200, 100)


class FakeDataset:
    """A Rekognition client that only lists the entries of one dataset."""

    def __init__(self, *lines: dict[str, Any]) -> None:
        self._lines = [orjson.dumps(line).decode() for line in lines]

    def get_paginator(self, operation: str) -> FakeDataset:
        assert operation == "list_dataset_entries"
        return self

    async def paginate(self, **_: Any) -> AsyncIterator[dict[str, Any]]:
        yield {"DatasetEntries": self._lines}


def labelled(uri: str, *labels: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"source-ref": uri}
    for at, label in enumerate(labels):
        entry |= {f"l{at}": 1, f"l{at}-metadata": {"class-name": label, "type": "groundtruth/image-classification"}}
    return entry


def boxed(uri: str, *boxes: TruthBox) -> dict[str, Any]:
    return {"source-ref": uri, **detection_attribute("boxes", boxes, SIZE)}


def coco(*images: tuple[str, Any]) -> dict[str, Any]:
    """Images with the labels of the whole image, or with boxes."""
    names = ["cat", "dog", "owl"]
    annotations: list[dict[str, Any]] = []
    for at, (_, labels) in enumerate(images):
        for label in labels:
            box = {} if isinstance(label, str) else {"bbox": list(label[1:])}
            name = label if isinstance(label, str) else label[0]
            annotations.append({"image_id": at, "category_id": names.index(name), **box})
    return {
        "images": [{"id": at, "file_name": name, "width": 200, "height": 100} for at, (name, _) in enumerate(images)],
        "annotations": annotations,
        "categories": [{"id": at, "name": name} for at, name in enumerate(names)],
    }


def compared(path: Path, *dataset: dict[str, Any], relative_to: Path | str | None = None, to: Any = TO) -> Corrections:
    base = None if relative_to is None else str(relative_to)

    async def work() -> Corrections:
        return await read_corrections(FakeDataset(*dataset), ARN, path, relative_to=base, to=to)

    return anyio.run(work)


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(content: Any, name: str = "tool/file.json") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(content if isinstance(content, bytes) else orjson.dumps(content))
        return path

    return write


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", SIZE, shade).save(path)
    return path


def test_only_new_and_changed_entries_remain(written, tmp_path):
    picture(tmp_path / "tool" / "b" / "new.png")
    found = compared(
        written(
            coco(
                ("a/1.png", ["cat"]), ("2.png", ["dog", "cat"]), ("s3://photos/3.png", ["owl"]), ("b/new.png", ["cat"])
            )
        ),
        labelled("s3://photos/cats/a/1.png", "dog"),
        labelled("s3://photos/x/2.png", "cat", "dog"),
        labelled("s3://photos/other.png", "owl"),
    )
    assert found.changes == (
        Change("changed", "s3://photos/cats/a/1.png", ("dog",), ("cat",)),
        Change("new", "s3://photos/3.png", None, ("owl",)),
        Change("new", "b/new.png", None, ("cat",)),
    )
    assert (found.unchanged, found.unlabelled, found.local.skipped) == (1, 0, ())
    assert [(entry.uri, entry.image and entry.image.key) for entry in found.local.entries] == [
        ("s3://photos/cats/a/1.png", None),
        ("s3://photos/3.png", None),
        (None, "b/new.png"),
    ]


def test_a_file_that_was_uploaded_is_compared_with_its_entry(written, tmp_path):
    picture(tmp_path / "tool" / "1.png")
    path = written(coco(("1.png", ["cat"])))
    dataset = [labelled("s3://photos/cats/1.png", "cat"), labelled("s3://photos/z/1.png", "dog")]
    assert (compared(path, *dataset).unchanged, compared(path, *dataset).changes) == (1, ())


def test_boxes_are_whole_pixels_and_equal_within_one(written):
    def dataset(left: float) -> dict[str, Any]:
        return boxed("s3://photos/1.png", TruthBox("cat", left, 20, 30, 40), TruthBox("cat", 0, 0, 9, 9))

    path = written(coco(("s3://photos/1.png", [("cat", -0.3, 0, 9.3, 9.1), ("cat", 10.4, 20.2, 30, 39.6)])))
    assert compared(path, dataset(11)).unchanged == 1
    (entry,) = compared(path, dataset(13)).local.entries
    truth = parse_line(orjson.dumps({"source-ref": "x", **(entry.attributes or {})}))
    assert truth.boxes == (TruthBox("cat", 0, 0, 9, 9), TruthBox("cat", 10, 20, 30, 40))
    assert truth.image_size == SIZE


def test_removed_labels_become_an_entry_without_labels(written):
    found = compared(
        written(coco(("s3://photos/1.png", []), ("s3://photos/2.png", []), ("s3://photos/3.png", []))),
        boxed("s3://photos/1.png", TruthBox("cat", 10, 20, 30, 40)),
        {"source-ref": "s3://photos/3.png"},
    )
    assert found.changes == (Change("changed", "s3://photos/1.png", ("cat",), ()),)
    assert (found.unchanged, found.unlabelled) == (1, 1)
    (entry,) = found.local.entries
    line = manifest_line(str(entry.uri), labels=entry.labels, attributes=entry.attributes, created=None)  # type: ignore[arg-type]
    assert orjson.loads(line) == {"source-ref": "s3://photos/1.png"}


def test_names_are_relative_to_a_folder_or_prefix(written, tmp_path):
    path = written(coco(("a/1.png", ["cat"])))
    picture(tmp_path / "photos" / "a" / "1.png")
    (local,) = compared(path, relative_to=tmp_path / "photos").local.entries
    assert (local.image and local.image.path, local.name) == (tmp_path / "photos" / "a" / "1.png", "a/1.png")
    (remote,) = compared(path, relative_to="s3://photos/2026/").local.entries
    assert remote.uri == "s3://photos/2026/a/1.png"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../secret.png", "../secret.png is not below"),
        ("a/../../secret.png", "is not below"),
        ("/etc/hostname", "is not below"),
        ("file:///etc/hostname", "is not below"),
        ("missing.png", "neither in the dataset nor a file below"),
        ("text.png", "not a PNG or JPEG"),
    ],
)
def test_an_image_that_cannot_be_used_is_reported(written, tmp_path, name, reason):
    picture(tmp_path / "secret.png")
    picture(tmp_path / "tool" / "good.png")
    (tmp_path / "tool" / "text.png").write_text("x" * 99)
    found = compared(written(coco((name, ["cat"]), ("good.png", ["cat"]))))
    assert [entry.name for entry in found.local.entries] == ["good.png"]
    (skipped,) = found.local.skipped
    assert reason in skipped.reason
    assert skipped.path.endswith("file.json, image 0")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([("cat", 150, 20, 90, 40)], "outside of the image of 200 by 100 pixels"),
        ([("cat", 1, 1, 0.4, 9)], "by 8 pixels|0 by|too small"),
        ([("cat", 1, 1, 9, 9), "dog"], "the label 'dog' has no box"),
    ],
)
def test_labels_that_cannot_be_used_are_reported(written, labels, reason):
    found = compared(written(coco(("s3://photos/1.png", labels), ("s3://photos/2.png", [("cat", 1, 1, 50, 50)]))))
    (skipped,) = found.local.skipped
    assert any(each in skipped.reason for each in reason.split("|")), skipped
    assert len(found.local.entries) == 1


def test_an_image_that_is_named_twice_is_reported(written):
    found = compared(written(coco(("s3://photos/1.png", ["cat"]), ("s3://photos/1.png", ["dog"]))))
    assert [each.code for each in found.local.skipped] == ["Repeated"]


def test_names_that_fit_several_entries_are_refused(written):
    dataset = [labelled(f"s3://photos/{folder}/1.png", "cat") for folder in "ab"]
    with pytest.raises(SourceError, match=r"the image 1\.png can't be identified"):
        compared(written(coco(("1.png", ["dog"]))), *dataset)


def test_a_file_name_alone_never_replaces_labels(written):
    with pytest.raises(SourceError, match=r"no image that can be used: 1 can't be used.*neither in the dataset"):
        compared(written(coco(("x/1.png", ["dog"]))), labelled("s3://photos/a/1.png", "cat"))


def test_images_of_another_bucket_are_refused(written):
    path = written(coco(("s3://elsewhere/1.png", ["cat"])))
    with pytest.raises(SourceError, match="those of cats/train are in photos, and the file has images in elsewhere"):
        compared(path, labelled("s3://photos/1.png", "cat"))


def test_a_manifest_is_compared_too(written):
    lines = [labelled("s3://photos/1.png", "cat"), labelled("s3://photos/2.png", "owl")]
    path = written(b"\n".join(map(orjson.dumps, lines)))
    found = compared(path, labelled("s3://photos/1.png", "cat"), labelled("s3://photos/2.png", "cat"))
    assert found.changes == (Change("changed", "s3://photos/2.png", ("cat",), ("owl",)),)
    with pytest.raises(UsageError, match="--relative-to does not apply"):
        compared(path, relative_to="x")


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is a directory; pass it without --from"):
        compared(tmp_path)


def test_what_cannot_be_used_is_refused_unless_skipped(written, capsys):
    path = written(coco(("missing.png", ["cat"]), ("s3://photos/2.png", ["cat"]), ("s3://photos/3.png", [])))
    found = compared(path)
    with pytest.raises(SourceError, match=r"1 files or lines can't be used.*missing\.png.*--skip-invalid"):
        _report_corrections(found, "FILE", "cats/train", skip_invalid=False)
    _report_corrections(found, "FILE", "cats/train", skip_invalid=True)
    said = capsys.readouterr().err
    assert "FILE compared with cats/train: 1 new, 0 changed, 0 unchanged" in said
    assert "images without labels ignored: 1" in said
    assert "skipped" in said


@pytest.mark.parametrize("words", ["", "photos --from x.json", "photos --dry-run", "photos --relative-to x"])
def test_one_source_is_required(words):
    done = run_command(f"dataset update cats/train {words}")
    assert done.code == 2
    assert "--from" in done.err


def test_a_file_of_a_tool_is_not_taken_for_a_manifest(written):
    with pytest.raises(SourceError, match=r"it is a file of COCO, not a manifest.*dataset update DATASET --from FILE"):
        read_local(written(coco(("1.png", ["cat"]))))
