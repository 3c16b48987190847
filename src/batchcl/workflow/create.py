"""Creates datasets from labelled local images: uploads the images, writes manifests, creates the datasets."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import anyio.to_thread

from batchcl.arns import DatasetArn, ProjectArn
from batchcl.aws.datasets import TIMEOUT_S, Dataset, S3Location, create_dataset, describe_dataset, update_entries
from batchcl.errors import BatchclError, ErrorCode, SourceError, UsageError
from batchcl.groundtruth import DETECTION, attribute_types
from batchcl.sources.base import parse_s3_uri
from batchcl.sources.files import copy_object
from batchcl.workflow.local import DatasetEntry, LocalDataset, Skipped, check_file, split_entries
from batchcl.workflow.manifest import manifest_line
from batchcl.workflow.upload import S3Folder, Uploaded, put_object, upload_images

__all__ = ["Added", "Created", "add_local", "check_labels", "check_manifest", "create_from_local", "refuse_skipped"]

MAX_LABELS: Final = 250
"""Labels per model (Custom Labels guide, "Guidelines and quotas")."""

_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """Datasets created from local images, and the `s3://` URIs of their manifests."""

    datasets: tuple[Dataset, ...]
    manifests: tuple[str, ...]
    uploaded: Uploaded
    skipped: tuple[Skipped, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """A dataset after local images were added; `entries` is their number."""

    dataset: Dataset
    entries: int
    uploaded: Uploaded
    skipped: tuple[Skipped, ...]
    remarks: tuple[str, ...] = ()


def refuse_skipped(local: LocalDataset) -> None:
    """Raise `SourceError` if files would be skipped, with the first five and their reasons."""
    if not local.skipped:
        return
    shown = "; ".join(f"{each.path}: {each.reason}" for each in local.skipped[:_SHOWN])
    more = f"; and {len(local.skipped) - _SHOWN} more" if len(local.skipped) > _SHOWN else ""
    raise SourceError(
        f"{len(local.skipped)} files or lines can't be used: {shown}{more}. Fix or remove them, or skip them with "
        "--skip-invalid.",
        code=ErrorCode.UNUSABLE_IMAGES,
    )


async def check_manifest(s3: Any, manifest: S3Location) -> None:
    """Check a manifest in S3 before a dataset is created from it unchanged.

    A manifest that can't be read with these credentials is not checked: Custom Labels may be able to read it.

    Raises:
        SourceError: Custom Labels can't use some lines, or only in another form.
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
            f"{len(bad)} lines of {manifest} can't be used: {'; '.join(bad[:_SHOWN])}. Correct them, or skip them: "
            "download the manifest and pass the file with --upload-to and --skip-invalid.",
            code=ErrorCode.UNUSABLE_IMAGES,
        )
    if unfinished:
        raise SourceError(
            f"{len(unfinished)} lines of {manifest} can't be used as they are, for example {unfinished[0]}: a "
            "confidence or another required field is missing, or one attribute has several labels. Download the "
            "manifest and pass the file with --upload-to, which converts it.",
            code=ErrorCode.UNUSABLE_IMAGES,
        )


