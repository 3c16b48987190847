"""`batchcl model train` and `batchcl model evaluate`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchcl.cli.evaluate import show_confusion
from batchcl.cli.model_versions import KmsKey, Name, Output, Timeout, emit_model, new_version
from batchcl.cli.options import Json, Profile, Region
from batchcl.cli.service import InterruptMessage, Tags, parsed_tags, report_state, shown, with_service
from batchcl.cli.streams import write_line

if TYPE_CHECKING:
    from batchcl.workflow import Model, ModelEvaluation, WorkflowClients

__all__ = ["evaluate", "train"]


def train(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="PROJECT@VERSION, with a new version.", show_default=False)
    ],
    *,
    output: Output,
    train_manifest: Annotated[
        list[str] | None,
        typer.Option(
            "--train-manifest",
            metavar="S3-URI",
            help="Training manifest, for a project without datasets; may be repeated.",
            show_default=False,
        ),
    ] = None,
    test_manifest: Annotated[
        list[str] | None,
        typer.Option(
            "--test-manifest",
            metavar="S3-URI",
            help="Test manifest (default: the service uses a fifth of the training images).",
            show_default=False,
        ),
    ] = None,
    description: Annotated[
        str | None, typer.Option("--description", help="Description of the version.", show_default=False)
    ] = None,
    kms_key: KmsKey = None,
    tag: Tags = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is TRAINING_COMPLETED.")] = True,
    timeout: Timeout = 24 * 60,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Train a model on a project's datasets. Takes 30 minutes to 24 hours, at $1 per hour.

    Examples:

      batchcl model train cats@v2 --output s3://acme-photos/models

      batchcl model train cats@v2 --output s3://acme-photos/models --no-wait
    """
    from batchcl import workflow
    from batchcl.errors import ErrorCode, UsageError

    project, version = new_version(model, what="new model")
    if test_manifest and not train_manifest:
        raise UsageError(
            "--test-manifest needs --train-manifest; without both, the project's datasets are used",
            code=ErrorCode.CONFLICTING_OPTIONS,
        )

    async def work(service: WorkflowClients, afterwards: InterruptMessage) -> Model:
        client = service.rekognition
        arn = await workflow.train_model(
            client,
            await workflow.find_project(client, project),
            version=version,
            output=output,
            training_manifests=[workflow.S3Location.parse(each) for each in train_manifest or ()],
            testing_manifests=[workflow.S3Location.parse(each) for each in test_manifest or ()],
            split_test_set=bool(train_manifest) and not test_manifest,
            description=description,
            kms_key=kms_key,
            tags=parsed_tags(tag),
        )
        if not wait:
            return await workflow.describe(client, arn)
        afterwards.is_(
            f"the training of {arn.name} continues in AWS at $1.00 an hour and cannot be stopped; wait for it with "
            f"`batchcl model wait {arn.name} --until TRAINING_COMPLETED`"
        )
        trained = await workflow.wait_trained(client, arn, timeout_s=timeout * 60, on_state=report_state)
        _report_bill(trained)
        return trained

    emit_model(with_service(work, profile=profile, region=region, named=project), json=json)


def evaluate(
    model: Name,
    *,
    mistakes: Annotated[
        int, typer.Option("--mistakes", metavar="N", min=0, help="Show the N most confident wrong predictions.")
    ] = 0,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Show the quality of a model on its test set, from its training results; free of charge.

    F1, precision, recall and assumed threshold of each label, and which labels are confused.

    Examples:

      batchcl model evaluate cats@v2 --mistakes 10

      batchcl model evaluate cats@v2 --json | jq .f1
    """
    from batchcl import workflow
    from batchcl.cli.output import emit_object

    async def work(service: WorkflowClients, _: InterruptMessage) -> tuple[Model, ModelEvaluation]:
        client = service.rekognition
        found = await workflow.describe(client, await workflow.find_model(client, model))
        async with service.s3() as s3:
            return found, await workflow.evaluate_model(s3, found)

    found, evaluation = with_service(work, profile=profile, region=region, named=model)
    fields = asdict(evaluation) | {"mistakes": [asdict(each) for each in evaluation.mistakes[:mistakes]]}
    if json:
        emit_object({"model": found.name, "arn": found.arn, "wrong": len(evaluation.mistakes)} | fields, json=True)
        return
    tables = {name: fields.pop(name) for name in ("labels", "confusion", "mistakes")}
    emit_object(
        shown(fields | {"wrong predictions": len(evaluation.mistakes)}, json=False), title=f"Evaluation of {found.name}"
    )
    _show(tables)


def _show(tables: dict[str, Any]) -> None:
    import polars as pl

    from batchcl.cli.output import emit

    if tables["labels"]:
        sys.stdout.write("\n")
        frame = pl.DataFrame(tables["labels"], infer_schema_length=None)
        emit(frame.select(column for column in frame if column.null_count() < len(column)), title="Labels")
    if tables["confusion"]:
        sys.stdout.write("\n")
        frame = pl.DataFrame(tables["confusion"], infer_schema_length=None)
        show_confusion(frame, values="share" if frame["images"].null_count() else "images")
    if tables["mistakes"]:
        sys.stdout.write("\n")
        emit(pl.DataFrame(tables["mistakes"], infer_schema_length=None), title="Most confident wrong predictions")


def _report_bill(model: Model) -> None:
    from batchcl.prices import training_hour_usd

    if model.training_seconds is not None:
        hours = model.training_seconds / 3600
        took = f"{hours:.1f} hours" if hours >= 1 else f"{model.training_seconds / 60:.1f} minutes"
        write_line(f"billed for {took} of training: ${hours * training_hour_usd():.2f}")
