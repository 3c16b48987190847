"""A model's life: describe, list, start, wait, stop. Each verb takes an open Rekognition client.

A version's ARN doesn't hold its project's, which DescribeProjectVersions needs; it is resolved by the project's name.
Botocore's own waiter gives up after 19.5 minutes and doesn't notice a model that stops, so `wait` is ours.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

from batchcl.aws.arguments import given
from batchcl.aws.arn import ModelArn
from batchcl.aws.errors import translate_errors
from batchcl.aws.moments import utc
from batchcl.aws.waiting import wait_until
from batchcl.errors import ModelError, UsageError

__all__ = ["Model", "Units", "describe", "list_models", "model_of", "start", "stop", "wait"]

MAX_UNITS: Final = 5
"""Inference units a running model may have; source: the service's default quota."""

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


@dataclass(frozen=True, slots=True)
class Units:
    """Inference units to start a model with; `maximum` switches the service's auto-scaling on."""

    minimum: int
    maximum: int | None = None

    @classmethod
    def parse(cls, text: str) -> Units:
        """Read `MIN` or `MIN:MAX`; raises `UsageError`."""
        low, colon, high = text.partition(":")
        try:
            units = cls(int(low), int(high) if colon else None)
        except ValueError:
            raise UsageError(f"{text!r} are no inference units; write MIN or MIN:MAX, such as 2 or 1:3") from None
        highest = units.minimum if units.maximum is None else units.maximum
        if not 1 <= units.minimum <= highest <= MAX_UNITS:
            raise UsageError(f"inference units {text!r} are out of range: 1 <= MIN <= MAX <= {MAX_UNITS}")
        return units

    def __str__(self) -> str:
        return str(self.minimum) if self.maximum is None else f"{self.minimum}:{self.maximum}"

    @property
    def words(self) -> str:
        """`1 inference unit`, `2 inference units`, `1:3 inference units`."""
        return f"{self} inference unit{'' if str(self) == '1' else 's'}"


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
            ProjectVersionArn=arn.text, MinInferenceUnits=units.minimum, **given(MaxInferenceUnits=units.maximum)
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
        output=_output(version.get("OutputConfig", {})),
        summary=_uri(result.get("Summary", {})),
        training_manifests=_manifests(training.get("Output", {})),
        testing_manifests=_manifests(testing.get("Output", {})),
        manifest_summary=_uri(version.get("ManifestSummary", {})),
        validation_manifests=(*_manifests(training.get("Validation", {})), *_manifests(testing.get("Validation", {}))),
        copied_from=version.get("SourceProjectVersionArn"),
    )


def _output(config: dict[str, Any]) -> str | None:
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
