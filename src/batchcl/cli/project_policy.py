"""`batchcl project policy put|list|delete`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from batchcl.cli.options import Json, Profile, Region
from batchcl.cli.service import InterruptMessage, Yes, confirm, with_service
from batchcl.cli.streams import write_line

if TYPE_CHECKING:
    from batchcl.workflow import ProjectPolicy, WorkflowClients

__all__ = ["app"]

app = typer.Typer(help="Allow other accounts to copy a project's models.", no_args_is_help=True)

Project = Annotated[str, typer.Argument(metavar="PROJECT", help="The project's name or ARN.", show_default=False)]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The policy's name.", show_default=False)]
Revision = Annotated[
    str | None,
    typer.Option("--revision", metavar="ID", help="Only if this is the current revision.", show_default=False),
]


@app.command()
def put(
    project: Project,
    name: Name,
    document: Annotated[Path, typer.Argument(metavar="FILE", help="Policy in JSON; - for stdin.")],
    *,
    revision: Revision = None,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Attach a policy to a project, or replace it.

    Examples:

      batchcl project policy put cats copy-to-production policy.json
    """
    from batchcl import workflow
    from batchcl.cli.output import emit_object
    from batchcl.errors import UsageError

    try:
        text = sys.stdin.read() if str(document) == "-" else document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"reading the policy {document} failed: {error}") from error

    async def work(service: WorkflowClients, _: InterruptMessage) -> str:
        arn = await workflow.find_project(service.rekognition, project)
        return await workflow.put_policy(service.rekognition, arn, name, text, revision=revision)

    made = with_service(work, profile=profile, region=region, named=project)
    emit_object({"policy": name, "revision": made}, json=json)


@app.command("list")
def list_policies(project: Project, profile: Profile = None, region: Region = None, json: Json = False) -> None:
    """List the policies of a project; --json includes their documents.

    Examples:

      batchcl project policy list cats --json
    """
    import polars as pl

    from batchcl import workflow
    from batchcl.cli.output import emit

    async def work(service: WorkflowClients, _: InterruptMessage) -> list[ProjectPolicy]:
        arn = await workflow.find_project(service.rekognition, project)
        return await workflow.list_policies(service.rekognition, arn)

    found = with_service(work, profile=profile, region=region, named=project)
    if json:
        emit(pl.DataFrame([asdict(each) for each in found], infer_schema_length=None), json=True)
        return
    rows = [{"policy": each.name, "revision": each.revision, "updated": each.updated} for each in found]
    emit(pl.DataFrame(rows, schema={"policy": pl.String, "revision": pl.String, "updated": pl.Datetime("us", "UTC")}))


@app.command()
def delete(
    project: Project,
    name: Name,
    *,
    revision: Revision = None,
    yes: Yes = False,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Delete a policy; models that were copied with it are not affected.

    Examples:

      batchcl project policy delete cats copy-to-production --yes
    """
    from batchcl import workflow
    from batchcl.cli.output import emit_object

    confirm(f"this deletes the policy {name} of the project {project}", yes=yes)

    async def work(service: WorkflowClients, _: InterruptMessage) -> None:
        arn = await workflow.find_project(service.rekognition, project)
        await workflow.delete_policy(service.rekognition, arn, name, revision=revision)

    with_service(work, profile=profile, region=region, named=project)
    write_line(f"the policy {name} of the project {project} is deleted")
    if json:
        emit_object({"policy": name, "project": project}, json=True)
