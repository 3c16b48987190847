"""Project policies: what a document may say, and whom it lets copy a model.

Source: Custom Labels guide, "Creating a project policy document". The emulator knows accounts, not users or roles: a
principal stands for its whole account. It evaluates no conditions: an Allow with a Condition allows nothing, a Deny
with one denies.
"""

from __future__ import annotations

import fnmatch
import re
from typing import TYPE_CHECKING, Any, Final

import orjson

from batchcl.emulator.arns import owner
from batchcl.emulator.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["check_document", "may_copy"]

_ACTION: Final = "rekognition:copyprojectversion"
_VERSIONS: Final = frozenset({"2012-10-17", "2008-10-17"})
_TOP: Final = frozenset({"Version", "Id", "Statement"})
_NEEDED: Final = frozenset({"Effect", "Principal", "Action", "Resource"})
_STATEMENT: Final = _NEEDED | {"Sid", "Condition"}
_PRINCIPAL: Final = re.compile(r"\*|\d{12}|arn:[a-z\d-]+:(iam|sts)::(\d{12}):.+")


def check_document(document: str, *, project_arn: str) -> None:
    """Refuse what can't be a policy of the project.

    Raises:
        ServiceError: MalformedPolicyDocumentException, with the reason.
    """
    try:
        policy = orjson.loads(document)
    except orjson.JSONDecodeError:
        raise _malformed("it is not JSON") from None
    if not isinstance(policy, dict) or not policy.keys() <= _TOP or policy.get("Version") not in _VERSIONS:
        raise _malformed("Version must be 2012-10-17, and there is nothing else but Id and Statement")
    statements = _listed(policy.get("Statement"))
    if not statements:
        raise _malformed("it has no Statement")
    for statement in statements:
        why = _fault(statement, project_arn)
        if why is not None:
            raise _malformed(why)


def may_copy(documents: Iterable[str], *, version_arn: str, account: str) -> bool | None:
    """What checked policies say of a copy of the version into `account`; None if nothing."""
    effects = {
        statement["Effect"]
        for document in documents
        for statement in _listed(orjson.loads(document)["Statement"])
        if any(fnmatch.fnmatchcase(version_arn, resource) for resource in _listed(statement["Resource"]))
        and any(_stands_for(principal, account) for principal in _principals(statement["Principal"]))
        and not ("Condition" in statement and statement["Effect"] == "Allow")
    }
    return None if not effects else "Deny" not in effects


def _fault(statement: Any, project_arn: str) -> str | None:
    if not isinstance(statement, dict) or not statement.keys() >= _NEEDED:
        return "each statement needs Effect, Principal, Action and Resource"
    if not statement.keys() <= _STATEMENT:
        return f"{', '.join(sorted(statement.keys() - _STATEMENT))} can't be in a statement"
    if statement["Effect"] not in {"Allow", "Deny"}:
        return "Effect is neither Allow nor Deny"
    actions, resources = _listed(statement["Action"]), _listed(statement["Resource"])
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
        return _listed(principal.get("AWS")) if principal.keys() == {"AWS"} else []
    return ["*"] if principal == "*" else []


def _stands_for(principal: str, account: str) -> bool:
    return principal in {"*", account} or principal.partition("::")[2].startswith(f"{account}:")


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _malformed(why: str) -> ApiError:
    return ApiError("MalformedPolicyDocumentException", f"The project policy document is malformed: {why}.")
