"""Every documented error of every Custom Labels operation, provoked by boto3 against the emulator.

Errors that have a cause in the service come from that cause. Those that only the service's own state brings about
(throttling, failures, permissions of identities, limits without a published figure) come from fault injection.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import botocore.exceptions
import pytest
from botocore import xform_name

from batchcl.emulator.digits import write_digits
from batchcl.emulator.operations import OPERATIONS
from batchcl.emulator.protocol import errors_of
from unit.emulator.harness import Server, running_server, train, wait_for
from unit.emulator.test_emulator_datasets import jsonl, labelled

OTHER: Final = "210987654321"
GONE: Final = "1700000000000"


class World:
    """A server with resources of each kind.

    Attributes:
        project: with a trained and a running version, `v1` and `v2`.
        idle: a project with a TRAIN dataset, that is ready, and a TEST dataset that is still being made.
        busy: a dataset that is being updated.
    """

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.client = server.client()
        described = train(self.client, bucket="small", project="p")
        self.project, self.v1 = described["ProjectArn"], described["ProjectVersionArn"]
        copied = self.client.copy_project_version(**self.copy("v2"))
        self.v2 = copied["ProjectVersionArn"]
        wait_for(self.client, self.project, not_status="COPYING_IN_PROGRESS")
        self.client.start_project_version(ProjectVersionArn=self.v2, MinInferenceUnits=1)
        self.idle = self.client.create_project(ProjectName="idle")["ProjectArn"]
        (folder / "small/m.manifest").write_bytes(jsonl([labelled(n, "cat") for n in range(5)]))
        self.source = {"GroundTruthManifest": {"S3Object": {"Bucket": "small", "Name": "m.manifest"}}}
        self.dataset = self.make(self.idle, "TRAIN")
        other = self.client.create_project(ProjectName="busy")["ProjectArn"]
        self.busy = self.make(other, "TRAIN")
        server.clock.ahead += 61
        self.client.update_dataset_entries(DatasetArn=self.busy, Changes={"GroundTruth": jsonl([labelled(1, "dog")])})
        self.young = self.make(self.idle, "TEST")
        self.policy = json.dumps(
            {
                "Version": "2012-10-17",
                "Statement": [
                    {
                        "Effect": "Allow",
                        "Principal": {"AWS": OTHER},
                        "Action": "rekognition:CopyProjectVersion",
                        "Resource": self.v1,
                    }
                ],
            }
        )
        self.client.put_project_policy(ProjectArn=self.project, PolicyName="p", PolicyDocument=self.policy)

    def make(self, project: str, kind: str) -> str:
        made = self.client.create_dataset(ProjectArn=project, DatasetType=kind, DatasetSource=self.source)
        arn: str = made["DatasetArn"]
        return arn

    def copy(self, name: str, **changes: Any) -> dict[str, Any]:
        return {
            "SourceProjectArn": self.project,
            "SourceProjectVersionArn": self.v1,
            "DestinationProjectArn": self.project,
            "VersionName": name,
            "OutputConfig": {"S3Bucket": "small", "S3KeyPrefix": "o"},
        } | changes

    def good(self, operation: str) -> dict[str, Any]:
        """Valid arguments."""
        image = {"S3Object": {"Bucket": "small", "Name": "test/00000.png"}}
        output = {"S3Bucket": "small", "S3KeyPrefix": "o"}
        version, dataset, project = (
            {"ProjectVersionArn": self.v1},
            {"DatasetArn": self.dataset},
            {"ProjectArn": self.idle},
        )
        return {
            "CopyProjectVersion": self.copy("new"),
            "CreateDataset": {"ProjectArn": self.project, "DatasetType": "TRAIN"},
            "CreateProject": {"ProjectName": "new"},
            "CreateProjectVersion": {
                "ProjectArn": self.project,
                "VersionName": "new",
                "OutputConfig": output,
                "TrainingData": {"Assets": [self.source]},
            },
            "DeleteDataset": dataset,
            "DeleteProject": project,
            "DeleteProjectPolicy": {"ProjectArn": self.project, "PolicyName": "p"},
            "DeleteProjectVersion": version,
            "DescribeDataset": dataset,
            "DescribeProjectVersions": {"ProjectArn": self.project},
            "DescribeProjects": {},
            "DetectCustomLabels": {"ProjectVersionArn": self.v2, "Image": image},
            "DistributeDatasetEntries": {"Datasets": [{"Arn": self.dataset}, {"Arn": self.young}]},
            "ListDatasetEntries": dataset,
            "ListDatasetLabels": dataset,
            "ListProjectPolicies": {"ProjectArn": self.project},
            "ListTagsForResource": {"ResourceArn": self.v1},
            "PutProjectPolicy": {"ProjectArn": self.project, "PolicyName": "q", "PolicyDocument": self.policy},
            "StartProjectVersion": version | {"MinInferenceUnits": 1},
            "StopProjectVersion": {"ProjectVersionArn": self.v2},
            "TagResource": {"ResourceArn": self.v1, "Tags": {}},
            "UntagResource": {"ResourceArn": self.v1, "TagKeys": []},
            "UpdateDatasetEntries": dataset | {"Changes": {"GroundTruth": b"{}"}},
        }[operation]

    def inject(self, operation: str, code: str) -> None:
        status = 500 if code == "InternalServerError" else 400
        fault = {"kind": "error", "operation": operation, "code": code, "message": "on demand", "status": status}
        body = json.dumps({"faults": [fault | {"times": 1}]}).encode()
        request = urllib.request.Request(f"{self.server.endpoint}/_emulator/faults", data=body, method="PUT")
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200


def arn_of(operation: str, arguments: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """The arguments with `change` applied to the ARN of the resource."""
    if operation == "DistributeDatasetEntries":
        first, second = arguments["Datasets"]
        return {"Datasets": [{"Arn": change(first["Arn"])}, second]}
    name = (
        "DestinationProjectArn"
        if operation == "CopyProjectVersion"
        else next(k for k in arguments if k.endswith("Arn"))
    )
    return arguments | {name: change(arguments[name])}


def gone(arn: str) -> str:
    return arn.rpartition("/")[0] + f"/{GONE}"


def strangers(arn: str) -> str:
    return arn.replace("123456789012", OTHER)


TOKEN: Final = {"NextToken": "nonsense"}
MANY_TAGS: Final = {f"k{n}": "" for n in range(51)}
BAD_SOURCE: Final = {"GroundTruthManifest": {"S3Object": {"Bucket": "small", "Name": "none"}}}

# Changes to valid arguments that cause an error; the others follow from the ARN, or are injected.
CAUSES: Final[dict[tuple[str, str], Callable[[World], dict[str, Any]]]] = {
    ("CopyProjectVersion", "InvalidParameterException"): lambda w: {"SourceProjectArn": w.idle},
    ("CopyProjectVersion", "ResourceInUseException"): lambda _: {"VersionName": "v2"},
    ("CopyProjectVersion", "ServiceQuotaExceededException"): lambda _: {"Tags": MANY_TAGS},
    ("CreateDataset", "InvalidParameterException"): lambda w: {"DatasetSource": {"DatasetArn": w.dataset, **w.source}},
    ("CreateDataset", "InvalidS3ObjectException"): lambda _: {"DatasetSource": BAD_SOURCE},
    ("CreateDataset", "ResourceAlreadyExistsException"): lambda w: {"ProjectArn": w.idle},
    ("CreateProject", "InvalidParameterException"): lambda _: {"ProjectName": "a b"},
    ("CreateProject", "ResourceInUseException"): lambda _: {"ProjectName": "p"},
    ("CreateProjectVersion", "InvalidParameterException"): lambda _: {"OutputConfig": {}},
    ("CreateProjectVersion", "ResourceInUseException"): lambda _: {"VersionName": "v1"},
    ("CreateProjectVersion", "ServiceQuotaExceededException"): lambda _: {"Tags": MANY_TAGS},
    ("DeleteDataset", "ResourceInUseException"): lambda w: {"DatasetArn": w.busy},
    ("DeleteProject", "ResourceInUseException"): lambda w: {"ProjectArn": w.project},
    ("DeleteProjectPolicy", "InvalidPolicyRevisionIdException"): lambda _: {"PolicyRevisionId": "abc"},
    ("DeleteProjectPolicy", "ResourceNotFoundException"): lambda _: {"PolicyName": "none"},
    ("DeleteProjectVersion", "ResourceInUseException"): lambda w: {"ProjectVersionArn": w.v2},
    ("DescribeProjectVersions", "InvalidPaginationTokenException"): lambda _: TOKEN,
    ("DescribeProjects", "InvalidPaginationTokenException"): lambda _: TOKEN,
    ("DescribeProjects", "InvalidParameterException"): lambda _: {"MaxResults": 101},
    ("DetectCustomLabels", "ImageTooLargeException"): lambda _: {"Image": {"Bytes": bytes(5_000_000)}},
    ("DetectCustomLabels", "InvalidImageFormatException"): lambda _: {"Image": {"Bytes": b"GIF89a"}},
    ("DetectCustomLabels", "InvalidParameterException"): lambda _: {"MinConfidence": 101.0},
    ("DetectCustomLabels", "InvalidS3ObjectException"): lambda _: {
        "Image": {"S3Object": {"Bucket": "abroad", "Name": "x.png"}}
    },
    ("DetectCustomLabels", "ResourceNotReadyException"): lambda w: {"ProjectVersionArn": w.v1},
    ("DistributeDatasetEntries", "InvalidParameterException"): lambda w: {
        "Datasets": [{"Arn": w.dataset}, {"Arn": w.dataset}]
    },
    ("DistributeDatasetEntries", "ResourceNotReadyException"): lambda _: {},
    ("ListDatasetEntries", "InvalidPaginationTokenException"): lambda _: TOKEN,
    ("ListDatasetEntries", "ResourceInUseException"): lambda w: {"DatasetArn": w.busy},
    ("ListDatasetEntries", "ResourceNotReadyException"): lambda w: {"DatasetArn": w.young},
    ("ListDatasetLabels", "InvalidPaginationTokenException"): lambda _: TOKEN,
    ("ListDatasetLabels", "ResourceInUseException"): lambda w: {"DatasetArn": w.busy},
    ("ListDatasetLabels", "ResourceNotReadyException"): lambda w: {"DatasetArn": w.young},
    ("ListProjectPolicies", "InvalidPaginationTokenException"): lambda _: TOKEN,
    ("ListTagsForResource", "InvalidParameterException"): lambda _: {"ResourceArn": "arn:aws:s3:::not-ours-at-all"},
    ("PutProjectPolicy", "InvalidPolicyRevisionIdException"): lambda _: {"PolicyRevisionId": "abc"},
    ("PutProjectPolicy", "MalformedPolicyDocumentException"): lambda _: {"PolicyDocument": "{}"},
    ("PutProjectPolicy", "ResourceAlreadyExistsException"): lambda _: {"PolicyName": "p"},
    ("StartProjectVersion", "InvalidParameterException"): lambda _: {"MinInferenceUnits": 3, "MaxInferenceUnits": 2},
    ("StartProjectVersion", "LimitExceededException"): lambda _: {"MinInferenceUnits": 6},
    ("StartProjectVersion", "ResourceInUseException"): lambda w: {"ProjectVersionArn": w.v2},
    ("StopProjectVersion", "ResourceInUseException"): lambda w: {"ProjectVersionArn": w.v1},
    ("TagResource", "InvalidParameterException"): lambda _: {"Tags": {"aws:x": "y"}},
    ("TagResource", "ServiceQuotaExceededException"): lambda _: {"Tags": MANY_TAGS},
    ("UntagResource", "InvalidParameterException"): lambda _: {"TagKeys": ["aws:x"]},
    ("UpdateDatasetEntries", "InvalidParameterException"): lambda _: {"Changes": {"GroundTruth": b" "}},
    ("UpdateDatasetEntries", "ResourceInUseException"): lambda w: {"DatasetArn": w.busy},
}

INJECTED: Final = {
    *((operation, code) for operation in OPERATIONS for code in ("InternalServerError", "ThrottlingException")),
    ("CreateProject", "AccessDeniedException"),
    ("DescribeProjects", "AccessDeniedException"),
    ("CopyProjectVersion", "LimitExceededException"),
    ("CreateDataset", "LimitExceededException"),
    ("CreateProject", "LimitExceededException"),
    ("CreateProjectVersion", "LimitExceededException"),
    ("DeleteDataset", "LimitExceededException"),
    ("DetectCustomLabels", "LimitExceededException"),
    ("PutProjectPolicy", "LimitExceededException"),
    ("PutProjectPolicy", "ServiceQuotaExceededException"),
    ("UpdateDatasetEntries", "LimitExceededException"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    data = write_digits(tmp_path_factory.mktemp("world"), bucket="small", train=40, test=20, seed=4)
    (data.directory / "abroad").mkdir()
    (data.directory / "abroad/x.png").write_bytes(data.test[0].path.read_bytes())
    settings: dict[str, Any] = {
        "train_seconds": 0,
        "start_seconds": 0,
        "copy_seconds": 0,
        "dataset_seconds": 60,
        "bucket_regions": ("abroad=eu-west-1",),
    }
    environment = {"BATCHCL_EMULATOR_CREDENTIALS": f"other:secret:{OTHER}"}
    with running_server(environment, buckets=data.directory, **settings) as server:
        yield World(server, data.directory)


def provoked(world: World, operation: str, code: str) -> tuple[dict[str, Any], bool]:
    """Arguments that cause the error, and whether it must be injected."""
    arguments = world.good(operation)
    if (operation, code) in CAUSES:
        return arguments | CAUSES[operation, code](world), False
    if (operation, code) in INJECTED:
        return arguments, True
    ways = {
        "ResourceNotFoundException": gone,
        "AccessDeniedException": strangers,
        "InvalidParameterException": lambda arn: arn.replace(":rekognition:", ":rekognition2:"),
    }
    return arn_of(operation, arguments, ways[code]), False


THROTTLED: Final = "ProvisionedThroughputExceededException"
ALL: Final = sorted((operation, code) for operation in OPERATIONS for code in errors_of(operation) if code != THROTTLED)


def refused(call: Callable[[], Any]) -> dict[str, Any]:
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call()
    response: dict[str, Any] = caught.value.response
    return response


@pytest.mark.parametrize(("operation", "code"), ALL)
def test_the_error(operation: str, code: str, world: World) -> None:
    arguments, injected = provoked(world, operation, code)
    if injected:
        world.inject(operation, code)
    response = refused(lambda: getattr(world.client, xform_name(operation))(**arguments))
    assert response["Error"]["Code"] == code, response["Error"]["Message"]
    assert response["ResponseMetadata"]["HTTPStatusCode"] == (500 if code == "InternalServerError" else 400)
    assert response["Error"]["Message"]


def test_every_operation_has_its_documented_errors() -> None:
    assert len(OPERATIONS) == 23
    assert {*CAUSES, *INJECTED} <= set(ALL)
    assert not CAUSES.keys() & INJECTED


def test_every_operation_is_throttled_above_its_quota(tmp_path: Path) -> None:
    with running_server(buckets=tmp_path, control_tps=1e-3, account_tps=1e-3) as server:
        client = server.client()
        for operation in sorted(OPERATIONS):
            shape = client.meta.service_model.operation_model(operation).input_shape
            codes = [refused_code(client, operation, _least(shape)) for _ in range(2)]
            assert codes[1] == THROTTLED, operation


def refused_code(client: Any, operation: str, arguments: dict[str, Any]) -> str:
    try:
        getattr(client, xform_name(operation))(**arguments)
    except botocore.exceptions.ClientError as error:
        return str(error.response["Error"]["Code"])
    return ""


def _least(shape: Any) -> Any:
    """A value that passes the client's validation."""
    if shape.type_name == "structure":
        return {name: _least(shape.members[name]) for name in shape.required_members}
    if shape.type_name == "list":
        return [_least(shape.member)] * shape.metadata.get("min", 0)
    simple: dict[str, Any] = {"map": {}, "integer": 1, "blob": b"x", "boolean": True, "float": 1.0}
    return simple.get(shape.type_name, "x" * max(1, shape.metadata.get("min", 1)))


def test_limits_of_an_account_are_kept(world: World) -> None:
    client, limit, quota = world.client, "LimitExceededException", "ServiceQuotaExceededException"
    changes = {"GroundTruth": jsonl([labelled(99, "cat")])}
    calls: list[tuple[dict[str, int], Callable[[], object], str]] = [
        ({"projects": 3}, lambda: client.create_project(ProjectName="new"), limit),
        ({"versions": 2}, lambda: client.copy_project_version(**world.copy("new")), quota),
        ({"copying": 0}, lambda: client.copy_project_version(**world.copy("new")), limit),
        ({"training": 0}, lambda: client.create_project_version(**world.good("CreateProjectVersion")), limit),
        ({"policies": 1}, lambda: client.put_project_policy(**world.good("PutProjectPolicy")), quota),
        ({"entries": 5}, lambda: client.update_dataset_entries(DatasetArn=world.dataset, Changes=changes), limit),
    ]
    for quotas, call, code in calls:
        with world.server.limited_to(**quotas):
            assert refused(call)["Error"]["Code"] == code
