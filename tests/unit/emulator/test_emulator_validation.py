"""Validation of a training's manifests: the result files, and all terminal errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from batchcl.emulator.digits import DigitsDataset
from batchcl.emulator.validation import CheckedDataset, check_manifests, use_case
from unit.emulator.harness import running_server, wait_for
from unit.emulator.test_emulator_datasets import boxed, jsonl, labelled

CATS = [labelled(n, "cat" if n % 2 else "dog") for n in range(20)]
NO_LINE = {"source-ref": "nonsense"}
ELSEWHERE = labelled(99, "cat") | {"source-ref": "s3://another/1.png"}
MANY = [labelled(n, f"l{n}") for n in range(251)]


def errors(train: list[dict[str, Any]], test: list[dict[str, Any]] | None, *, unreadable: int = 0) -> set[str]:
    checked = [None if lines is None else CheckedDataset.of(jsonl(lines).splitlines()) for lines in (train, test)]
    assert checked[0] is not None
    checked[0].unreadable = set(range(unreadable))
    found = check_manifests(checked[0], checked[1], task=use_case(checked[0]), held_out=frozenset({1, 2}))
    return {error.code for error in found.errors}


@pytest.mark.parametrize(
    ("train", "test", "codes"),
    [
        (CATS, CATS, set()),
        (CATS, None, set()),
        ([*CATS, NO_LINE, NO_LINE, NO_LINE], CATS, set()),
        ([*CATS, *[NO_LINE] * 6], CATS, {"ERROR_TOO_MANY_INVALID_ROWS_IN_MANIFEST"}),
        (CATS, [*CATS, *[NO_LINE] * 6], {"ERROR_TOO_MANY_INVALID_ROWS_IN_MANIFEST"}),
        ([*CATS, ELSEWHERE], CATS, {"ERROR_IMAGES_IN_MULTIPLE_S3_BUCKETS"}),
        ([labelled(n, "cat") for n in range(9)], CATS, {"ERROR_MANIFEST_TOO_FEW_LABELS"}),
        (CATS, [labelled(n, "cat") for n in range(9)], {"ERROR_MANIFEST_TOO_FEW_LABELS"}),
        (MANY, MANY[:250], {"ERROR_MANIFEST_TOO_MANY_LABELS"}),
        (CATS, [labelled(n, f"l{n % 2}") for n in range(9)], {"ERROR_INSUFFICIENT_LABEL_OVERLAP"}),
        (
            [*(labelled(n, "cat") for n in range(9)), boxed(1, ("dog", 5))],
            [labelled(1, "cat"), labelled(2, "dog")],
            {"ERROR_MANIFEST_TOO_FEW_USABLE_LABELS"},
        ),
        (
            [*(labelled(n, f"l{n}") for n in range(4)), boxed(1, ("a", 5)), boxed(2, ("b", 5))],
            [labelled(n, f"l{n}") for n in (0, 9)] + [boxed(1, ("a", 5), ("b", 90))],
            {"ERROR_INSUFFICIENT_USABLE_LABEL_OVERLAP"},
        ),
        ([{"source-ref": "s3://pictures/1.png"}] * 9, None, {"ERROR_MANIFEST_TOO_FEW_LABELS"}),
    ],
)  # fmt: skip
def test_terminal_errors_of_manifests(
    train: list[dict[str, Any]], test: list[dict[str, Any]] | None, codes: set[str]
) -> None:
    assert errors(train, test) == codes


def test_unreadable_images_count_as_invalid() -> None:
    assert errors(CATS, CATS, unreadable=4) == set()
    assert errors(CATS, CATS, unreadable=5) == {"ERROR_TOO_MANY_INVALID_ROWS_IN_MANIFEST"}


def test_a_training_set_that_cannot_be_split() -> None:
    checked = CheckedDataset.of(jsonl([labelled(1, "cat"), labelled(2, "dog")]).splitlines())
    found = check_manifests(checked, None, task="classification", held_out=frozenset())
    assert [e.code for e in found.errors] == ["ERROR_INSUFFICIENT_IMAGES_PER_LABEL_FOR_AUTOSPLIT"]


def _train(folder: Path, train: bytes, test: bytes | None, *, output: str = "small") -> tuple[dict[str, Any], Any]:
    """A version's description after training, and a function that reads its result files."""
    assets = {}
    for name, content in (("TrainingData", train), ("TestingData", test)):
        if content is not None:
            (folder / "small" / f"{name}.manifest").write_bytes(content)
            where = {"Bucket": "small", "Name": f"{name}.manifest"}
            assets[name] = {"Assets": [{"GroundTruthManifest": {"S3Object": where}}]}
    with running_server(buckets=folder, train_seconds=0) as server:
        client = server.client()
        project = client.create_project(ProjectName="p")["ProjectArn"]
        client.create_project_version(
            ProjectArn=project,
            VersionName="v",
            OutputConfig={"S3Bucket": output, "S3KeyPrefix": "check"},
            **{"TestingData": {"AutoCreate": True}, **assets},
        )
        described = wait_for(client, project, not_status="TRAINING_IN_PROGRESS")

    def read(where: dict[str, Any]) -> bytes:
        path: Path = folder / where["S3Object"]["Bucket"] / where["S3Object"]["Name"]
        return path.read_bytes()

    return described, read


