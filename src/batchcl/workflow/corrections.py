"""Compares a file of corrected labels with a dataset: which entries are new, changed or unchanged.

The file is a manifest, or comes from Label Studio, CVAT or COCO. Its names of images are compared with the dataset's
URIs first, by `annotations.references`; an image that the dataset does not have is an S3 object, or a file to upload.
Only files below one folder are uploaded, because the names are not trusted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import anyio.to_thread
import orjson

from batchcl.annotations import AnnotatedImage, BadEntry, annotation_format, match_references, read_annotations
from batchcl.annotations.references import is_relative, resolve_references
from batchcl.arns import DatasetArn
from batchcl.aws.datasets import dataset_entries
from batchcl.errors import ErrorCode, SourceError, UsageError
from batchcl.groundtruth import GroundTruth, TruthBox, detection_attribute, parse_line
from batchcl.images import SkipReason
from batchcl.sources.base import parse_s3_uri
from batchcl.workflow.local import DatasetEntry, LocalDataset, Skipped, local_image, read_local
from batchcl.workflow.manifest import MAX_LINES, check_line
from batchcl.workflow.upload import S3Folder

__all__ = ["Change", "Corrections", "read_corrections"]

_BOXES: Final = "bounding-box"
_SAME_PIXELS: Final = 1.0
"""Boxes whose sides differ by at most this are equal: tools round to percents or hundredths of a pixel."""


@dataclass(frozen=True, slots=True)
class Change:
    """An entry to add or replace, with its labels in the dataset before; None for a new one."""

    kind: Literal["new", "changed"]
    image: str
    before: tuple[str, ...] | None
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Corrections:
    """The difference between a file of labels and a dataset.

    Attributes:
        local: the new and changed entries, for `add_local`, and what can't be used.
        changes: one for each of these entries.
        unchanged: number of images whose labels and boxes are those of the dataset.
        unlabelled: number of images that nobody has labelled, or that have no label and are not in the dataset.
    """

    local: LocalDataset
    changes: tuple[Change, ...]
    unchanged: int
    unlabelled: int

    def count(self, kind: Literal["new", "changed"]) -> int:
        """Number of changes of this kind."""
        return sum(change.kind == kind for change in self.changes)


async def read_corrections(
    client: Any, dataset: DatasetArn, path: str | os.PathLike[str], *, relative_to: str | None, to: S3Folder | None
) -> Corrections:
    """Compare a file with a dataset. Nothing is uploaded or changed.

    An image without labels that the dataset has with labels becomes an entry without labels; other images without
    labels are ignored.

    Args:
        client: an open Rekognition client.
        dataset: to compare with; all of its entries are read, 100 a request.
        path: a manifest, or a file of Label Studio, CVAT or COCO.
        relative_to: directory or `s3://bucket/prefix` that the names of images are relative to; by default the file's
            directory.
        to: where local files would be uploaded; None if there are none.

    Raises:
        SourceError: the file can't be read, has no image that can be used, or names images of another bucket than the
            dataset's; or a name fits several images.
        UsageError: `path` is a directory, or `relative_to` does not apply.
        RefusedError: the dataset can't be read.
    """
    existing: dict[str, GroundTruth | None] = {}
    async for line in dataset_entries(client, dataset):
        uri = str(orjson.loads(line).get("source-ref", ""))
        try:
            existing[uri] = parse_line(line)
        except SourceError:
            existing[uri] = None
    return await anyio.to_thread.run_sync(_compare, Path(path), existing, relative_to, to, dataset.name)


def _compare(
    path: Path, existing: Mapping[str, GroundTruth | None], relative_to: str | None, to: S3Folder | None, dataset: str
) -> Corrections:
    if path.is_dir():
        raise UsageError(f"{path} is a directory; pass it without --from", code=ErrorCode.CONFLICTING_OPTIONS)
    if annotation_format(path, str(path)) is None:
        if relative_to is not None:
            raise UsageError(
                f"--relative-to does not apply to the manifest {path}, whose names are URIs or paths",
                code=ErrorCode.CONFLICTING_OPTIONS,
            )
        local, unlabelled = read_local(path), 0
    else:
        local, unlabelled = _read_foreign(path, existing, relative_to, to)
    changes: list[Change] = []
    entries: list[DatasetEntry] = []
    unchanged = 0
    for entry in local.entries:
        uri = str(entry.uri) if entry.image is None or to is None else to.uri(entry.image.key)
        after = _truth(entry)
        if uri not in existing:
            if not after.labels:
                unlabelled += 1
                continue
            changes.append(Change("new", entry.name, None, after.labels))
        else:
            before = existing[uri]
            if before is not None and _are_equal(before, after):
                unchanged += 1
                continue
            changes.append(Change("changed", uri, () if before is None else before.labels, after.labels))
        entries.append(entry)
    _check_dataset(dataset, existing, entries)
    return Corrections(replace(local, entries=tuple(entries)), tuple(changes), unchanged, unlabelled)


def _truth(entry: DatasetEntry) -> GroundTruth:
    """The labels and boxes of an entry."""
    if entry.attributes is None:
        return GroundTruth(source_ref=entry.name, labels=entry.labels, task="classification")
    return parse_line(orjson.dumps({"source-ref": entry.name, **entry.attributes}))


def _are_equal(before: GroundTruth, after: GroundTruth) -> bool:
    if set(before.labels) != set(after.labels) or len(before.boxes) != len(after.boxes):
        return False
    left = list(before.boxes)
    for box in after.boxes:
        same = next((each for each in left if _is_same_box(each, box)), None)
        if same is None:
            return False
        left.remove(same)
    return True


def _is_same_box(one: TruthBox, other: TruthBox) -> bool:
    sides = zip(_corners(one), _corners(other), strict=True)
    return one.label == other.label and all(abs(a - b) <= _SAME_PIXELS for a, b in sides)


def _corners(box: TruthBox) -> tuple[float, ...]:
    return (box.left, box.top, box.left + box.width, box.top + box.height)


def _check_dataset(dataset: str, existing: Mapping[str, object], entries: Sequence[DatasetEntry]) -> None:
    """Raise `SourceError` if the dataset can't have the new entries beside its own."""
    known = next((parse_s3_uri(uri)[0] for uri in existing if uri.startswith("s3://")), None)
    buckets = {parse_s3_uri(entry.uri)[0] for entry in entries if entry.uri is not None}
    if known is not None and (others := buckets - {known}):
        raise SourceError(
            f"a dataset can only have images of one bucket: those of {dataset} are in {known}, and the file has images "
            f"in {', '.join(sorted(others))}. Copy them to {known}.",
            code=ErrorCode.UNSUITABLE_DATASET,
        )
    new = sum(entry.uri not in existing for entry in entries)
    if len(existing) + new > MAX_LINES:
        raise SourceError(
            f"{dataset} has {len(existing):,} entries, and {new:,} would be added; a dataset can have at most "
            f"{MAX_LINES:,}. Remove some.",
            code=ErrorCode.UNSUITABLE_DATASET,
        )


