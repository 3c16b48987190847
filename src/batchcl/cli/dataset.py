"""`batchcl dataset create|show|entries|labels|update|distribute|delete`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from batchcl.cli import dataset_local
from batchcl.cli.options import Json, Profile, Region
from batchcl.cli.service import InterruptMessage, Tags, Yes, confirm, parsed_tags, report_state, shown, with_service
from batchcl.cli.streams import write_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batchcl.workflow import Dataset, DatasetLabel, WorkflowClients

__all__ = ["app"]

app = typer.Typer(help="Create, inspect and change datasets of labelled images.", no_args_is_help=True)
app.command("update")(dataset_local.update)

Name = Annotated[
    str, typer.Argument(metavar="DATASET", help="PROJECT/train, PROJECT/test, or an ARN.", show_default=False)
]


@app.command()
def create(
    dataset: Annotated[
        str,
        typer.Argument(metavar="DATASET", help="PROJECT/train or PROJECT/test; PROJECT for both.", show_default=False),
    ],
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="Directory with one folder per label, or with such folders in train and test; manifest (file or "
            "s3://bucket/key); image,label CSV; or another dataset. If omitted, the dataset is empty.",
            show_default=False,
        ),
    ] = None,
    *,
    upload_to: dataset_local.UploadTo = None,
    create_bucket: Annotated[
        bool, typer.Option("--create-bucket", help="Create the bucket of --upload-to if it does not exist.")
    ] = False,
    test_share: Annotated[
        float | None,
        typer.Option(
            "--test-share",
            metavar="SHARE",
            help="Share of each label's images for a test dataset, such as 0.2.",
            show_default=False,
        ),
    ] = None,
    skip_invalid: dataset_local.SkipInvalid = False,
    tag: Tags = None,
    timeout: dataset_local.Timeout = 60,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Create a dataset from local images, a manifest in S3, or another dataset.

    Uploads local images, unless they are already in S3, and their manifest. Boxes of a manifest are kept. Files that
    the service would refuse are refused before the upload.

    Examples:

      batchcl dataset create cats photos/ --test-share 0.2 --upload-to s3://acme-photos/cats

      batchcl dataset create cats divided/ --upload-to s3://acme-photos/cats

      batchcl dataset create cats/train s3://acme-photos/cats/train.manifest

      batchcl dataset create cats/train boxes.manifest --upload-to s3://acme-photos/cats --skip-invalid

      batchcl dataset create dogs/test cats/test
    """
    if source is not None and dataset_local.is_local(source):
        dataset_local.create(
            dataset,
            source,
            upload_to=upload_to,
            create_bucket=create_bucket,
            test_share=test_share,
            skip_invalid=skip_invalid,
            tags=parsed_tags(tag),
            timeout_s=timeout * 60,
            profile=profile,
            region=region,
            json=json,
        )
        return
    from batchcl import workflow
    from batchcl.aws.names import dataset_name
    from batchcl.cli.output import emit_object
    from batchcl.errors import ErrorCode, UsageError
    from batchcl.workflow.create import check_manifest

    if upload_to is not None or test_share is not None or create_bucket or skip_invalid:
        raise UsageError(
            "--upload-to, --create-bucket, --test-share and --skip-invalid need local images, "
            f"but {source or 'an empty dataset'} has none",
            code=ErrorCode.CONFLICTING_OPTIONS,
        )
    project, kind = dataset_name(dataset)

    async def work(service: WorkflowClients, afterwards: InterruptMessage) -> Dataset:
        arn = await workflow.find_project(service.rekognition, project)
        text = f"AWS may still create the dataset; check with `batchcl dataset show {dataset}`"
        afterwards.is_(text, unless_refused=True)
        origin: Any = None
        if source is not None and source.startswith("s3://"):
            origin = workflow.S3Location.parse(source)
            async with service.s3() as s3:
                await check_manifest(s3, origin)
        elif source is not None:
            origin = await workflow.find_dataset(service.rekognition, source)
        return await workflow.create_dataset(
            service.rekognition,
            arn,
            kind,
            origin,
            tags=parsed_tags(tag),
            timeout_s=timeout * 60,
            on_state=report_state,
        )

    made = with_service(work, profile=profile, region=region, named=source)
    if json:
        emit_object(
            {"datasets": [asdict(made)], "manifests": [], "uploaded": None, "skipped": [], "remarks": []}, json=True
        )
    else:
        emit_datasets([made], json=False)
    dataset_local.fail_for_errors([made])


@app.command()
def show(dataset: Name, profile: Profile = None, region: Region = None, json: Json = False) -> None:
    """Show a dataset: its status, and its numbers of entries, labels and errors.

    Examples:

      batchcl dataset show cats/train
    """
    from batchcl import workflow
    from batchcl.cli.output import emit_object

    async def work(service: WorkflowClients, _: InterruptMessage) -> Dataset:
        arn = await workflow.find_dataset(service.rekognition, dataset)
        return await workflow.describe_dataset(service.rekognition, arn)

    found = with_service(work, profile=profile, region=region, named=dataset)
    emit_object(shown({"dataset": found.name} | asdict(found), json=json), json=json)


