"""Stored projects, policies, datasets and versions, and their ARNs. Times are seconds since the epoch."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = [
    "Owner",
    "StoredDataset",
    "StoredPolicy",
    "StoredProject",
    "StoredVersion",
    "dataset_arn",
    "owner",
    "project_arn",
    "version_arn",
]


@dataclass(slots=True, kw_only=True)
class StoredProject:
    """A project. If `gone` is set it is DELETING, and doesn't exist from that time on."""

    arn: str
    name: str
    created: float
    auto_update: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    gone: float | None = None


@dataclass(slots=True, kw_only=True)
class StoredPolicy:
    """A project policy; each change sets a new `revision`."""

    project_arn: str
    name: str
    revision: str
    document: str
    created: float
    updated: float

    @property
    def arn(self) -> str:
        """A unique key; policies have no ARN in the API."""
        return f"{self.project_arn} {self.name}"


@dataclass(slots=True, kw_only=True)
class StoredDataset:
    """A project's training or test dataset; its entries are in a manifest file.

    Until `ready` its status is `doing`, then `status`. If `gone` is set, it doesn't exist from that time on.
    """

    arn: str
    project_arn: str
    kind: str
    created: float
    ready: float
    status: str
    status_message: str
    entries: int = 0
    labeled_entries: int = 0
    error_entries: int = 0
    labels: int = 0
    doing: str = "CREATE_IN_PROGRESS"
    updated: float | None = None
    tags: dict[str, str] = field(default_factory=dict)
    gone: float | None = None

    def status_at(self, now: float) -> str:
        """The status at `now`."""
        if self.gone is not None:
            return "DELETE_IN_PROGRESS"
        return self.status if now >= self.ready else self.doing

    def usable_at(self, now: float) -> bool:
        """Whether it can be listed, changed and used for training at `now`."""
        return self.status_at(now) in {"CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_FAILED"}


@dataclass(slots=True, kw_only=True)
class StoredVersion:
    """A model version.

    Scheduled changes of the status are applied by `settle`, before each access: the status is `next_status` from `due`
    on. If `gone` is set, the version doesn't exist from that time on.

    `units` are the inference units in service, and `unit_seconds` the billed unit seconds up to `metered_since`,
    which is None while the model is not running.
    """

    arn: str
    project_arn: str
    name: str
    created: float
    status: str
    status_message: str
    output_bucket: str
    output_prefix: str
    due: float | None = None
    next_status: str | None = None
    next_message: str = ""
    min_units: int | None = None
    max_units: int | None = None
    description: str | None = None
    kms_key_id: str | None = None
    training_input: dict[str, Any] | None = None
    testing_input: dict[str, Any] | None = None
    training_output: str | None = None
    testing_output: str | None = None
    summary: str | None = None
    f1_score: float | None = None
    billable_seconds: int | None = None
    ended: float | None = None
    training_validation: str | None = None
    testing_validation: str | None = None
    manifest_summary: str | None = None
    source_arn: str | None = None
    units: int | None = None
    unit_seconds: float = 0.0
    metered_since: float | None = None
    tags: dict[str, str] = field(default_factory=dict)
    gone: float | None = None

    def schedule(self, status: str, message: str, *, due: float) -> None:
        """Schedule a change to `status` at `due`."""
        self.next_status, self.next_message, self.due = status, message, due

    def settle(self, now: float) -> None:
        """Apply the scheduled change if it is due."""
        if self.due is not None and now >= self.due:
            assert self.next_status is not None
            due = self.due
            self.become(self.next_status, self.next_message)
            if self.status == "RUNNING":
                self.metered_since, self.units = due, self.min_units

    def become(self, status: str, message: str) -> None:
        """Change the status now, and cancel a scheduled change."""
        self.status, self.status_message = status, message
        self.due = self.next_status = None

    def meter(self, now: float) -> None:
        """Bill the units in service up to `now`."""
        if self.metered_since is not None:
            self.unit_seconds += max(0.0, now - self.metered_since) * (self.units or 0)
            self.metered_since = max(now, self.metered_since)

    def halt(self, status: str, message: str, *, now: float) -> None:
        """Leave RUNNING: bill the units up to `now`, and change to `status`."""
        self.meter(now)
        self.metered_since = self.units = None
        self.become(status, message)


_OWNER: Final = re.compile(
    r"arn:[a-z\d-]+:rekognition:(?P<region>[a-z\d-]+):(?P<account>\d{12}):project/(?P<project>[^/]+)/"
)


@dataclass(frozen=True, slots=True)
class Owner:
    """Account, region and project name in an ARN."""

    account: str
    region: str
    project: str


def owner(arn: str) -> Owner:
    """The owner of a resource. `arn` must be valid."""
    match = _OWNER.match(arn)
    assert match is not None
    return Owner(match["account"], match["region"], match["project"])


def project_arn(account: str, region: str, name: str, *, now: float) -> str:
    """The ARN of a new project; it ends with `now` in milliseconds."""
    return f"{_prefix(account, region, name)}/{_milliseconds(now)}"


def version_arn(account: str, region: str, project: str, name: str, *, now: float) -> str:
    """The ARN of a new version; it doesn't contain the project's timestamp."""
    return f"{_prefix(account, region, project)}/version/{name}/{_milliseconds(now)}"


def dataset_arn(account: str, region: str, project: str, kind: str, *, now: float) -> str:
    """The ARN of a new dataset; `kind` is TRAIN or TEST."""
    return f"{_prefix(account, region, project)}/dataset/{kind.lower()}/{_milliseconds(now)}"


def _prefix(account: str, region: str, project: str) -> str:
    partition = "aws-cn" if region.startswith("cn-") else "aws-us-gov" if region.startswith("us-gov-") else "aws"
    return f"arn:{partition}:rekognition:{region}:{account}:project/{project}"


def _milliseconds(now: float) -> int:
    return round(now * 1000)
