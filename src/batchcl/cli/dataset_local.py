"""The parts of `batchcl dataset` that take images from this machine: `create` from a directory, and `update`."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from batchcl.cli.options import Json, Profile, Region
from batchcl.cli.service import InterruptMessage, report_state, report_upload, with_service
from batchcl.cli.streams import write_line

if TYPE_CHECKING:
    import polars as pl

    from batchcl.workflow import Added, Created, Dataset, LocalDataset, ProjectArn, Skipped, WorkflowClients

__all__ = ["SkipUnfit", "Timeout", "UploadTo", "create", "fail_for_errors", "is_local", "table", "update"]

UploadTo = Annotated[
    str | None,
    typer.Option(
        "--upload-to", metavar="S3-URI", help="Where images of this machine go: s3://bucket/prefix.", show_default=False
    ),
]
SkipUnfit = Annotated[bool, typer.Option("--skip-unfit", help="Leave files out that the service would refuse.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Minutes to wait for a dataset at most.")]


def is_local(source: str) -> bool:
    """Whether `source` is a path; what isn't there and is no URI, ARN or dataset's name is a path with a mistake."""
    if source.startswith(("s3://", "arn:")):
        return False
    return os.path.exists(source) or not source.endswith(("/train", "/test"))


def create(
    dataset: str,
    source: str,
    *,
    upload_to: str | None,
    create_bucket: bool,
    test_share: float | None,
    skip_unfit: bool,
    tags: Mapping[str, str],
    timeout_s: float,
    profile: str | None,
    region: str | None,
    json: bool,
) -> None:
    """Make one or two datasets from images on this machine, and show them."""
    from batchcl import workflow
    from batchcl.aws.names import dataset_name
    from batchcl.cli.output import emit, emit_object
    from batchcl.errors import UsageError
    from batchcl.workflow.create import check_labels

    if upload_to is None:
        raise UsageError(f"{source} lies on this machine; say where in S3 its images go with --upload-to")
    to = workflow.S3Folder.parse(upload_to)
    project, kind = (dataset, None) if "/" not in dataset or test_share is not None else dataset_name(dataset)

    async def work(service: WorkflowClients, afterwards: InterruptMessage) -> Created:
        arn = await workflow.find_project(service.rekognition, project)
        await _refuse_second(service, arn, kind)
        local = await _read(source, skip_unfit=skip_unfit)
        if not local.divided and kind is None and test_share is None:
            raise UsageError(
                f"{dataset!r} names no dataset; write {dataset}/train or {dataset}/test, or have the images divided "
                "between them with --test-share 0.2"
            )
        if kind != "test":
            check_labels(local)
        async with service.s3() as s3:
            if await workflow.have_bucket(s3, to.bucket, region=service.region, create=create_bucket):
                write_line(f"the bucket {to.bucket} is made, in {service.region}")
            afterwards.is_("images that are uploaded stay in S3; the same command goes on with the rest")

            def changed(made: Dataset) -> None:
                report_state(made)
                afterwards.is_(
                    f"{made.name} is there or being made; before the same command again, "
                    f"`batchcl dataset delete {made.name}`"
                )

            return await workflow.create_from_local(
                service.rekognition,
                s3,
                arn,
                local,
                to,
                kind=kind,
                test_share=test_share,
                created=dt.datetime.now(dt.UTC),
                tags=tags,
                timeout_s=timeout_s,
                on_progress=report_upload,
                on_state=changed,
            )

    made = with_service(work, profile=profile, region=region, named=project)
    if json:
        emit_object(asdict(made), json=True)
    else:
        emit(table(made.datasets))
    fail_for_errors(made.datasets)


def update(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="PROJECT/train, PROJECT/test, or an ARN.", show_default=False)
    ],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A directory with a folder for each label, or a manifest.", show_default=False
        ),
    ],
    *,
    upload_to: UploadTo = None,
    skip_unfit: SkipUnfit = False,
    timeout: Timeout = 60,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Add images to a dataset, or change the labels of those that it has: an entry of the same URI is replaced.

    Examples:

      batchcl dataset update cats/train more-photos/ --upload-to s3://acme-photos/cats

      batchcl dataset update cats/train corrected.manifest
    """
    from batchcl import workflow
    from batchcl.cli.output import emit, emit_object

    to = None if upload_to is None else workflow.S3Folder.parse(upload_to)

    async def work(service: WorkflowClients, afterwards: InterruptMessage) -> Added:
        arn = await workflow.find_dataset(service.rekognition, dataset)
        local = await _read(source, skip_unfit=skip_unfit)
        async with service.s3() as s3:
            if to is not None:
                await workflow.have_bucket(s3, to.bucket, region=service.region)
            afterwards.is_("what is uploaded and entered stays; the same command goes on with the rest")
            return await workflow.add_local(
                service.rekognition,
                s3,
                arn,
                local,
                to,
                created=dt.datetime.now(dt.UTC),
                timeout_s=timeout * 60,
                on_progress=report_upload,
                on_batch=lambda done: write_line(f"{done:,} of {len(local.entries):,} entries are in {arn.name}"),
            )

    added = with_service(work, profile=profile, region=region, named=dataset)
    if json:
        emit_object(asdict(added), json=True)
    else:
        emit(table([added.dataset]))
    fail_for_errors([added.dataset])


def fail_for_errors(datasets: Sequence[Dataset]) -> None:
    """End with exit code 3 where the service can't use entries, and say how many and how to see them."""
    from batchcl.errors import ExitCode

    for each in datasets:
        if each.errors:
            write_line(
                f"the service can't use {each.errors:,} of the {each.entries:,} entries of {each.name}; see why with "
                f"`batchcl dataset entries {each.name} --errors --manifest`"
            )
    if any(each.errors for each in datasets):
        raise typer.Exit(ExitCode.FAILURES)


def table(datasets: Sequence[Dataset]) -> pl.DataFrame:
    """What a person wants to know of each dataset."""
    import polars as pl

    return pl.DataFrame(
        [
            {
                "dataset": each.name,
                "status": each.status,
                "entries": each.entries,
                "labeled": each.labeled,
                "labels": each.labels,
                "errors": each.errors,
            }
            for each in datasets
        ]
    )


async def _refuse_second(service: WorkflowClients, project: ProjectArn, kind: str | None) -> None:
    """Before the upload, which would be in vain."""
    from batchcl import workflow
    from batchcl.errors import RefusedError

    found = await workflow.describe_project(service.rekognition, project)
    for each in found.datasets:
        if kind in {None, each.kind}:
            raise RefusedError(
                f"the project {found.name} has a {each.kind} dataset already; add to it with "
                f"`batchcl dataset update {found.name}/{each.kind}`, or delete it first"
            )


async def _read(source: str, *, skip_unfit: bool) -> LocalDataset:
    import anyio.to_thread

    from batchcl import workflow
    from batchcl.workflow.create import refuse_skipped

    local = await anyio.to_thread.run_sync(workflow.read_local, source, abandon_on_cancel=True)
    if not skip_unfit:
        refuse_skipped(local)
    write_line(f"{len(local.entries):,} images with {len(local.labels())} labels in {source}")
    _tell_skipped(local.skipped)
    for remark in local.remarks():
        write_line(remark)
    return local


def _tell_skipped(skipped: Sequence[Skipped]) -> None:
    most = 5
    for each in skipped[:most]:
        write_line(f"{each.path} is left out: {each.reason}")
    if len(skipped) > most:
        write_line(f"{len(skipped) - most:,} more are left out; --json has them all")