def _read_foreign(
    path: Path, existing: Mapping[str, object], relative_to: str | None, to: S3Folder | None
) -> tuple[LocalDataset, int]:
    """The entries of an annotation file, and the number of images that nobody has labelled."""
    form = annotation_format(path, str(path))
    assert form is not None
    skipped: list[Skipped] = []
    images: list[AnnotatedImage] = []
    unlabelled = 0
    for found in read_annotations(path, str(path), form):
        if isinstance(found, BadEntry):
            skipped.append(Skipped(f"{path}, {found.location}", "BadEntry", found.reason))
        elif found.truth.bad_labels:
            reasons = "; ".join(each.removeprefix(f"{found.location}: ") for each in found.truth.bad_labels)
            skipped.append(Skipped(f"{path}, {found.location}", "BadLabel", reasons))
        elif found.truth.task is None:
            unlabelled += 1
        else:
            images.append(found)
    folder = relative_to or str(path.absolute().parent)
    entries: list[DatasetEntry] = []
    seen: dict[str, str] = {}
    for image, uri in zip(images, _existing_uris(images, existing, folder, to), strict=True):
        location = f"{path}, {image.location}"
        try:
            entry = _entry(image, uri, folder)
        except _UnusableError as error:
            skipped.append(Skipped(location, error.code, str(error)))
            continue
        if (first := seen.setdefault(entry.name, location)) != location:
            skipped.append(Skipped(location, "Repeated", f"it is about the same image as {first}"))
            continue
        entries.append(entry)
    if not entries and (skipped or not unlabelled):
        why = f": {len(skipped):,} can't be used: {skipped[0].path}: {skipped[0].reason}" if skipped else ""
        raise SourceError(f"{path} has no image that can be used{why}", code=ErrorCode.UNUSABLE_IMAGES)
    return LocalDataset(tuple(entries), tuple(skipped)), unlabelled


