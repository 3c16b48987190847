"""PutProjectPolicy, ListProjectPolicies, DeleteProjectPolicy."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import TYPE_CHECKING, Any, Final

from batchcl.emulator.errors import ApiError, not_found
from batchcl.emulator.limits import MOST_POLICIES, over_quota
from batchcl.emulator.operations.pagination import page
from batchcl.emulator.policies import check_document
from batchcl.emulator.records import StoredPolicy

if TYPE_CHECKING:
    from batchcl.emulator.service import Call

__all__ = ["delete_project_policy", "list_project_policies", "put_project_policy"]

_PAGE: Final = 5


async def put_project_policy(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Attach a policy to a project, or change one, whose present revision must then be named."""
    project = call.project(parameters["ProjectArn"])
    name, document = parameters["PolicyName"], parameters["PolicyDocument"]
    check_document(document, project_arn=project.arn)
    found = {p.name: p for p in call.service.state.policies_of(project.arn)}
    old, revision = found.get(name), parameters.get("PolicyRevisionId")
    if revision is not None and (old is None or old.revision != revision):
        raise _bad_revision()
    if old is not None and revision is None:
        raise ApiError(
            "ResourceAlreadyExistsException",
            f"The project has a policy {name}; to change it, name its PolicyRevisionId",
        )
    if old is None and len(found) >= MOST_POLICIES:
        raise over_quota(f"A project can have {MOST_POLICIES} policies.")
    stamp = f"{project.arn} {name} {revision} {call.now} {document}"
    policy = StoredPolicy(
        project_arn=project.arn,
        name=name,
        revision=hashlib.sha256(stamp.encode()).hexdigest()[:32],
        document=document,
        created=call.now if old is None else old.created,
        updated=call.now,
    )
    call.service.state.policies[policy.arn] = policy
    call.service.state.save()
    return {"PolicyRevisionId": policy.revision}


async def list_project_policies(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """A project's policies, latest first, five at a time."""
    project = call.project(parameters["ProjectArn"])
    found = call.service.state.policies_of(project.arn)
    shown, more = page(found, parameters, scope=f"policies {project.arn}", most=_PAGE)
    described = [
        {
            "ProjectArn": p.project_arn,
            "PolicyName": p.name,
            "PolicyRevisionId": p.revision,
            "PolicyDocument": p.document,
            "CreationTimestamp": dt.datetime.fromtimestamp(p.created, dt.UTC),
            "LastUpdatedTimestamp": dt.datetime.fromtimestamp(p.updated, dt.UTC),
        }
        for p in shown
    ]
    return {"ProjectPolicies": described, **more}


async def delete_project_policy(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Remove a policy; a revision that is named must be the present one."""
    project = call.project(parameters["ProjectArn"])
    policies = call.service.state.policies
    found = policies.get(f"{project.arn} {parameters['PolicyName']}")
    if found is None:
        raise not_found(f"policy {parameters['PolicyName']} of {project.arn}")
    if parameters.get("PolicyRevisionId", found.revision) != found.revision:
        raise _bad_revision()
    del policies[found.arn]
    call.service.state.save()
    return {}


def _bad_revision() -> ApiError:
    return ApiError("InvalidPolicyRevisionIdException", "The PolicyRevisionId is not the policy's present one.")
