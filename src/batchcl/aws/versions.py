"""How a model comes and goes: trained, copied, deleted. Its running is in `lifecycle`.

Each verb takes an open Rekognition client. Training and copying take from minutes to a day in the service and go on
there whatever becomes of this process; the verbs here return when they are under way, and `wait_trained` and
`wait_copied` when they are done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from batchcl.aws.arguments import given
from batchcl.aws.arn import ModelArn, ProjectArn
from batchcl.aws.datasets import S3Location
from batchcl.aws.errors import translate_errors
from batchcl.aws.lifecycle import Model, describe, model_of
from batchcl.aws.waiting import GONE, LONG_PAUSES_S, wait_until
from batchcl.errors import ModelError, UsageError

__all__ = [
    "DOLLARS_PER_TRAINING_HOUR",
    "TRAINING_TIMEOUT_S",
    "copy_model",
    "delete_model",
    "output_config",
    "train_model",
    "wait_copied",
    "wait_trained",
]

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
    arguments |= given(VersionDescription=description, KmsKeyId=kms_key, Tags=dict(tags) if tags else None)
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
    arguments |= given(KmsKeyId=kms_key or None, Tags=dict(tags) if tags else None)
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
