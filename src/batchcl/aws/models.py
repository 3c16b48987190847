"""Models: train, copy, describe, list, start, stop and delete. Each function takes an open Rekognition client."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from batchcl.arns import ModelArn, ProjectArn
from batchcl.aws.errors import translate_errors
from batchcl.aws.values import drop_none, utc
from batchcl.aws.waiting import GONE, LONG_PAUSES_S, wait_until
from batchcl.errors import ErrorCode, ModelError, UsageError
from batchcl.quantities import Units

if TYPE_CHECKING:
    from batchcl.aws.datasets import S3Location

__all__ = [
    "IN_USE",
    "STARTABLE",
    "START_TIMEOUT_S",
    "TRAINING_TIMEOUT_S",
    "UP",
    "Model",
    "copy_model",
    "delete_model",
    "describe",
    "list_models",
    "start",
    "stop",
    "train_model",
    "wait",
    "wait_copied",
    "wait_trained",
]


START_TIMEOUT_S: Final = 45 * 60.0
"""Models take up to 30 minutes to start. Source: developer guide, "Running a model"."""

TRAINING_TIMEOUT_S: Final = 24 * 3600.0
"""Training takes from 30 minutes to 24 hours. Source: developer guide, "Training a model"."""

_DELETE_TIMEOUT_S: Final = 15 * 60.0

STARTABLE: Final = frozenset({"TRAINING_COMPLETED", "STOPPED", "FAILED", "COPYING_COMPLETED"})
"""Statuses of a trained model that can be started."""

UP: Final = frozenset({"STARTING", "RUNNING"})
"""Statuses of a model that is running or starting."""

IN_USE: Final = UP | {"STOPPING"}
"""Statuses of a model that can't be started or deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The service's description of a model (project version); the status of a deleted one is GONE.

    Attributes:
        arn: of the version.
        project: the project's name.
        version: the version's name.
        status: as in the API.
        message: the reason for the status.
        min_units: minimum inference units of the last start.
        max_units: maximum inference units of the last start, with auto-scaling.
        f1: F1 score over all labels on the test dataset.
        created: start of the training or copying.
        trained: end of the training.
        training_seconds: billed training time.
        description: by the user.
        output: `s3://bucket/prefix` of the training's results.
        summary: `s3://` URI of the evaluation summary.
        training_manifests: `s3://` URIs of the training entries.
        testing_manifests: `s3://` URIs of the evaluation snapshot.
        manifest_summary: `s3://` URI of the errors in the manifests.
        validation_manifests: `s3://` URIs of the unusable entries with their errors.
        copied_from: ARN of the version that this one was copied from.
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
    """The current description of a model.

    Raises:
        ModelError: it does not exist in its account and region.
        CredentialsError: the credentials are unknown to AWS or lack the permission.
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
                        return _model(version)
    raise ModelError(
        f"there is no model {arn.text}; list the models with `batchcl model list --region {arn.region}` "
        f"in account {arn.account}",
        code=ErrorCode.NO_SUCH_MODEL,
    )


async def list_models(client: Any, *, project: str | None = None) -> list[Model]:
    """All models of the account and region, or of one project; a project's newest model first."""
    models: list[Model] = []
    names = {} if project is None else {"ProjectNames": [project]}
    with translate_errors("listing models", refusal=ModelError):
        async for page in client.get_paginator("describe_projects").paginate(**names):
            for entry in page["ProjectDescriptions"]:
                versions = client.get_paginator("describe_project_versions").paginate(ProjectArn=entry["ProjectArn"])
                async for versions_page in versions:
                    models.extend(_model(version) for version in versions_page["ProjectVersionDescriptions"])
    return models


async def start(client: Any, arn: ModelArn, units: Units) -> None:
    """Request the start of the model; billing begins when it is RUNNING. Returns at once: see `wait`."""
    in_use = (
        f"see its status with `batchcl model show {arn.name}`; to change its units, stop it first with "
        "`batchcl model stop`"
    )
    with translate_errors(f"starting {arn.name} with {units.words}", refusal=ModelError, in_use=in_use):
        await client.start_project_version(
            ProjectVersionArn=arn.text, MinInferenceUnits=units.minimum, **drop_none(MaxInferenceUnits=units.maximum)
        )


