"""Models: train, copy, describe, list, start, stop and delete. Each function takes an open Rekognition client."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from batchcl.arns import ModelArn, ProjectArn
from batchcl.aws.datasets import S3Location
from batchcl.aws.errors import translate_errors
from batchcl.aws.values import drop_none, utc
from batchcl.aws.waiting import GONE, LONG_PAUSES_S, wait_until
from batchcl.errors import ModelError, UsageError
from batchcl.quantities import Units

__all__ = [
    "DOLLARS_PER_TRAINING_HOUR",
    "IN_USE",
    "STARTABLE",
    "TRAINING_TIMEOUT_S",
    "UP",
    "Model",
    "Units",
    "copy_model",
    "delete_model",
    "describe",
    "list_models",
    "model_of",
    "output_config",
    "start",
    "stop",
    "train_model",
    "wait",
    "wait_copied",
    "wait_trained",
]


START_TIMEOUT_S: Final = 45 * 60.0
"""Models were seen to take up to 30 minutes to start; source: developer guide, "Running a model"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A project version as the service describes it; once deleted its status is GONE.

    Attributes:
        arn: of the version.
        project: the project's name.
        version: the version's name.
        status: the service's own word.
        message: its reason.
        min_units: inference units that it was started with last.
        max_units: likewise, where auto-scaling is on.
        f1: over all labels, on the test set.
        created: when the training or copying began.
        trained: when the training ended.
        training_seconds: those that are billed.
        description: as it was given.
        output: where the training's results lie, `s3://bucket/prefix`.
        summary: the evaluation summary's `s3://` URI.
        training_manifests: the entries that were learned from, as `s3://` URIs.
        testing_manifests: the evaluation snapshot, likewise.
        manifest_summary: what was wrong with the manifests, likewise.
        validation_manifests: the entries that could not be used and why, likewise.
        copied_from: the ARN of the version that this is a copy of.
    """

    arn: str
    project: str
    version: str
    status: str
    message: str
    min_units: int | None
    max_units: int | None
    f1: float | None
    created: dt.datetime | None
    trained: dt.datetime | None = None
    training_seconds: int | None = None
    description: str | None = None
    output: str | None = None
    summary: str | None = None
    training_manifests: tuple[str, ...] = ()
    testing_manifests: tuple[str, ...] = ()
    manifest_summary: str | None = None
    validation_manifests: tuple[str, ...] = ()
    copied_from: str | None = None

    @property
    def name(self) -> str:
        """`<project>@<version>`."""
        return f"{self.project}@{self.version}"


async def describe(client: Any, arn: ModelArn) -> Model:
    """The model as it is now.

    Raises:
        ModelError: there is none of this ARN in its account and region.
        CredentialsError: AWS doesn't know the credentials, or they may not describe models.
    """
    with translate_errors(f"describing {arn.name}", refusal=ModelError):
        projects = await client.describe_projects(ProjectNames=[arn.project])
        for project in projects["ProjectDescriptions"]:
            pages = client.get_paginator("describe_project_versions").paginate(
                ProjectArn=project["ProjectArn"], VersionNames=[arn.version]
            )
            async for page in pages:
                for version in page["ProjectVersionDescriptions"]:
                    if version["ProjectVersionArn"] == arn.text:
                        return model_of(version)
    raise ModelError(
        f"there is no model {arn.text}; check it with `batchcl model list --region {arn.region}` "
        f"in account {arn.account}"
    )


async def list_models(client: Any, *, project: str | None = None) -> list[Model]:
    """All models of the account and region, or of one project; the newest of a project first."""
    found: list[Model] = []
    names = {} if project is None else {"ProjectNames": [project]}
    with translate_errors("listing models", refusal=ModelError):
        async for page in client.get_paginator("describe_projects").paginate(**names):
            for entry in page["ProjectDescriptions"]:
                versions = client.get_paginator("describe_project_versions").paginate(ProjectArn=entry["ProjectArn"])
                async for part in versions:
                    found.extend(model_of(version) for version in part["ProjectVersionDescriptions"])
    return found


async def start(client: Any, arn: ModelArn, units: Units) -> None:
    """Ask the service to start the model; billing begins when it is RUNNING. Returns at once: see `wait`."""
    in_use = f"see what it does with `batchcl model show {arn.name}`; other units need `batchcl model stop` first"
    with translate_errors(f"starting {arn.name} with {units.words}", refusal=ModelError, in_use=in_use):
        await client.start_project_version(
            ProjectVersionArn=arn.text, MinInferenceUnits=units.minimum, **drop_none(MaxInferenceUnits=units.maximum)
        )


async def stop(client: Any, arn: ModelArn) -> None:
    """Ask the service to stop the model, which ends billing. Returns at once: see `wait`.

    Raises:
        ModelError: the model is not RUNNING. One that is STARTING can't be stopped before it runs.
    """
    with translate_errors(f"stopping {arn.name}", refusal=ModelError):
        await client.stop_project_version(ProjectVersionArn=arn.text)


async def wait(
    client: Any,
    arn: ModelArn,
    *,
    until: str,
    passing: Collection[str],
    timeout_s: float = START_TIMEOUT_S,
    on_state: Callable[[Model], None] = lambda _: None,
) -> Model:
    """Poll until the model's status is `until`.

    Args:
        client: an open Rekognition client.
        arn: the model.
        until: the status to wait for, such as RUNNING or STOPPED.
        passing: statuses on the way to it; any other ends the wait.
        timeout_s: how long at most.
        on_state: told of each change of status, the first one included.

    Raises:
        ModelError: the model took another way, with the service's reason.
        StoppedError: it took longer than `timeout_s`.
        UnreachableError: the service has not answered for five minutes.
    """
    return await wait_until(
        lambda: describe(client, arn),
        until={until},
        passing=passing,
        timeout_s=timeout_s,
        on_state=on_state,
        refusal=ModelError,
    )


def model_of(version: dict[str, Any]) -> Model:
    """The model that an entry of DescribeProjectVersions describes."""
    arn = ModelArn.parse(version["ProjectVersionArn"])
    result = version.get("EvaluationResult", {})
    training, testing = version.get("TrainingDataResult", {}), version.get("TestingDataResult", {})
    return Model(
        arn=arn.text,
        project=arn.project,
        version=arn.version,
        status=version["Status"],
        message=version.get("StatusMessage", ""),
        min_units=version.get("MinInferenceUnits"),
        max_units=version.get("MaxInferenceUnits"),
        f1=result.get("F1Score"),
        created=utc(version.get("CreationTimestamp")),
        trained=utc(version.get("TrainingEndTimestamp")),
        training_seconds=version.get("BillableTrainingTimeInSeconds"),
        description=version.get("VersionDescription"),
        output=_training_output(version.get("OutputConfig", {})),
        summary=_uri(result.get("Summary", {})),
        training_manifests=_manifests(training.get("Output", {})),
        testing_manifests=_manifests(testing.get("Output", {})),
        manifest_summary=_uri(version.get("ManifestSummary", {})),
        validation_manifests=(*_manifests(training.get("Validation", {})), *_manifests(testing.get("Validation", {}))),
        copied_from=version.get("SourceProjectVersionArn"),
    )


def _training_output(config: dict[str, Any]) -> str | None:
    if not config.get("S3Bucket"):
        return None
    prefix = config.get("S3KeyPrefix", "").strip("/")
    return f"s3://{config['S3Bucket']}/{prefix}" if prefix else f"s3://{config['S3Bucket']}"


def _uri(holder: dict[str, Any]) -> str | None:
    where = holder.get("S3Object", {})
    return f"s3://{where['Bucket']}/{where['Name']}" if where.get("Bucket") and where.get("Name") else None


def _manifests(data: dict[str, Any]) -> tuple[str, ...]:
    uris = (_uri(asset.get("GroundTruthManifest", {})) for asset in data.get("Assets", ()))
    return tuple(uri for uri in uris if uri is not None)


DOLLARS_PER_TRAINING_HOUR: Final = 1.0
"""Price of an hour of training; several hours may be billed for one when it runs in parallel. Source: pricing page."""

TRAINING_TIMEOUT_S: Final = 24 * 3600.0
"""Training takes from 30 minutes to 24 hours; source: developer guide, "Training a model"."""

_DELETE_TIMEOUT_S: Final = 15 * 60.0


async def train_model(
    client: Any,
    project: ProjectArn,
    *,
    version: str,
    output: str,
    training_manifests: Sequence[S3Location] = (),
    testing_manifests: Sequence[S3Location] = (),
    split_test_set: bool = False,
    description: str | None = None,
    kms_key: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> ModelArn:
    """Begin to train a version on the project's datasets, and return its ARN; see `wait_trained`.

    From here on the training is billed.

    Args:
        client: an open Rekognition client.
        project: whose datasets it learns from.
        version: its name, new in the project.
        output: `s3://bucket` or `s3://bucket/prefix` for the training's results.
        training_manifests: for a project without datasets: Ground Truth manifests to learn from.
        testing_manifests: likewise, to test with.
        split_test_set: likewise: let the service put a fifth of the training images aside for the test.
        description: in words.
        kms_key: encrypts the service's copies of images and manifests, and the results.
        tags: of the version.

    Raises:
        RefusedError: the name is taken, there is nothing to train with, or a quota is used up.
        UsageError: an argument breaks the service's rules.
    """
    arguments: dict[str, Any] = {
        "ProjectArn": project.text,
        "VersionName": version,
        "OutputConfig": output_config(output),
    }
    if training_manifests:
        arguments["TrainingData"] = {"Assets": [each.manifest for each in training_manifests]}
    if testing_manifests:
        arguments["TestingData"] = {"Assets": [each.manifest for each in testing_manifests]}
    elif split_test_set:
        arguments["TestingData"] = {"AutoCreate": True}
    arguments |= drop_none(VersionDescription=description, KmsKeyId=kms_key, Tags=dict(tags) if tags else None)
    with translate_errors(f"training {project.project}@{version}", refusal=ModelError, in_use=_in_use(project)):
        answer = await client.create_project_version(**arguments)
    return ModelArn.parse(answer["ProjectVersionArn"])


async def wait_trained(
    client: Any,
    arn: ModelArn,
    *,
    timeout_s: float = TRAINING_TIMEOUT_S,
    on_state: Callable[[Model], None] = lambda _: None,
) -> Model:
    """Return the model when its training is complete.

    Raises:
        ModelError: the training failed; with the service's reason and where it says what is wrong with the manifests.
        StoppedError: it took longer than `timeout_s`; it goes on in the service.
    """

    async def look() -> Model:
        model = await describe(client, arn)
        return replace(model, message=_why(model)) if model.status == "TRAINING_FAILED" else model

    return await wait_until(
        look,
        until={"TRAINING_COMPLETED"},
        passing={"TRAINING_IN_PROGRESS"},
        timeout_s=timeout_s,
        on_state=on_state,
        refusal=ModelError,
        pauses_s=LONG_PAUSES_S,
    )


async def copy_model(
    client: Any,
    source: ModelArn,
    *,
    source_project: ProjectArn,
    project: ProjectArn,
    version: str,
    output: str,
    kms_key: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> ModelArn:
    """Begin to copy a trained model into another project, and return the copy's ARN; see `wait_copied`.

    Args:
        client: an open Rekognition client of the account that gets the copy.
        source: the model; another account must share it by a project policy.
        source_project: the project that the model is in.
        project: the project that gets the copy.
        version: the copy's name, new in its project.
        output: `s3://bucket` or `s3://bucket/prefix` for the training's results.
        kms_key: encrypts the copied results.
        tags: of the copy.

    Raises:
        ModelError: the service refuses.
    """
    arguments: dict[str, Any] = {
        "SourceProjectArn": source_project.text,
        "SourceProjectVersionArn": source.text,
        "DestinationProjectArn": project.text,
        "VersionName": version,
        "OutputConfig": output_config(output),
    }
    arguments |= drop_none(KmsKeyId=kms_key or None, Tags=dict(tags) if tags else None)
    doing = f"copying {source.name} to {project.project}@{version}"
    with translate_errors(doing, refusal=ModelError, in_use=_in_use(project)):
        answer = await client.copy_project_version(**arguments)
    return ModelArn.parse(answer["ProjectVersionArn"])


async def wait_copied(
    client: Any,
    arn: ModelArn,
    *,
    timeout_s: float = TRAINING_TIMEOUT_S,
    on_state: Callable[[Model], None] = lambda _: None,
) -> Model:
    """Return the copy when it is complete; raises as `wait_trained` does."""
    return await wait_until(
        lambda: describe(client, arn),
        until={"COPYING_COMPLETED"},
        passing={"COPYING_IN_PROGRESS"},
        timeout_s=timeout_s,
        on_state=on_state,
        refusal=ModelError,
        pauses_s=LONG_PAUSES_S,
    )


async def delete_model(
    client: Any, project: ProjectArn, arn: ModelArn, *, timeout_s: float = _DELETE_TIMEOUT_S
) -> None:
    """Delete a model that neither trains nor runs, and return when it is gone; its results in S3 stay.

    Raises:
        ModelError: it trains or runs.
        StoppedError: it wasn't gone after `timeout_s`.
    """
    with translate_errors(f"deleting {arn.name}", refusal=ModelError):
        await client.delete_project_version(ProjectVersionArn=arn.text)
    passing = {
        *("DELETING", "TRAINING_COMPLETED", "TRAINING_FAILED", "STOPPED", "FAILED"),
        *("COPYING_COMPLETED", "COPYING_FAILED", "DEPRECATED", "EXPIRED"),
    }

    async def look() -> Model:
        with translate_errors(f"looking up {arn.name}", refusal=ModelError):
            answer = await client.describe_project_versions(ProjectArn=project.text, VersionNames=[arn.version])
        for each in answer["ProjectVersionDescriptions"]:
            if each["ProjectVersionArn"] == arn.text:
                return model_of(each)
        return _gone(arn)

    await wait_until(look, until={GONE}, passing=passing, timeout_s=timeout_s, refusal=ModelError)


def output_config(output: str) -> dict[str, str]:
    """The service's OutputConfig for `s3://bucket` or `s3://bucket/prefix`; raises `UsageError`."""
    bucket, _, prefix = output.removeprefix("s3://").partition("/")
    if not output.startswith("s3://") or not bucket:
        raise UsageError(f"{output!r} names no place in S3; it looks like s3://bucket/prefix")
    prefix = prefix.strip("/")
    return {"S3Bucket": bucket, "S3KeyPrefix": prefix} if prefix else {"S3Bucket": bucket}


def _why(model: Model) -> str:
    """The service's reason, and where it wrote what is wrong with which entry."""
    where = [*([model.manifest_summary] if model.manifest_summary else []), *model.validation_manifests]
    reason = model.message.rstrip(".")
    return f"{reason}; what is wrong with which entry stands in {', '.join(where)}" if where else reason


def _gone(arn: ModelArn) -> Model:
    return Model(
        arn=arn.text,
        project=arn.project,
        version=arn.version,
        status=GONE,
        message="",
        min_units=None,
        max_units=None,
        f1=None,
        created=None,
    )


def _in_use(project: ProjectArn) -> str:
    return f"if there is one of this name (`batchcl model list --project {project.project}`), choose another name"


STARTABLE: Final = frozenset({"TRAINING_COMPLETED", "STOPPED", "FAILED", "COPYING_COMPLETED"})
"""It was trained, and doesn't run."""

UP: Final = frozenset({"STARTING", "RUNNING"})
"""It runs, or will if nobody does anything."""

IN_USE: Final = UP | {"STOPPING"}
"""It can't be started now, nor deleted."""
