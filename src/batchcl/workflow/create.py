"""From labelled images on this machine to datasets: upload, manifest, dataset."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import anyio.to_thread

from batchcl.arns import DatasetArn, ProjectArn
from batchcl.aws.datasets import TIMEOUT_S, Dataset, S3Location, create_dataset, update_entries
from batchcl.errors import BatchclError, SourceError, UsageError
from batchcl.groundtruth import DETECTION, kinds_of
from batchcl.sources.base import parse_s3_uri
from batchcl.sources.files import copy_object
from batchcl.workflow.local import DatasetEntry, LocalDataset, Skipped, check_file, split_entries
from batchcl.workflow.manifest import manifest_line
from batchcl.workflow.upload import S3Folder, Uploaded, put_object, upload_images

__all__ = ["Added", "Created", "add_local", "check_labels", "check_manifest", "create_from_local", "refuse_skipped"]

MAX_LABELS: Final = 250
"""Labels of one model; source: developer guide, "Guidelines and quotas"."""

_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """Datasets made from local images; `manifests` are the `s3://` URIs of what they were made from."""

    datasets: tuple[Dataset, ...]
    manifests: tuple[str, ...]
    uploaded: Uploaded
    skipped: tuple[Skipped, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """A dataset with local images added."""

    dataset: Dataset
    entries: int
    uploaded: Uploaded
    skipped: tuple[Skipped, ...]
    remarks: tuple[str, ...] = ()


def refuse_skipped(local: LocalDataset) -> None:
    """Raise `SourceError` where files would be left out, with the first few and their reasons."""
    if not local.skipped:
        return
    shown = "; ".join(f"{each.path}: {each.reason}" for each in local.skipped[:_SHOWN])
    more = f"; and {len(local.skipped) - _SHOWN} more" if len(local.skipped) > _SHOWN else ""
    raise SourceError(
        f"{len(local.skipped)} files or lines can't be used: {shown}{more}; mend or remove them, or leave them out "
        "with --skip-invalid"
    )


async def check_manifest(s3: Any, manifest: S3Location) -> None:
    """Look at a manifest in S3 before a dataset is made of it, which takes it as it is.

    One that this identity can't read is left to the service, which may.

    Raises:
        SourceError: the service couldn't use lines of it, or wants them in another form.
    """
    try:
        path = await copy_object(s3, str(manifest))
    except BatchclError:
        return
    if path is None:
        return
    try:
        bad, unfinished = await anyio.to_thread.run_sync(check_file, path, str(manifest))
    finally:
        path.unlink()
    if bad:
        raise SourceError(
            f"{len(bad)} lines of {manifest} can't be used: {'; '.join(bad[:_SHOWN])}; correct them, or leave them "
            "out: copy the manifest to this machine, and give it with --upload-to and --skip-invalid"
        )
    if unfinished:
        raise SourceError(
            f"{len(unfinished)} lines of {manifest}, such as {unfinished[0]}, have labels in a form that Custom Labels "
            "doesn't take, as without confidence or several in one attribute; copy the manifest to this machine, and "
            "give it with --upload-to, which converts them"
        )


def check_labels(local: LocalDataset) -> None:
    """Raise `SourceError` where no model could be trained with these labels, as there are too few or too many."""
    labels = local.labels("train" if local.divided else None)
    located = any(DETECTION in kinds_of(entry.attributes or {}).values() for entry in local.entries)
    if len(labels) < (1 if located else 2):
        named = ", ".join(labels) or "none"
        raise SourceError(f"a model of whole images needs at least two labels, and there is {named}")
    if len(labels) > MAX_LABELS:
        raise SourceError(f"there are {len(labels)} labels, and a model has at most {MAX_LABELS}; leave some out")


async def create_from_local(
    client: Any,
    s3: Any,
    project: ProjectArn,
    local: LocalDataset,
    to: S3Folder,
    *,
    kind: str | None = None,
    test_share: float | None = None,
    created: dt.datetime,
    tags: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    on_progress: Callable[[Uploaded], None] = lambda _: None,
    on_state: Callable[[Dataset], None] = lambda _: None,
) -> Created:
    """Upload images, write a manifest beside them, and make a dataset of it; or a training and a test dataset.

    Images that are divided already need neither `kind` nor `test_share`.

    Args:
        client: an open Rekognition client.
        s3: an open S3 client of the project's region.
        project: which gets the datasets.
        local: the images, as `read_local` finds them.
        to: where images and manifests go; the manifests are called `train.manifest` and `test.manifest`.
        kind: `train` or `test`, for one dataset of all images.
        test_share: instead: between 0 and 1, the share of each label's images that goes to the test dataset.
        created: when the labels were given.
        tags: of the datasets.
        timeout_s: how long to wait for each dataset at most.
        on_progress: told how far the upload is.
        on_state: told of each change of a dataset's status.

    Raises:
        UsageError: neither or both of `kind` and `test_share` are given, or one for images that are divided already.
        BatchclError: as `upload_images` and `create_dataset` raise.
    """
    _check_buckets(local, to)
    parts = _parts(local, kind=kind, test_share=test_share)
    uploaded = await upload_images(s3, to, _images(local.entries), on_progress=on_progress)
    datasets, manifests = [], []
    for each, entries in parts.items():
        name = f"{each}.manifest"
        body = b"".join(line + b"\n" for line in _lines(entries, to, created))
        await put_object(s3, to.bucket, to.key(name), body, content_type="application/jsonlines")
        manifests.append(to.uri(name))
        datasets.append(
            await create_dataset(
                client,
                project,
                each,
                S3Location(to.bucket, to.key(name)),
                tags=tags,
                timeout_s=timeout_s,
                on_state=on_state,
            )
        )
    return Created(
        datasets=tuple(datasets),
        manifests=tuple(manifests),
        uploaded=uploaded,
        skipped=local.skipped,
        remarks=tuple(local.remarks()),
    )


async def add_local(
    client: Any,
    s3: Any,
    dataset: DatasetArn,
    local: LocalDataset,
    to: S3Folder | None,
    *,
    created: dt.datetime,
    timeout_s: float = TIMEOUT_S,
    on_progress: Callable[[Uploaded], None] = lambda _: None,
    on_batch: Callable[[int], None] = lambda _: None,
) -> Added:
    """Upload images and add them to a dataset; an entry of the same URI is replaced.

    Args:
        client: an open Rekognition client.
        s3: an open S3 client of the dataset's region.
        dataset: which gets the images.
        local: the images, as `read_local` finds them.
        to: where they go; None is right only for a manifest whose images are all in S3.
        created: when the labels were given.
        timeout_s: how long to wait for each batch at most.
        on_progress: told how far the upload is.
        on_batch: told how many entries are in.

    Raises:
        UsageError: there are files to upload, and `to` is None.
        BatchclError: as `upload_images` and `update_entries` raise.
    """
    images = _images(local.entries)
    if to is None and images:
        raise UsageError(f"{len(images)} images lie on this machine; say where in S3 they go with --upload-to")
    if local.divided:
        raise UsageError(
            f"the images are divided into train and test; add each of the two folders to {dataset.project}"
        )
    if to is not None:
        _check_buckets(local, to)
    uploaded = Uploaded(0, 0) if to is None else await upload_images(s3, to, images, on_progress=on_progress)
    lines = _lines(local.entries, to, created)
    updated = await update_entries(client, dataset, lines, timeout_s=timeout_s, on_batch=on_batch)
    return Added(
        dataset=updated,
        entries=len(lines),
        uploaded=uploaded,
        skipped=local.skipped,
        remarks=tuple(local.remarks()),
    )


def _check_buckets(local: LocalDataset, to: S3Folder) -> None:
    """Raise `SourceError` where images of this machine would be in another bucket than those that are in S3."""
    others = {parse_s3_uri(entry.uri)[0] for entry in local.entries if entry.uri is not None} - {to.bucket}
    if others and _images(local.entries):
        raise SourceError(
            f"images of the manifest are in {', '.join(sorted(others))} and others would be uploaded to {to.bucket}; a "
            "dataset takes images of one bucket: upload to that one"
        )


def _parts(local: LocalDataset, *, kind: str | None, test_share: float | None) -> dict[str, tuple[DatasetEntry, ...]]:
    entries = local.entries
    if local.divided:
        if kind is not None or test_share is not None:
            raise UsageError(
                "the images are divided into train and test; name the project alone, without --test-share, or one of "
                "the two folders"
            )
        return {each: tuple(entry for entry in entries if entry.kind == each) for each in ("train", "test")}
    if (kind is None) == (test_share is None):
        raise UsageError("name one dataset, or give the share of the images that is put aside for the test")
    if kind is not None:
        return {kind: entries}
    assert test_share is not None
    if not 0 < test_share < 1:
        raise UsageError(f"a test share of {test_share:g} is out of range: it lies between 0 and 1, such as 0.2")
    train, test = split_entries(entries, test_share)
    if not test:
        raise SourceError("no label has two different images, so none can be put aside for the test; add images")
    return {"train": train, "test": test}


def _images(entries: Sequence[DatasetEntry]) -> list[Any]:
    return [entry.image for entry in entries if entry.image is not None]


def _lines(entries: Sequence[DatasetEntry], to: S3Folder | None, created: dt.datetime) -> list[bytes]:
    return [
        manifest_line(_uri(entry, to), labels=entry.labels, attributes=entry.attributes, created=created)
        for entry in entries
    ]


def _uri(entry: DatasetEntry, to: S3Folder | None) -> str:
    if entry.image is None:
        return str(entry.uri)
    assert to is not None
    return to.uri(entry.image.key)
