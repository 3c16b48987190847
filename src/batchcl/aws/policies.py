"""Policies of a project: who else may copy its models. Each verb takes an open Rekognition client."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

from batchcl.aws.arguments import given
from batchcl.aws.arn import ProjectArn
from batchcl.aws.errors import translate_errors
from batchcl.aws.moments import utc

__all__ = ["Policy", "delete_policy", "list_policies", "put_policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy that is attached to a project; `document` is its JSON as text."""

    project: str
    name: str
    revision: str
    document: str
    created: dt.datetime | None
    updated: dt.datetime | None


async def put_policy(client: Any, project: ProjectArn, name: str, document: str, *, revision: str | None = None) -> str:
    """Attach or replace a policy; return its new revision.

    Args:
        client: an open Rekognition client.
        project: the project to share from.
        name: of the policy.
        document: the policy, JSON.
        revision: replace only this revision, so that nobody else's change is lost.

    Raises:
        RefusedError: the document is malformed, the revision isn't the newest, or the project has five policies.
    """
    with translate_errors(f"attaching the policy {name} to the project {project.project}"):
        answer = await client.put_project_policy(
            ProjectArn=project.text, PolicyName=name, PolicyDocument=document, **given(PolicyRevisionId=revision)
        )
    return str(answer["PolicyRevisionId"])


async def list_policies(client: Any, project: ProjectArn) -> list[Policy]:
    """The project's policies."""
    found: list[Policy] = []
    with translate_errors(f"listing the policies of the project {project.project}"):
        async for page in client.get_paginator("list_project_policies").paginate(ProjectArn=project.text):
            found.extend(
                Policy(
                    project=project.project,
                    name=each["PolicyName"],
                    revision=each["PolicyRevisionId"],
                    document=each["PolicyDocument"],
                    created=utc(each.get("CreationTimestamp")),
                    updated=utc(each.get("LastUpdatedTimestamp")),
                )
                for each in page["ProjectPolicies"]
            )
    return found


async def delete_policy(client: Any, project: ProjectArn, name: str, *, revision: str | None = None) -> None:
    """Detach a policy; with `revision` only if that is the newest."""
    with translate_errors(f"deleting the policy {name} of the project {project.project}"):
        await client.delete_project_policy(ProjectArn=project.text, PolicyName=name, **given(PolicyRevisionId=revision))
