"""CreateProject, DescribeProjects, DeleteProject."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from batchcl.emulator.arns import project_arn
from batchcl.emulator.errors import in_use, invalid_parameter
from batchcl.emulator.limits import MOST_PROJECTS, check_tags, over_limit
from batchcl.emulator.operations.datasets import message_of
from batchcl.emulator.operations.pagination import page
from batchcl.emulator.records import StoredProject

if TYPE_CHECKING:
    from batchcl.emulator.service import Call

__all__ = ["create_project", "delete_project", "describe_projects"]


async def create_project(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Make a Custom Labels project."""
    if parameters.get("Feature", "CUSTOM_LABELS") != "CUSTOM_LABELS":
        raise invalid_parameter("The emulator has the feature CUSTOM_LABELS only.")
    if "AutoUpdate" in parameters:
        raise invalid_parameter("AutoUpdate does not apply to CUSTOM_LABELS projects.")
    name = parameters["ProjectName"]
    if any(p.name == name for p in _mine(call)):
        raise in_use(f"A project named {name} already exists.")
    if len(_mine(call)) >= MOST_PROJECTS:
        raise over_limit(f"An account can have {MOST_PROJECTS} projects in a region.")
    tags = parameters.get("Tags", {})
    check_tags(tags)
    arn = project_arn(call.account, call.region, name, now=call.now)
    call.service.state.projects[arn] = StoredProject(arn=arn, name=name, created=call.now, tags=tags)
    call.service.state.save()
    return {"ProjectArn": arn}


async def describe_projects(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """The caller's projects, latest first; names that don't exist are left out, as the service does."""
    wanted = parameters.get("ProjectNames")
    found = [p for p in _mine(call) if wanted is None or p.name in wanted]
    if "CUSTOM_LABELS" not in parameters.get("Features", ["CUSTOM_LABELS"]):
        found = []
    shown, more = page(found, parameters, scope=f"projects {call.account} {call.region}")
    return {"ProjectDescriptions": [_describe(call, p) for p in shown], **more}


async def delete_project(call: Call, parameters: dict[str, Any]) -> dict[str, Any]:
    """Begin to delete a project that has no versions any more, with its datasets and policies."""
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


def _mine(call: Call) -> list[StoredProject]:
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
