"""`batchcl model copy|tag|delete`, and parts shared by all commands on models."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from batchcl.cli.options import Json, Profile, Region
from batchcl.cli.service import InterruptMessage, Tags, Yes, confirm, parsed_tags, report_state, shown, with_service
from batchcl.cli.streams import write_line

if TYPE_CHECKING:
    from batchcl.workflow import Model, WorkflowClients

__all__ = ["KmsKey", "Name", "Output", "Timeout", "copy", "delete", "emit_model", "new_version", "tag"]

Name = Annotated[str, typer.Argument(metavar="MODEL", help="PROJECT@VERSION or an ARN.", show_default=False)]
Timeout = Annotated[float, typer.Option("--timeout", help="Longest wait in minutes.")]
Output = Annotated[
    str,
    typer.Option(
        "--output",
        metavar="S3-URI",
        help="Destination of the training results: s3://bucket/prefix.",
        show_default=False,
    ),
]
KmsKey = Annotated[
    str | None,
    typer.Option("--kms-key", metavar="KEY", help="KMS key for the service's copies and results.", show_default=False),
]


def copy(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The model: PROJECT@VERSION or an ARN.", show_default=False)
    ],
    to: Annotated[
        str, typer.Argument(metavar="TO", help="The copy: PROJECT@VERSION, with a new version.", show_default=False)
    ],
    *,
    output: Output,
    source_project: Annotated[
        str | None,
        typer.Option(
            "--source-project",
            metavar="ARN",
            help="Project of the model, if it is in another account.",
            show_default=False,
        ),
    ] = None,
    kms_key: KmsKey = None,
    tag: Tags = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is COPYING_COMPLETED.")] = True,
    timeout: Timeout = 24 * 60,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Copy a trained model to another project, also from another account whose project policy allows it.

    Examples:

      batchcl model copy cats-dev@v7 cats@v3 --output s3://acme-photos/models

      batchcl model copy ARN cats@v3 --source-project PROJECT-ARN --output s3://acme-photos/models
    """
    from batchcl import workflow

    project, version = new_version(to, what="copy")

    async def work(service: WorkflowClients, afterwards: InterruptMessage) -> Model:
        client = service.rekognition
        model = await workflow.find_model(client, source)
        origin = await workflow.find_project(client, source_project or model.project)
        arn = await workflow.copy_model(
            client,
            model,
            source_project=origin,
            project=await workflow.find_project(client, project),
            version=version,
            output=output,
            kms_key=kms_key,
            tags=parsed_tags(tag),
        )
        if not wait:
            return await workflow.describe(client, arn)
        afterwards.is_(
            f"the copying of {arn.name} continues in AWS; wait for it with "
            f"`batchcl model wait {arn.name} --until COPYING_COMPLETED`"
        )
        return await workflow.wait_copied(client, arn, timeout_s=timeout * 60, on_state=report_state)

    emit_model(with_service(work, profile=profile, region=region, named=source), json=json)


def tag(
    model: Name,
    tags: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Tags to set.", show_default=False)
    ] = None,
    *,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="KEY", help="Tags to remove.", show_default=False)
    ] = None,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Show, set and remove tags of a model.

    Examples:

      batchcl model tag cats@v2

      batchcl model tag cats@v2 stage=production --remove draft
    """
    from batchcl import workflow
    from batchcl.cli.output import emit_object

    async def work(service: WorkflowClients, _: InterruptMessage) -> dict[str, str]:
        arn = (await workflow.find_model(service.rekognition, model)).text
        if tags:
            await workflow.tag(service.rekognition, arn, parsed_tags(tags))
        if remove:
            await workflow.untag(service.rekognition, arn, remove)
        return await workflow.list_tags(service.rekognition, arn)

    found = with_service(work, profile=profile, region=region, named=model)
    if found or json:
        emit_object(dict(sorted(found.items())), json=json)
    else:
        write_line(f"{model} has no tags")


def delete(
    model: Name, *, yes: Yes = False, profile: Profile = None, region: Region = None, json: Json = False
) -> None:
    """Delete a model permanently; its training results stay in S3.

    Examples:

      batchcl model delete cats@v1 --yes
    """
    from batchcl import workflow
    from batchcl.aws.models import IN_USE
    from batchcl.cli.output import emit_object
    from batchcl.errors import ErrorCode, ModelError

    async def look(service: WorkflowClients, _: InterruptMessage) -> Model:
        return await workflow.describe(service.rekognition, await workflow.find_model(service.rekognition, model))

    found = with_service(look, profile=profile, region=region, named=model)
    if found.status in IN_USE:
        raise ModelError(
            f"{found.name} is {found.status} and can't be deleted; stop it with `batchcl model stop {found.name}`",
            code=ErrorCode.RESOURCE_IN_USE,
        )
    quality = "" if found.f1 is None else f" (F1 {found.f1:.3f})"
    confirm(f"this permanently deletes the model {found.name}{quality}", yes=yes)

    async def work(service: WorkflowClients, _: InterruptMessage) -> None:
        project = await workflow.find_project(service.rekognition, found.project)
        await workflow.delete_model(service.rekognition, project, workflow.ModelArn.parse(found.arn))

    with_service(work, profile=profile, region=region, named=found.arn)
    write_line(f"{found.name} is deleted")
    if json:
        emit_object({"model": found.name, "arn": found.arn}, json=True)


def new_version(text: str, *, what: str) -> tuple[str, str]:
    """Project and version of a new model `PROJECT@VERSION`; raises `UsageError`."""
    from batchcl.errors import ErrorCode, UsageError

    project, at, version = text.partition("@")
    if not at or not version:
        raise UsageError(f"{text!r} is not a name of a {what}; write PROJECT@VERSION", code=ErrorCode.INVALID_NAME)
    return project, version


def emit_model(model: Model, *, json: bool, brief: bool = False) -> None:
    """Write a model; `brief` shows only what a start or stop changes, except in JSON."""
    from batchcl.cli.output import emit_object

    fields = {"model": model.name} | asdict(model)
    if not json:  # `model` has both names; lists print better than tuples
        fields = {name: list(item) if isinstance(item, tuple) else item for name, item in fields.items()}
        del fields["project"], fields["version"]
    if brief and not json:
        fields = {name: fields[name] for name in ("model", "arn", "status", "message", "min_units", "max_units")}
    emit_object(shown(fields, json=json), json=json)