def check_labels(local: LocalDataset) -> None:
    """Raise `SourceError` if there are too few or too many labels to train a model."""
    labels = local.labels("train" if local.divided else None)
    located = any(DETECTION in attribute_types(entry.attributes or {}).values() for entry in local.entries)
    if len(labels) < (1 if located else 2):
        names = ", ".join(labels) or "none"
        raise SourceError(
            f"a model for image-level labels needs at least two labels; the images have: {names}. Add images with "
            "another label.",
            code=ErrorCode.UNSUITABLE_DATASET,
        )
    if len(labels) > MAX_LABELS:
        raise SourceError(
            f"the images have {len(labels)} labels; a model can have at most {MAX_LABELS}. Remove some labels.",
            code=ErrorCode.UNSUITABLE_DATASET,
        )


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
    """Upload images, write manifests next to them, and create one dataset, or a training and a test dataset.

    If the images are already divided (`local.divided`), pass neither `kind` nor `test_share`.

    Args:
        client: an open Rekognition client.
        s3: an open S3 client of the project's region.
        project: to create the datasets in.
        local: the images, as returned by `read_local`.
        to: where to upload the images and the manifests, `train.manifest` and `test.manifest`.
        kind: `train` or `test`, for one dataset of all images.
        test_share: for two datasets: share of each label's images for the test dataset, between 0 and 1.
        created: when the images were labelled; used for lines without a creation date.
        tags: of the datasets.
        timeout_s: of the creation of each dataset.
        on_progress: receives the progress of the upload.
        on_state: receives the dataset after each change of its status.

    Raises:
        UsageError: neither or both of `kind` and `test_share` are given, or one of them for divided images.
        BatchclError: as raised by `upload_images` and `create_dataset`.
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
    """Upload images and add them to a dataset. Entries with the same URI are replaced.

    Args:
        client: an open Rekognition client.
        s3: an open S3 client of the dataset's region.
        dataset: to add the images to.
        local: the images, as returned by `read_local`.
        to: where to upload them; None only for a manifest whose images are all in S3.
        created: when the images were labelled; used for lines without a creation date.
        timeout_s: of each update of the dataset.
        on_progress: receives the progress of the upload.
        on_batch: receives the number of entries added so far.

    Raises:
        UsageError: there are files to upload and `to` is None, or the images are divided.
        BatchclError: as raised by `upload_images` and `update_entries`.
    """
    images = _images(local.entries)
    if to is None and images:
        raise UsageError(f"{len(images)} images are local files. Upload them with --upload-to s3://bucket/prefix.")
    if local.divided:
        raise UsageError(
            "the images are divided into train and test. Add each of the two folders to its dataset of "
            f"{dataset.project}.",
            code=ErrorCode.UNSUITABLE_DATASET,
        )
    if to is not None:
        _check_buckets(local, to)
    uploaded = Uploaded(0, 0) if to is None else await upload_images(s3, to, images, on_progress=on_progress)
    lines = _lines(local.entries, to, created)
    if lines:
        updated = await update_entries(client, dataset, lines, timeout_s=timeout_s, on_batch=on_batch)
    else:
        updated = await describe_dataset(client, dataset)
    return Added(
        dataset=updated,
        entries=len(lines),
        uploaded=uploaded,
        skipped=local.skipped,
        remarks=tuple(local.remarks()),
    )


def _check_buckets(local: LocalDataset, to: S3Folder) -> None:
    """Raise `SourceError` if images would be uploaded to another bucket than that of the manifest's images in S3."""
    others = {parse_s3_uri(entry.uri)[0] for entry in local.entries if entry.uri is not None} - {to.bucket}
    if others and _images(local.entries):
        raise SourceError(
            f"a dataset can only have images of one bucket: images of the manifest are in {', '.join(sorted(others))}, "
            f"and local ones would be uploaded to {to.bucket}. Upload them to the same bucket.",
            code=ErrorCode.UNSUITABLE_DATASET,
        )


def _parts(local: LocalDataset, *, kind: str | None, test_share: float | None) -> dict[str, tuple[DatasetEntry, ...]]:
    entries = local.entries
    if local.divided:
        if kind is not None or test_share is not None:
            raise UsageError(
                "the images are already divided into train and test. Name only the project, without --test-share, or "
                "pass one of the two folders.",
                code=ErrorCode.CONFLICTING_OPTIONS,
            )
        return {each: tuple(entry for entry in entries if entry.kind == each) for each in ("train", "test")}
    if (kind is None) == (test_share is None):
        raise UsageError("name one dataset (PROJECT/train or PROJECT/test), or pass --test-share for both.")
    if kind is not None:
        return {kind: entries}
    assert test_share is not None
    if not 0 < test_share < 1:
        raise UsageError(f"--test-share {test_share:g} is out of range: it must be between 0 and 1, such as 0.2.")
    train, test = split_entries(entries, test_share)
    if not test:
        raise SourceError(
            "the images can't be split: no label has two different images. Add images.",
            code=ErrorCode.UNSUITABLE_DATASET,
        )
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