def test_a_failed_training_writes_the_validation_files(small_digits: DigitsDataset) -> None:
    good = small_digits.train_manifest.read_bytes().splitlines()[:6]
    lines = [
        *good,
        *(json.dumps(labelled(n, "x") | {"source-ref": f"s3://small/no/{n}.png"}).encode() for n in range(3)),
        b"{",
    ]
    described, read = _train(small_digits.directory, b"\n".join(lines), small_digits.test_manifest.read_bytes())
    assert described["Status"] == "TRAINING_FAILED"
    assert "The manifest file contains too many invalid rows." in described["StatusMessage"]
    assert "EvaluationResult" not in described
    assert "Output" not in described["TrainingDataResult"]
    assert described["ManifestSummary"]["S3Object"]["Name"] == "check/validation/p-v/manifest_summary.json"
    summary = json.loads(read(described["ManifestSummary"]))
    training = summary["statistics"]["training"]
    assert (
        training
        | {
            "use_case": "IMAGE_LEVEL_LABELS",
            "total_json_lines": 10,
            "valid_json_lines": 6,
            "invalid_json_lines": 4,
            "ignored_json_lines": 0,
            "error_json_line_indices": [7, 8, 9, 10],
        }
        == training
    )
    assert {
        "code": "ERROR_TOO_MANY_INVALID_ROWS_IN_MANIFEST",
        "message": "The manifest file contains too many invalid rows.",
    } in training["errors"]
    assert summary["statistics"]["testing"]["total_json_lines"] == 30
    manifest = read(described["TrainingDataResult"]["Validation"]["Assets"][0]["GroundTruthManifest"])
    rows = [json.loads(row) for row in manifest.splitlines()]
    assert len(rows) == 10
    assert "errors" not in rows[0]
    assert rows[6]["errors"] == [
        {"code": "ERROR_INVALID_IMAGE", "message": "The image is invalid. Check S3 path and/or image properties."}
    ]
    assert rows[9] == {
        "errors": [{"code": "ERROR_INVALID_JSON_LINE", "message": "The JSON Line has an invalid format."}]
    }


def test_a_successful_training_writes_the_validation_files(small_digits: DigitsDataset) -> None:
    described, read = _train(small_digits.directory, small_digits.train_manifest.read_bytes(), None)
    assert described["Status"] == "TRAINING_COMPLETED", described
    statistics = json.loads(read(described["ManifestSummary"]))["statistics"]
    counts = [statistics[which]["total_json_lines"] for which in ("training", "testing")]
    assert sum(counts) == 60
    assert counts[1] == 12
    for which in ("TrainingDataResult", "TestingDataResult"):
        assert read(described[which]["Validation"]["Assets"][0]["GroundTruthManifest"])
    assert described["TestingDataResult"]["Input"] == {"AutoCreate": True}


@pytest.mark.parametrize("train", [b"", b"\n\n"])
def test_file_errors_leave_no_validation_results(train: bytes, small_digits: DigitsDataset) -> None:
    described, _ = _train(small_digits.directory, train, None)
    assert (described["Status"], described["StatusMessage"]) == ("TRAINING_FAILED", "The manifest file is empty.")
    assert "ManifestSummary" not in described


def test_a_missing_manifest_fails_the_training(small_digits: DigitsDataset) -> None:
    with running_server(buckets=small_digits.directory, train_seconds=0) as server:
        client = server.client()
        project = client.create_project(ProjectName="p")["ProjectArn"]
        where = {"GroundTruthManifest": {"S3Object": {"Bucket": "small", "Name": "missing.manifest"}}}
        client.create_project_version(
            ProjectArn=project,
            VersionName="v",
            OutputConfig={"S3Bucket": "small", "S3KeyPrefix": ""},
            TrainingData={"Assets": [where]},
        )
        described = wait_for(client, project, not_status="TRAINING_IN_PROGRESS")
    assert described["StatusMessage"].startswith("The manifest file extension or contents are invalid.")
    assert "s3://small/missing.manifest" in described["StatusMessage"]
