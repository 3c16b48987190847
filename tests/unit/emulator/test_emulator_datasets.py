"""Datasets through boto3: created, listed, changed, split and deleted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unit.emulator.harness import Server, refused, running_server

CHANGE_S = 60
"""How long a change of a dataset takes. Tests set the clock ahead instead of waiting."""

COMMON = {"confidence": 1, "human-annotated": "yes", "creation-date": "2026-11-21T00:00:00", "job-name": "j"}


def labelled(number: int, *labels: str, folder: str = "a") -> dict[str, Any]:
    line: dict[str, Any] = {"source-ref": f"s3://pictures/{folder}/{number}.png"}
    for n, label in enumerate(labels):
        line[f"l{n}"] = n
        line[f"l{n}-metadata"] = {"class-name": label, "type": "groundtruth/image-classification"} | COMMON
    return line


def boxed(number: int, *boxes: tuple[str, int]) -> dict[str, Any]:
    """`boxes` are labels and left edges, in a picture 640 pixels wide."""
    names = sorted({label for label, _ in boxes})
    return {
        "source-ref": f"s3://pictures/b/{number}.png",
        "b": {
            "image_size": [{"width": 640, "height": 480, "depth": 3}],
            "annotations": [
                {"class_id": names.index(label), "left": left, "top": 5, "width": 50, "height": 40}
                for label, left in boxes
            ],
        },
        "b-metadata": {
            "objects": [{"confidence": 1} for _ in boxes],
            "class-map": {str(n): name for n, name in enumerate(names)},
            "type": "groundtruth/object-detection",
            **{key: value for key, value in COMMON.items() if key != "confidence"},
        },
    }


def jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


class Shop:
    """A server with one project, and helpers for its datasets."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.client = server.client()
        self.project = self.client.create_project(ProjectName="p")["ProjectArn"]

    def source(self, content: bytes) -> dict[str, Any]:
        (self.folder / "m.manifest").write_bytes(content)
        return {"GroundTruthManifest": {"S3Object": {"Bucket": self.folder.name, "Name": "m.manifest"}}}

    def make(self, content: bytes | None, kind: str = "TRAIN") -> str:
        source = {} if content is None else {"DatasetSource": self.source(content)}
        arn: str = self.client.create_dataset(ProjectArn=self.project, DatasetType=kind, **source)["DatasetArn"]
        self.later()
        return arn

    def later(self) -> None:
        self.server.clock.ahead += CHANGE_S

    def describe(self, arn: str) -> dict[str, Any]:
        described: dict[str, Any] = self.client.describe_dataset(DatasetArn=arn)["DatasetDescription"]
        return described

    def entries(self, arn: str, **filters: Any) -> list[dict[str, Any]]:
        pages = self.client.get_paginator("list_dataset_entries").paginate(
            DatasetArn=arn, PaginationConfig={"PageSize": 7}, **filters
        )
        return [json.loads(line) for page in pages for line in page["DatasetEntries"]]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "bucket").mkdir()
    with running_server(buckets=tmp_path, dataset_seconds=CHANGE_S) as server:
        yield Shop(server, tmp_path / "bucket")


def test_a_dataset_is_created_from_a_manifest_and_counted(shop: Shop) -> None:
    source = shop.source(jsonl([labelled(1, "cat"), labelled(2), labelled(3, "cat", "dog"), {"source-ref": "s3://p"}]))
    make = {"ProjectArn": shop.project, "DatasetType": "TRAIN", "DatasetSource": source}
    failed = shop.client.create_dataset(**make)["DatasetArn"]
    assert shop.describe(failed)["Status"] == "CREATE_IN_PROGRESS"
    assert refused(shop.client.delete_dataset, DatasetArn=failed) == "ResourceInUseException"
    shop.later()
    assert shop.describe(failed) | {
        "Status": "CREATE_FAILED",
        "StatusMessageCode": "CLIENT_ERROR",
        "StatusMessage": "The manifest file has too many terminal errors.",
    } == shop.describe(failed)
    assert refused(shop.client.create_dataset, **make) == "ResourceAlreadyExistsException"
    shop.client.delete_dataset(DatasetArn=failed)
    assert refused(shop.client.describe_dataset, DatasetArn=failed) == "ResourceNotFoundException"
    broken = labelled(4, "cat") | {"l0-metadata": {"type": "groundtruth/image-classification"}}
    arn = shop.make(jsonl([labelled(1, "cat"), labelled(2), labelled(3, "cat", "dog"), broken, labelled(5, "cat")]))
    assert "/dataset/train/" in arn
    described = shop.describe(arn)
    assert described["Status"] == "CREATE_COMPLETE"
    assert described["DatasetStats"] == {"LabeledEntries": 4, "TotalEntries": 5, "TotalLabels": 2, "ErrorEntries": 1}
    copy = {"ProjectArn": shop.project, "DatasetType": "TEST", "DatasetSource": {"DatasetArn": arn}}
    copied = shop.client.create_dataset(**copy)["DatasetArn"]
    shop.later()
    assert "/dataset/test/" in copied
    assert shop.entries(copied) == shop.entries(arn)
    described = shop.client.describe_projects()["ProjectDescriptions"][0]["Datasets"]
    assert {d["DatasetType"] for d in described} == {"TRAIN", "TEST"}