def _existing_uris(
    images: Sequence[AnnotatedImage], existing: Mapping[str, object], folder: str, to: S3Folder | None
) -> tuple[str | None, ...]:
    """For each image its URI in the dataset, or None; names are also those of files that were uploaded before."""
    references = [
        (*_uploaded(each.references, to), *each.references) if to is not None else each.references for each in images
    ]
    is_exact = folder.startswith("s3://")
    return match_references(references, set(existing), folder=folder, only_exact=is_exact, by_name=False).uris


def _uploaded(references: Iterable[str], to: S3Folder) -> Iterator[str]:
    return (to.uri(each) for each in references if is_relative(each))


class _UnusableError(Exception):
    """An entry can't be used; `code` is stable."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def _entry(image: AnnotatedImage, uri: str | None, folder: str) -> DatasetEntry:
    """The dataset's entry of an image; `uri` if the dataset has it. Raises `_UnusableError`."""
    truth = image.truth
    attributes: dict[str, Any] | None = None
    if truth.boxes and truth.image_size is not None:
        attributes = detection_attribute(_BOXES, _clipped(truth.boxes, truth.image_size), truth.image_size)
        truth = parse_line(orjson.dumps({"source-ref": truth.source_ref, **attributes}))
    elif not truth.labels:
        attributes = {}
    try:
        check_line(truth, attributes or {})
    except SourceError as error:
        raise _UnusableError("BadLabel", str(error)) from error
    if uri is None:
        uri = next((each for each in image.references if each.startswith("s3://")), None)
    if uri is None and folder.startswith("s3://"):
        uri = resolve_references(image.references[:1], folder)[0]
    if uri is not None and uri.startswith("s3://"):
        return DatasetEntry(image=None, uri=uri, labels=truth.labels, attributes=attributes)
    path = _local_path(image.references, folder)
    found = local_image(path, Path(path).relative_to(os.path.abspath(folder)).as_posix())
    if isinstance(found, SkipReason):
        raise _UnusableError(found.code, f"{path}: {found.message}")
    return DatasetEntry(image=found, uri=None, labels=truth.labels, attributes=attributes)


def _clipped(boxes: Sequence[TruthBox], size: tuple[int, int]) -> list[TruthBox]:
    """The boxes, without the pixel by which rounding may put a side outside of the image."""
    clipped = []
    for box in boxes:
        corners = []
        for corner, side in zip(_corners(box), (*size, *size), strict=True):
            nearest = min(max(corner, 0.0), float(side))
            corners.append(nearest if abs(nearest - corner) <= _SAME_PIXELS else corner)
        left, top, right, bottom = corners
        clipped.append(TruthBox(box.label, left, top, right - left, bottom - top))
    return clipped


def _local_path(references: Sequence[str], folder: str) -> str:
    """The file below `folder` that one of the references names. Raises `_UnusableError`."""
    base = os.path.abspath(folder)
    outside = None
    for reference in references:
        path = os.path.normpath(os.path.join(base, reference))
        if not path.startswith(f"{base.rstrip('/')}/"):
            outside = reference
        elif os.path.isfile(path):
            return path
    if outside is not None:
        raise _UnusableError(
            "OutsideFolder",
            f"the image {outside} is not below {base}; name its folder with --relative-to",
        )
    raise _UnusableError(
        "NoImage",
        f"the image {references[0]} is neither in the dataset nor a file below {base}; name the folder or "
        "s3://bucket/prefix of the images with --relative-to",
    )