async def stop(client: Any, arn: ModelArn) -> None:
    """Request the stop of the model, which ends billing. Returns at once: see `wait`.

    Raises:
        ModelError: the model is not RUNNING. A STARTING model can't be stopped.
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
    pauses_s: Sequence[float] | None = None,
) -> Model:
    """Poll until the model's status is `until`, and return the model; raises as `wait_until` does.

    Args:
        client: an open Rekognition client.
        arn: the model.
        until: the status to wait for, such as RUNNING or STOPPED.
        passing: statuses before that; any other one raises `ModelError`.
        timeout_s: maximum time.
        on_state: receives the model at each change of status, including the first one.
        pauses_s: as for `wait_until`.
    """
    return await wait_until(
        lambda: describe(client, arn),
        until={until},
        passing=passing,
        timeout_s=timeout_s,
        on_state=on_state,
        refusal=ModelError,
        pauses_s=pauses_s,
    )


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
    """Start training a model on the project's datasets, and return its ARN; see `wait_trained`.

    Billing begins when this function returns.

    Args:
        client: an open Rekognition client.
        project: the project.
        version: name of the new version, unique in the project.
        output: `s3://bucket` or `s3://bucket/prefix` for the training's results.
        training_manifests: Ground Truth manifests, for a project without datasets.
        testing_manifests: Ground Truth manifests, for a project without datasets.
        split_test_set: for a project without datasets: use a fifth of the training images for testing.
        description: free text.
        kms_key: encrypts the service's copies of images and manifests, and the results.
        tags: of the version.

    Raises:
        RefusedError: the name is taken, there are no training images, or a quota is exhausted.
        UsageError: an argument breaks the service's rules.
    """
    arguments: dict[str, Any] = {
        "ProjectArn": project.text,
        "VersionName": version,
        "OutputConfig": _output_config(output),
    }
    if training_manifests:
        arguments["TrainingData"] = {"Assets": [each.manifest for each in training_manifests]}
    if testing_manifests:
        arguments["TestingData"] = {"Assets": [each.manifest for each in testing_manifests]}
    elif split_test_set:
        arguments["TestingData"] = {"AutoCreate": True}
    arguments |= drop_none(VersionDescription=description, KmsKeyId=kms_key, Tags=dict(tags) if tags else None)
    with translate_errors(f"training {project.project}@{version}", refusal=ModelError, in_use=_in_use(project)):
        response = await client.create_project_version(**arguments)
    return ModelArn.parse(response["ProjectVersionArn"])


async def wait_trained(
    client: Any,
    arn: ModelArn,
    *,
    timeout_s: float = TRAINING_TIMEOUT_S,
    on_state: Callable[[Model], None] = lambda _: None,
) -> Model:
    """Return the model when its training is complete.

    Raises:
        ModelError: the training failed; with the service's reason and the location of the errors in the manifests.
        StoppedError: it took longer than `timeout_s`; the service continues the training.
    """

    async def describe_with_reason() -> Model:
        model = await describe(client, arn)
        return replace(model, message=_failure_reason(model)) if model.status == "TRAINING_FAILED" else model

    return await wait_until(
        describe_with_reason,
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
    """Start copying a trained model into another project, and return the copy's ARN; see `wait_copied`.

    Args:
        client: an open Rekognition client of the copy's account.
        source: the model; if it is in another account, a project policy must allow the copy.
        source_project: the model's project.
        project: the copy's project.
        version: the copy's name, unique in its project.
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
        "OutputConfig": _output_config(output),
    }
    arguments |= drop_none(KmsKeyId=kms_key or None, Tags=dict(tags) if tags else None)
    doing = f"copying {source.name} to {project.project}@{version}"
    with translate_errors(doing, refusal=ModelError, in_use=_in_use(project)):
        response = await client.copy_project_version(**arguments)
    return ModelArn.parse(response["ProjectVersionArn"])


async def wait_copied(
    client: Any,
    arn: ModelArn,
    *,
    timeout_s: float = TRAINING_TIMEOUT_S,
    on_state: Callable[[Model], None] = lambda _: None,
) -> Model:
    """Return the copy when it is complete; raises as `wait_trained` does."""
    return await wait(
        client,
        arn,
        until="COPYING_COMPLETED",
        passing={"COPYING_IN_PROGRESS"},
        timeout_s=timeout_s,
        on_state=on_state,
        pauses_s=LONG_PAUSES_S,
    )


async def delete_model(
    client: Any, project: ProjectArn, arn: ModelArn, *, timeout_s: float = _DELETE_TIMEOUT_S
) -> None:
    """Delete a model, and return when it no longer exists; its results in S3 stay.

    Raises:
        ModelError: it is training or running.
        StoppedError: it still existed after `timeout_s`.
    """
    with translate_errors(f"deleting {arn.name}", refusal=ModelError):
        await client.delete_project_version(ProjectVersionArn=arn.text)
    passing = {
        *("DELETING", "TRAINING_COMPLETED", "TRAINING_FAILED", "STOPPED", "FAILED"),
        *("COPYING_COMPLETED", "COPYING_FAILED", "DEPRECATED", "EXPIRED"),
    }

    async def describe_or_gone() -> Model:
        with translate_errors(f"looking up {arn.name}", refusal=ModelError):
            response = await client.describe_project_versions(ProjectArn=project.text, VersionNames=[arn.version])
        for each in response["ProjectVersionDescriptions"]:
            if each["ProjectVersionArn"] == arn.text:
                return _model(each)
        return _model({"ProjectVersionArn": arn.text, "Status": GONE})

    await wait_until(describe_or_gone, until={GONE}, passing=passing, timeout_s=timeout_s, refusal=ModelError)


def _model(version: dict[str, Any]) -> Model:
    """The model for an entry of DescribeProjectVersions."""
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
    location = holder.get("S3Object", {})
    if not location.get("Bucket") or not location.get("Name"):
        return None
    return f"s3://{location['Bucket']}/{location['Name']}"


def _manifests(data: dict[str, Any]) -> tuple[str, ...]:
    uris = (_uri(asset.get("GroundTruthManifest", {})) for asset in data.get("Assets", ()))
    return tuple(uri for uri in uris if uri is not None)


def _output_config(output: str) -> dict[str, str]:
    """The API's OutputConfig for `s3://bucket` or `s3://bucket/prefix`; raises `UsageError`."""
    bucket, _, prefix = output.removeprefix("s3://").partition("/")
    if not output.startswith("s3://") or not bucket:
        raise UsageError(f"{output!r} is not a location in S3; write it like s3://bucket/prefix")
    prefix = prefix.strip("/")
    return {"S3Bucket": bucket, "S3KeyPrefix": prefix} if prefix else {"S3Bucket": bucket}


def _failure_reason(model: Model) -> str:
    """The service's reason for a failed training, and where it lists the errors of each entry."""
    uris = [*([model.manifest_summary] if model.manifest_summary else []), *model.validation_manifests]
    reason = model.message.rstrip(".")
    return f"{reason}; the errors of each entry are in {', '.join(uris)}" if uris else reason


def _in_use(project: ProjectArn) -> str:
    return f"if this version exists (`batchcl model list --project {project.project}`), choose another name"
