"""PutProjectPolicy, ListProjectPolicies, DeleteProjectPolicy, and the evaluation of policies.

Source: Custom Labels guide, "Creating a project policy document". The emulator has accounts but no users or roles, so a
principal means its whole account. Conditions are not evaluated: an Allow with a Condition allows nothing, a Deny with a
Condition always denies.
"""

from __future__ import annotations

import datetime as dt
import fnmatch
import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from batchcl.emulator.errors import ApiError, not_found, over_quota
from batchcl.emulator.operations.pagination import page
from batchcl.emulator.records import StoredPolicy, owner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batchcl.emulator.service import Call

__all__ = ["check_document", "delete_project_policy", "list_project_policies", "may_copy", "put_project_policy"]

_PAGE_SIZE: Final = 5
_ACTION: Final = "rekognition:copyprojectversion"
_VERSIONS: Final = frozenset({"2012-10-17", "2008-10-17"})
_POLICY_KEYS: Final = frozenset({"Version", "Id", "Statement"})
_REQUIRED_KEYS: Final = frozenset({"Effect", "Principal", "Action", "Resource"})
_STATEMENT_KEYS: Final = _REQUIRED_KEYS | {"Sid", "Condition"}
_PRINCIPAL: Final = re.compile(r"\*|\d{12}|arn:[a-z\d-]+:(iam|sts)::(\d{12}):.+")


async def put_project_policy(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Attach a policy to a project, or change one; a change requires the current revision."""
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
    if old is None and len(found) >= call.service.quotas.policies:
        raise over_quota(f"A project can have {call.service.quotas.policies} policies.")
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
    """A project's policies, newest first, five per page."""
    project = call.project(parameters["ProjectArn"])
    found = call.service.state.policies_of(project.arn)
    shown, more = page(found, parameters, scope=f"policies {project.arn}", page_size=_PAGE_SIZE)
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
    """Delete a policy; if a revision is given, it must be the current one."""
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


def check_document(document: str, *, project_arn: str) -> None:
    """Check a policy document of a project.

    Raises:
        ApiError: MalformedPolicyDocumentException, with the reason.
    """
    try:
        policy = orjson.loads(document)
    except orjson.JSONDecodeError:
        raise _malformed("it is not JSON") from None
    if not isinstance(policy, dict) or not policy.keys() <= _POLICY_KEYS or policy.get("Version") not in _VERSIONS:
        raise _malformed("Version must be 2012-10-17, and there is nothing else but Id and Statement")
    statements = _as_list(policy.get("Statement"))
    if not statements:
        raise _malformed("it has no Statement")
    for statement in statements:
        reason = _statement_error(statement, project_arn)
        if reason is not None:
            raise _malformed(reason)


def may_copy(documents: Iterable[str], *, version_arn: str, account: str) -> bool | None:
    """Whether valid policies allow (True) or deny (False) `account` a copy of the version; None if neither."""
    effects = {
        statement["Effect"]
        for document in documents
        for statement in _as_list(orjson.loads(document)["Statement"])
        if any(fnmatch.fnmatchcase(version_arn, resource) for resource in _as_list(statement["Resource"]))
        and any(_includes(principal, account) for principal in _principals(statement["Principal"]))
        and not ("Condition" in statement and statement["Effect"] == "Allow")
    }
    return None if not effects else "Deny" not in effects


def _statement_error(statement: Any, project_arn: str) -> str | None:
    if not isinstance(statement, dict) or not statement.keys() >= _REQUIRED_KEYS:
        return "each statement needs Effect, Principal, Action and Resource"
    if not statement.keys() <= _STATEMENT_KEYS:
        return f"{', '.join(sorted(statement.keys() - _STATEMENT_KEYS))} can't be in a statement"
    if statement["Effect"] not in {"Allow", "Deny"}:
        return "Effect is neither Allow nor Deny"
    actions, resources = _as_list(statement["Action"]), _as_list(statement["Resource"])
    if not actions or not all(isinstance(a, str) and a.lower() == _ACTION for a in actions):
        return "the only action is rekognition:CopyProjectVersion"
    start = project_arn.rpartition("/")[0] + "/"
    if not resources or not all(isinstance(r, str) and (r == "*" or r.startswith(start)) for r in resources):
        return f"a Resource is not a version of the project {owner(project_arn).project}"
    principals = _principals(statement["Principal"])
    if not principals or not all(isinstance(p, str) and _PRINCIPAL.fullmatch(p) for p in principals):
        return "a Principal is not an account, a user or a role"
    return None


def _principals(principal: Any) -> list[Any]:
    if isinstance(principal, dict):
        return _as_list(principal.get("AWS")) if principal.keys() == {"AWS"} else []
    return ["*"] if principal == "*" else []


def _includes(principal: str, account: str) -> bool:
    return principal in {"*", account} or principal.partition("::")[2].startswith(f"{account}:")


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _malformed(reason: str) -> ApiError:
    return ApiError("MalformedPolicyDocumentException", f"The project policy document is malformed: {reason}.")
