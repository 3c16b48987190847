"""Resolves names to ARNs: `project`, `project@version`, `project/train`, `project/test`, or an ARN.

Names are looked up in the client's account and region, by DescribeProjects.
"""

from __future__ import annotations

import re
from typing import Any, Final

from batchcl.arns import DatasetArn, ModelArn, ProjectArn
from batchcl.aws.errors import translate_errors
from batchcl.aws.models import IN_USE, STARTABLE
from batchcl.errors import ErrorCode, ModelError, RefusedError, UsageError

__all__ = [
    "dataset_name",
    "describe_project_by_name",
    "find_dataset",
    "find_model",
    "find_project",
    "find_trained_model",
    "matches_model",
    "project_name",
    "region_in",
    "validate_model_name",
]

_NAME: Final = re.compile(r"[a-zA-Z0-9_.\-]{1,255}")
_KINDS: Final = ("train", "test")


def region_in(text: str) -> str | None:
    """The region in `text` if it is an ARN; None for a name."""
    parts = text.split(":") if text.startswith("arn:") else []
    return parts[3] if len(parts) > 3 else None  # noqa: PLR2004 - arn:partition:service:region


async def find_project(client: Any, text: str) -> ProjectArn:
    """The project with this ARN, which is not looked up, or name.

    Raises:
        UsageError: `text` is neither.
        RefusedError: there is no project with this name, or more than one.
    """
    if text.startswith("arn:"):
        return ProjectArn.parse(text)
    return ProjectArn.parse((await describe_project_by_name(client, _checked(text, text)))["ProjectArn"])


async def project_name(client: Any, text: str | None, *, must_exist: bool) -> str | None:
    """The name of the project with this ARN or name, to list models by; None for None.

    Raises:
        UsageError: `text` is neither.
        RefusedError: `must_exist`, and there is no project with this name, or more than one.
    """
    if text is None:
        return None
    if must_exist or text.startswith("arn:"):
        return (await find_project(client, text)).project
    return _checked(text, text)


def validate_model_name(text: str) -> str:
    """Return `text` if it is a valid ARN, `project@version` or `project`; else raise `UsageError`. No look-up."""
    if text.startswith("arn:"):
        return ModelArn.parse(text).text
    project, at, version = text.partition("@")
    if not _NAME.fullmatch(project) or (at and not _NAME.fullmatch(version)):
        raise UsageError(
            f"{text!r} is not a model; write PROJECT@VERSION, PROJECT or an ARN, see `batchcl model list`",
            code=ErrorCode.INVALID_NAME,
        )
    return text


def matches_model(arn: ModelArn, text: str) -> bool:
    """Whether `text`, an ARN, `project@version` or `project`, can be this model."""
    return text in (arn.text, arn.name, arn.project)


async def find_trained_model(client: Any, text: str) -> ModelArn:
    """The model to score with: as `find_model`, or for `project` its newest trained version.

    Raises:
        UsageError: `text` is not a valid name.
        ModelError: there is no such model.
    """
    if text.startswith("arn:") or "@" in text:
        return await find_model(client, text)
    described = await describe_project_by_name(client, _checked(text, text))
    trained: list[dict[str, Any]] = []
    with translate_errors(f"looking up the models of project {text}", refusal=ModelError):
        pages = client.get_paginator("describe_project_versions").paginate(ProjectArn=described["ProjectArn"])
        async for page in pages:
            trained += [each for each in page["ProjectVersionDescriptions"] if each["Status"] in STARTABLE | IN_USE]
    if not trained:
        raise ModelError(
            f"project {text} has no trained model; see `batchcl model list --project {text}`",
            code=ErrorCode.MODEL_NOT_TRAINED,
        )
    return ModelArn.parse(max(trained, key=lambda each: each["CreationTimestamp"])["ProjectVersionArn"])


async def find_model(client: Any, text: str) -> ModelArn:
    """The model with this ARN, which is not looked up, or `project@version`.

    Raises:
        UsageError: `text` is neither.
        ModelError: there is no model with this name.
    """
    if text.startswith("arn:"):
        return ModelArn.parse(text)
    project, at, version = text.partition("@")
    if not at or not version:
        raise UsageError(
            f"{text!r} is not a model; write PROJECT@VERSION or an ARN, see `batchcl model list`",
            code=ErrorCode.INVALID_NAME,
        )
    described = await describe_project_by_name(client, _checked(project, text))
    with translate_errors(f"looking up the model {text}", refusal=ModelError):
        pages = client.get_paginator("describe_project_versions").paginate(
            ProjectArn=described["ProjectArn"], VersionNames=[_checked(version, text)]
        )
        async for page in pages:
            for each in page["ProjectVersionDescriptions"]:
                return ModelArn.parse(each["ProjectVersionArn"])
    raise ModelError(
        f"project {project} has no model {version}; see `batchcl model list --project {project}`",
        code=ErrorCode.NO_SUCH_MODEL,
    )


async def find_dataset(client: Any, text: str) -> DatasetArn:
    """The dataset with this ARN, which is not looked up, or `project/train` or `project/test`.

    Raises:
        UsageError: `text` is none of these.
        RefusedError: there is no such dataset.
    """
    if text.startswith("arn:"):
        return DatasetArn.parse(text)
    project, kind = dataset_name(text)
    described = await describe_project_by_name(client, project)
    for dataset in described.get("Datasets", ()):
        if dataset["DatasetType"].lower() == kind:
            return DatasetArn.parse(dataset["DatasetArn"])
    raise RefusedError(
        f"project {project} has no {kind} dataset; create one with `batchcl dataset create {project}/{kind} SOURCE`",
        code=ErrorCode.NO_SUCH_RESOURCE,
    )


def dataset_name(text: str) -> tuple[str, str]:
    """Parse `project/train` or `project/test` into project and kind; raises `UsageError`."""
    project, slash, kind = text.partition("/")
    if not slash or kind not in _KINDS:
        raise UsageError(
            f"{text!r} is not a dataset; write PROJECT/train, PROJECT/test, or an ARN", code=ErrorCode.INVALID_NAME
        )
    return _checked(project, text), kind


async def describe_project_by_name(client: Any, name: str) -> dict[str, Any]:
    """The service's description of the project with this name.

    Raises:
        RefusedError: there is none, or more than one.
    """
    with translate_errors(f"looking up the project {name}"):
        response = await client.describe_projects(ProjectNames=[name])
    projects: list[dict[str, Any]] = response["ProjectDescriptions"]
    # a project that is being deleted may have a successor with the same name
    candidates = [each for each in projects if each.get("Status") != "DELETING"] or projects
    if not candidates:
        raise RefusedError(
            f"there is no project {name} in this account and region; see `batchcl project list`",
            code=ErrorCode.NO_SUCH_RESOURCE,
        )
    if len(candidates) > 1:
        arns = ", ".join(each["ProjectArn"] for each in candidates)
        raise RefusedError(
            f"there are {len(candidates)} projects named {name}; use an ARN instead: {arns}",
            code=ErrorCode.INVALID_NAME,
        )
    return candidates[0]


def _checked(name: str, text: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{text!r} is not a valid name; names of projects and versions have 1 to 255 letters, digits, dots, "
            "hyphens and underscores",
            code=ErrorCode.INVALID_NAME,
        )
    return name
