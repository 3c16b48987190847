"""Datasets created from manifests, folders and CSV files, with the mistakes that users make in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from commands import run_command
from servers import aws_env, client, make_bucket, wait_for
from unit.emulator.harness import running_server

BUCKET = "photos-of-datasets"
LABELS = ("cat", "dog", "bird")
ORIGIN = {"human-annotated": "yes", "creation-date": "2026-01-01T00:00:00.000000", "job-name": "labeling-job/job"}
SINGLE = "groundtruth/image-classification"


@pytest.fixture(scope="module")
def endpoint(seaweed, demo):
    s3 = client("s3", seaweed)
    make_bucket(s3, BUCKET)
    for n, path in enumerate(sorted(demo.data.images.iterdir())[:30]):
        s3.put_object(Bucket=BUCKET, Key=f"demo/{n:05}.png", Body=path.read_bytes())
    with pytest.MonkeyPatch.context() as environment:
        for name, value in aws_env().items():
            environment.setenv(name, value)
        with running_server(s3_endpoint_url=seaweed, train_seconds=0) as running:
            yield running.endpoint


@pytest.fixture(autouse=True)
def aws(endpoint, seaweed, monkeypatch, tmp_path) -> None:
    for name, value in aws_env(endpoint, seaweed).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def project(request) -> str:
    name = request.node.name.removeprefix("test_").replace("[", "-").rstrip("]").replace(" ", "-")[:60].rstrip("-")
    assert run_command("", "project", "create", name).code == 0
    return str(name)


def manifest(path: Path, lines: list[dict[str, Any]]) -> Path:
    entries = [{"source-ref": f"s3://{BUCKET}/demo/{n:05}.png"} | line for n, line in enumerate(lines)]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def multilabel(n: int) -> dict[str, Any]:
    ids = [0] if n % 3 else [1, 2]
    names = {str(each): LABELS[each] for each in ids}
    metadata = {"class-map": names, "confidence-map": dict.fromkeys(names, 0.9), **ORIGIN}
    return {"job": ids, "job-metadata": metadata | {"type": "groundtruth/image-classification-multilabel"}}


def no_confidence(n: int) -> dict[str, Any]:
    return {"l": n % 2, "l-metadata": {"class-name": LABELS[n % 2], "type": SINGLE}}


def outside(n: int) -> dict[str, Any]:
    box = {"class_id": 0, "left": 10, "top": 10, "width": 500 if n % 2 else 20, "height": 30}
    value = {"annotations": [box], "image_size": [{"width": 96, "height": 96, "depth": 3}]}
    metadata = {"objects": [{"confidence": 1}], "class-map": {"0": "cat"}, "type": "groundtruth/object-detection"}
    return {"b": value, "b-metadata": metadata | ORIGIN}


@pytest.mark.parametrize(("line", "labels"), [(multilabel, 3), (no_confidence, 2)])
def test_convertible_annotations_become_a_dataset(project, tmp_path, line, labels):
    path = manifest(tmp_path / "m.manifest", [line(n) for n in range(30)])
    created = run_command(
        "", "dataset", "create", f"{project}/train", path, "--upload-to", f"s3://{BUCKET}/{project}", "--json"
    )
    assert created.code == 0, created.err
    (dataset,) = created.json["datasets"]
    assert (dataset["entries"], dataset["labeled"], dataset["labels"], dataset["errors"]) == (30, 30, labels, 0)
    again = run_command("", "dataset", "update", f"{project}/train", path, "--json")
    assert (again.code, again.json["dataset"]["errors"]) == (0, 0), again.err


def test_boxes_outside_the_image_are_refused_with_their_lines(project, tmp_path):
    path = manifest(tmp_path / "m.manifest", [outside(n) for n in range(30)])
    create = ("dataset", "create", f"{project}/train", path, "--upload-to", f"s3://{BUCKET}/{project}")
    refused = run_command("", *create)
    assert refused.code == 2, refused.err
    assert "15 files or lines can't be used" in refused.err
    assert "line 2: a box of 'cat' from (10, 10) to (510, 40) is outside" in refused.err
    assert run_command("", "dataset", "show", f"{project}/train").code == 5, "nothing was made"
    skipped = run_command("", *create, "--skip-invalid", "--json")
    assert skipped.code == 0, skipped.err
    assert (skipped.json["datasets"][0]["entries"], len(skipped.json["skipped"])) == (15, 15)


def test_a_video_manifest_is_refused(project, tmp_path):
    metadata = {"class-map": {"0": "car"}, **ORIGIN, "type": "groundtruth/video-object-detection"}
    path = manifest(tmp_path / "v.manifest", [{"Car-ref": "s3://b/x.json", "Car-ref-metadata": metadata}])
    for verb in (("create", f"{project}/train"), ("create", project, "--test-share", "0.2")):
        refused = run_command("", "dataset", *verb, path, "--upload-to", f"s3://{BUCKET}/{project}")
        assert refused.code == 2, refused.err
        assert "it is a line of a video manifest" in refused.err


def test_errors_reported_by_the_service_give_exit_code_3(project, tmp_path, seaweed, endpoint):
    path = manifest(tmp_path / "m.manifest", [no_confidence(n) for n in range(10)])
    broken = path.read_bytes() + path.read_bytes().replace(b".png", b".jpg")
    client("s3", seaweed).put_object(Bucket=BUCKET, Key="manifests/broken", Body=broken)
    rekognition = client("rekognition", endpoint)
    source = {"GroundTruthManifest": {"S3Object": {"Bucket": BUCKET, "Name": "manifests/broken"}}}
    arn = rekognition.describe_projects(ProjectNames=[project])["ProjectDescriptions"][0]["ProjectArn"]
    created = rekognition.create_dataset(ProjectArn=arn, DatasetType="TEST", DatasetSource=source)["DatasetArn"]
    wait_for(lambda: described(rekognition, created)["Status"] == "CREATE_COMPLETE")
    copied = run_command("", "dataset", "create", f"{project}/train", f"{project}/test", "--json")
    assert copied.code == 3, copied.err
    assert copied.json["datasets"][0]["errors"] == 20
    assert f"20 of the 20 entries of {project}/train have errors; list them with" in copied.err
    updated = run_command("", "dataset", "update", f"{project}/train", path, "--json")
    assert (updated.code, updated.json["dataset"]["errors"]) == (3, 10), updated.err
    again = path.read_bytes().replace(b".png", b".jpg")
    path.write_bytes(again)
    assert run_command("", "dataset", "update", f"{project}/train", path).code == 0


def described(rekognition: Any, arn: str) -> dict[str, Any]:
    return dict(rekognition.describe_dataset(DatasetArn=arn)["DatasetDescription"])


@pytest.mark.parametrize("line", [multilabel, no_confidence, outside])
def test_a_manifest_in_s3_is_checked_too(project, tmp_path, seaweed, line):
    path = manifest(tmp_path / "m.manifest", [line(n) for n in range(10)])
    key = f"manifests/{project}.manifest"
    client("s3", seaweed).put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
    refused = run_command("", "dataset", "create", f"{project}/train", f"s3://{BUCKET}/{key}")
    assert refused.code == 2, refused.err
    assert ("is outside" if line is outside else "which converts it") in refused.err
    assert run_command("", "dataset", "show", f"{project}/train").code == 5, "nothing was created"


def pictures(folder: Path, *names: str) -> Path:
    for n, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (n, 40 * n, 0)).save(folder / name)
    return folder


def test_train_and_test_folders_become_the_two_datasets(project, tmp_path):
    names = [f"{kind}/{label}/{n}.png" for kind in ("train", "test") for label in ("cat", "dog") for n in range(2)]
    folder = pictures(tmp_path / "divided", *names, "train/.thumbs/x.png")
    create = ("dataset", "create", project, folder, "--upload-to", f"s3://{BUCKET}/{project}", "--json")
    refused = run_command("", *create, "--test-share", "0.2")
    assert refused.code == 2
    assert "already divided into train and test. Name only the project" in refused.err
    created = run_command("", *create)
    assert created.code == 0, created.err
    assert [(each["kind"], each["entries"], each["labels"]) for each in created.json["datasets"]] == [
        ("train", 4, 2),
        ("test", 4, 2),
    ]
    assert created.json["remarks"] == ["hidden files and folders ignored: 1"]
    labels = run_command("", "dataset", "labels", f"{project}/test", "--json").json
    assert {each["label"] for each in labels} == {"cat", "dog"}


def test_similar_labels_are_reported_before_the_upload(project, tmp_path):
    folder = pictures(tmp_path / "photos", "cat/0.png", "Cat/1.png", "dog/2.png")
    (folder / "dog/3.png").write_bytes((folder / "cat/0.png").read_bytes())
    created = run_command(
        "", "dataset", "create", f"{project}/train", folder, "--upload-to", f"s3://{BUCKET}/{project}"
    )
    assert created.code == 0, created.err
    assert "2 labels differ only in case, spaces or Unicode form: 'Cat', 'cat'" in created.err
    assert "identical images with different labels: 1, for example cat/0.png and dog/3.png" in created.err


def test_a_csv_of_images_and_labels_becomes_a_dataset(project, tmp_path):
    pictures(tmp_path / "photos", "a.png", "b.png", "c d.png")
    path = tmp_path / "list.csv"
    path.write_text("photos/a.png,cat\nphotos/b.png,dog,small\nphotos/c d.png,dog\n")
    created = run_command(
        "", "dataset", "create", f"{project}/train", path, "--upload-to", f"s3://{BUCKET}/{project}", "--json"
    )
    assert created.code == 0, created.err
    assert (created.json["datasets"][0]["entries"], created.json["datasets"][0]["labels"]) == (3, 3)