def test_of_duplicate_images_the_first_line_counts(shop: Shop) -> None:
    lines = [labelled(n, "cat") for n in range(9)]
    arn = shop.make(jsonl([*lines, labelled(0, "dog")]))
    assert [e["l0-metadata"]["class-name"] for e in shop.entries(arn)] == ["cat"] * 9


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "The manifest file extension or contents are invalid."),
        (b"not JSON\n" * 3, "The manifest file has too many terminal errors."),
        (jsonl([labelled(n, f"label {n}") for n in range(251)]), "The manifest file has too many labels."),
    ],
)
def test_invalid_manifests_fail_the_dataset(content: bytes, why: str, shop: Shop) -> None:
    arn = shop.make(content)
    described = shop.describe(arn)
    assert (described["Status"], described["StatusMessage"]) == ("CREATE_FAILED", why)
    assert refused(shop.client.list_dataset_entries, DatasetArn=arn) == "ResourceNotReadyException"


def test_entries_are_listed_by_every_filter_in_pages(shop: Shop) -> None:
    broken = labelled(90, "cat")
    broken["l0-metadata"]["type"] = "groundtruth/wrongtype"
    lines = [
        *(labelled(n, "cat") for n in range(10)),
        *(labelled(n, "dog", "cat", folder="b") for n in range(10, 15)),
        *(labelled(n) for n in range(20, 23)),
        boxed(1, ("bird", 5), ("bird", 90)),
        broken,
    ]
    arn = shop.make(jsonl(lines))
    assert [e["source-ref"] for e in shop.entries(arn)] == [line["source-ref"] for line in lines]
    assert len(shop.entries(arn, ContainsLabels=["dog"])) == 5
    assert len(shop.entries(arn, ContainsLabels=["dog", "bird"])) == 6
    assert len(shop.entries(arn, ContainsLabels=["cow"])) == 0
    assert len(shop.entries(arn, Labeled=False)) == 3
    assert len(shop.entries(arn, Labeled=True)) == 17
    assert len(shop.entries(arn, SourceRefContains="/b/1")) == 6
    assert [e["source-ref"] for e in shop.entries(arn, HasErrors=True)] == [broken["source-ref"]]
    assert len(shop.entries(arn, HasErrors=False)) == 19
    assert len(shop.entries(arn, SourceRefContains="/b/1", ContainsLabels=["cat"], Labeled=True)) == 5
    token = shop.client.list_dataset_entries(DatasetArn=arn, MaxResults=2)["NextToken"]
    for wrong in ({"NextToken": "nonsense"}, {"NextToken": token, "Labeled": True}):
        assert refused(shop.client.list_dataset_entries, DatasetArn=arn, **wrong) == "InvalidPaginationTokenException"


