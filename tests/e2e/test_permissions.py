"""The policies in configs/iam/ allow what the commands need, and nothing else.

Commands go through a proxy that denies what a policy doesn't allow and records the permissions that were needed. A
missing permission fails the command, an unused permission fails the test. Every operation in the code needs a policy.
"""

from __future__ import annotations

import ast
import datetime as dt
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import boto3
import pytest
from PIL import Image

from batchcl import workflow
from batchcl.aws import models, waiting
from batchcl.lifetime.lease_tags import LeaseTag, Role, lease_key, schedule_name_of
from batchcl.scoring.connections import holder_name
from commands import run_command
from iam_proxy import IamProxy, Need, Policy, listed, running_proxy
from servers import aws_env, client, make_bucket, start_model
from unit.emulator.harness import running_server

ROOT = Path(__file__).parents[2]
IAM = ROOT / "configs" / "iam"
SOURCE = ROOT / "src" / "batchcl"
UNTESTED = {
    "s3:GetObjectVersion": "no test server both lists versions and checks permissions",
    "servicequotas:GetAWSDefaultServiceQuota": "needed if the account has no applied quota of its own",
    "s3:GetBucketAcl": "the service needs it for training; source: AmazonRekognitionCustomLabelsFullAccess",
    "s3:GetBucketLocation": "likewise",
    "s3:GetObjectAcl": "likewise",
    "s3:GetObjectTagging": "likewise",
}
PERMISSION_NAMES = {"HeadBucket": "ListBucket", "ListObjectsV2": "ListBucket", "HeadObject": "GetObject"}
"""S3 operations whose permission has another name."""

PREFIXES = {
    **{name: name for name in ("rekognition", "s3", "scheduler", "cloudwatch", "sns")},
    "service-quotas": "servicequotas",
}
TABLES = "s3://acme-tables/labels/permissions"
STOP_ROLE = "arn:aws:iam::123456789012:role/batchcl-stop"
SWITCH = ("--deadline", "1h", "--scheduled-stop-role", STOP_ROLE)
IMAGES = "s3://acme-photos/2026/permissions/"


@dataclass(frozen=True)
class TrainedModel:
    """A proxy in front of an emulator with a model trained under lifecycle.json, and the permissions that it took."""

    proxy: IamProxy
    emulator: str
    arn: str
    needed: frozenset[Need]
    denied: tuple[Need, ...]


