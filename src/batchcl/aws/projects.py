"""Projects and their policies. Each function takes an open Rekognition client."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from batchcl.arns import DatasetArn, ProjectArn
from batchcl.aws.errors import translate_errors
from batchcl.aws.names import describe_project_by_name
from batchcl.aws.values import drop_none, utc
from batchcl.aws.waiting import GONE, wait_until
from batchcl.errors import ErrorCode, RefusedError, UsageError

__all__ = [
    "Project",
    "ProjectDataset",
    "ProjectPolicy",
    "create_project",
    "delete_policy",
    "delete_project",
    "describe_project",
    "list_policies",
    "list_projects",
    "put_policy",
]

DELETE_TIMEOUT_S: Final = 15 * 60.0
"""Deleting takes a few minutes at most. Source: developer guide, "Deleting a project"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectDataset:
    """A dataset in the description of its project; `kind` is `train` or `test`."""

    arn: str
    kind: str
    status: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """The service's description of a project; `status` is CREATING, CREATED, DELETING, or GONE for a deleted one."""

    arn: str
    name: str
    status: str
    created: dt.datetime | None
    datasets: tuple[ProjectDataset, ...] = ()

    @property
    def message(self) -> str:
        """Empty: the service gives no reason for a project's status."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectPolicy:
    """A policy of a project; `document` is its JSON."""

    project: str
    name: str
    revision: str
    document: str
    created: dt.datetime | None
    updated: dt.datetime | None


async def create_project(client: Any, name: str, *, tags: Mapping[str, str] | None = None) -> Project:
    """Create a project and return it.

    Raises:
        RefusedError: the name is taken, or the account's quota is exhausted.
        UsageError: the name breaks the service's rules.
    """
    if name.startswith("arn:"):
        raise UsageError(f"{name!r} is an ARN; pass the new project's name", code=ErrorCode.INVALID_NAME)
    arguments: dict[str, Any] = {"ProjectName": name} | ({"Tags": dict(tags)} if tags else {})
    in_use = "if this project exists (`batchcl project list`), use it or choose another name"
    with translate_errors(f"creating the project {name}", in_use=in_use):
        response = await client.create_project(**arguments)
    return await describe_project(client, ProjectArn.parse(response["ProjectArn"]))


async def list_projects(client: Any) -> list[Project]:
    """All Custom Labels projects of the account and region, the newest first."""
    projects: list[Project] = []
    with translate_errors("listing projects"):
        async for page in client.get_paginator("describe_projects").paginate():
            projects.extend(_project(each) for each in page["ProjectDescriptions"])
    return projects


async def describe_project(client: Any, arn: ProjectArn) -> Project:
    """The current description of a project.

    Raises:
        RefusedError: it does not exist.
    """
    described = await describe_project_by_name(client, arn.project)
    if described["ProjectArn"] != arn.text:
        raise RefusedError(
            f"there is no project {arn}; the ARN of project {arn.project} is {described['ProjectArn']}",
            code=ErrorCode.NO_SUCH_RESOURCE,
        )
    return _project(described)


async def delete_project(
    client: Any,
    arn: ProjectArn,
    *,
    timeout_s: float = DELETE_TIMEOUT_S,
    on_state: Callable[[Project], None] = lambda _: None,
) -> None:
    """Delete a project without models, and return when it no longer exists.

    Raises:
        RefusedError: it still has models, or the service refuses for another reason.
        StoppedError: it still existed after `timeout_s`.
    """
    with translate_errors(f"deleting the project {arn.project}"):
        await client.delete_project(ProjectArn=arn.text)

    async def describe() -> Project:
        with translate_errors(f"looking up the project {arn.project}"):
            response = await client.describe_projects(ProjectNames=[arn.project])
        for each in response["ProjectDescriptions"]:
            if each["ProjectArn"] == arn.text:
                return _project(each)
        return Project(arn=arn.text, name=arn.project, status=GONE, created=None)

    await wait_until(describe, until={GONE}, passing={"DELETING", "CREATED"}, timeout_s=timeout_s, on_state=on_state)


async def put_policy(client: Any, project: ProjectArn, name: str, document: str, *, revision: str | None = None) -> str:
    """Attach or replace a policy; return its new revision.

    Args:
        client: an open Rekognition client.
        project: the project to share from.
        name: of the policy.
        document: the policy as JSON.
        revision: replace only this revision, so that no concurrent change is lost.

    Raises:
        RefusedError: the document is malformed, the revision is not the newest, or the project has five policies.
    """
    with translate_errors(f"attaching the policy {name} to the project {project.project}"):
        response = await client.put_project_policy(
            ProjectArn=project.text, PolicyName=name, PolicyDocument=document, **drop_none(PolicyRevisionId=revision)
        )
    return str(response["PolicyRevisionId"])


async def list_policies(client: Any, project: ProjectArn) -> list[ProjectPolicy]:
    """The project's policies."""
    policies: list[ProjectPolicy] = []
    with translate_errors(f"listing the policies of the project {project.project}"):
        async for page in client.get_paginator("list_project_policies").paginate(ProjectArn=project.text):
            policies.extend(
                ProjectPolicy(
                    project=project.project,
                    name=each["PolicyName"],
                    revision=each["PolicyRevisionId"],
                    document=each["PolicyDocument"],
                    created=utc(each.get("CreationTimestamp")),
                    updated=utc(each.get("LastUpdatedTimestamp")),
                )
                for each in page["ProjectPolicies"]
            )
    return policies


async def delete_policy(client: Any, project: ProjectArn, name: str, *, revision: str | None = None) -> None:
    """Delete a policy; with `revision` only if that is the newest."""
    with translate_errors(f"deleting the policy {name} of the project {project.project}"):
        await client.delete_project_policy(
            ProjectArn=project.text, PolicyName=name, **drop_none(PolicyRevisionId=revision)
        )


def _project(described: dict[str, Any]) -> Project:
    arn = ProjectArn.parse(described["ProjectArn"])
    return Project(
        arn=arn.text,
        name=arn.project,
        status=described.get("Status", ""),
        created=utc(described.get("CreationTimestamp")),
        datasets=tuple(
            ProjectDataset(
                arn=each["DatasetArn"],
                kind=DatasetArn.parse(each["DatasetArn"]).kind,
                status=each.get("Status", ""),
                message=each.get("StatusMessage", ""),
            )
            for each in described.get("Datasets", ())
        ),
    )
