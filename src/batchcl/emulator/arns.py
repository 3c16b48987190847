"""Amazon Resource Names of projects, versions and datasets, in the real service's formats."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["Owner", "dataset_arn", "owner", "project_arn", "version_arn"]

_OWNER: Final = re.compile(
    r"arn:[a-z\d-]+:rekognition:(?P<region>[a-z\d-]+):(?P<account>\d{12}):project/(?P<project>[^/]+)/"
)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a resource is; `project` is the project's name."""

    account: str
    region: str
    project: str


def owner(arn: str) -> Owner:
    """Whose resource `arn` names; the caller has checked its pattern."""
    match = _OWNER.match(arn)
    assert match is not None
    return Owner(match["account"], match["region"], match["project"])


def project_arn(account: str, region: str, name: str, *, now: float) -> str:
    """A new project's ARN; its last part is `now` in milliseconds."""
    return f"{_start(account, region, name)}/{_stamp(now)}"


def version_arn(account: str, region: str, project: str, name: str, *, now: float) -> str:
    """A new version's ARN; it doesn't hold the project's own timestamp."""
    return f"{_start(account, region, project)}/version/{name}/{_stamp(now)}"


def dataset_arn(account: str, region: str, project: str, kind: str, *, now: float) -> str:
    """A new dataset's ARN; `kind` is TRAIN or TEST."""
    return f"{_start(account, region, project)}/dataset/{kind.lower()}/{_stamp(now)}"


def _start(account: str, region: str, project: str) -> str:
    partition = "aws-cn" if region.startswith("cn-") else "aws-us-gov" if region.startswith("us-gov-") else "aws"
    return f"arn:{partition}:rekognition:{region}:{account}:project/{project}"


def _stamp(now: float) -> int:
    return round(now * 1000)