@app.command()
def entries(
    dataset: Name,
    *,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="Only entries with this label; may be repeated for several.", show_default=False),
    ] = None,
    labeled: Annotated[
        bool | None,
        typer.Option("--labeled/--unlabeled", help="Only entries with, or without, labels.", show_default=False),
    ] = None,
    containing: Annotated[
        str | None,
        typer.Option("--containing", metavar="TEXT", help="Only entries with this in their URI.", show_default=False),
    ] = None,
    errors: Annotated[
        bool | None,
        typer.Option(
            "--errors/--no-errors", help="Only entries that the service cannot, or can, use.", show_default=False
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Only the first N.", show_default=False)] = None,
    manifest: Annotated[
        bool, typer.Option("--manifest", help="Write the lines of the manifest, to edit and `dataset update`.")
    ] = False,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """List the images of a dataset with their labels.

    Examples:

      batchcl dataset entries cats/train --label siamese --limit 20

      batchcl dataset entries cats/test --manifest > test.manifest
    """
    import orjson
    import polars as pl

    from batchcl import workflow
    from batchcl.cli.output import emit
    from batchcl.errors import ErrorCode, UsageError
    from batchcl.groundtruth import parse_line

    if manifest and json:
        raise UsageError("--manifest and --json exclude each other; choose one", code=ErrorCode.CONFLICTING_OPTIONS)

    async def work(service: WorkflowClients, _: InterruptMessage) -> list[str]:
        arn = await workflow.find_dataset(service.rekognition, dataset)
        found: list[str] = []
        listed = workflow.dataset_entries(
            service.rekognition,
            arn,
            labels=label or (),
            labeled=labeled,
            source_contains=containing,
            has_errors=errors,
        )
        async for line in listed:
            if limit is not None and len(found) >= limit:
                break
            found.append(line.strip())
        return found

    lines = with_service(work, profile=profile, region=region, named=dataset)
    if manifest:
        sys.stdout.writelines(f"{line}\n" for line in lines)
        return
    if json:
        sys.stdout.write(orjson.dumps([orjson.loads(line) for line in lines], option=orjson.OPT_INDENT_2).decode())
        sys.stdout.write("\n")
        return
    truths = [parse_line(line) for line in lines]
    rows = [{"image": each.source_ref, "labels": list(each.labels), "boxes": len(each.boxes)} for each in truths]
    emit(pl.DataFrame(rows, schema={"image": pl.String, "labels": pl.List(pl.String), "boxes": pl.Int64}))


@app.command()
def labels(dataset: Name, profile: Profile = None, region: Region = None, json: Json = False) -> None:
    """List the labels of a dataset, with their numbers of images and of images with boxes.

    Examples:

      batchcl dataset labels cats/train
    """
    import polars as pl

    from batchcl import workflow
    from batchcl.cli.output import emit

    async def work(service: WorkflowClients, _: InterruptMessage) -> list[DatasetLabel]:
        arn = await workflow.find_dataset(service.rekognition, dataset)
        return await workflow.dataset_labels(service.rekognition, arn)

    found = with_service(work, profile=profile, region=region, named=dataset)
    schema = {"label": pl.String, "entries": pl.Int64, "boxed": pl.Int64}
    emit(pl.DataFrame([asdict(each) for each in found], schema=schema), json=json)


@app.command()
def distribute(
    project: Annotated[str, typer.Argument(metavar="PROJECT", help="The project's name or ARN.", show_default=False)],
    *,
    timeout: dataset_local.Timeout = 60,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Move a fifth of the training dataset into the empty test dataset; creates it if missing.

    Examples:

      batchcl dataset distribute cats
    """
    from batchcl import workflow
    from batchcl.errors import ErrorCode, RefusedError

    async def work(service: WorkflowClients, afterwards: InterruptMessage) -> list[Dataset]:
        arn = await workflow.find_project(service.rekognition, project)
        found = await workflow.describe_project(service.rekognition, arn)
        arns = {each.kind: workflow.DatasetArn.parse(each.arn) for each in found.datasets}
        if "train" not in arns:
            raise RefusedError(
                f"the project {found.name} has no training dataset to distribute", code=ErrorCode.NO_SUCH_RESOURCE
            )
        if "test" not in arns:
            made = await workflow.create_dataset(service.rekognition, arn, "test", timeout_s=timeout * 60)
            arns["test"] = workflow.DatasetArn.parse(made.arn)
            write_line(f"{made.name} is created")
        text = f"AWS may still move the entries; check with `batchcl dataset show {found.name}/test`"
        afterwards.is_(text, unless_refused=True)
        return list(
            await workflow.distribute_entries(service.rekognition, arns["train"], arns["test"], timeout_s=timeout * 60)
        )

    moved = with_service(work, profile=profile, region=region, named=project)
    emit_datasets(moved, json=json)
    dataset_local.fail_for_errors(moved)


@app.command()
def delete(
    dataset: Name, *, yes: Yes = False, profile: Profile = None, region: Region = None, json: Json = False
) -> None:
    """Delete a dataset; its images and manifest stay in S3.

    Examples:

      batchcl dataset delete cats/test --yes
    """
    from batchcl import workflow
    from batchcl.cli.output import emit_object

    async def look(service: WorkflowClients, _: InterruptMessage) -> Dataset:
        arn = await workflow.find_dataset(service.rekognition, dataset)
        return await workflow.describe_dataset(service.rekognition, arn)

    found = with_service(look, profile=profile, region=region, named=dataset)
    confirm(f"this deletes the dataset {found.name} with {found.entries:,} entries", yes=yes)

    async def work(service: WorkflowClients, _: InterruptMessage) -> None:
        await workflow.delete_dataset(service.rekognition, workflow.DatasetArn.parse(found.arn))

    with_service(work, profile=profile, region=region, named=found.arn)
    write_line(f"{found.name} is deleted")
    if json:
        emit_object({"dataset": found.name, "arn": found.arn}, json=True)


def emit_datasets(datasets: Sequence[Dataset], *, json: bool) -> None:
    """Write one row per dataset."""
    import polars as pl

    from batchcl.cli.output import emit

    if json:
        emit(pl.DataFrame([asdict(each) for each in datasets], infer_schema_length=None), json=True)
    else:
        emit(dataset_local.table(datasets))
