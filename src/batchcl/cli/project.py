"""`batchcl project create|list|show|delete` and `batchcl project policy`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from batchcl.cli import project_policy
from batchcl.cli.options import Json, Profile, Region
from batchcl.cli.service import InterruptMessage, Tags, Yes, confirm, parsed_tags, shown, with_service
from batchcl.cli.streams import write_line

if TYPE_CHECKING:
    from batchcl.workflow import Model, Project, WorkflowClients

__all__ = ["app"]

app = typer.Typer(help="Create, inspect and delete projects.", no_args_is_help=True)
app.add_typer(project_policy.app, name="policy")

Name = Annotated[str, typer.Argument(metavar="PROJECT", help="The project's name or ARN.", show_default=False)]


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, dots, hyphens and underscores.")],
    *,
    tag: Tags = None,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Create a project; free of charge.

    Examples:

      batchcl project create cats --region eu-west-1

      batchcl project create cats --tag team=vision
    """
    from batchcl import workflow
    from batchcl.cli.output import emit_object

    async def work(service: WorkflowClients, _: InterruptMessage) -> Project:
        return await workflow.create_project(service.rekognition, name, tags=parsed_tags(tag))

    made = with_service(work, profile=profile, region=region)
    emit_object(shown(asdict(made), json=json), json=json)


@app.command("list")
def list_projects(profile: Profile = None, region: Region = None, json: Json = False) -> None:
    """List the projects of the account and region.

    Examples:

      batchcl project list --region eu-west-1 --json
    """
    import polars as pl

    from batchcl import workflow
    from batchcl.cli.output import emit

    async def work(service: WorkflowClients, _: InterruptMessage) -> list[Project]:
        return await workflow.list_projects(service.rekognition)

    found = with_service(work, profile=profile, region=region)
    if json:
        emit(pl.DataFrame([asdict(project) for project in found], infer_schema_length=None), json=True)
        return
    rows = [
        {
            "project": project.name,
            "status": project.status,
            "datasets": ", ".join(each.kind for each in project.datasets),
            "arn": project.arn,
        }
        for project in found
    ]
    emit(pl.DataFrame(rows, schema=dict.fromkeys(("project", "status", "datasets", "arn"), pl.String)))


@app.command()
def show(project: Name, profile: Profile = None, region: Region = None, json: Json = False) -> None:
    """Show a project with its datasets and models.

    Examples:

      batchcl project show cats
    """
    import sys

    import polars as pl

    from batchcl.cli.output import emit, emit_object

    found, models = _describe(project, profile=profile, region=region)
    if json:
        emit_object(asdict(found) | {"models": [asdict(model) for model in models]}, json=True)
        return
    emit_object({name: value for name, value in shown(asdict(found), json=False).items() if name != "datasets"})
    for title, rows in (
        (
            "Datasets",
            [
                {"dataset": f"{found.name}/{each.kind}", "status": each.status, "arn": each.arn}
                for each in found.datasets
            ],
        ),
        (
            "Models",
            [{"model": each.name, "status": each.status, "F1": each.f1, "arn": each.arn} for each in models],
        ),
    ):
        if rows:
            sys.stdout.write("\n")
            emit(pl.DataFrame(rows, infer_schema_length=None), title=title)


@app.command()
def delete(
    project: Name,
    *,
    everything: Annotated[
        bool,
        typer.Option("--everything", help="Delete its models, too; without this, a project with models is refused."),
    ] = False,
    yes: Yes = False,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Delete a project with its datasets; images, manifests and training results stay in S3.

    Examples:

      batchcl project delete cats

      batchcl project delete cats --everything --yes
    """
    from batchcl import workflow
    from batchcl.cli.output import emit_object
    from batchcl.errors import ErrorCode, RefusedError

    found, models = _describe(project, profile=profile, region=region)
    if models and not everything:
        named = ", ".join(model.name for model in models)
        raise RefusedError(
            f"the project {found.name} still has the models {named}; delete them with `batchcl model delete`, "
            "or together with the project: --everything",
            code=ErrorCode.RESOURCE_IN_USE,
        )
    _refuse_busy(models)
    gone = [*(model.name for model in models), *(f"the {each.kind} dataset" for each in found.datasets)]
    confirm(f"this deletes the project {found.name}" + (f" with {', '.join(gone)}" if gone else ""), yes=yes)

    async def work(service: WorkflowClients, _: InterruptMessage) -> None:
        arn = workflow.ProjectArn.parse(found.arn)
        for model in models:
            await workflow.delete_model(service.rekognition, arn, workflow.ModelArn.parse(model.arn))
            write_line(f"{model.name} is deleted")
        for dataset in found.datasets:
            await workflow.delete_dataset(service.rekognition, workflow.DatasetArn.parse(dataset.arn))
            write_line(f"{found.name}/{dataset.kind} is deleted")
        await workflow.delete_project(service.rekognition, arn)
        write_line(f"the project {found.name} is deleted")

    with_service(work, profile=profile, region=region, named=found.arn)
    if json:
        emit_object(
            {
                "project": found.arn,
                "models": [model.arn for model in models],
                "datasets": [each.arn for each in found.datasets],
            },
            json=True,
        )


def _describe(name: str, *, profile: str | None, region: str | None) -> tuple[Project, list[Model]]:
    from batchcl import workflow

    async def work(service: WorkflowClients, _: InterruptMessage) -> tuple[Project, list[Model]]:
        arn = await workflow.find_project(service.rekognition, name)
        found = await workflow.describe_project(service.rekognition, arn)
        return found, await workflow.list_models(service.rekognition, project=arn.project)

    return with_service(work, profile=profile, region=region, named=name)


def _refuse_busy(models: list[Model]) -> None:
    """Refuse a model in use before anything is deleted, so that no project is deleted by half."""
    from batchcl.aws.models import IN_USE
    from batchcl.errors import ErrorCode, ModelError

    for model in models:
        if model.status in IN_USE | {"TRAINING_IN_PROGRESS", "COPYING_IN_PROGRESS"}:
            raise ModelError(
                f"{model.name} is {model.status} and can't be deleted; stop it with `batchcl model stop {model.name}`, "
                "or wait for its training or copying to end",
                code=ErrorCode.RESOURCE_IN_USE,
            )
