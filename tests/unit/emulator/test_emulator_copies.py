"""Project policies, and models copied between projects and accounts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from batchcl.emulator.digits import DigitsDataset
from batchcl.emulator.errors import ApiError
from batchcl.emulator.operations.policies import check_document, may_copy
from unit.emulator.harness import Server, refused, running_server, train, wait_for

OTHER = "210987654321"
PROJECT = "arn:aws:rekognition:us-east-1:123456789012:project/p/1700000000000"
VERSION = "arn:aws:rekognition:us-east-1:123456789012:project/p/version/v1/1700000000001"
IMAGE = {"S3Object": {"Bucket": "small", "Name": "test/00000.png"}}


def statement(**changes: Any) -> dict[str, Any]:
    made = {
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:aws:iam::{OTHER}:role/Admin"},
        "Action": "rekognition:CopyProjectVersion",
        "Resource": VERSION,
    } | changes
    return {key: value for key, value in made.items() if value is not None}


def document(*statements: Any, version: str = "2012-10-17") -> str:
    return json.dumps({"Version": version, "Statement": list(statements)})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not JSON"),
        (document(statement(), version="2020-01-01"), "Version"),
        (document(), "no Statement"),
        (document(statement(Resource=None)), "needs"),
        (document(statement(NotAction="x")), "NotAction"),
        (document(statement(Effect="Maybe")), "Effect"),
        (document(statement(Action="rekognition:DetectLabels")), "only action"),
        (document(statement(Resource=VERSION.replace("/p/", "/q/"))), "Resource"),
        (document(statement(Principal={"Service": "ec2.amazonaws.com"})), "Principal"),
        (document(statement(Principal="me")), "Principal"),
    ],
)
def test_invalid_policy_documents_are_rejected(text: str, why: str) -> None:
    with pytest.raises(ApiError, match=why) as caught:
        check_document(text, project_arn=PROJECT)
    assert caught.value.code == "MalformedPolicyDocumentException"


@pytest.mark.parametrize(
    ("statements", "verdict"),
    [
        ([statement()], True),
        ([statement(Principal="*")], True),
        ([statement(Principal={"AWS": [OTHER]}, Resource=VERSION[:-13] + "*")], True),
        ([statement(Principal={"AWS": "111111111111"})], None),
        ([statement(Resource=VERSION + "9")], None),
        ([statement(), statement(Effect="Deny")], False),
        ([statement(Condition={"StringEquals": {}})], None),
        ([statement(), statement(Effect="Deny", Condition={"StringEquals": {}})], False),
    ],
)
def test_which_accounts_a_policy_allows_to_copy(statements: list[Any], verdict: bool | None) -> None:
    text = document(*statements)
    check_document(text, project_arn=PROJECT)
    assert may_copy([text], version_arn=VERSION, account=OTHER) is verdict


@pytest.fixture(scope="module")
def trained(small_digits: DigitsDataset) -> Iterator[tuple[Server, dict[str, Any]]]:
    environment = {"BATCHCL_EMULATOR_CREDENTIALS": f"other:secret:{OTHER}"}
    settings: dict[str, Any] = {"train_seconds": 0, "start_seconds": 0, "stop_seconds": 0, "copy_seconds": 60}
    with running_server(environment, buckets=small_digits.directory, **settings) as server:
        yield server, train(server.client(), bucket="small")


def test_policies_are_put_changed_listed_and_deleted(trained: tuple[Server, dict[str, Any]]) -> None:
    server, _ = trained
    client = server.client()
    project = client.create_project(ProjectName="policies")["ProjectArn"]
    text = document(statement(Resource=project.rpartition("/")[0] + "/version/*"))
    put = {"ProjectArn": project, "PolicyDocument": text}
    first = client.put_project_policy(PolicyName="a", **put)["PolicyRevisionId"]
    assert refused(client.put_project_policy, PolicyName="a", **put) == "ResourceAlreadyExistsException"
    wrong = {"PolicyName": "a", "PolicyRevisionId": "abc"}
    assert refused(client.put_project_policy, **wrong, **put) == "InvalidPolicyRevisionIdException"
    assert refused(client.delete_project_policy, ProjectArn=project, **wrong) == "InvalidPolicyRevisionIdException"
    server.clock.ahead += 10
    second = client.put_project_policy(PolicyName="a", PolicyRevisionId=first, **put)["PolicyRevisionId"]
    assert second != first
    for name in "bcdefg":
        server.clock.ahead += 1
        client.put_project_policy(PolicyName=name, **put)
    pages = list(client.get_paginator("list_project_policies").paginate(ProjectArn=project))
    assert [[p["PolicyName"] for p in page["ProjectPolicies"]] for page in pages] == [list("gfedc"), list("ba")]
    last = pages[1]["ProjectPolicies"][-1]
    assert (last["PolicyRevisionId"], last["PolicyDocument"]) == (second, text)
    assert last["LastUpdatedTimestamp"] > last["CreationTimestamp"]
    client.delete_project_policy(ProjectArn=project, PolicyName="a", PolicyRevisionId=second)
    assert refused(client.delete_project_policy, ProjectArn=project, PolicyName="a") == "ResourceNotFoundException"


def test_a_policy_allows_copies_to_another_account(
    trained: tuple[Server, dict[str, Any]], small_digits: DigitsDataset
) -> None:
    server, described = trained
    mine, theirs = server.client(), server.client("other", "secret")
    source, arn = described["ProjectArn"], described["ProjectVersionArn"]
    target = theirs.create_project(ProjectName="theirs")["ProjectArn"]
    copy = {
        "SourceProjectArn": source,
        "SourceProjectVersionArn": arn,
        "DestinationProjectArn": target,
        "VersionName": "copied",
        "OutputConfig": {"S3Bucket": "small", "S3KeyPrefix": "theirs"},
        "KmsKeyId": "alias/mine",
        "Tags": {"from": "dev"},
    }
    assert refused(theirs.copy_project_version, **copy) == "AccessDeniedException"
    mine.put_project_policy(ProjectArn=source, PolicyName="p", PolicyDocument=document(statement(Resource=arn)))
    made = theirs.copy_project_version(**copy)["ProjectVersionArn"]
    assert f":{OTHER}:project/theirs/version/copied/" in made
    found = theirs.describe_project_versions(ProjectArn=target)["ProjectVersionDescriptions"][0]
    assert found["Status"] == "COPYING_IN_PROGRESS"
    assert refused(theirs.delete_project_version, ProjectVersionArn=made) == "ResourceInUseException"
    server.clock.ahead += 61
    found = wait_for(theirs, target, not_status="COPYING_IN_PROGRESS")
    assert found["Status"] == "COPYING_COMPLETED", found
    assert found["SourceProjectVersionArn"] == arn
    assert (found["KmsKeyId"], found["OutputConfig"]["S3KeyPrefix"]) == ("alias/mine", "theirs")
    assert found["EvaluationResult"]["F1Score"] == described["EvaluationResult"]["F1Score"]
    summary = small_digits.directory / "small" / found["EvaluationResult"]["Summary"]["S3Object"]["Name"]
    assert summary.name == "EvaluationSummary-theirs-copied.json"
    assert json.loads(summary.read_bytes())["LabelEvaluationResults"]
    assert theirs.list_tags_for_resource(ResourceArn=made)["Tags"] == {"from": "dev"}
    theirs.start_project_version(ProjectVersionArn=made, MinInferenceUnits=1)
    mine.start_project_version(ProjectVersionArn=arn, MinInferenceUnits=1)
    seen = [
        client.detect_custom_labels(ProjectVersionArn=which, Image=IMAGE, MinConfidence=0)["CustomLabels"]
        for client, which in ((theirs, made), (mine, arn))
    ]
    assert seen[0] == seen[1]
    assert refused(theirs.copy_project_version, **copy) == "ResourceInUseException"


def test_a_copy_whose_results_cannot_be_written_fails(trained: tuple[Server, dict[str, Any]]) -> None:
    server, described = trained
    client = server.client()
    target = client.create_project(ProjectName="nowhere")["ProjectArn"]
    copy = {
        "SourceProjectArn": described["ProjectArn"],
        "SourceProjectVersionArn": described["ProjectVersionArn"],
        "DestinationProjectArn": target,
        "VersionName": "v",
        "OutputConfig": {"S3Bucket": "nowhere", "S3KeyPrefix": ""},
    }
    client.copy_project_version(**copy)
    server.clock.ahead += 61
    assert wait_for(client, target, not_status="COPYING_IN_PROGRESS")["Status"] == "COPYING_FAILED"


def test_policies_survive_a_restart(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"buckets": tmp_path, "state": tmp_path / "state"}
    with running_server(**settings) as server:
        project = server.client().create_project(ProjectName="p")["ProjectArn"]
        text = document(statement(Resource=project.rpartition("/")[0] + "/version/*"))
        server.client().put_project_policy(ProjectArn=project, PolicyName="a", PolicyDocument=text)
        before = server.client().list_project_policies(ProjectArn=project)["ProjectPolicies"]
    with running_server(**settings) as server:
        assert server.client().list_project_policies(ProjectArn=project)["ProjectPolicies"] == before
