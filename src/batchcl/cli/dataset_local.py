"""`batchcl dataset create` from local images, and `batchcl dataset update`."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from batchcl.cli.options import Json, Profile, Region
from batchcl.cli.output import RelativeTo
from batchcl.cli.service import InterruptMessage, report_state, report_upload, with_service
from batchcl.cli.streams import write_line

if TYPE_CHECKING:
    import polars as pl

    from batchcl.workflow import (
        Added,
        Corrections,
        Created,
        Dataset,
        LocalDataset,
        ProjectArn,
        Skipped,
        WorkflowClients,
    )

__all__ = ["SkipInvalid", "Timeout", "UploadTo", "create", "fail_for_errors", "is_local", "table", "update"]

UploadTo = Annotated[
    str | None,
    typer.Option(
        "--upload-to", metavar="S3-URI", help="Destination of local images: s3://bucket/prefix.", show_default=False
    ),
]
SkipInvalid = Annotated[bool, typer.Option("--skip-invalid", help="Skip files that the service would refuse.")]
Timeout = Annotated[float, typer.Option("--timeout", help="Longest wait for a dataset, in minutes.")]


def is_local(source: str) -> bool:
    """Whether `source` is a path: also if it does not exist, unless it is a URI, an ARN or a dataset's name."""
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
    skip_invalid: bool,
    tags: Mapping[str, str],
    timeout_s: float,
    profile: str | None,
    region: str | None,
    json: bool,
) -> None:
    """Create one or two datasets from local images, and show them."""
    from batchcl import workflow
    from batchcl.aws.names import dataset_name
    from batchcl.cli.output import emit, emit_object
    from batchcl.errors import ErrorCode, UsageError
    from batchcl.workflow.create import check_labels

    if upload_to is None:
        raise UsageError(f"{source} is local; name the destination of its images in S3 with --upload-to")
    to = workflow.S3Folder.parse(upload_to)
    project, kind = (dataset, None) if "/" not in dataset or test_share is not None else dataset_name(dataset)

    async def work(service: WorkflowClients, afterwards: InterruptMessage) -> Created:
        arn = await workflow.find_project(service.rekognition, project)
        await _refuse_second(service, arn, kind)
        local = await _read(source, skip_invalid=skip_invalid)
        if not local.divided and kind is None and test_share is None:
            raise UsageError(
                f"{dataset!r} is a project; write {dataset}/train or {dataset}/test, or split the images with "
                "--test-share 0.2",
                code=ErrorCode.INVALID_NAME,
            )
        if kind != "test":
            check_labels(local)
        async with service.s3() as s3:
            if await workflow.have_bucket(s3, to.bucket, region=service.region, create=create_bucket):
                write_line(f"created the bucket {to.bucket} in {service.region}")
            afterwards.is_("uploaded images stay in S3; resume with the same command")

            def changed(made: Dataset) -> None:
                report_state(made)
                afterwards.is_(
                    f"{made.name} exists or is being created; before you repeat the command, delete it with "
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
        str | None,
        typer.Argument(metavar="SOURCE", help="Directory with one folder per label, or manifest.", show_default=False),
    ] = None,
    *,
    corrected: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Corrected labels, instead of SOURCE: file of Label Studio, CVAT or COCO, or manifest. Only new and "
            "changed entries are sent.",
            show_default=False,
        ),
    ] = None,
    relative_to: RelativeTo = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --from: only show what is new and what has changed.")
    ] = False,
    upload_to: UploadTo = None,
    skip_invalid: SkipInvalid = False,
    timeout: Timeout = 60,
    profile: Profile = None,
    region: Region = None,
    json: Json = False,
) -> None:
    """Add images to a dataset, or change labels: entries with the same URI are replaced.

    With --from, the names of images in the file are compared with the dataset first; images that it does not have are
    S3 objects, or files to upload. What can't be used is refused before the upload.

    Examples:

      batchcl dataset update cats/train more-photos/ --upload-to s3://acme-photos/cats

      batchcl dataset update cats/train corrected.manifest

      batchcl dataset update cats/train --from label-studio.json --dry-run

      batchcl dataset update cats/train --from instances.json --relative-to photos --upload-to s3://acme-photos/cats
    """
    from batchcl import workflow
    from batchcl.cli.output import emit, emit_object
    from batchcl.errors import ErrorCode, UsageError

    if (source is None) == (corrected is None):
        raise UsageError(
            "name the images to add, or a file of corrected labels with --from, and not both",
            code=ErrorCode.CONFLICTING_OPTIONS,
        )
    if corrected is None and (relative_to is not None or dry_run):
        raise UsageError("--relative-to and --dry-run need --from", code=ErrorCode.CONFLICTING_OPTIONS)
    to = None if upload_to is None else workflow.S3Folder.parse(upload_to)

    async def work(service: WorkflowClients, afterwards: InterruptMessage) -> tuple[Corrections | None, Added | None]:
        arn = await workflow.find_dataset(service.rekognition, dataset)
        corrections = None
        if corrected is not None:
            corrections = await workflow.read_corrections(
                service.rekognition, arn, corrected, relative_to=relative_to, to=to
            )
            _report_corrections(corrections, corrected, arn.name, skip_invalid=skip_invalid)
            local = corrections.local
        else:
            local = await _read(str(source), skip_invalid=skip_invalid)
        if dry_run:
            return corrections, None
        async with service.s3() as s3:
            if to is not None:
                await workflow.have_bucket(s3, to.bucket, region=service.region)
            afterwards.is_("uploaded images and added entries stay; resume with the same command")
            added = await workflow.add_local(
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
        return corrections, added

    corrections, added = with_service(work, profile=profile, region=region, named=dataset)
    if json:
        counts = {} if corrections is None else _counts(corrections)
        emit_object({**counts, **({} if added is None else asdict(added))}, json=True)
    elif added is not None:
        emit(table([added.dataset]))
    elif corrections is not None and corrections.changes:
        emit(_changes(corrections))
    if added is not None:
        fail_for_errors([added.dataset])


def _report_corrections(corrections: Corrections, source: str, dataset: str, *, skip_invalid: bool) -> None:
    """Print the numbers of new and changed entries; raise `SourceError` for entries that can't be used."""
    from batchcl.workflow.create import refuse_skipped

    if not skip_invalid:
        refuse_skipped(corrections.local)
    write_line(
        f"{source} compared with {dataset}: {corrections.count('new'):,} new, "
        f"{corrections.count('changed'):,} changed, {corrections.unchanged:,} unchanged"
    )
    if corrections.unlabelled:
        write_line(f"images without labels ignored: {corrections.unlabelled:,}")
    _report_skipped(corrections.local.skipped)
    for remark in corrections.local.remarks():
        write_line(remark)


def _counts(corrections: Corrections) -> dict[str, object]:
    return {
        "new": corrections.count("new"),
        "changed": corrections.count("changed"),
        "unchanged": corrections.unchanged,
        "unlabelled": corrections.unlabelled,
        "changes": [asdict(change) for change in corrections.changes],
        "skipped": [asdict(each) for each in corrections.local.skipped],
    }


def _changes(corrections: Corrections) -> pl.DataFrame:
    import polars as pl

    return pl.DataFrame(
        [asdict(change) for change in corrections.changes],
        schema={"kind": pl.String, "image": pl.String, "before": pl.List(pl.String), "labels": pl.List(pl.String)},
    )


def fail_for_errors(datasets: Sequence[Dataset]) -> None:
    """Exit with code 3 if the service can't use entries, and print how many and how to list them."""
    from batchcl.errors import ExitCode

    for each in datasets:
        if each.errors:
            write_line(
                f"{each.errors:,} of the {each.entries:,} entries of {each.name} have errors; list them with "
                f"`batchcl dataset entries {each.name} --errors --manifest`"
            )
    if any(each.errors for each in datasets):
        raise typer.Exit(ExitCode.FAILURES)


def table(datasets: Sequence[Dataset]) -> pl.DataFrame:
    """The most important fields of each dataset."""
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
    """Refuse a dataset that exists, before the upload."""
    from batchcl import workflow
    from batchcl.errors import ErrorCode, RefusedError

    found = await workflow.describe_project(service.rekognition, project)
    for each in found.datasets:
        if kind in {None, each.kind}:
            raise RefusedError(
                f"the project {found.name} already has a {each.kind} dataset; add to it with "
                f"`batchcl dataset update {found.name}/{each.kind}`, or delete it first",
                code=ErrorCode.RESOURCE_IN_USE,
            )


async def _read(source: str, *, skip_invalid: bool) -> LocalDataset:
    import anyio.to_thread

    from batchcl import workflow
    from batchcl.workflow.create import refuse_skipped

    local = await anyio.to_thread.run_sync(workflow.read_local, source, abandon_on_cancel=True)
    if not skip_invalid:
        refuse_skipped(local)
    write_line(f"{len(local.entries):,} images with {len(local.labels())} labels in {source}")
    _report_skipped(local.skipped)
    for remark in local.remarks():
        write_line(remark)
    return local


def _report_skipped(skipped: Sequence[Skipped]) -> None:
    most = 5
    for each in skipped[:most]:
        write_line(f"skipped {each.path}: {each.reason}")
    if len(skipped) > most:
        write_line(f"skipped {len(skipped) - most:,} more; --json lists all")