def policy(name: str) -> Policy:
    return Policy.read((IAM / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def trained(seaweed, moto, tmp_path_factory) -> Iterator[TrainedModel]:
    s3 = client("s3", seaweed)
    for bucket in ("acme-photos", "acme-tables"):
        make_bucket(s3, bucket)
    remove_bucket(s3, "acme-training")  # an earlier test session may have created it
    pictures = tmp_path_factory.mktemp("permissions")
    for label, colour in (("red", "#f00"), ("blue", "#00f")):
        (pictures / label).mkdir()
        for n in range(5):
            Image.new("RGB", (64, 64 + n), colour).save(pictures / label / f"{n}.png")
            body = (pictures / label / f"{n}.png").read_bytes()
            s3.put_object(Bucket="acme-photos", Key=f"2026/permissions/{label}{n}.png", Body=body)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws_env().items():
            patch.setenv(name, value)
        patch.setattr(waiting, "_PAUSES_S", (0.02,))
        patch.setattr(models, "LONG_PAUSES_S", (0.02,))
        with (
            running_server(s3_endpoint_url=seaweed, train_seconds=0, start_seconds=0, stop_seconds=0) as server,
            running_proxy(
                policy("lifecycle"),
                rekognition=server.endpoint,
                sts=server.endpoint,
                service_quotas=server.endpoint,
                s3=seaweed,
                scheduler=moto,
                cloudwatch=moto,
                sns=moto,
            ) as proxy,
        ):
            for name, value in proxy.env().items():
                patch.setenv(name, value)
            arn = anyio.run(run_lifecycle, pictures)
            yield TrainedModel(proxy, server.endpoint, arn, frozenset(proxy.needed), tuple(proxy.denied))


def remove_bucket(s3: Any, bucket: str) -> None:
    make_bucket(s3, bucket)
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for each in page.get("Contents", ()):
            s3.delete_object(Bucket=bucket, Key=each["Key"])
    s3.delete_bucket(Bucket=bucket)


@pytest.fixture
def proxy(trained, monkeypatch, tmp_path) -> IamProxy:
    """The proxy without recorded permissions; the environment variables point to it."""
    proxy: IamProxy = trained.proxy
    proxy.needed.clear()
    proxy.denied.clear()
    for name, value in (aws_env() | proxy.env()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(waiting, "_PAUSES_S", (0.02,))
    monkeypatch.chdir(tmp_path)
    return proxy


async def run_lifecycle(pictures: Path) -> str:
    """Use every operation of the workflow, from images to deletion; returns the ARN of the model that is kept."""
    now = dt.datetime.now(dt.UTC)
    folder = workflow.S3Folder.parse("s3://acme-training/pictures")
    async with workflow.connect() as service, service.s3() as s3:
        rekognition = service.rekognition
        await workflow.have_bucket(s3, "acme-training", region=service.region, create=True)
        arns = {}
        for name in ("products", "products-dev"):
            arns[name] = workflow.ProjectArn.parse((await workflow.create_project(rekognition, name)).arn)
        main, other = arns.values()
        local = workflow.read_local(pictures)
        await workflow.create_from_local(rekognition, s3, main, local, folder, test_share=0.4, created=now)
        train = await workflow.find_dataset(rekognition, "products/train")
        await workflow.describe_dataset(rekognition, train)
        await workflow.dataset_labels(rekognition, train)
        assert [entry async for entry in workflow.dataset_entries(rekognition, train)]
        await workflow.add_local(rekognition, s3, train, local, folder, created=now)
        copy = workflow.DatasetArn.parse((await workflow.create_dataset(rekognition, other, "train", train)).arn)
        test = workflow.DatasetArn.parse((await workflow.create_dataset(rekognition, other, "test")).arn)
        await workflow.distribute_entries(rekognition, copy, test)
        await workflow.delete_dataset(rekognition, test)
        output = "s3://acme-training/models"
        model = await workflow.train_model(rekognition, main, version="v1", output=output)
        trained = await workflow.wait_trained(rekognition, model)
        await workflow.evaluate_model(s3, trained)
        await workflow.tag(rekognition, model.text, {"stage": "trial"})
        await workflow.list_tags(rekognition, model.text)
        await workflow.untag(rekognition, model.text, ["stage"])
        copied = await workflow.copy_model(
            rekognition, model, source_project=main, project=other, version="v1", output=output
        )
        await workflow.wait_copied(rekognition, copied)
        await workflow.start(rekognition, copied, workflow.Units(1))
        await workflow.wait(rekognition, copied, until="RUNNING", passing={"STARTING"})
        await workflow.stop(rekognition, copied)
        await workflow.wait(rekognition, copied, until="STOPPED", passing={"RUNNING", "STOPPING"})
        document = {"Effect": "Allow", "Principal": "*", "Action": "rekognition:CopyProjectVersion", "Resource": "*"}
        text = json.dumps({"Version": "2012-10-17", "Statement": [document]})
        await workflow.put_policy(rekognition, main, "sharing", text)
        await workflow.list_policies(rekognition, main)
        await workflow.delete_policy(rekognition, main, "sharing")
        await workflow.delete_model(rekognition, other, copied)
        await workflow.delete_dataset(rekognition, copy)
        await workflow.delete_project(rekognition, other)
        assert len(await workflow.list_projects(rekognition)) == 1
        assert [each.name for each in await workflow.list_models(rekognition)] == ["products@v1"]
        return model.text


def everything() -> Policy:
    """Allows every operation, unlike the policy files."""
    services = ("rekognition:*", "s3:*", "scheduler:*", "iam:PassRole")
    return Policy(tuple({"Sid": each, "Effect": "Allow", "Action": each, "Resource": "*"} for each in services))


def unused(granted: Policy, needs: frozenset[Need] | set[Need]) -> list[str]:
    """The actions and resources of `granted` that no need in `needs` used."""
    found = []
    for statement in granted.statements:
        for action in listed(statement["Action"]):
            used = any(Policy((statement,)).allows(need) for need in needs if need.action == action)
            if not used and action not in UNTESTED:
                found.append(f"{statement['Sid']}: {action}")
        for resource in listed(statement["Resource"]):
            alone = Policy(({**statement, "Resource": resource},))
            used = any(alone.allows(need) for need in needs)
            if not used and not set(listed(statement["Action"])) <= set(UNTESTED):
                found.append(f"{statement['Sid']}: {resource}")
    return found


def test_the_lifecycle_policy_is_sufficient_and_minimal(trained):
    assert not trained.denied
    assert unused(policy("lifecycle"), trained.needed) == []


def test_the_run_policy_is_sufficient_and_minimal(trained, proxy):
    schedule = schedule_name_of(lease_key(holder_name("one", TABLES)))
    proxy.policy = everything()
    client("scheduler", proxy.endpoints["scheduler"]).create_schedule(
        Name=schedule,  # of an earlier session, so that this run must update it
        ScheduleExpression="at(2036-01-01T00:00:00)",
        FlexibleTimeWindow={"Mode": "OFF"},
        Target={"Arn": "arn:aws:scheduler:::aws-sdk:rekognition:stopProjectVersion", "RoleArn": STOP_ROLE},
    )
    proxy.policy = policy("run")
    proxy.needed.clear()
    scored = ("--model", trained.arn, "--out", TABLES)
    checked = run_command("doctor", IMAGES, *scored, "--start-model", "1")
    assert checked.code == 0, checked.out
    run = run_command("run", IMAGES, *scored, "--run-id", "one", "--start-model", "1", *SWITCH, "--json")
    assert run.code == 0, run.err
    assert (run.json["scored"], run.json["failed"]) == (10, 0)
    again = run_command("run", IMAGES, *scored, "--run-id", "two", "--incremental", "--start-model", "1")
    assert again.code in {0, 2}, again.err
    for reading in ("labels", "runs", "failures"):
        assert run_command(reading, TABLES).code == 0
    assert proxy.denied == []
    assert unused(proxy.policy, proxy.needed) == []


def test_a_running_model_needs_no_start_permission(trained, proxy):
    proxy.policy = policy("run").without(
        "OnlyWithStartModel", "OnlyWithScheduledStopRole", "OnlyWithScheduledStopRoleToo", "OnlyForDoctor"
    )
    start_model(trained.emulator, trained.arn, 1)
    run = run_command("run", IMAGES, "--model", trained.arn, "--out", TABLES, "--run-id", "three", "--json")
    client("rekognition", trained.emulator).stop_project_version(ProjectVersionArn=trained.arn)
    assert run.code == 0, run.err
    assert run.json["scored"] == 10


def test_the_reap_policy_is_sufficient_and_minimal(trained, proxy, moto):
    key = lease_key("killed run")
    expired_at = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    lease = LeaseTag(key=key, role=Role.SCHEDULED, until=expired_at, holder="killed run")
    rekognition = client("rekognition", trained.emulator)
    rekognition.tag_resource(ResourceArn=trained.arn, Tags={key: lease.value})
    start_model(trained.emulator, trained.arn, 1)
    proxy.policy = policy("reap")
    reaped = run_command("model reap --json")
    assert reaped.code == 0, reaped.err
    assert [each["done"] for each in reaped.json] == ["stopped"]
    assert rekognition.list_tags_for_resource(ResourceArn=trained.arn)["Tags"] == {}
    start_model(trained.emulator, trained.arn, 1)
    topic = client("sns", moto).create_topic(Name="batchcl-alarms")["TopicArn"]
    alarm = run_command("model reap --alarm --json --sns-topic", topic)
    rekognition.stop_project_version(ProjectVersionArn=trained.arn)
    assert alarm.code == 3, alarm.err
    assert "failed" not in alarm.err
    assert proxy.denied == []
    assert unused(proxy.policy, proxy.needed) == []


def test_the_stop_role_covers_the_models_a_run_may_start():
    (stop,) = policy("stop-role").statements
    (start,) = (each for each in policy("run").statements if each["Sid"] == "OnlyWithStartModel")
    assert stop["Action"] == "rekognition:StopProjectVersion"
    assert stop["Resource"] == start["Resource"]
    (trust,) = json.loads((IAM / "stop-role-trust.json").read_text())["Statement"]
    (passed,) = (each for each in policy("run").statements if each["Action"] == "iam:PassRole")
    assert trust["Principal"] == {"Service": passed["Condition"]["StringEquals"]["iam:PassedToService"]}
    assert trust["Action"] == "sts:AssumeRole"


def test_unreadable_images_start_no_model(trained, proxy):
    proxy.policy = policy("run").without("ReadImages", "OnlyForListsWithVersions")
    arguments = (IMAGES, "--model", trained.arn, "--out", TABLES, "--start-model", "1")
    run = run_command("run", *arguments, "--run-id", "four")
    assert run.code == 5, run.err
    assert "10 of 10 sampled images can't be read" in run.err
    assert "allow s3:GetObject on them" in run.err
    assert "rekognition:StartProjectVersion" not in proxy.actions
    checked = run_command("doctor", *arguments)
    assert checked.code == 5
    assert "fail  images       10 of 10 sampled images can't be read" in checked.out


@pytest.mark.parametrize(
    ("sid", "message"),
    [
        ("FindTheModel", "DescribeProjectVersions"),
        ("OnlyWithStartModel", "rekognition:TagResource"),
        ("ListImagesAndTables", "s3:ListBucket"),
        ("WriteTables", "403"),
        ("OnlyWithScheduledStopRoleToo", "iam:PassRole"),
    ],
)
def test_a_missing_permission_is_named(trained, proxy, sid, message):
    proxy.policy = policy("run").without(sid)
    run = run_command(
        "run", IMAGES, "--model", trained.arn, "--out", TABLES, "--run-id", f"no-{sid}", "--start-model", "1", *SWITCH
    )
    assert run.code == 5, run.err
    assert message in run.err
    assert "Traceback" not in run.err


def test_every_operation_in_the_code_is_in_a_policy():
    allowed = set().union(*(policy(path.stem).actions for path in IAM.glob("*.json") if "trust" not in path.stem))
    assert {action for action in operations() if action not in allowed} == set()


def test_no_policy_has_a_wildcard_action():
    for path in IAM.glob("*.json"):
        assert not [action for action in Policy.read(path.read_text()).actions if "*" in action], path


def operations() -> set[str]:
    """The permissions for all boto3 client methods that the code calls."""
    named: dict[str, list[str]] = {}
    for service, prefix in PREFIXES.items():
        methods = boto3.client(service, region_name="us-east-1").meta.method_to_api_mapping
        for method, operation in methods.items():
            named.setdefault(method, []).append(f"{prefix}:{PERMISSION_NAMES.get(operation, operation)}")
    found: set[str] = set()
    for path in SOURCE.rglob("*.py"):
        if "emulator" in path.parts or path.name == "endpoint.py":  # it prepares requests without sending them
            continue
        text = path.read_text()
        if named.keys().isdisjoint(re.findall(r"\w+", text)):  # most files; parsing takes longer
            continue
        for node in ast.walk(ast.parse(text)):
            name = ""
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name = node.func.attr
                if name == "get_paginator" and isinstance(node.args[0], ast.Constant):
                    name = str(node.args[0].value)
            candidates = named.get(name, [])
            if len(candidates) == 1 or (candidates and candidates[0].startswith("rekognition:")):
                found.add(candidates[0])
    return found


def test_every_policy_is_documented():
    page = (ROOT / "docs" / "permissions.md").read_text()
    assert {path.name for path in IAM.glob("*.json")} == set(re.findall(r"configs/iam/([\w-]+\.json)", page))
