"""CreateProject, DescribeProjects, DeleteProject; TagResource, UntagResource, ListTagsForResource."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING, Any, Final

from batchcl.emulator.capacity import check_tags
from batchcl.emulator.errors import in_use, invalid_parameter, over_limit
from batchcl.emulator.operations.datasets import message_of
from batchcl.emulator.operations.pagination import page
from batchcl.emulator.protocol import pattern_of
from batchcl.emulator.records import StoredProject, project_arn

if TYPE_CHECKING:
    from batchcl.emulator.records import StoredDataset, StoredVersion
    from batchcl.emulator.service import Call

__all__ = [
    "create_project",
    "delete_project",
    "describe_projects",
    "list_tags_for_resource",
    "tag_resource",
    "untag_resource",
]

_KINDS: Final = ("ProjectVersionArn", "DatasetArn", "ProjectArn")


async def create_project(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Create a Custom Labels project."""
    if parameters.get("Feature", "CUSTOM_LABELS") != "CUSTOM_LABELS":
        raise invalid_parameter("The emulator has the feature CUSTOM_LABELS only.")
    if "AutoUpdate" in parameters:
        raise invalid_parameter("AutoUpdate does not apply to CUSTOM_LABELS projects.")
    name = parameters["ProjectName"]
    if any(p.name == name for p in _own_projects(call)):
        raise in_use(f"A project named {name} already exists.")
    if len(_own_projects(call)) >= call.service.quotas.projects:
        raise over_limit(f"An account can have {call.service.quotas.projects} projects in a region.")
    tags = parameters.get("Tags", {})
    check_tags(tags)
    arn = project_arn(call.account, call.region, name, now=call.now)
    call.service.state.projects[arn] = StoredProject(arn=arn, name=name, created=call.now, tags=tags)
    call.service.state.save()
    return {"ProjectArn": arn}


async def describe_projects(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """The caller's projects, newest first. Names that don't exist are ignored, as by the real service."""
    wanted = parameters.get("ProjectNames")
    found = [p for p in _own_projects(call) if wanted is None or p.name in wanted]
    if "CUSTOM_LABELS" not in parameters.get("Features", ["CUSTOM_LABELS"]):
        found = []
    shown, more = page(found, parameters, scope=f"projects {call.account} {call.region}")
    return {"ProjectDescriptions": [_describe(call, p) for p in shown], **more}


async def delete_project(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Start to delete a project without versions, including its datasets and policies."""
    state = call.service.state
    arn = parameters["ProjectArn"]
    found = state.projects.get(arn)
    if found is not None and found.gone is not None and call.mine(arn):
        raise in_use(f"The project {arn} is being deleted.")
    project = call.project(arn)
    if state.versions_of(project.arn, now=call.now):
        raise in_use(f"The project {project.arn} has models. Delete them first.")
    project.gone = call.now + call.service.settings.delete_seconds
    state.settle(call.now)
    state.save()
    return {"Status": "DELETING"}


def _own_projects(call: Call) -> list[StoredProject]:
    return [p for p in call.service.state.projects.values() if call.mine(p.arn)]


def _describe(call: Call, project: StoredProject) -> dict[str, Any]:
    datasets = call.service.state.datasets_of(project.arn).values()
    return {
        "ProjectArn": project.arn,
        "CreationTimestamp": dt.datetime.fromtimestamp(project.created, dt.UTC),
        "Status": "CREATED" if project.gone is None else "DELETING",
        "Feature": "CUSTOM_LABELS",
        "Datasets": [
            {
                "CreationTimestamp": dt.datetime.fromtimestamp(d.created, dt.UTC),
                "DatasetType": d.kind,
                "DatasetArn": d.arn,
                **message_of(d, call.now),
            }
            for d in datasets
        ],
    }


async def tag_resource(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Add tags, or change their values."""
    resource = _resource(call, parameters["ResourceArn"])
    tags = {**resource.tags, **parameters["Tags"]}
    check_tags(tags)
    resource.tags = tags
    call.service.state.save()
    return {}


async def untag_resource(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Remove tags; missing ones are ignored."""
    resource = _resource(call, parameters["ResourceArn"])
    unwanted = set(parameters["TagKeys"])
    resource.tags = {key: value for key, value in resource.tags.items() if key not in unwanted}
    call.service.state.save()
    return {}


async def list_tags_for_resource(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """All tags of a resource."""
    return {"Tags": _resource(call, parameters["ResourceArn"]).tags}


def _resource(call: Call, arn: str) -> StoredProject | StoredDataset | StoredVersion:
    """The caller's version, dataset or project."""
    kind = next((kind for kind in _KINDS if re.fullmatch(pattern_of(kind), arn)), None)
    if kind is None:
        raise invalid_parameter("ResourceArn is not the ARN of a project, a dataset or a project version.")
    if kind == "ProjectVersionArn":
        return call.version(arn)
    return call.dataset(arn) if kind == "DatasetArn" else call.project(arn)
