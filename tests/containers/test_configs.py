"""The Dockerfile, and the manifests in configs/ that run its image: what the program and the schedulers rely on.

`make containers` also checks them with cfn-lint and kubernetes-validate, and runs the steps of the Dockerfile.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml

from batchcl.errors import ExitCode
from batchcl.job import Job, load_job
from containers.build import ROOT, stages

IAM: Final = ROOT / "configs" / "iam"
NOT_RETRIED: Final = {ExitCode.USAGE, ExitCode.FAILURES, ExitCode.REFUSED}
GRACE_S: Final = Job(sources="in", model="a@b", out="out").grace_s
BATCH_GRACE_S: Final = 30
"""From SIGTERM to SIGKILL in AWS Batch, which has no setting for it."""

VALUES: Final = {
    "AWS::AccountId": "123456789012",
    "AWS::Partition": "aws",
    "AWS::Region": "us-east-1",
    "AWS::StackName": "labels",
    "AWS::URLSuffix": "amazonaws.com",
    "Repository": "batchcl",
    "ImageTag": "1",
    "Project": "products",
    "Version": "v3",
    "ImageBucket": "acme-photos",
    "ImagePrefix": "2026/",
    "TableBucket": "acme-tables",
    "TablePrefix": "labels",
    "InferenceUnits": "1",
    "JobQueue": "queue",
    "StopRole.Arn": "arn:aws:iam::123456789012:role/batchcl-stop",
}
"""Of the template's parameters and of what AWS fills in; configs/iam has the same ones."""


class _Template(yaml.SafeLoader):  # type: ignore[misc] # PyYAML ships no types
    """Replaces `!Ref`, `!Sub` and `!GetAtt` by VALUES; unknown names stay."""


def _substituted(text: str) -> str:
    return re.sub(r"\$\{([\w:]+)\}", lambda found: VALUES.get(found[1], found[1]), text)


for _tag in ("!Ref", "!GetAtt"):
    _Template.add_constructor(_tag, lambda _, node: VALUES.get(node.value, node.value))
_Template.add_constructor("!Sub", lambda _, node: _substituted(node.value))
for _tag in ("!If", "!Not", "!Equals"):
    _Template.add_constructor(_tag, lambda loader, node: loader.construct_sequence(node, deep=True))


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    """The resources of the template by name, with their properties."""
    document = yaml.load((ROOT / "configs/cloudformation/batchcl.yaml").read_text(), Loader=_Template)
    return {name: each.get("Properties", {}) for name, each in document["Resources"].items()}


@pytest.fixture(scope="module")
def manifests() -> dict[str, Any]:
    """The Kubernetes objects by kind and name."""
    documents = yaml.safe_load_all((ROOT / "configs/kubernetes/cronjob.yaml").read_text())
    return {f"{each['kind']} {each['metadata']['name']}": each for each in documents}


@pytest.fixture(scope="module")
def image_user() -> str:
    return next(each.arguments for each in stages(ROOT / "Dockerfile")[-1] if each.name == "USER")


def pods(manifests: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, each in manifests.items():
        if name.startswith("CronJob"):
            yield each["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def statements(role: dict[str, Any]) -> dict[str, Any]:
    (document,) = (policy["PolicyDocument"] for policy in role["Policies"])
    return {each["Sid"]: each for each in document["Statement"]}


def policy(name: str) -> dict[str, Any]:
    return {each["Sid"]: each for each in json.loads((IAM / f"{name}.json").read_text())["Statement"]}


def test_the_image_runs_the_command_itself_without_root(image_user):
    first, last = stages(ROOT / "Dockerfile")
    assert {each.name for each in last} == {"FROM", "COPY", "ENV", "WORKDIR", "USER", "ENTRYPOINT", "CMD"}
    assert [each.arguments for each in last if each.name == "COPY"] == ["--from=build /opt/batchcl /opt/batchcl"]
    assert (first[0].arguments, last[0].arguments) == ("${BASE} AS build", "${BASE}"), "the environment links to Python"
    (entry,) = (json.loads(each.arguments) for each in last if each.name == "ENTRYPOINT")
    assert entry == ["batchcl"], "a shell would receive the signals instead"
    assert int(image_user.partition(":")[0]) > 0


def test_the_build_context_has_what_the_dockerfile_copies():
    copied = [each.arguments.split() for each in stages(ROOT / "Dockerfile")[0] if each.name == "COPY"]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert {source for *sources, _ in copied for source in sources} == set(kept)
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())
    hatch = configuration["tool"]["hatch"]
    readme = hatch["metadata"]["hooks"]["fancy-pypi-readme"]["fragments"][0]["path"]
    included = hatch["build"]["targets"]["wheel"]["force-include"]
    assert {readme, *configuration["project"]["license-files"], *included} <= set(kept)


def test_containers_of_the_manifests_are_confined(manifests, template, image_user):
    user, group = map(int, image_user.split(":"))
    for pod in pods(manifests):
        security = pod["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"], security["runAsGroup"]) == (True, user, group)
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    (task,) = template["TaskDefinition"]["ContainerDefinitions"]
    for each in (task, template["JobDefinition"]["ContainerProperties"]):
        assert (each["User"], each["ReadonlyRootFilesystem"]) == (image_user, True)


