"""Operations on projects, datasets, versions and tags, with the emulator in a thread."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio.from_thread
import pytest
from botocore.exceptions import EndpointConnectionError

from batchcl import workflow
from batchcl.aws import datasets, models, waiting
from batchcl.aws.session import Aws, AwsSettings, StaticCredentials
from batchcl.errors import CredentialsError, ModelError, RefusedError, StoppedError, UnreachableError, UsageError
from unit.emulator.harness import running_server
from virtual import run_virtual

Run = Callable[[Callable[[Any], Awaitable[Any]]], Any]
ARN = "arn:aws:rekognition:us-east-1:123456789012:project"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """An emulator and its directory of buckets."""
    buckets = tmp_path_factory.mktemp("verbs")
    (buckets / "bucket").mkdir()
    with running_server(buckets=buckets, train_seconds=0) as server:
        yield server.endpoint, buckets


@pytest.fixture(scope="module")
def run(endpoint) -> Iterator[Run]:
    """Await something with an open client, the same one for all tests."""
    settings = AwsSettings(
        region="us-east-1",
        rekognition_endpoint_url=endpoint[0],
        rekognition_credentials=StaticCredentials("emulator", "emulator"),
    )
    with (
        anyio.from_thread.start_blocking_portal() as portal,
        portal.wrap_async_context_manager(Aws(settings).rekognition()) as client,
    ):
        yield lambda work: portal.call(work, client)


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    """Poll quickly, as the emulator is faster than AWS."""
    monkeypatch.setattr(waiting, "_PAUSES_S", (0.02,))
    monkeypatch.setattr(models, "LONG_PAUSES_S", (0.02,))


@pytest.fixture
def project(run, request) -> workflow.ProjectArn:
    """A new project."""
    name = request.node.name.removeprefix("test_")[:60]
    made = run(lambda client: workflow.create_project(client, name, tags={"a": "b"}))
    return workflow.ProjectArn.parse(made.arn)


def line(number: int, label: str = "cat", padding: str = "") -> bytes:
    metadata = {
        "class-name": label,
        "type": "groundtruth/image-classification",
        "confidence": 1,
        "job-name": f"labeling-job/{padding}",
        "human-annotated": "yes",
        "creation-date": "2026-11-21T00:00:00.000",
    }
    return json.dumps({"source-ref": f"s3://bucket/{number}.png", "x": 1, "x-metadata": metadata}).encode()


async def collected(client: Any, arn: workflow.DatasetArn, **filters: Any) -> list[str]:
    entries = workflow.dataset_entries(client, arn, **filters)
    return [json.loads(entry)["source-ref"].rpartition("/")[2] async for entry in entries]


def test_a_project_is_created_and_deleted(run, project):
    found = run(lambda client: workflow.describe_project(client, project))
    assert (found.name, found.status, found.datasets) == (project.project, "CREATED", ())
    assert found.created is not None
    assert found.created.utcoffset() is not None
    assert project.text in [each.arn for each in run(workflow.list_projects)]
    assert run(lambda client: workflow.list_tags(client, project.text)) == {"a": "b"}
    with pytest.raises(RefusedError, match=f"creating the project {project.project} failed: ResourceInUseException"):
        run(lambda client: workflow.create_project(client, project.project))
    run(lambda client: workflow.delete_project(client, project))
    with pytest.raises(RefusedError, match=f"there is no project {project.project}"):
        run(lambda client: workflow.describe_project(client, project))


def test_a_dataset_is_created_changed_listed_split_and_deleted(run, project, monkeypatch):
    monkeypatch.setattr(datasets, "MAX_CHANGES_BYTES", 2_000)
    told: list[str] = []
    made = run(
        lambda client: workflow.create_dataset(client, project, "train", on_state=lambda each: told.append(each.status))
    )
    assert (made.name, made.status, made.entries) == (f"{project.project}/train", "CREATE_COMPLETE", 0)
    assert told[-1] == "CREATE_COMPLETE"
    train = workflow.DatasetArn.parse(made.arn)
    lines = [line(number, "cat" if number < 10 else "dog") for number in range(20)]
    done: list[int] = []
    updated = run(lambda client: workflow.update_entries(client, train, lines, on_batch=done.append))
    assert (updated.entries, updated.labeled, updated.labels) == (20, 20, 2)
    assert len(done) > 2, "2,000 bytes a batch"
    assert done[-1] == 20
    again = run(lambda client: workflow.update_entries(client, train, [line(3, "dog")]))
    assert again.entries == 20, "replaced, not added"
    labels = run(lambda client: workflow.dataset_labels(client, train))
    assert [(each.label, each.entries, each.boxed) for each in labels] == [("cat", 9, 0), ("dog", 11, 0)]
    assert len(run(lambda client: collected(client, train, labels=["dog"]))) == 11
    assert run(lambda client: collected(client, train, source_contains="/7.")) == ["7.png"]
    assert run(lambda client: collected(client, train, labeled=False)) == []
    assert len(run(lambda client: collected(client, train, has_errors=False))) == 20
    test = workflow.DatasetArn.parse(run(lambda client: workflow.create_dataset(client, project, "test")).arn)
    rest, aside = run(lambda client: workflow.distribute_entries(client, train, test))
    assert (rest.entries, aside.entries) == (16, 4)
    with pytest.raises(RefusedError, match="distributing the entries"):
        run(lambda client: workflow.distribute_entries(client, train, test))
    run(lambda client: workflow.delete_dataset(client, test))
    with pytest.raises(RefusedError, match=r"/test failed: ResourceNotFoundException"):
        run(lambda client: workflow.describe_dataset(client, test))
    with pytest.raises(UsageError, match="too large"):
        run(lambda client: workflow.update_entries(client, train, [line(1, padding="x" * 2_000)]))


def test_a_dataset_is_created_from_a_manifest_or_a_dataset(run, project, endpoint):
    (endpoint[1] / "bucket" / "some.manifest").write_bytes(b"\n".join(line(number) for number in range(3)))
    where = workflow.S3Location.parse("s3://bucket/some.manifest")
    train = run(lambda client: workflow.create_dataset(client, project, "train", where, tags={"k": "v"}))
    assert train.entries == 3
    assert run(lambda client: workflow.list_tags(client, train.arn)) == {"k": "v"}
    origin = workflow.DatasetArn.parse(train.arn)
    assert run(lambda client: workflow.create_dataset(client, project, "test", origin)).entries == 3
    with pytest.raises(RefusedError, match="ResourceAlreadyExistsException"):
        run(lambda client: workflow.create_dataset(client, project, "train", where))


def test_an_unreadable_manifest_is_refused_with_advice(run, project):
    where = workflow.S3Location("bucket", "missing.manifest")
    with pytest.raises(RefusedError, match=r"from s3://bucket/missing\.manifest failed: .*bucket policy"):
        run(lambda client: workflow.create_dataset(client, project, "train", where))


def test_names_are_resolved_to_arns(run, project):
    train = run(lambda client: workflow.create_dataset(client, project, "train")).arn
    name = project.project
    assert run(lambda client: workflow.find_project(client, name)) == project
    assert run(lambda client: workflow.find_project(client, project.text)) == project
    assert run(lambda client: workflow.find_dataset(client, f"{name}/train")).text == train
    assert run(lambda client: workflow.find_dataset(client, train)).text == train
    for find, text, kind, says in (
        (workflow.find_project, "nope", RefusedError, "there is no project nope in this account and region"),
        (workflow.find_project, "a b", UsageError, "is not a valid name"),
        (workflow.find_project, "arn:x", UsageError, "not the ARN of a Custom Labels project"),
        (workflow.find_dataset, f"{name}/test", RefusedError, "has no test dataset; create one with `batchcl dataset"),
        (workflow.find_dataset, name, UsageError, "write PROJECT/train, PROJECT/test, or an ARN"),
        (workflow.find_dataset, project.text, UsageError, "not the ARN of a Custom Labels dataset"),
        (workflow.find_model, f"{name}@v1", ModelError, f"project {name} has no model v1"),
        (workflow.find_model, name, UsageError, "write PROJECT@VERSION or an ARN"),
        (workflow.find_model, "nope@v1", RefusedError, "there is no project nope"),
    ):
        with pytest.raises(kind, match=says):
            run(lambda client, find=find, text=text: find(client, text))


def test_tags_are_set_changed_and_removed(run, project):
    arn = project.text
    run(lambda client: workflow.tag(client, arn, {"a": "c", "d": ""}))
    assert run(lambda client: workflow.list_tags(client, arn)) == {"a": "c", "d": ""}
    run(lambda client: workflow.untag(client, arn, ["a", "never"]))
    assert run(lambda client: workflow.list_tags(client, arn)) == {"d": ""}
    with pytest.raises(RefusedError, match=f"tagging {arn}9 failed: ResourceNotFoundException"):
        run(lambda client: workflow.tag(client, f"{arn}9", {"a": "b"}))


def test_policies_are_attached_replaced_and_deleted(run, project):
    document = json.dumps(
        {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"AWS": "arn:aws:iam::210987654321:root"},
                    "Action": "rekognition:CopyProjectVersion",
                    "Resource": f"{ARN}/{project.project}/version/*/*",
                }
            ],
        }
    )
    first = run(lambda client: workflow.put_policy(client, project, "sharing", document))
    second = run(lambda client: workflow.put_policy(client, project, "sharing", document, revision=first))
    (found,) = run(lambda client: workflow.list_policies(client, project))
    assert (found.name, found.revision, found.document) == ("sharing", second, document)
    with pytest.raises(RefusedError, match=r"InvalidPolicyRevisionIdException.*batchcl project policy list"):
        run(lambda client: workflow.delete_policy(client, project, "sharing", revision="0" * 32))
    with pytest.raises(RefusedError, match="MalformedPolicyDocumentException"):
        run(lambda client: workflow.put_policy(client, project, "other", "{"))
    run(lambda client: workflow.delete_policy(client, project, "sharing", revision=second))
    assert run(lambda client: workflow.list_policies(client, project)) == []


def test_a_failed_training_has_a_reason_and_a_manifest(run, project, endpoint):
    (endpoint[1] / "bucket" / "gone.manifest").write_bytes(b"\n".join(line(number) for number in range(900, 920)))
    where = workflow.S3Location("bucket", "gone.manifest")

    async def train(client: Any) -> Any:
        arn = await workflow.train_model(
            client, project, version="v1", output="s3://bucket/out", training_manifests=[where], split_test_set=True
        )
        return await workflow.wait_trained(client, arn, timeout_s=60)

    with pytest.raises(ModelError, match=r"TRAINING_FAILED .*each entry are in s3://bucket/out/.*manifest") as caught:
        run(train)
    files = [word.rstrip(",") for word in str(caught.value).split() if word.startswith("s3://")]
    assert all((endpoint[1] / file.removeprefix("s3://")).exists() for file in files), files

    async def delete(client: Any) -> None:
        arn = await workflow.find_model(client, f"{project.project}@v1")
        await workflow.delete_model(client, project, arn)
        await workflow.find_model(client, arn.name)

    with pytest.raises(ModelError, match="has no model v1"):
        run(delete)


def test_invalid_arguments_are_usage_errors(run, project):
    with pytest.raises(UsageError, match=r"training .* failed: .*VersionName"):
        run(lambda client: workflow.train_model(client, project, version="", output="s3://b"))
    with pytest.raises(UsageError, match="write it like s3://bucket/prefix"):
        run(lambda client: workflow.train_model(client, project, version="v1", output="bucket"))
    with pytest.raises(UsageError, match="write it like s3://bucket/key"):
        workflow.S3Location.parse("s3://bucket/")


class Slow:
    """A service that never deletes its project, and then does not respond or refuses the credentials."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    async def delete_project(self, **_: Any) -> None:
        """Start the deletion."""

    async def describe_projects(self, **_: Any) -> dict[str, Any]:
        if self._error is not None:
            raise self._error
        return {"ProjectDescriptions": [{"ProjectArn": f"{ARN}/dogs/1", "Status": "DELETING"}]}


def test_a_deletion_that_takes_too_long_ends_with_its_status():
    arn = workflow.ProjectArn.parse(f"{ARN}/dogs/1")
    with pytest.raises(StoppedError, match="dogs was still DELETING after 15 minutes"):
        run_virtual(lambda: workflow.delete_project(Slow(), arn))


@pytest.mark.parametrize(
    ("error", "kind"),
    [(EndpointConnectionError(endpoint_url="x"), UnreachableError), (CredentialsError("none"), CredentialsError)],
)
def test_a_wait_ends_if_the_service_is_unreachable_or_refuses(error, kind):
    arn = workflow.ProjectArn.parse(f"{ARN}/dogs/1")
    with pytest.raises(kind):
        run_virtual(lambda: workflow.delete_project(Slow(error), arn))