def test_errors_are_written_next_to_their_part(shop: Shop) -> None:
    wrong_type = labelled(1, "cat")
    wrong_type["l0-metadata"]["type"] = "groundtruth/wrongtype"
    one_bad_box = boxed(2, ("a", 5), ("a", 620))
    filler = [labelled(n, "cat") for n in range(10, 20)]
    found = shop.entries(shop.make(jsonl([wrong_type, one_bad_box, *filler])))
    assert found[0]["l0-metadata"]["cl-errors"] == [
        {
            "code": "ERROR_UNSUPPORTED_USE_CASE_TYPE",
            "message": "The use case type of the l0-metadata label attribute metadata is unsupported. "
            "Check the type field.",
        }
    ]
    assert found[0]["cl-errors"] == [
        {"code": "ERROR_NO_VALID_LABEL_ATTRIBUTES", "message": "No valid label attributes found."}
    ]
    assert found[0]["cl-metadata"] == {"is_labeled": True}
    good, bad = found[1]["b"]["annotations"]
    assert "cl-errors" not in good
    assert bad["cl-errors"] == [
        {"code": "ERROR_INVALID_BOUNDING_BOX", "message": "The bounding box has off frame values."}
    ]
    assert "cl-errors" not in found[1]


def test_labels_are_listed_with_their_images_and_boxes(shop: Shop) -> None:
    names = [f"l{n:02}" for n in range(12)]
    arn = shop.make(
        jsonl([labelled(1, *names), labelled(2, "l00"), boxed(3, ("l00", 5), ("l00", 90)), boxed(4, ("bird", 5))])
    )
    pages = shop.client.get_paginator("list_dataset_labels").paginate(DatasetArn=arn, PaginationConfig={"PageSize": 5})
    found = {d["LabelName"]: d["LabelStats"] for page in pages for d in page["DatasetLabelDescriptions"]}
    assert list(found) == ["bird", *names]
    assert found["l00"] == {"EntryCount": 3, "BoundingBoxCount": 1}
    assert found["bird"] == {"EntryCount": 1, "BoundingBoxCount": 1}
    assert found["l05"] == {"EntryCount": 1, "BoundingBoxCount": 0}


def test_updates_replace_by_image_and_add_the_others(shop: Shop) -> None:
    arn = shop.make(jsonl([labelled(n, "cat") for n in range(3)]))
    update = shop.client.update_dataset_entries
    update(DatasetArn=arn, Changes={"GroundTruth": jsonl([labelled(1, "dog"), labelled(7, "cow")])})
    assert shop.describe(arn)["Status"] == "UPDATE_IN_PROGRESS"
    for call in (shop.client.list_dataset_entries, shop.client.list_dataset_labels, shop.client.delete_dataset):
        assert refused(call, DatasetArn=arn) == "ResourceInUseException"
    assert refused(update, DatasetArn=arn, Changes={"GroundTruth": b"{}"}) == "ResourceInUseException"
    shop.later()
    described = shop.describe(arn)
    assert described["Status"] == "UPDATE_COMPLETE"
    assert described["LastUpdatedTimestamp"] > described["CreationTimestamp"]
    labels = {e["source-ref"][-5]: e["l0-metadata"]["class-name"] for e in shop.entries(arn)}
    assert labels == {"0": "cat", "1": "dog", "2": "cat", "7": "cow"}
    update(DatasetArn=arn, Changes={"GroundTruth": b"nonsense"})
    shop.later()
    assert shop.describe(arn)["Status"] == "UPDATE_FAILED"
    assert len(shop.entries(arn)) == 4
    bad = "InvalidParameterException"
    assert refused(update, DatasetArn=arn, Changes={"GroundTruth": b"\n"}) == bad
    assert refused(update, DatasetArn=arn, Changes={"GroundTruth": b"x" * 5_242_881}) == bad


def test_distribution_moves_a_fifth_of_each_label(shop: Shop) -> None:
    train = shop.make(jsonl([labelled(n, "cat" if n % 4 else "dog") for n in range(60)]))
    before = [e["source-ref"] for e in shop.entries(train)]
    distribute = shop.client.distribute_dataset_entries
    test = shop.client.create_dataset(ProjectArn=shop.project, DatasetType="TEST")["DatasetArn"]
    both = [{"Arn": train}, {"Arn": test}]
    assert refused(distribute, Datasets=both) == "ResourceNotReadyException"
    shop.later()
    assert refused(distribute, Datasets=[{"Arn": train}, {"Arn": train}]) == "InvalidParameterException"
    distribute(Datasets=both)
    assert {shop.describe(arn)["Status"] for arn in (train, test)} == {"UPDATE_IN_PROGRESS"}
    shop.later()
    assert {shop.describe(arn)["Status"] for arn in (train, test)} == {"UPDATE_COMPLETE"}
    moved, stayed = shop.entries(test), shop.entries(train)
    assert Counter(e["l0-metadata"]["class-name"] for e in moved) == {"cat": 9, "dog": 3}
    assert sorted(e["source-ref"] for e in moved + stayed) == sorted(before)
    assert refused(distribute, Datasets=both) == "InvalidParameterException"