def test_supervisors_wait_longer_than_the_grace_period(manifests, template):
    pod = next(pods(manifests))
    (task,) = template["TaskDefinition"]["ContainerDefinitions"]
    assert min(pod["terminationGracePeriodSeconds"], task["StopTimeout"], BATCH_GRACE_S) > GRACE_S


def test_exit_codes_decide_on_retries(manifests, template):
    job = manifests["CronJob batchcl-nightly"]["spec"]["jobTemplate"]["spec"]
    fail, ignore = job["podFailurePolicy"]["rules"]
    (container,) = job["template"]["spec"]["containers"]
    codes = fail["onExitCodes"]
    assert (fail["action"], codes["operator"], codes["containerName"]) == ("FailJob", "In", container["name"])
    assert set(codes["values"]) == NOT_RETRIED
    assert ignore == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    assert job["template"]["spec"]["restartPolicy"] == "Never", "required by podFailurePolicy"
    rules = template["JobDefinition"]["RetryStrategy"]["EvaluateOnExit"]
    assert {int(each["OnExitCode"]) for each in rules if "OnExitCode" in each} == NOT_RETRIED
    assert {each["Action"] for each in rules} == {"EXIT"}, "what matches no rule is retried"


def test_a_night_ends_before_its_own_deadline(manifests, template, tmp_path):
    """Schedulers retry exit code 4, with which a run ends at its deadline, but nothing that they ended themselves."""
    nightly = manifests["CronJob batchcl-nightly"]["spec"]["jobTemplate"]["spec"]
    (tmp_path / "nightly.toml").write_text(manifests["ConfigMap batchcl-nightly"]["data"]["nightly.toml"])
    deadline_s = load_job(tmp_path / "nightly.toml").deadline_s(dt.datetime.now(dt.UTC))
    assert deadline_s is not None
    assert nightly["activeDeadlineSeconds"] < deadline_s
    assert template["JobDefinition"]["Timeout"]["AttemptDurationSeconds"] < deadline_s
    command = template["JobDefinition"]["ContainerProperties"]["Command"]
    assert command[command.index("--deadline") + 1] == f"{deadline_s / 3600:.0f}h"


def test_the_commands_are_valid(manifests, template, cli, tmp_path):
    """Without credentials, a valid job is refused with exit code 5, and an invalid one with 2."""
    (container,) = next(pods(manifests))["containers"]
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "config")
    (tmp_path / "nightly.toml").write_text(manifests["ConfigMap batchcl-nightly"]["data"]["nightly.toml"])
    (task,) = template["TaskDefinition"]["ContainerDefinitions"]
    job = template["JobDefinition"]["ContainerProperties"]
    assert task["Command"] == job["Command"]
    for command in (container["args"], task["Command"]):
        words = [str(word).replace(mount["mountPath"], str(tmp_path)) for word in command]
        done = cli(*words, env={"AWS_REGION": "us-east-1", "BATCHCL_RUN_ID": "2026-11-21T01:15:00Z"})
        assert (done.code, "credentials" in done.err) == (ExitCode.REFUSED, True), done.err


def test_run_ids_come_from_the_scheduler(manifests, template):
    (container,) = next(pods(manifests))["containers"]
    variable = next(each for each in container["env"] if each["name"] == "BATCHCL_RUN_ID")
    label = "metadata.labels['batch.kubernetes.io/job-name']"
    assert variable["valueFrom"] == {"fieldRef": {"fieldPath": label}}, "each pod of a Job has the same one"
    started = json.loads(template["EcsSchedule"]["Target"]["Input"])["containerOverrides"]
    (task,) = template["TaskDefinition"]["ContainerDefinitions"]
    assert started == [
        {"name": task["Name"], "environment": [{"name": "BATCHCL_RUN_ID", "value": "<aws.scheduler.scheduled-time>"}]}
    ]
    submitted = json.loads(template["BatchSchedule"]["Target"]["Input"])
    assert submitted["ContainerOverrides"]["Environment"] == [
        {"Name": "BATCHCL_RUN_ID", "Value": "<aws.scheduler.scheduled-time>"}
    ]


def test_the_roles_have_the_policies_of_configs_iam(template):
    allowed, documented = statements(template["RunRole"]), policy("run")
    assert documented.keys() - allowed.keys() == {"OnlyForListsWithVersions", "OnlyForDoctor"}
    assert allowed == {sid: documented[sid] for sid in allowed}
    assert statements(template["StopRole"]) == policy("stop-role")
    trust = {each["Sid"]: each for each in template["StopRole"]["AssumeRolePolicyDocument"]["Statement"]}
    assert trust == policy("stop-role-trust")
