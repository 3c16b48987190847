"""CreateProject, DescribeProjects, DeleteProject."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from batchcl.emulator.arns import project_arn
from batchcl.emulator.faults import in_use, invalid_parameter
from batchcl.emulator.operations.pages import page
from batchcl.emulator.state import Project

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
    arn = project_arn(call.account, call.region, name, now=call.now)
    call.service.state.projects[arn] = Project(arn=arn, name=name, created=call.now)
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
    """Delete a project that has no versions any more, and its datasets."""
    state = call.service.state
    project = call.project(parameters["ProjectArn"])
    if state.versions_of(project.arn, now=call.now):
        raise in_use(f"The project {project.arn} has models. Delete them first.")
    for dataset in state.datasets_of(project.arn).values():
        state.forget_dataset(dataset.arn)
    del state.projects[project.arn]
    state.save()
    return {"Status": "DELETING"}


def _mine(call: Call) -> list[Project]:
    return [p for p in call.service.state.projects.values() if call.mine(p.arn)]


def _describe(call: Call, project: Project) -> dict[str, Any]:
    datasets = call.service.state.datasets_of(project.arn).values()
    return {
        "ProjectArn": project.arn,
        "CreationTimestamp": dt.datetime.fromtimestamp(project.created, dt.UTC),
        "Status": "CREATED",
        "Feature": "CUSTOM_LABELS",
        "Datasets": [
            {
                "CreationTimestamp": dt.datetime.fromtimestamp(d.created, dt.UTC),
                "DatasetType": d.kind,
                "DatasetArn": d.arn,
                "Status": d.status_at(call.now),
                "StatusMessage": d.status_message,
                "StatusMessageCode": "CLIENT_ERROR" if d.status == "CREATE_FAILED" else "SUCCESS",
            }
            for d in datasets
        ],
    }