def test_too_few_images_are_not_distributed(shop: Shop) -> None:
    train = shop.make(jsonl([labelled(0, "cat"), labelled(1, "dog")]))
    test = shop.make(None, "TEST")
    shop.client.distribute_dataset_entries(Datasets=[{"Arn": test}, {"Arn": train}])
    shop.later()
    assert {shop.describe(arn)["Status"] for arn in (train, test)} == {"UPDATE_FAILED"}
    assert len(shop.entries(train)) == 2


def test_entries_survive_a_restart(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    settings: dict[str, Any] = {"buckets": tmp_path, "state": tmp_path / "state", "dataset_seconds": 0}
    with running_server(**settings) as server:
        shop = Shop(server, tmp_path / "bucket")
        arn = shop.make(jsonl([labelled(1, "cat"), boxed(2, ("a", 5), ("b", 630))]))
        shop.client.tag_resource(ResourceArn=shop.project, Tags={"team": "a"})
        before = shop.entries(arn)
        assert "cl-errors" in before[1]["b"]["annotations"][1]
    with running_server(**settings) as server:
        client = server.client()
        listed = client.list_dataset_entries(DatasetArn=arn)["DatasetEntries"]
        assert [json.loads(line) for line in listed] == before
        assert client.list_tags_for_resource(ResourceArn=shop.project)["Tags"] == {"team": "a"}


def test_tags_are_added_changed_and_removed(shop: Shop) -> None:
    dataset = shop.make(jsonl([labelled(1, "cat")]))
    for arn in (shop.project, dataset):
        shop.client.tag_resource(ResourceArn=arn, Tags={"a": "1", "b": "2"})
        shop.client.tag_resource(ResourceArn=arn, Tags={"b": "3", "été": ""})
        shop.client.untag_resource(ResourceArn=arn, TagKeys=["a", "none"])
        assert shop.client.list_tags_for_resource(ResourceArn=arn)["Tags"] == {"b": "3", "été": ""}
    many = {f"k{n}": "" for n in range(49)}
    assert refused(shop.client.tag_resource, ResourceArn=dataset, Tags=many) == "ServiceQuotaExceededException"
    assert len(shop.client.list_tags_for_resource(ResourceArn=dataset)["Tags"]) == 2
    for bad in ({"aws:x": "1"}, {"k#": "1"}, {"k": "v" * 257}):
        assert refused(shop.client.tag_resource, ResourceArn=dataset, Tags=bad) == "InvalidParameterException"
    arn = "arn:aws:rekognition:us-east-1:123456789012:collection/faces"
    assert refused(shop.client.list_tags_for_resource, ResourceArn=arn) == "InvalidParameterException"


def test_deletions_take_delete_seconds(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    with running_server(buckets=tmp_path, delete_seconds=60, dataset_seconds=0) as server:
        shop = Shop(server, tmp_path / "bucket")
        client = shop.client
        arn = client.create_dataset(ProjectArn=shop.project, DatasetType="TEST")["DatasetArn"]
        client.delete_dataset(DatasetArn=arn)
        assert shop.describe(arn)["Status"] == "DELETE_IN_PROGRESS"
        again = {"ProjectArn": shop.project, "DatasetType": "TEST"}
        assert refused(client.create_dataset, **again) == "ResourceAlreadyExistsException"
        assert refused(client.delete_dataset, DatasetArn=arn) == "ResourceInUseException"
        server.clock.ahead += 61
        assert refused(client.describe_dataset, DatasetArn=arn) == "ResourceNotFoundException"
        assert client.delete_project(ProjectArn=shop.project)["Status"] == "DELETING"
        assert client.describe_projects()["ProjectDescriptions"][0]["Status"] == "DELETING"
        assert refused(client.delete_project, ProjectArn=shop.project) == "ResourceInUseException"
        assert refused(client.create_project, ProjectName="p") == "ResourceInUseException"
        assert refused(client.create_dataset, **again) == "ResourceNotFoundException"
        server.clock.ahead += 61
        assert client.describe_projects()["ProjectDescriptions"] == []
